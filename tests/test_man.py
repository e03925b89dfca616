"""The man pages, which are made of the text at the top of each command."""

import re
import subprocess
import sys

import pytest
from requirements import need_program
from world import COMMANDS, LIBEXEC, ROOT

WIDE = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "MANWIDTH": "300"}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The directory with all pages, as MANPATH takes it."""
    place = tmp_path_factory.mktemp("man")
    subprocess.run([sys.executable, ROOT / "man/generate.py", place / "man1"], check=True)
    return place


def shown(pages, *words):
    """What man(1) shows of a page, in long lines without bold."""
    need_program("man")
    done = subprocess.run(
        ["man", "--warnings", *words],
        env={**WIDE, "MANPATH": str(pages)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return re.sub(".\b", "", done.stdout)


def text(command):
    """The text at the top of a command, as plash itself prints it."""
    return subprocess.run(
        [LIBEXEC / f"plash-{command}", "--help"], check=True, capture_output=True, text=True
    ).stdout


def test_each_command_has_a_page(pages):
    assert sorted(page.name for page in (pages / "man1").iterdir()) == sorted(
        ["plash.1", *(f"plash-{command}.1" for command in COMMANDS)]
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_says_all_that_the_text_says(pages, command):
    page = shown(pages, f"plash-{command}")
    summary, fields, *paragraphs = text(command).rstrip().split("\n\n")
    usage, _, prints = fields.partition("\nPrints: ")
    # A pattern that takes two lines stands in one.
    usage = re.sub(r"\n +(?=[^ p])", " ", usage)
    assert f"\n       plash-{command} - {summary.rstrip('.')}\n" in page
    for line in usage.removeprefix("Usage:").splitlines():
        assert f"\n       {line.strip()}\n" in page
    prints = prints.splitlines()[0]
    printed = "the id of the new image" if prints == "new ID" else prints
    assert f"\nSTDOUT\n       Prints {printed}.\n" in page
    bare = "".join(page.split())
    for paragraph in paragraphs:
        said = paragraph.replace("`", "")
        if said.startswith("Options:"):
            said = said.removeprefix("Options:")
        # The items of a list have another bullet in man.
        for part in re.split(r"^- ", said, flags=re.MULTILINE):
            assert "".join(part.split()) in bare


def test_code_is_bold_and_leads_to_other_pages(pages):
    page = (pages / "man1/plash-do.1").read_text()
    assert r"\fBplash recall COMMAND ARG ...\fP" in page and "`" not in page
    assert "\n       plash(1), plash-cache(1), plash-check(1), plash-recall(1)\n" in shown(
        pages, "plash-do"
    )


def test_markup_in_a_text_is_text(pages):
    assert (
        "Runs `plash COMMAND ID ARG ...`" in text("recall")
        and "pull:*" in text("do")
        and "PLASH_*" in text("run")
    )
    assert "but pull:*, build and config run" in shown(pages, "plash-do")
    assert "proxies, PLASH_*, the sockets" in shown(pages, "plash-run")


def test_the_page_of_plash_lists_commands_variables_and_statuses(pages):
    page = shown(pages, "plash")
    for command in COMMANDS:
        assert f"plash-{command}(1)" in page
    for variable in "PLASH_DATA", "PLASH_EXPORT", "PLASH_NO_SYNC=1":
        assert f"\n       {variable}" in page
    assert re.search(r"^       2 +The arguments do not fit", page, re.MULTILINE)
    assert "\n          id=$(plash build \"$id\" 'apk add git')\n" in page


def test_man_finds_a_page_by_the_words_of_the_command(pages):
    assert shown(pages, "plash", "run:persist") == shown(pages, "plash-run:persist")


def test_no_checker_of_pages_has_a_complaint(pages):
    need_program("mandoc", "groff")
    files = sorted((pages / "man1").iterdir())
    for checker in ["mandoc", "-Tlint", "-Wwarning"], ["groff", "-man", "-Tutf8", "-ww", "-z"]:
        done = subprocess.run([*checker, *files], capture_output=True, text=True)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
