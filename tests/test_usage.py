"""Command lines: what each header states, how arguments are read, and what stderr and stdout get."""

import ast
import itertools
import os
import subprocess
import sys

import docopt
import pytest
from world import COMMANDS, LIBEXEC, ROOT

sys.path.insert(0, str(ROOT))
from plashlib import cli, docs, headers

HEADERS = {command: docs.header(LIBEXEC / f"plash-{command}") for command in COMMANDS}


def source(command):
    return (LIBEXEC / f"plash-{command}").read_text()


def args_of(monkeypatch, command, *arguments):
    """What a command reads its arguments as."""
    monkeypatch.setattr(sys, "argv", [f"plash-{command}", *arguments])
    return cli.parse(HEADERS[command].text)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_header_states_what_programs_read(command):
    header = HEADERS[command]
    assert header.text == ast.get_docstring(ast.parse(source(command)), clean=False).strip()
    assert header.group in docs.GROUPS and header.prints
    assert all(usage.line.startswith(f"plash {command}") for usage in header.usage)
    in_usage = {e.option for usage in header.usage for e in usage.elements if e.option}
    assert in_usage == set(header.options)
    assert all(option.description for option in header.options)


@pytest.mark.parametrize("file", ["bin/plash", *(f"libexec/plash-{each}" for each in COMMANDS)])
def test_help_fits_in_79_columns(file):
    text = docs.header(ROOT / file).text
    assert text and max(map(len, text.splitlines())) <= 79
    assert len((ROOT / file).read_text().splitlines()[1]) <= 79


def test_the_list_of_commands_fits_in_79_columns(plash):
    assert max(map(len, plash("help").ok().out.splitlines())) <= 79


def test_commands_that_make_images():
    makers = {command for command in COMMANDS if HEADERS[command].prints_new_image()}
    others = {"build", "build:file", "check", "link", "stack"}
    assert makers == others | {each for each in COMMANDS if each.startswith("pull:")}


def test_usages_are_read():
    header = headers.Header(
        "Try.\n\nUsage: plash x [-e VAR]... (A | B) [--all | --size=N]\n"
        "         [C [D ...]]\n       plash x --list\nPrints: new ID\n\nOptions:\n"
        "  -e VAR      one\n              line\n  --all, -a  two\n\nMore.\n\nAnd more."
    )
    assert [usage.line for usage in header.usage] == [
        "plash x [-e VAR]... (A | B) [--all | --size=N] [C [D ...]]",
        "plash x --list",
    ]
    read = [
        (e.name, e.option and e.option.value, e.optional, e.repeated)
        for e in header.usage[0].elements
    ]
    assert read == [
        ("-e", "VAR", True, True),
        ("A", None, False, False),
        ("B", None, False, False),
        ("--all", None, True, False),
        ("--size", "N", True, False),
        ("C", None, True, False),
        ("D", None, True, True),
    ]
    assert header.usage[0].has_alternatives and not header.usage[1].has_alternatives
    described = [(o.names, o.key, o.value, o.description) for o in header.options]
    assert described == [
        (["-e"], "-e", "VAR", "one line"),
        (["--all", "-a"], "--all", None, "two"),
    ]
    assert header.prose == ["More.", "And more."]
    assert (header.prints, header.group, header.supplies) == ("new ID", "", "")


@pytest.mark.parametrize(
    "text", ["", "\n", "Usage:", "x\n\nUsage: ]...[(", "x\n\nUsage: a\nPrints"]
)
def test_no_header_is_too_odd(text):
    header = headers.Header(text)
    assert header.roles(["-x", "--", "y"]) == [headers.OPTION, headers.END, headers.OPERAND]
    assert not header.takes_image() and not header.prints_new_image()


