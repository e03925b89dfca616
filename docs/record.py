#!/usr/bin/env python3
"""Draw docs/session.svg: a terminal in which bash really runs the commands below, with their real output and pace.

Usage: python3 docs/record.py

The session has a home and a store of its own, which are removed afterwards.
"""

import os
import pty
import re
import subprocess
import tempfile
import time
from html import escape

HERE = os.path.dirname(os.path.abspath(__file__))
COMMANDS = r"""
id=$(plash pull:host)
id=$(plash build $id 'echo "hello from a layer" >/greeting')
plash run $id cat /greeting
plash map greeter $id
echo 'as in any pipe' | plash run $id tr a-z A-Z
plash run $id sh -c 'exit 42'; echo $?
plash run $id sleep 100 & sleep 0.3
plash tree --size
kill $! && time plash run $id true
plash push:tarfile $id greeter.tar.gz && ls -sh greeter.tar.gz
""".strip().splitlines()
MARK = "\x1b]0;prompt\x07"
ROWS, COLUMNS, LINE, LEFT, TOP = 30, 86, 19, 16, 26
TYPING, LONGEST, END = 0.035, 1.2, 4.0  # seconds: for a character, for a command at most, of rest


def session(place):
    """Run the commands in a bash on a terminal; yields each with the seconds that it took and what it printed."""
    env = {
        "PATH": f"{os.path.dirname(HERE)}/bin:{os.environ['PATH']}",
        "HOME": place,
        "TERM": "xterm",
        "LANG": "C.UTF-8",
        "PS1": MARK,
        "PS2": "",
        "COLUMNS": str(COLUMNS),
        "TIMEFORMAT": "%R seconds",
    }
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(place)
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "--noediting"], env)

    def until_prompt():
        read = b""
        while not read.endswith(MARK.encode()):
            read += os.read(terminal, 4096)
        return read.decode().removesuffix(MARK)

    until_prompt()
    subprocess.run(
        ["stty", "-echo", "cols", str(COLUMNS), "rows", str(ROWS)], stdin=terminal, check=True
    )
    for command in COMMANDS:
        begun = time.monotonic()
        os.write(terminal, command.encode() + b"\n")
        output = until_prompt()
        yield (
            command,
            time.monotonic() - begun,
            re.sub(r"[^\n]*\r\x1b\[K|\x1b\[[0-9;?]*[a-zA-Z]|\r", "", output),
        )
    os.write(terminal, b"exit\n")
    os.waitpid(pid, 0)


def draw(steps):
    """The SVG of the steps: each line appears at its time, and then all begins again."""
    shown, now = [], 0.5
    for command, took, output in steps:
        shown.append((now, "c", "$ " + command))
        now += TYPING * len(command) + min(took, LONGEST)
        shown += [(now, "o", line) for line in output.splitlines()]
        now += 0.4
    end = now + END
    width, height = LEFT * 2 + int(COLUMNS * 8.2), TOP + LINE * len(shown) + 30
    css = ["text{font:14px ui-monospace,monospace;white-space:pre}.c{fill:#fff}.o{fill:#9fd3a8}"]
    body = []
    for number, (at, kind, line) in enumerate(shown):
        css.append(
            f"@keyframes k{number}{{0%,{100 * at / end:.2f}%{{opacity:0}}{100 * at / end + 0.01:.2f}%,100%{{opacity:1}}}}"
            f"#l{number}{{animation:k{number} {end:.1f}s infinite}}"
        )
        body.append(
            f'<text class="{kind}" id="l{number}" x="{LEFT}" y="{TOP + LINE * (number + 1)}">{escape(line)}</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xml:space="preserve" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"<title>A session with plash</title>\n<style>{chr(10).join(css)}</style>\n"
        f'<rect width="{width}" height="{height}" rx="8" fill="#1c2128"/>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def main():
    with tempfile.TemporaryDirectory() as place:
        drawn = draw(session(place))
        subprocess.run(
            [f"{HERE}/../bin/plash", "purge", "--yes"],
            env={**os.environ, "HOME": place, "PLASH_DATA": ""},
            check=True,
        )
    with open(f"{HERE}/session.svg", "w", encoding="utf-8") as file:
        file.write(drawn)


if __name__ == "__main__":
    main()
