"""The dispatcher, help and plugins."""

import os
import re
import sys

import pytest
from world import COMMANDS, LIBEXEC, ROOT

GROUPS = [
    "Run and build",
    "Build in steps",
    "Import",
    "Export",
    "Images",
    "Remove",
    "Files",
    "Other",
    "Plugins",
]


def write_plugin(directory, name, text):
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(text)
    (directory / name).chmod(0o755)
    return {"PATH": f"{directory}:{os.environ['PATH']}"}


def test_alone_it_prints_the_usage_and_fails(plash):
    result = plash()
    assert result.status == 2
    assert result.error.startswith("plash: usage: plash COMMAND")


def test_an_unknown_option_is_a_usage_error(plash):
    assert plash("--nope").status == 2


def test_an_unknown_command_names_the_nearest(plash):
    result = plash("buidl")
    assert result.status == 1
    assert result.error == "plash: no such command: buidl (did you mean build?)"


@pytest.mark.parametrize("words", [["--version"], ["version"]])
def test_version(plash, words):
    assert re.fullmatch(r"plash \d+\.\d+\.\d+\n", plash(*words).ok().out)


def test_exec_path_is_libexec(plash):
    assert plash("--exec-path").ok().out == f"{LIBEXEC}\n"
    assert plash.run(["bin/plash", "--exec-path"], cwd=ROOT).out == f"{LIBEXEC}\n"
    assert plash.run(["sh", "plash", "--exec-path"], cwd=ROOT / "bin").out == f"{LIBEXEC}\n"
    assert plash.run(["../bin/plash", "--exec-path"], cwd=ROOT / "tests").out == f"{LIBEXEC}\n"


@pytest.mark.parametrize("words", [["help"], ["--help"], ["-h"]])
def test_help_lists_every_command_with_its_summary_in_groups(plash, words):
    listed = plash(*words).ok().out
    assert [line for line in listed.splitlines() if line in GROUPS] == GROUPS[:-1]
    for command in COMMANDS:
        summary = plash(command, "--help").ok().out.splitlines()[0].rstrip(".")
        assert re.search(rf"^  {command} +{re.escape(summary)}$", listed, re.MULTILINE)


def test_help_puts_commands_where_they_belong(plash):
    group, found = None, {}
    for line in plash("help").ok().out.splitlines():
        if line in GROUPS:
            group = line
        elif line.startswith("  "):
            found[line.split()[0]] = group
    assert found["build"] == found["run:persist"] == "Run and build"
    assert found["do"] == "Build in steps"
    assert found["pull:tarfile"] == found["stack"] == "Import"
    assert found["push:dir"] == "Export"
    assert found["map"] == "Images" and found["rm"] == "Remove"
    assert found["sudo"] == "Files" and found["doctor"] == "Other"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_is_its_own_text(plash, command):
    own = plash(command, "--help").ok().out
    assert f"Usage: plash {command}" in own
    assert plash("help", command).ok().out == own
    source = (LIBEXEC / f"plash-{command}").read_text()
    assert own.strip() in source


@pytest.mark.parametrize(
    "word, command",
    [
        *{
            "images": "tree",
            "image": "tree",
            "ls": "tree",
            "ps": "tree",
        }.items(),
        *{
            "tag": "map",
            "rename": "map",
            "rmi": "rm",
            "prune": "clean",
            "du": "tree --size",
        }.items(),
        *{"exec": "run", "create": "run", "start": "run", "volume": "run -b"}.items(),
        *{"pull": "pull:oci", "push": "push:oci", "import": "pull:tarfile"}.items(),
        *{"save": "push:oci", "load": "pull:oci", "export": "push:tarfile"}.items(),
        *{"commit": "build", "cp": "mounted", "inspect": "tree --json"}.items(),
    ],
)
def test_words_of_other_tools_lead_to_the_command_that_does_it(plash, word, command):
    for words in [word], ["help", word]:
        error = plash(*words).error
        assert error.startswith(f"plash: no such command: {word} (")
        assert re.search(rf"\bplash {command}( |\))", error)


