"""Bad input, for every command: one line, the right status, an unchanged store."""

import os
import sys

import pytest
from requirements import as_user, need_program
from world import COMMANDS, LIBEXEC, ROOT, make_directory

sys.path.insert(0, str(ROOT))
from plashlib import docs

NO_ARGUMENTS = {"clean", "device", "doctor", "init", "mkdtemp", "shrink", "version"}
TAKES_ANY = {
    "complete",
    "build:file",
    "data",
    "help",
    "map",
    "pull:host",
    "pull:tarfile",
    "purge",
    "sudo",
    "tree",
    *NO_ARGUMENTS,
}
WITH_ID = {
    "build": [],
    "check": ["dir"],
    "id": [],
    "mount": ["mnt"],
    "mounted": [],
    "nodepath": [],
    "parent": [],
    "rm": [],
    "run": [],
    "run:persist": ["dir"],
    "push:dir": ["out"],
    "push:oci": ["oci:out"],
    "push:squashfs": ["out"],
    "push:tarfile": ["out.tar"],
    "stack": ["dir"],
}


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - TAKES_ANY))
def test_no_argument(plash, command):
    result = plash(command)
    assert result.status == 2
    assert result.error.startswith(f"plash {command}: usage: plash {command} ")


@pytest.mark.parametrize(
    "command",
    [
        command
        for command in COMMANDS
        if not any(e.repeated for e in docs.header(LIBEXEC / f"plash-{command}").operands())
    ],
)
def test_too_many_arguments(plash, command):
    result = plash(command, "1", "2", "3", "4")
    assert result.status == 2
    assert f"usage: plash {command}" in result.error


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_an_unknown_option(plash, command):
    result = plash(command, "--nope")
    assert result.status == 2
    assert result.error.endswith("(there is no option --nope)")


@pytest.mark.parametrize(
    "number, why",
    [
        ("99", "no image: 99"),
        ("0", "image 0 is the empty root image"),
        ("abc", "no image: 'abc' is neither an id nor a name"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in [
                ("01", "not an image id: '01'"),
                ("-1", None),
                ("", "no image: '' is neither an id nor a name"),
                ("1/..", "no image: '1/..' is neither"),
                ("１", "no image: '１' is neither"),
                ("9" * 400, "no image: 999"),
            ]
        ),
    ],
)
@pytest.mark.parametrize("command", sorted(WITH_ID))
def test_a_wrong_id(plash, image, command, number, why):
    (plash.place / "dir").mkdir()
    (plash.place / "dir/file").touch()
    before = plash.snapshot()
    result = plash(command, number, *WITH_ID[command])
    if command == "stack" and number == "0":
        assert result.status == 0
        return
    assert result.status == (1 if why else 2)
    assert result.error.startswith(f"plash {command}: {why or 'usage: '}")
    assert plash.snapshot() == before
    assert (plash.place / "dir/file").exists()
    assert not (plash.place / "out").exists() and not (plash.place / "out.tar").exists()


def test_nodepath_takes_0_if_told(plash, image):
    assert plash("nodepath", "--allow-0", "0").ok().out == f"{plash.data}/layer/0\n"


@pytest.mark.parametrize(
    "command, place, why",
    [
        (["pull:tarfile", "gone.tar"], None, "gone.tar: No such file or directory"),
        (["pull:tarfile", "dir"], None, "dir: Is a directory"),
        (["pull:tarfile", "secret/x"], None, "secret/x: "),
        (["push:tarfile", "1", "gone/x.tar"], None, "gone/x.tar: No such file or directory"),
        (["push:tarfile", "1", "dir"], None, "dir: Is a directory"),
        (["push:dir", "1", "dir"], None, "directory not empty: dir"),
        (["push:dir", "1", "file"], None, "file: Not a directory"),
        (["stack", "1", "gone"], None, "gone: No such file or directory"),
        (["stack", "1", "file"], None, "file: Not a directory"),
        (["chroot", "gone", "true"], None, "gone: No such file or directory"),
        (["chroot", "file", "true"], None, "file: Not a directory"),
        (["run:persist", "1", "file", "true"], None, "file: Not a directory"),
        (["mounted", "1", "no-such-program"], None, "command not found: no-such-program"),
        (["pull:host", "no-such-program"], None, "program not found: no-such-program"),
        (["map", "a/b", "1"], None, "not a name: 'a/b'"),
        (["map", "..", "1"], None, "not a name: '..'"),
        (["map", "x" * 256, "1"], None, "not a name: "),
        (["map", "a", "77"], None, "no image: 77"),
        (["map", "nameless"], None, "no image is named 'nameless'"),
        (["purge"], None, "there is no terminal to ask on"),
    ],
)
def test_what_can_not_be_done(plash, image, command, place, why):
    (plash.place / "dir").mkdir()
    (plash.place / "dir/file").touch()
    (plash.place / "file").touch()
    before = plash.snapshot()
    assert plash(*command).error.startswith(f"plash {command[0]}: {why}")
    assert plash.snapshot() == before


