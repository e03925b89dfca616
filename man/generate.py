#!/usr/bin/env python3
"""Write the man pages: plash(1), and one for each command, from its header text.

Usage: generate.py DIRECTORY

The header becomes reStructuredText, from which docutils' manpage writer makes a page. The
environment variables are those of the table of settings in docs/plugins.md.
"""

import os
import re
import sys
import time
from pathlib import Path

from docutils.core import publish_string
from docutils.writers import manpage

ROOT = Path(__file__).resolve().parent.parent
LIBEXEC = ROOT / "libexec"
sys.path.insert(0, str(ROOT))
sys.dont_write_bytecode = True  # root may install from the clone of a user

from plashlib import __version__, docs

docs.own = str(LIBEXEC)

EXIT_STATUS = [
    ("0", "Done."),
    ("1", "Failed; one line on stderr says what, and why."),
    ("2", "The arguments do not fit the usage."),
    ("126", "The command to run cannot be executed."),
    ("127", "The command to run is not found."),
    ("130", "Interrupted by Ctrl-C."),
]
EXIT_STATUS_OF_OTHERS = (
    "`plash run` and others that run a command in their place end as that command does."
)


DOCUMENTS = (
    "The README, the tutorial and the other documents are in share/doc/plash, below the directory"
    " that has plash's bin: begin with `docs/tutorial.md`."
)


def literal(text):
    """Text in which nothing is markup."""
    return re.sub(r"([^\w\s]|_)", r"\\\1", text)


def prose(text):
    """Text in which `code` in backquotes becomes bold, and nothing else is markup."""
    parts = re.split(r"`([^`]+)`", text)
    return "".join(
        f"\\ **{literal(' '.join(part.split()))}**\\ " if index % 2 else literal(part)
        for index, part in enumerate(parts)
    )


def section(name, content):
    return f"{name}\n{'=' * len(name)}\n\n{content}\n"


def definitions(entries):
    """A list of terms and what they mean."""
    return "".join(f"{literal(term)}\n    {prose(meaning)}\n\n" for term, meaning in entries)


def synopsis(header):
    """The patterns of the usage as they are, but for the command's name in bold."""
    lines = [
        re.match(r"(plash(?: [a-z][\w:]*)?)(.*)", usage.line).groups() for usage in header.usage
    ]
    return "".join(f"| \\ **{literal(name)}**\\ {literal(rest)}\n" for name, rest in lines)


def description(paragraphs):
    """Paragraphs as they are; one that is indented is code, one that begins with - is a list."""
    return "\n".join(_paragraph(each) for each in paragraphs)


def _paragraph(text):
    if text.startswith(" "):
        return "::\n\n" + text + "\n"
    if text.startswith("- "):
        items = text[2:].split("\n- ")
        return "".join(f"- {prose(' '.join(item.split()))}\n" for item in items)
    return prose(text) + "\n"


def options(header):
    """The list of options, the NAMES of their values in italics."""
    entries = ""
    for option in header.options:
        names = [
            literal(name)
            + (f"{'=' * name.startswith('--') or ' '}\\ *{option.value}*" if option.value else "")
            for name in option.names
        ]
        entries += f"{', '.join(names)}\n    {prose(option.description)}\n\n"
    return entries


def stdout(header):
    """What the command prints, in a sentence."""
    what = "the id of the new image" if header.prints_new_image() else header.prints
    return prose(f"Prints {what}.")


def see_also(name, header):
    """The pages of the commands that the text speaks of, and of those in its group."""
    named = {
        word
        for word in re.findall(r"plash\s([a-z]+(?::[a-z]+)?)", header.text)
        if (LIBEXEC / f"plash-{word}").exists()
    }
    own = docs.group(header, LIBEXEC / f"plash-{name}")
    for file in LIBEXEC.glob("plash-*"):
        if docs.group(docs.header(file), file) == own:
            named.add(file.name.partition("-")[2])
    return literal(
        ", ".join(["plash(1)", *(f"plash-{word}(1)" for word in sorted(named - {name}))])
    )


def settings():
    """The table of settings in docs/plugins.md: pairs of a variable and its meaning."""
    text = (ROOT / "docs/plugins.md").read_text(encoding="utf-8")
    # Links are for the reader of that page.
    table = re.sub(r"\[(.*?)\]\(.*?\)", r"docs/\1", text.partition("\n## Settings\n")[2])
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("|")
    ]
    return rows[2:]


def commands():
    """The commands in their groups, with their summaries."""
    groups = {}
    for file in sorted(LIBEXEC.glob("plash-*")):
        header = docs.header(file)
        groups.setdefault(docs.group(header, file), []).append(
            (f"plash-{file.name.partition('-')[2]}(1)", header.summary + ".")
        )
    return "".join(
        f"{literal(group)}\n{'-' * len(group)}\n\n{definitions(groups[group])}"
        for group in docs.GROUPS
        if group in groups
    )


def page(title, file, *sections):
    """The page of a command, in the language of man; sections come behind its options."""
    header = docs.header(file)
    rule = "#" * (len(title + header.summary) * 2)  # longer than either, with all its backslashes
    changed = int(os.environ.get("SOURCE_DATE_EPOCH", os.stat(file).st_mtime))
    source = "\n".join(
        [
            rule,
            literal(title),
            rule,
            "",
            rule.replace("#", "~"),
            prose(header.summary),
            rule.replace("#", "~"),
            "",
            ":Manual section: 1",
            ":Manual group: plash",
            f":Version: plash {__version__}",
            time.strftime(":Date: %Y-%m-%d\n", time.gmtime(changed)),
            section("SYNOPSIS", synopsis(header)),
            *([section("DESCRIPTION", description(header.prose))] if header.prose else []),
            *([section("OPTIONS", options(header))] if header.options else []),
            *([section("STDOUT", stdout(header))] if header.prints else []),
            *sections,
        ]
    )
    made = publish_string(
        source,
        writer=manpage.Writer(),
        settings_overrides={"halt_level": 2, "output_encoding": "unicode"},
    )
    # Some versions of docutils write headings in capitals, others don't; a .sp behind them means
    # nothing, and a terminal has no font C. Names and code are not to be hyphenated or stretched.
    made = re.sub(
        r"^(\.SH .*\n)(\.sp\n)?", lambda heading: heading[1].upper(), made, flags=re.MULTILINE
    )
    made = re.sub(r"^\.ft [CP]\n", "", made, flags=re.MULTILINE)
    return re.sub(r"^(\.TH .*\n)", r"\1.nh\n.ad l\n", made, flags=re.MULTILINE)


def main(directory):
    directory.mkdir(parents=True, exist_ok=True)
    for file in LIBEXEC.glob("plash-*"):
        other = section("SEE ALSO", see_also(file.name.partition("-")[2], docs.header(file)))
        (directory / f"{file.name}.1").write_text(page(file.name, file, other), encoding="utf-8")
    status = definitions(EXIT_STATUS) + prose(EXIT_STATUS_OF_OTHERS)
    (directory / "plash.1").write_text(
        page(
            "plash",
            ROOT / "bin/plash",
            section("COMMANDS", commands()),
            section("ENVIRONMENT", definitions(settings())),
            section("EXIT STATUS", status),
            section("DOCUMENTS", prose(DOCUMENTS)),
        ),
        encoding="utf-8",
    )


if len(sys.argv) != 2:
    sys.exit("usage: generate.py DIRECTORY")
main(Path(sys.argv[1]))
