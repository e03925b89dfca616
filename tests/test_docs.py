"""Every example in README.md and docs/ is run as written: blocks of the language `console`, in one shell a document.

A line that begins with `$ ` is a command, one with `> ` continues it, the others are what it prints, where `...`
stands for anything, and ages, sizes and the width of columns may differ. A command for which no output is shown has to succeed. A block after a comment
`<!-- not run: why -->` is left out.
"""

import re
import shutil
import sys

import pytest
from requirements import need_program
from world import COMMANDS, LIBEXEC, ROOT

sys.path.insert(0, str(ROOT))
from plashlib import docs

DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
MARK = "@@{}@@"
# Ages and sizes of images are as they were when the document was written.
VARIES = re.compile(r"\bnow\b|\b\d+ (?:s|min)\b|\b\d+(?:\.\d+)? [kMG]?B\b")


def blocks(text):
    """The console blocks of a document, as pairs of their lines and whether they are run."""
    for found in re.finditer(
        r"(<!-- not run: .*? -->\n)?^( *)```console\n(.*?)^ *```$", text, re.M | re.S
    ):
        indent = len(found[2])
        yield [line[indent:] for line in found[3].splitlines()], not found[1]


def steps(text):
    """The commands of a document, as pairs of the shell code and the output that is shown, None where there is none."""
    found = []
    for lines, is_run in blocks(text):
        for line in lines if is_run else ():
            if line.startswith("$ "):
                found.append([line[2:], []])
            elif line[:2] in ("> ", ">") and not found[-1][1]:
                found[-1][0] += "\n" + line[2:]
            else:
                found[-1][1].append(line)
    return [(code, "\n".join(output) if output else None) for code, output in found]


def same(text):
    """The text with one age and size for all, and one space between columns."""
    return re.sub(r" +", " ", VARIES.sub("~", text))


def differences(plash, text):
    """Run a document; returns what is not as it says."""
    script = "".join(f"{code}\nprintf '\\n{MARK}\\n' $?\n".format("%s") for code, _ in steps(text))
    (plash.place / "script").write_text("exec 2>&1\n" + script)
    place = plash.place / "here"
    place.mkdir()
    env = {"PATH": f"{ROOT}/bin:{plash.env['PATH']}", "LANG": "C.UTF-8", "USER": "me"}
    output = plash.run(
        ["bash", plash.place / "script"], cwd=place, env=env, stdin=open("/dev/null")
    ).out
    shutil.rmtree(place)
    told = []
    pieces = re.split(r"\n@@(\d+)@@\n", output)
    for (code, expected), printed, status in zip(steps(text), pieces[::2], pieces[1::2]):
        pattern = ".*".join(map(re.escape, same(expected or "").split("...")))
        good = (
            status == "0"
            if expected is None
            else re.fullmatch(pattern, same(printed.rstrip("\n")), re.S)
        )
        if not good:
            told.append(f"$ {code}\n{printed}(status {status}; the document says: {expected})")
    assert len(pieces) // 2 == len(steps(text)), output
    return told


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_tells_the_truth(plash, document):
    if document.name == "recipes.md":
        need_program("mksquashfs", "squashfuse", "curl")
    text = document.read_text()
    assert differences(plash, text) == []
    if (plash.data).exists():
        plash("purge", "--yes", "--force").ok()


def script(document, language):
    """The first block of a language that is a whole script, of a document."""
    text = (ROOT / document).read_text()
    return re.search(rf"^```{language}\n(#!.*?)^```$", text, re.M | re.S)[1]


def test_the_command_in_contributing_is_a_command(plash, image, tmp_path):
    libexec = tmp_path / "libexec"
    libexec.mkdir()
    (libexec / "plashlib").symlink_to(ROOT / "plashlib")
    command = libexec / "plash-depth"
    command.write_text(script("CONTRIBUTING.md", "python"))
    command.chmod(0o755)
    built = plash("build", image, "touch /new").id
    env = {"PATH": f"{libexec}:{plash.env['PATH']}"}
    for image_id, depth in (image, "1\n"), (built, "2\n"):
        assert plash("depth", image_id, env=env).ok().out == depth
    assert plash("depth", "99", env=env).error == "plash depth: no image: 99"
    assert plash("depth", env=env).status == 2
    assert "Print how many layers an image has" in plash("help", "depth", env=env).ok().out


def test_most_examples_are_run():
    are_run = [is_run for document in DOCUMENTS for _, is_run in blocks(document.read_text())]
    assert len(are_run) > 10 and are_run.count(True) >= 3 * are_run.count(False)


@pytest.mark.parametrize(
    "wrong", ["$ echo a\nb", "$ false", "$ echo one...two\none ... three", "$ echo a\n> echo b\na"]
)
def test_a_document_that_is_wrong_is_found(plash, wrong):
    assert len(differences(plash, f"```console\n{wrong}\n```\n")) == 1
    assert differences(plash, f"<!-- not run: wrong -->\n```console\n{wrong}\n```\n") == []


def test_a_document_that_is_right(plash):
    assert (
        differences(
            plash, "```console\n$ x=1\n$ echo $x a b\n1 ... b\n$ false; echo a \\\n>  c\na c\n```\n"
        )
        == []
    )


def test_the_readme_lists_the_commands_in_their_groups():
    table = (ROOT / "README.md").read_text().partition("\n## Commands\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([A-Z][^|]*) \| ([^|]*) \|$", table, re.M)
    groups = {}
    for command in COMMANDS:
        groups.setdefault(docs.header(LIBEXEC / f"plash-{command}").group, []).append(command)
    assert [group for group, _ in rows] == [group for group in docs.GROUPS if group in groups]
    assert {group: sorted(listed.split(", ")) for group, listed in rows} == groups