@as_user
@pytest.mark.parametrize(
    "words, why",
    [
        (["pull:tarfile", "closed/x"], "closed/x: Permission denied"),
        (["pull:tarfile", "x"], "x: Permission denied"),
        (["push:tarfile", "1", "closed/x.tar"], "closed/x.tar: Permission denied"),
        (["push:dir", "1", "closed/out"], "closed/out: Permission denied"),
        (["stack", "1", "closed/d"], "closed/d: Permission denied"),
        (["chroot", "closed/d"], "closed/d: Permission denied"),
        (["run:persist", "1", "closed/d"], "closed/d: Permission denied"),
    ],
)
def test_no_permission(plash, image, words, why):
    (plash.place / "x").touch(0)
    (plash.place / "closed").mkdir()
    (plash.place / "closed").chmod(0)
    before = plash.snapshot()
    done = plash(*words)
    (plash.place / "closed").chmod(0o700)
    assert done.error == f"plash {words[0]}: {why}"
    assert plash.snapshot() == before


def test_a_data_directory_that_can_not_be_made(plash):
    (plash.place / "file").touch()
    result = plash("init", env={"PLASH_DATA": str(plash.place / "file/data")})
    assert result.error == (
        f"plash init: cannot use the data directory {plash.place}/file/data: Not a directory"
        " (PLASH_DATA can name another)"
    )


def test_an_id_that_stdout_does_not_take_is_told(plash, image):
    directory = make_directory(plash.place / "d")
    with open("/dev/full", "wb") as full:
        done = plash.start("stack", image, directory, stdout=full)
        error = done.communicate()[1].decode()
    assert error == "plash stack: stdout: No space left on device (2 was not printed)\n"
    assert plash("run", "2", "cat", "/file").ok().out == "x\n"


def test_cache_runs_no_command_that_prints_no_id(plash, image):
    error = "plash cache: `plash rm` makes no image, so there is nothing to remember"
    assert plash("cache", "rm", image).error == error
    assert plash("id", image).id == image


@as_user
def test_a_directory_that_is_not_ours_is_named(plash, image):
    closed = "/root"
    for command in ("pull:dir", closed), ("link", closed), ("chroot", closed, "true"):
        error = plash(*command).error
        assert error in (
            f"plash {command[0]}: {closed}{dot}: Permission denied" for dot in ("", "/.")
        )
    # It is copied, if it is on another filesystem than the store.
    assert plash("stack", image, "/etc").error.startswith("plash stack: cannot ")
    assert sorted(os.listdir(plash.data / "index")) == ["0", image]


def test_what_is_missing_in_proc_does_not_mean_that_proc_is(plash):
    error = plash("pull:tarfile", "/proc/self/nothing").error
    assert error == "plash pull:tarfile: /proc/self/nothing: No such file or directory"


def test_an_archive_on_a_closed_stdin(plash):
    need_program("skopeo")
    done = plash.run(["sh", "-c", 'exec "$0" pull:oci - <&-', ROOT / "bin/plash"])
    assert done.error == "plash pull:oci: stdin: Bad file descriptor"


def test_an_unsound_environment_of_an_image(plash, image):
    (plash.data / f"layer/0/{image}/_data/env").write_bytes(b"A\0=\0=x\0B=1\0")
    assert plash("run", image, "sh", "-c", "echo $B").ok().out == "1\n"


def test_numbers_of_other_scripts_in_the_store(plash, image):
    (plash.data / "index/²").symlink_to("nothing")
    for words in ["tree"], ["shrink", "--dry-run"], ["doctor"]:
        assert "internal error" not in plash(*words).err
    plash("tree").ok()


def test_empty_and_odd_names(plash, image):
    assert plash("run", image, "").status == 127
    assert (
        plash("run", "..", "true").error == "plash run: no image: '..' is neither an id nor a name"
    )
    assert plash("pull:dir", "").error == "plash pull:dir: '': No such file or directory"


def test_a_missing_argument_needs_no_docopt(plash):
    (plash.place / "docopt.py").write_text("raise ImportError\n")
    env = {"PYTHONPATH": str(plash.place)}
    result = plash("rm", env=env)
    assert (result.status, result.err) == (
        2,
        "plash rm: usage: plash rm [--recursive] [--force] ID ...\n",
    )
    assert "options need the Python package docopt" in plash("rm", "--force", "1", env=env).error
