"""The commands, and the text at the top of each, of which all documentation is made."""

import os
import sys

GROUPS = "Import Image", "Export Image", "Image Commands", "Other Commands", "Plugins"
HEAD = 1 << 14  # so much of a file is searched for its text, in bytes

own = os.path.dirname(os.path.realpath(os.path.abspath(sys.argv[0])))


def commands():
    """All commands: a dict of their names, without `plash-`, to the files that run them.

    plash's own come first, then the plugins on PATH; of two of one name, the one that runs.
    """
    found = {}
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


def text(file):
    """The text at the top of a command's file: a docstring, or its first block of # comments."""
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


def summary(doc):
    """The first line of a command's text, without its full stop."""
    return doc.partition("\n")[0].rstrip(".")


def usage(doc):
    """The lines of a command's usage, without the word `Usage:`."""
    found: list[str] = []
    for line in doc.partition("Usage:")[2].partition("\n\n")[0].splitlines():
        line = line.strip()
        if line.startswith("plash"):
            found.append(line)
        elif line and found:
            found[-1] += " " + line  # one pattern that takes two lines
    return found


def find(name):
    """The file that runs a command: plash's own, else a plugin on PATH; None where there is none."""
    for directory in own, *os.environ.get("PATH", "").split(":"):
        file = os.path.join(directory, "plash-" + name)
        if os.access(file, os.X_OK) and os.path.isfile(file):
            return file
    return None


def _words(doc):
    """The words of a command's first line of usage, brackets and dots apart."""
    first = (usage(doc) or [""])[0]
    for mark in "[", "]", "...":
        first = first.replace(mark, f" {mark} ")
    return first.split()[2:]


def takes_image(doc):
    """Whether the command's first argument is the ID of an image."""
    depth = 0
    for word in _words(doc):
        depth += (word == "[") - (word == "]")
        if not depth and word not in ("]", "..."):
            return word == "ID"
    return False


def options(doc):
    """The options in a command's usage: a dict of each to the name of its value, None for one without."""
    found, words = {}, _words(doc)
    for word, following in zip(words, words[1:] + ["]"]):
        if word.startswith("-"):
            option, equals, value = word.partition("=")
            found[option] = value if equals else None if following in ("]", "|") else following
    return found


def arguments(doc):
    """The names of a command's arguments, in the order of its usage; the last may stand for many."""
    found, words = [], _words(doc)
    valued = [value for value in options(doc).values() if value]
    for word in words:
        if word in valued:
            valued.remove(word)
        elif word not in ("[", "]", "...", "|") and not word.startswith("-"):
            found.append(word)
    return found


def takes_command(doc):
    """Whether the command's last argument is a command, so that options end at the first argument."""
    return "CMD" in arguments(doc)


def described_options(doc):
    """All options of a command: a dict to pairs of the name of the value, or None, and the description."""
    found = {"--help": (None, "show what the command does")}
    for line in doc.partition("Options:")[2].splitlines():
        names, _, about = line.strip().partition("  ")
        words = names.replace(",", " ").replace("=", " ").split()
        value = next((word for word in words if not word.startswith("-")), None)
        if line.startswith("  -"):
            found.update(
                (name, (value, about.strip().partition(" [default")[0]))
                for name in words
                if name.startswith("-")
            )
    return found


def options_end(doc, arguments):
    """How many of the arguments are options and their values, before the first that is none."""
    valued = {option for option, value in options(doc).items() if value}
    number = 0
    while number < len(arguments) and arguments[number][:1] == "-" and arguments[number] != "-":
        number += 2 if arguments[number] in valued else 1
    return number


def prints_image(name, doc):
    """Whether the command makes an image and prints its id, by its name or by what its text says."""
    return name.startswith("pull:") or "the id of the new image" in " ".join(doc.split())


def group(name, file, doc):
    """The group that a command is listed in; one whose first argument is an ID is of images."""
    if os.path.realpath(os.path.dirname(file)) != own:
        return "Plugins"
    if name.startswith("pull:"):
        return "Import Image"
    if name.startswith("push:"):
        return "Export Image"
    return "Image Commands" if takes_image(doc) else "Other Commands"
