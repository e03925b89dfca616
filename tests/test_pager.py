"""plash help on a terminal."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time

import pytest
from requirements import need_program
from world import LIBEXEC

ANSWER = 20  # seconds


class Terminal:
    """A program on a terminal of so many lines; shown grows by what it prints."""

    def __init__(self, plash, words, lines, **env):
        self.end, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", lines, 100, 0, 0))
        base = {
            name: value
            for name, value in plash.env.items()
            if name not in ("PAGER", "LESS", "MORE")
        }
        self.process = subprocess.Popen(
            words,
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
            env={**base, "TERM": "xterm", **env},
        )
        os.close(inside)
        self.shown = ""

    def read(self, until=None):
        """Read until a text is shown, else until the program ends; False where it does not."""
        end = time.monotonic() + ANSWER
        while until is None or until not in self.shown:
            if time.monotonic() > end or not select.select([self.end], [], [], ANSWER)[0]:
                return False
            try:
                self.shown += os.read(self.end, 1 << 16).decode().replace("\r\n", "\n")
            except OSError:
                return until is None  # the program closed its end
        return True

    def close(self):
        self.process.kill()
        os.close(self.end)
        return self.process.wait()


@pytest.fixture
def terminal(plash):
    opened = []

    def start(words, lines, **env):
        opened.append(Terminal(plash, [LIBEXEC / "plash-help", *words], lines, **env))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def test_a_short_text_just_prints(plash, terminal):
    need_program("less")
    shown = terminal(["version"], 50)
    assert shown.read()
    assert shown.process.wait(ANSWER) == 0
    for line in plash("help", "version").out.splitlines():
        assert line in shown.shown


@pytest.mark.parametrize("words", [[], ["run"]])
def test_a_long_text_waits_for_the_reader(plash, terminal, words):
    need_program("less")
    shown = terminal(words, 8)
    first, last = (
        plash("help", *words).out.splitlines()[0],
        plash("help", *words).out.splitlines()[-1],
    )
    assert shown.read(first) and shown.read("\n:")
    assert last not in shown.shown and shown.process.poll() is None
    os.write(shown.end, b"G")
    assert shown.read(last[:90])
    os.write(shown.end, b"q")
    assert shown.read()
    assert shown.process.wait(ANSWER) == 0


def test_the_reader_chooses_the_pager(plash, terminal):
    shown = terminal(["version"], 8, PAGER="sed 's/^/| /'; exit 3")
    assert shown.read()
    assert shown.shown == "".join(
        f"| {line}\n" for line in plash("help", "version").out.splitlines()
    )
    assert shown.process.wait(ANSWER) == 3


@pytest.mark.parametrize("env", [{"PAGER": ""}, {"TERM": "dumb"}])
def test_no_pager(plash, terminal, env):
    shown = terminal(["run"], 8, **env)
    assert shown.read()
    assert shown.shown == plash("help", "run").out


def test_into_a_pipe_no_pager_comes_between(plash):
    assert plash("help", env={"PAGER": "false"}).ok().out.startswith("Build and run")
