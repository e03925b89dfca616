"""Containerfiles: instructions, stages, and what variables mean in them.

The grammar is that of BuildKit's Dockerfile reference, and the parser e2b-dockerfile-utils,
which follows BuildKit's own. Nothing here knows of images.
"""

import os
import re
import sys

from plashlib import Error

PACKAGE = "e2b-dockerfile-utils"
NAMES = "Containerfile", "Dockerfile"
IGNORE_NAMES = ".containerignore", ".dockerignore"
FLAGS = {
    "FROM": {"platform"},
    "RUN": {"mount", "network", "security"},
    "COPY": {"from", "chown", "chmod", "link", "parents", "exclude"},
    "ADD": {"chown", "chmod", "link", "checksum", "exclude", "keep-git-dir", "unpack"},
    "HEALTHCHECK": {"interval", "timeout", "start-period", "start-interval", "retries"},
}
SWITCHES = {"link", "parents", "unpack", "keep-git-dir"}
REPEATED = {"mount", "exclude"}
# Of an instruction's arguments, how many there must be: at least, at most.
COUNTS = {
    "ARG": (1, None),
    "COPY": (2, None),
    "ADD": (2, None),
    "ENV": (3, None),
    "EXPOSE": (1, None),
    "LABEL": (3, None),
    "MAINTAINER": (1, 1),
    "SHELL": (1, None),
    "STOPSIGNAL": (1, 1),
    "USER": (1, 1),
    "VOLUME": (1, None),
    "WORKDIR": (1, 1),
}
# Of durations, in nanoseconds.
UNITS = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000}
UNITS.update(s=10**9, m=60 * 10**9, h=3600 * 10**9)


def library():
    """The module that parses, which is loaded when it is needed. Raises Error if it is missing."""
    try:
        import e2b_dockerfile_utils
    except ImportError:
        if sys.flags.no_site and "site" not in sys.modules:
            # Installed commands start without site, for speed; it may be in its directories.
            import site

            site.main()
            return library()
        raise Error(
            f"the Python package {PACKAGE} is not installed (needed to read Containerfiles;"
            f" pip install {PACKAGE})"
        ) from None
    return e2b_dockerfile_utils


class Located(Error):
    """A failure in an instruction: its text begins with the file and the line."""


class Instruction:
    """One instruction: its name, text, flags, arguments, heredocs, and where it stands.

    flags    a dict of names to values; of those that repeat, to lists
    is_json  whether the arguments were a JSON array
    """

    def __init__(self, parsed, file: str) -> None:
        self.name, self.args, self.is_json = parsed.name, parsed.args, parsed.json
        self.text = " ".join(parsed.original.split())
        self.original = parsed.original
        self.heredocs = parsed.heredocs
        self.file, self.line = file, parsed.start_line
        self.flags = self._parse_flags(parsed.flags)
        least, most = COUNTS.get(self.name, (0, None))
        if len(self.args) < least or most is not None and len(self.args) > most:
            raise self.error("wrong number of arguments")

    def error(self, why: "str | Exception") -> Located:
        """The Error that says why this instruction fails, and where it stands."""
        text = self.text if len(self.text) < 70 else self.text[:66] + " ..."
        failed = Located(f"{self.file}:{self.line}: {text}: {why}")
        failed.status = getattr(why, "status", 1)
        return failed

    def _parse_flags(self, given):
        flags: dict[str, object] = {name: [] for name in REPEATED & FLAGS.get(self.name, set())}
        for flag in given:
            name, equals, value = flag[2:].partition("=")
            if name not in FLAGS.get(self.name, ()):
                raise self.error(f"there is no flag --{name}")
            if name in SWITCHES:
                if value not in ("", "true", "false"):
                    raise self.error(f"--{name} is true or false")
                flags[name] = value != "false"
            elif not equals:
                raise self.error(f"--{name} needs a value")
            elif name in REPEATED:
                flags[name].append(value)  # type: ignore[attr-defined]
            elif name in flags:
                raise self.error(f"--{name} is given twice")
            else:
                flags[name] = value
        for name in "network", "security":
            if flags.pop(name, "default") not in (
                "default",
                "host" if name == "network" else "sandbox",
            ):
                raise self.error(f"--{name} can only be the default")
        return flags

    def rest(self) -> str:
        """The text behind the instruction's name."""
        return self.original.strip().partition(" ")[2].strip()


class Stage:
    """A FROM and the instructions that follow it."""

    def __init__(self, start: Instruction, index: int, name: "str | None") -> None:
        self.start, self.index, self.name = start, index, name
        self.instructions: list[Instruction] = []