@pytest.mark.parametrize("command", COMMANDS)
def test_arguments_without_options_are_read_as_docopt_reads_them(command):
    header = HEADERS[command]
    if len(header.usage) > 1:
        return  # left to docopt
    for count in range(4):
        for arguments in itertools.product(["1", "-", "a b", ""], repeat=count):
            mine = cli._match_operands(header, list(arguments))
            try:
                theirs = docopt.docopt(
                    cli._docopt_text(header),
                    list(arguments),
                    help=False,
                    options_first=header.stops_at_operand(),
                )
            except docopt.DocoptExit:
                theirs = None
            assert mine == (dict(theirs) if theirs is not None else None), arguments


@pytest.mark.parametrize("command", COMMANDS)
def test_options_end_at_two_hyphens(monkeypatch, command):
    for usage in HEADERS[command].usage:
        operands = [element.name for element in usage.operands()]
        given = [f"--{name}" for name in operands]
        required = [e.name for e in usage.elements if e.option and not e.optional]
        args = args_of(monkeypatch, command, *required, "--", *given)
        for name, value in zip(operands, given):
            assert args[name] in (value, [value])


@pytest.mark.parametrize("option", [[], ["--force"]], ids=["", "option"])
def test_two_hyphens_may_stand_anywhere_among_operands(monkeypatch, option):
    for arguments, ids in (
        (["--", "1", "2"], ["1", "2"]),
        (["1", "--", "2"], ["1", "2"]),
        (["1", "2", "--"], ["1", "2"]),
        (["--", "--", "1"], ["--", "1"]),
        (["--", "--force", "-"], ["--force", "-"]),
    ):
        args = args_of(monkeypatch, "rm", *option, *arguments)
        assert args == {"--recursive": False, "--force": bool(option), "ID": ids}


@pytest.mark.parametrize(
    "arguments, variables, command",
    [
        (["4", "true"], [], ["true"]),
        (["--", "4", "true"], [], ["true"]),
        (["-e", "A=1", "--", "4", "true"], ["A=1"], ["true"]),
        (
            ["-eA=1", "-e", "B=2", "4", "ls", "-l", "--", "-e"],
            ["A=1", "B=2"],
            ["ls", "-l", "--", "-e"],
        ),
        (["4", "--", "x"], [], ["--", "x"]),
        (["4", "-e", "x"], [], ["-e", "x"]),
        (["4", "--help"], [], ["--help"]),
        (["-e", "--help", "4"], ["--help"], []),
        (["-e", "-x", "--", "4", "-x"], ["-x"], ["-x"]),
    ],
)
def test_options_of_run_end_at_the_image(monkeypatch, arguments, variables, command):
    args = args_of(monkeypatch, "run", *arguments)
    assert (args["-e"], args["ID"], args["CMD"]) == (variables, "4", command)


def test_two_hyphens_are_no_id_file_or_name(plash, image):
    assert plash("id", "--", image).ok().out == f"{image}\n"
    assert plash("id", "--").status == 2
    assert plash("run", "--", image, "echo", "-n", "--").ok().out == "--"
    assert plash("run", "-e", "A=1", "--", image, "sh", "-c", "echo $A").ok().out == "1\n"
    assert plash("map", "--", "name", image).ok()
    assert plash("map", "--", "name").ok().out == plash("map", "name", "--").out == f"{image}\n"
    to_stdout = plash("push:tarfile", "--", image, "-").ok().raw
    assert to_stdout == plash("push:tarfile", image, "--").raw
    assert not (plash.place / "--").exists()
    assert plash("recall", "pull:tarfile", "--", "gone").error.endswith(
        "gone: No such file or directory"
    )
    assert plash("--", "id", image).ok().out == f"{image}\n"
    assert (
        plash("id", "--", "--help").error
        == "plash id: no image: '--help' is neither an id nor a name"
    )


def test_recall_puts_the_id_behind_two_hyphens(plash, host_tar):
    script = (
        f"plash-recall pull:tarfile -- {host_tar} && plash-recall run -e A=1 -- echo -- -e"
        " && plash-recall id -- && plash-recall -- push:tarfile -- x.tar && ls x.tar"
    )
    env = {"PATH": f"{LIBEXEC}:{plash.env['PATH']}"}
    done = plash.run(["setsid", "sh", "-c", script], env=env).ok()
    assert done.out == "-- -e\n1\nx.tar\n"


