"""Completion in real shells on a terminal: what TAB makes of a line, and the program behind it."""

import os
import pty
import re
import select
import shutil
import time

import pytest
from requirements import need_program
from world import ROOT

SHELLS = {
    "bash": ["bash", "--norc", "--noprofile"],
    "zsh": ["zsh", "-f"],
    "fish": ["fish", "--no-config"],
}
SETUP = {
    "bash": ". {root}/completions/plash.bash",
    "zsh": "fpath=({root}/completions $fpath); autoload -U compinit; compinit -u -d $HOME/.zcompdump; bindkey -e; setopt no_list_ambiguous",
    "fish": "source {root}/completions/plash.fish",
}


class Terminal:
    """A shell on a terminal, in a test's world."""

    def __init__(self, plash, shell, extra=""):
        self.shell = shell
        words = SHELLS[shell]
        need_program(words[0])
        env = {
            **plash.env,
            "PATH": f"{extra}{ROOT}/bin:{ROOT}/libexec:{plash.env['PATH']}",
            "TERM": "xterm",
            "LANG": "C.UTF-8",
            "PS1": "ready> ",
            "COLUMNS": "200",
        }
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.chdir(plash.place)
            os.execvpe(words[0], words, env)
        self.read = ""
        self.type(SETUP[shell].format(root=ROOT) + "; echo set''up\n")
        self.wait_for("setup")

    def type(self, text):
        os.write(self.fd, text.encode())

    def wait_for(self, pattern, seconds=60):
        """Read until what came matches; returns the match."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = re.search(pattern, self.read)
            if found:
                self.read = self.read[found.end() :]
                return found
            if select.select([self.fd], [], [], 0.2)[0]:
                new = os.read(self.fd, 65536).decode(errors="replace")
                if "\x1b[c" in new or "\x1b[0c" in new:
                    self.type("\x1b[?62;c")  # fish asks what terminal this is
                self.read += re.sub(
                    r"\x1b\[[0-9;?<>=]*[a-zA-Z]|\x1b[()=>][B0]?|\x1b\]\d*;[^\x07]*\x07", "", new
                )
        raise AssertionError(f"no {pattern!r} in {self.read!r}")

    def complete(self, line):
        """The words of a line after TAB, as the shell then passes them to a command."""
        self.type(f"{line}\t\x01printf 'got%s|' : \x05; echo end''ed\n")
        text = self.wait_for(r"\r?\n?(got:\|(?:got[^|]*\|)*)ended")[1]
        return re.findall(r"got([^|]*)\|", text)[1:]

    def close(self):
        os.close(self.fd)
        os.waitpid(self.pid, 0)


@pytest.fixture(params=SHELLS)
def terminal(plash, request):
    for parent in "0", "1":
        (plash.place / "layer").mkdir()
        plash("stack", parent, plash.place / "layer").ok()
    for name in "a name", "it's", "plain", "host:port":
        plash("map", name, "2").ok()
    plugins = plash.place / "plugins"
    plugins.mkdir()
    (plugins / "plash-zzplugin").write_text(
        "#!/bin/sh\n# A plugin.\n#\n# Usage: plash zzplugin ID KEY\n"
    )
    (plugins / "plash-zzplugin").chmod(0o755)
    (plash.place / "archive.tar").touch()
    (plash.place / "some dir").mkdir()
    opened = Terminal(plash, request.param, f"{plugins}:")
    yield opened
    opened.close()


def test_completion(terminal):
    for line, words in {
        "plash nodep": ["plash", "nodepath"],
        "plash pull:tar": ["plash", "pull:tarfile"],
        "plash zzp": ["plash", "zzplugin"],
        "plash help shr": ["plash", "help", "shrink"],
        "plash rm --fo": ["plash", "rm", "--force"],
        "plash run --as": ["plash", "run", "--as-me"],
        "plash pull:oci --auth": ["plash", "pull:oci", "--authfile="],
        "plash run -e PLASH_DA": ["plash", "run", "-e", "PLASH_DATA"],
        "plash map pl": ["plash", "map", "plain"],
        "plash map a": ["plash", "map", "a name"],
        "plash map it": ["plash", "map", "it's"],
        "plash map host:": ["plash", "map", "host:port"],
        "plash zzplugin 2 pl": ["plash", "zzplugin", "2", "plain"],
        "plash do zzplugin pl": ["plash", "do", "zzplugin", "plain"],
        "plash cache pull:tarfile arch": ["plash", "cache", "pull:tarfile", "archive.tar"],
        "plash pull:tarfile arch": ["plash", "pull:tarfile", "archive.tar"],
        "plash-run --as": ["plash-run", "--as-me"],
        "plash-map pl": ["plash-map", "plain"],
    }.items():
        assert terminal.complete(line) == words, line
    assert terminal.complete("plash push:dir 2 some")[-1].rstrip("/") == "some dir"


def complete(plash, *words):
    return [line.split("\t") for line in plash("complete", "--", *words).ok().out.splitlines()]


def test_images_are_told_by_their_names_the_newest_first(plash):
    for parent in "0", "1":
        (plash.place / "layer").mkdir()
        plash("stack", parent, plash.place / "layer").ok()
    plash("map", "b", "1").ok()
    plash("map", "a", "1").ok()
    named = [["a", "image 1"], ["b", "image 1"]]
    assert complete(plash, "run", "") == [["2"], ["1", "a b"], *named]
    assert complete(plash, "rm", "1", "a") == named[:1]
    assert complete(plash, "map", "") == [["a", "image 1"], ["b", "image 1"]]


def test_options_are_told_with_what_they_do(plash):
    assert [
        "--force",
        "remove images that processes use; these then miss files",
    ] in complete(plash, "rm", "-")
    # Behind the image, they are the command's own.
    assert complete(plash, "run", "1", "-") == [[":commands"]]


@pytest.mark.parametrize(
    "words, kind",
    [
        (["run", "1", ""], ":commands"),
        (["do", "run", ""], ":commands"),
        (["push:dir", "1", ""], ":directories"),
        (["pull:tarfile", ""], ":files"),
        (["run", "-b", ""], ":files"),
        (["pull:oci", "--authfile="], ":files"),
    ],
)
def test_what_the_shell_completes(plash, words, kind):
    assert complete(plash, *words)[-1] == [kind]


def test_it_makes_no_store_and_says_nothing_of_nonsense(plash):
    for words in (
        ["run", ""],
        ["map", ""],
        ["nonsense", ""],
        ["do"],
        ["do", ""],
        [],
        ["-"],
        ["rm", "--nope", ""],
        ["run", "\udcff"],
    ):
        done = plash("complete", "--", *words).ok()
        assert done.err == ""
    assert not plash.data.exists()


def test_nothing_of_it_needs_bash_completion(plash):
    assert shutil.which("bash")
    plash.run(["bash", "-uec", f". {ROOT}/completions/plash.bash; complete -p plash"]).ok()