class File:
    """A Containerfile: the ARGs before the first FROM, and the stages."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.escape, instructions, self.warnings = parse(text, file)
        self.arguments: list[Instruction] = []
        self.stages: list[Stage] = []
        for each in instructions:
            if each.name == "FROM":
                self.stages.append(self._stage(each))
            elif self.stages:
                self.stages[-1].instructions.append(each)
            elif each.name == "ARG":
                self.arguments.append(each)
            else:
                raise each.error("only ARG can stand before the first FROM")
        if not self.stages:
            raise Error(f"{file} has no FROM")

    def _stage(self, start):
        args, name = start.args, None
        if len(args) == 3 and args[1].lower() == "as":
            name = args[2].lower()
            if not re.fullmatch(r"[a-z][a-z0-9-_.]*", name):
                raise start.error(f"not a name for a stage: {args[2]!r}")
        elif len(args) != 1:
            raise start.error("expected FROM IMAGE or FROM IMAGE AS NAME")
        return Stage(start, len(self.stages), name)

    def find(self, text: str, before: "int | None" = None) -> "Stage | None":
        """The Stage of that name, or of that number; only one before the stage with that index."""
        found = [each for each in self.stages[:before] if each.name == text.lower()]
        if found:
            return found[-1]
        if text.isascii() and text.isdigit() and int(text) < len(self.stages[:before]):
            return self.stages[int(text)]
        return None


def parse(text: str, file: str) -> "tuple[str, list[Instruction], list[str]]":
    """The escape character, the Instructions, and lines of warnings. Raises Error."""
    parser = library()
    try:
        parsed = parser.parse_dockerfile_ast(text)
    except parser.DockerfileSyntaxError as error:
        why = str(error).partition(": ")[2]
        raise Error(f"{file}:{error.line}: {why}") from None
    instructions = [Instruction(each, file) for each in parsed.instructions]
    warnings = [f"{file}:{each.line}: {each.message}" for each in parsed.warnings]
    return parsed.escape_token, instructions, warnings


class Words:
    """Expands variables in words, and removes quotes: escape is the file's escape character."""

    def __init__(self, escape: str) -> None:
        self.escape = escape

    def _lexer(self, variables):
        return library().ShellLex(self.escape, env=variables, skip_unset_env=False)

    def one(self, word: str, variables: "dict[str, str]") -> str:
        """The word that is meant. Raises Error."""
        if not any(each in word for each in ("$", "'", '"', self.escape)):
            return word
        return self._call(self._lexer(variables).process_word, word)

    def many(self, word: str, variables: "dict[str, str]") -> "list[str]":
        """The words that are meant. Raises Error."""
        return self._call(self._lexer(variables).process_words, word)

    def heredoc(self, heredoc, variables: "dict[str, str]") -> str:
        """The content of a heredoc as a file has it. Raises Error."""
        content = content_of(heredoc)
        if not heredoc.expand:
            return content
        lexer = library().ShellLex(
            "\\", skip_process_quotes=True, env=variables, skip_unset_env=False
        )
        return self._call(lexer.process_word, content)

    def _call(self, function, word):
        try:
            return function(word)
        except ValueError as error:
            raise Error(str(error).rpartition(": ")[2] or str(error)) from None


def content_of(heredoc) -> str:
    """The lines of a heredoc, without leading tabs for <<-."""
    return (
        library().syntax.chomp_heredoc_content(heredoc.content)
        if heredoc.chomp
        else heredoc.content
    )


def duration(text: str) -> int:
    """A duration such as 1m30s, in nanoseconds. Raises Error."""
    if text == "0":
        return 0
    parts = re.findall(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)", text)
    if not parts or "".join(map("".join, parts)) != text:
        raise Error(f"not a duration: {text!r}")
    return sum(round(float(number) * UNITS[unit]) for number, unit in parts)


def ports(text: str) -> "list[str]":
    """The ports of a word of EXPOSE: a number or a range, with a protocol. Raises Error."""
    numbers, slash, protocol = text.partition("/")
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", numbers)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
    if not first <= last < 65536:
        raise Error(f"not a port: {text!r}")
    return [f"{number}{slash}{protocol}" for number in range(first, last + 1)]


def find_file(given: "str | None", context: str) -> str:
    """The path of the Containerfile: the one given, else the one in the context. Raises Error."""
    if given:
        return given
    for name in NAMES:
        if os.path.isfile(f"{context}/{name}"):
            return f"{context}/{name}"
    raise Error(f"{context} has no Containerfile and no Dockerfile (-f names another file)")
