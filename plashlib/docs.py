"""Which commands there are, plash's own and plugins, and their header texts."""

import os
import sys

from plashlib.headers import Header

GROUPS = (
    "Run and build",
    "Build in steps",
    "Import",
    "Export",
    "Images",
    "Remove",
    "Files",
    "Other",
    "Plugins",
)
HEAD = 1 << 14  # so much of a file is searched for its header, in bytes

_headers: "dict[str | None, Header]" = {}  # those read so far, by their files

own = os.path.dirname(os.path.realpath(os.path.abspath(sys.argv[0])))


def commands() -> "dict[str, str]":
    """All commands: a dict of their names, without `plash-`, to the files that run them.

    plash's own come first, then the plugins on PATH; if two share a name, the one that
    would run.
    """
    found: dict[str, str] = {}
    for directory in [own, *os.environ.get("PATH", "").split(":")]:
        try:
            names = sorted(os.listdir(directory or "."))
        except OSError:
            continue
        for name in names:
            file = os.path.join(directory, name)
            if name.startswith("plash-") and os.access(file, os.X_OK) and os.path.isfile(file):
                found.setdefault(name[len("plash-") :], file)
    return found


def find(name: str) -> "str | None":
    """The file that runs a command: plash's own, else a plugin on PATH; None if there is none."""
    for directory in own, *os.environ.get("PATH", "").split(":"):
        file = os.path.join(directory, "plash-" + name)
        if os.access(file, os.X_OK) and os.path.isfile(file):
            return file
    return None


def header(file: "str | None") -> Header:
    """The Header of a command's file; an empty one if it has none, or is None."""
    if file not in _headers:
        _headers[file] = Header(_text(file) if file else "")
    return _headers[file]


def _text(file: str) -> str:
    """The text at the top of a script: a docstring, or its first block of # comments."""
    try:
        with open(file, encoding="utf-8", errors="replace") as opened:
            head = opened.read(HEAD)
    except OSError:
        return ""
    if not head.startswith("#!"):
        return ""
    lines = head.splitlines()[1:]
    for index, line in enumerate(lines):
        quote = line.lstrip("rR")[:3]
        if quote in ('"""', "'''"):
            return "\n".join(lines[index:]).split(quote)[1].strip()
        if line.startswith("#"):
            block = []
            for line in lines[index:]:
                if not line.startswith("#"):
                    break
                block.append(line[1:].removeprefix(" "))
            if "".join(block).strip(" -*coding:utf8"):
                return "\n".join(block).strip()
        elif line.strip():
            break
    return ""


def group(command_header: Header, file: str) -> str:
    """The group that `plash help` lists a command in: the one it states, or Plugins."""
    is_own = os.path.realpath(os.path.dirname(file)) == own
    return command_header.group or ("Other" if is_own else "Plugins")