def test_words_of_other_tools_name_commands_that_exist(plash):
    source = (LIBEXEC / "plash-help").read_text()
    table = source.partition("ELSEWHERE = {")[2].partition("\n}")[0]
    words = re.findall(r'^    "([a-z]+)": ', table, re.M)
    assert len(words) > 50 and words == sorted(set(words) - set(COMMANDS))
    named = set(re.findall(r"plash ([a-z:]+)", table))
    assert named and named <= set(COMMANDS)


@pytest.mark.parametrize("word", ["kill", "stop", "logs", "network"])
def test_words_for_what_plash_does_not_do_are_explained(plash, word):
    assert re.search(r"\(a container (is|uses) .*\)$", plash(word).error)


def test_a_command_is_no_path(plash):
    (plash.place / "plash-a").mkdir()
    (plash.place / "plash-a/b").write_text("#!/bin/sh\necho ran\n")
    (plash.place / "plash-a/b").chmod(0o755)
    assert plash("a/b").error == "plash: no such command: a/b (`plash help` lists all)"


def test_help_of_an_unknown_command(plash):
    assert plash("help", "rnu").error == "plash: no such command: rnu (did you mean run?)"


@pytest.mark.parametrize(
    "text",
    [
        '#!/bin/sh\n# Greet.\n#\n# Usage: plash hello [NAME]\necho "hello $1"; plash-version\n',
        f'#!{sys.executable}\n"""Greet.\n\nUsage: plash hello [NAME]\n"""\n'
        "import subprocess, sys\nprint('hello', sys.argv[1], flush=True)\nsubprocess.run(['plash-version'])\n",
    ],
)
def test_a_plugin_is_a_command(plash, tmp_path, text):
    env = write_plugin(tmp_path / "plug in", "plash-hello", text)
    assert plash("hello", "you", env=env).ok().out.startswith("hello you\nplash ")
    assert "\nPlugins\n  hello          Greet\n" in plash("help", env=env).ok().out
    assert plash("help", "hello", env=env).ok().out == "Greet.\n\nUsage: plash hello [NAME]\n"


def test_a_plugin_states_its_group(plash, tmp_path):
    for name, group in ("one", "Export"), ("two", "Of my own"):
        text = f"#!/bin/sh\n# Greet.\n#\n# Usage: plash {name}\n# Group: {group}\n"
        env = write_plugin(tmp_path / "bin", f"plash-{name}", text)
    listed = plash("help", env=env).ok().out
    assert (
        "  one            Greet\n" in listed.partition("\nExport\n")[2].partition("\n\n")[0] + "\n"
    )
    assert "\nOf my own\n  two            Greet\n" in listed
    assert "\nPlugins\n" not in listed


def test_a_plugin_without_a_text_is_listed(plash, tmp_path):
    env = write_plugin(tmp_path / "bin", "plash-bare", "#!/bin/sh\necho bare\n")
    assert "\n  bare\n" in plash("help", env=env).ok().out


def test_a_plugin_does_not_replace_a_command(plash, tmp_path):
    env = write_plugin(tmp_path / "bin", "plash-version", "#!/bin/sh\necho mine\n")
    assert plash("version", env=env).ok().out.startswith("plash ")


def test_a_command_runs_by_its_path_by_a_link_and_from_path(plash, tmp_path):
    expected = plash("version").ok().out
    (tmp_path / "plash-version").symlink_to(LIBEXEC / "plash-version")
    (tmp_path / "v").symlink_to("plash-version")
    for words in [LIBEXEC / "plash-version"], [tmp_path / "plash-version"], [tmp_path / "v"]:
        assert plash.run(words).ok().out == expected
    assert (
        plash.run(["plash-version"], env={"PATH": f"{LIBEXEC}:{os.environ['PATH']}"}).ok().out
        == expected
    )


def test_help_into_a_closed_pipe_is_no_error_to_speak_of(plash):
    shown = plash.run(["sh", "-c", f"{ROOT}/bin/plash help | true"])
    assert shown.err == ""