@pytest.mark.parametrize(
    "command, words, note",
    [
        ("rm", ["--nope", "1"], "--nope"),
        ("rm", ["1", "--nope"], "--nope"),
        ("run", ["-x", "1"], "-x"),
        ("run", ["-eA=1", "-x", "1"], "-x"),
        ("push:oci", ["--nope=1", "1", "x"], "--nope=1"),
    ],
)
def test_the_usage_error_names_an_unknown_option(plash, command, words, note):
    assert plash(command, *words).error.endswith(f" (there is no option {note})")


def test_a_usage_error_lists_all_usages(plash):
    error = plash("pull:lxc", "a", "b").error
    assert " or plash pull:lxc " in error and "--list [DISTRO]" in error


def output(plash, command, redirection):
    """The exit status and stderr of a shell command, without PYTHONUNBUFFERED."""
    env = {name: value for name, value in plash.env.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        ["sh", "-c", f"{ROOT}/bin/plash {command} {redirection}"],
        env=env,
        cwd=plash.place,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", ["version", "help", "tree", "nodepath 1", "map", "id --help"])
@pytest.mark.parametrize(
    "redirection, why", [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_a_stdout_that_takes_nothing_is_an_error(plash, command, redirection, why):
    (plash.place / "layer").mkdir()
    plash("stack", "0", plash.place / "layer").ok()
    plash("map", "name", "1").ok()
    assert output(plash, command, redirection) == (
        1,
        f"plash {command.split()[0]}: stdout: {why}\n",
    )


def test_an_archive_from_or_to_what_is_closed(plash):
    (plash.place / "layer").mkdir()
    plash("stack", "0", plash.place / "layer").ok()
    for command, redirection, name in (
        ("push:tarfile", "1 >&-", "stdout"),
        ("push:tarfile", "1 - >&-", "stdout"),
        ("pull:tarfile", "<&-", "stdin"),
    ):
        assert output(plash, command, redirection) == (
            1,
            f"plash {command}: {name}: Bad file descriptor\n",
        )


def test_a_working_directory_that_has_gone(plash):
    code = f"mkdir gone; cd gone; rmdir ../gone; exec {LIBEXEC}/plash-build:file ."
    done = plash.run(["bash", "-c", code])
    assert done.error == "plash build:file: the working directory has gone"


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_stderr_that_takes_nothing_changes_no_status(plash, redirection):
    assert output(plash, "id 1", redirection) == (1, "")


def test_what_is_opened_is_not_taken_for_stdout(plash):
    (plash.place / "layer").mkdir()
    (plash.place / "layer/file").write_text("content\n")
    plash("stack", "0", plash.place / "layer").ok()
    status, error = output(plash, "push:tarfile 1 x.tar", "<&- >&- 2>&-")
    assert (status, error) == (0, "")
    assert plash.run(["tar", "-xOf", "x.tar", "./file"]).ok().out == "content\n"


@pytest.mark.parametrize(
    "text, shown",
    [
        ("a\nb\r\x1b[31m\x7f", r"a\nb\r\x1b[31m\x7f"),
        ("\x85\x9b31m", r"\x85\x9b31m"),
        (b"\x9b31m\xff".decode(errors="surrogateescape"), r"\x9b31m\xff"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("Grüße, 世界, \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 🙂", None),
    ],
)
def test_a_message_is_one_line_that_a_terminal_shows_as_it_is(plash, text, shown):
    error = plash("pull:tarfile", os.fsencode(text)).error
    assert error == f"plash pull:tarfile: {shown or text}: No such file or directory"


def test_a_message_in_a_locale_without_its_characters_is_one_line(plash):
    env = {"PYTHONIOENCODING": "ascii"}
    error = plash("pull:tarfile", "世界", env=env).error
    assert error == r"plash pull:tarfile: \u4e16\u754c: No such file or directory"
