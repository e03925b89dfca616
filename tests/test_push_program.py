"""push:program: an image as one executable file; link takes such files, SIF and AppImage files."""

import json
import os
import struct
import subprocess
from pathlib import Path

import pytest
from requirements import as_user, need, need_program
from world import LIBEXEC

PAGE = 4096


@pytest.fixture
def tools():
    need_program("mksquashfs", "squashfuse")
    need(os.access("/dev/fuse", os.R_OK | os.W_OK), "/dev/fuse")


@pytest.fixture
def elsewhere(plash):
    """Runs a program with an empty store, and plash on PATH."""

    def run(*argv, **options):
        env = {"PLASH_DATA": f"{plash.place}/empty", "PATH": f"{LIBEXEC}:{plash.env['PATH']}"}
        return plash.run(argv, env=env, **options)

    yield run
    plash("sudo", "rm", "-rf", plash.place / "empty").ok()


def test_a_program_runs_with_an_empty_store(plash, image, tools, elsewhere, tmp_path):
    number = plash("build", image, 'mkdir /opt; echo data >"/opt/it\'s"').id
    plash("push:program", number, "prog", "sh", "-c", 'cat "/opt/it\'s" -; echo "$@"', "sh").ok()
    assert elsewhere("./prog", "a b", "*", input="in\n").ok().out == "data\nin\na b *\n"
    # Through a symbolic link, and from PATH.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/linked").symlink_to("../prog")
    assert elsewhere(tmp_path / "bin/linked", input="").out == "data\n\n"
    assert elsewhere("sh", "-c", f"PATH={tmp_path}:$PATH; prog x </dev/null").out == "data\nx\n"


def test_it_is_the_commands_own_process(plash, image, tools, elsewhere):
    plash("push:program", image, "prog", "sh", "-c").ok()
    assert elsewhere("./prog", "exit 7").status == 7
    assert elsewhere("./prog", "kill -9 $$").status == -9


def test_one_image_gives_the_same_bytes(plash, image, tools, tmp_path):
    for name in "one", "two":
        plash("push:program", image, name, "cat").ok()
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_link_takes_it(plash, image, tools):
    plash("push:program", image, "prog", "cat").ok()
    assert plash("run", plash("link", "prog").id, "echo", "hi").out == "hi\n"


def test_without_plash(plash, image, tools):
    plash("push:program", image, "prog", "cat").ok()
    done = subprocess.run(
        ["./prog"], cwd=plash.place, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (127, "./prog: plash is not installed\n")


def appimage(squashfs):
    """An ELF header with section headers behind it, as the runtime of an AppImage has them."""
    header = b"\x7fELF\x02\x01\x01\x00AI\x02".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, 1000, 0, 64, 56, 0, 64, 3, 0)
    return header.ljust(1000 + 64 * 3, b"\0") + squashfs


def sif(squashfs):
    """A SIF file with two objects, the second of which is the file system."""
    header = (
        b"#!/usr/bin/env run-singularity\n".ljust(32, b"\0") + b"SIF_MAGIC\0" + b"01\0" + b"02\0"
    )
    header += bytes(16) + struct.pack("<8q", 0, 0, 46, 48, PAGE, 48 * 585, 8 * PAGE, len(squashfs))
    table = b""
    for kind, offset, size in (0x4001, 8 * PAGE, 10), (0x4004, 9 * PAGE, len(squashfs)):
        entry = struct.pack("<i?IIIqqqqqqq", kind, True, 1, 1, 0, offset, size, size, 0, 0, 0, 0)
        table += entry.ljust(585, b"\0")
    return (header.ljust(PAGE, b"\0") + table).ljust(9 * PAGE, b"\0") + squashfs


@pytest.mark.parametrize("wrap", [appimage, sif])
def test_link_takes_the_squashfs_of_other_files(plash, image, tools, tmp_path, wrap):
    plash("push:squashfs", image, "file").ok()
    (tmp_path / "wrapped").write_bytes(wrap((tmp_path / "file").read_bytes()))
    assert plash("run", plash("link", "wrapped").id, "echo", "hi").out == "hi\n"
    (tmp_path / "wrapped").write_bytes(wrap(b"no squashfs"))
    assert plash("link", "wrapped").error.startswith("plash link: not a directory, nor a squashfs")


@pytest.fixture
def configured(plash, image, tools):
    """An image with a configuration, and a user 1234 with a home of that user's."""
    config = {
        "Entrypoint": ["sh", "-c", 'echo "$PWD $(id -u) $A $*"', "sh"],
        "Cmd": ["cmd"],
        "Env": ["A=a b"],
        "WorkingDir": "/home/work",
        "User": "me",
    }
    code = "mkdir -p /home/work; echo me:x:1234:1234::/home/work:/bin/sh >>/etc/passwd"
    number = plash("build", image, code).id
    path = plash("nodepath", number).ok().out.strip() + "/_data"
    Path(plash.place / "config.json").write_text(json.dumps({"config": config}))
    plash("sudo", "cp", "config.json", f"{path}/config.json").ok()
    plash("sudo", "sh", "-c", 'printf "A=a b\\0" >"$1/env"', "sh", path).ok()
    return number


def test_without_a_command_it_is_what_the_configuration_says(plash, configured, elsewhere):
    plash("push:program", configured, "prog").ok()
    assert elsewhere("./prog", "x").ok().out == "/home/work 1234 a b cmd x\n"
    plash("push:program", configured, "prog", "sh", "-c", 'echo "$PWD $(id -u) $A"').ok()
    assert elsewhere("./prog").ok().out == f"{plash.place} 0 a b\n"


def test_without_a_configuration_it_is_the_shell(plash, image, tools, elsewhere):
    plash("push:program", image, "prog").ok()
    assert elsewhere("./prog", input="echo hi; id -u").ok().out == "hi\n0\n"


def test_it_runs_where_nothing_can_be_written(plash, image, tools, elsewhere):
    (plash.place / "ro").mkdir()
    plash("push:program", image, "ro/prog", "cat").ok()
    code = "mount --bind ro ro && mount -o remount,bind,ro ro && ! touch ro/x && cd ro && ./prog"
    namespaces = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
    done = elsewhere(*namespaces, "sh", "-c", code, input="in")
    assert done.out == "in", done.err


@as_user
def test_without_squashfuse(plash, image, tools, elsewhere, tmp_path):
    plash("push:program", image, "prog", "cat").ok()
    (tmp_path / "bin").mkdir()
    for directory in reversed(plash.env["PATH"].split(":")):
        for entry in os.scandir(directory) if os.path.isdir(directory) else ():
            if "squashfuse" not in entry.name and not (tmp_path / "bin" / entry.name).exists():
                (tmp_path / "bin" / entry.name).symlink_to(entry.path)
    env = {"PATH": f"{LIBEXEC}:{tmp_path}/bin", "PLASH_DATA": f"{plash.place}/empty"}
    done = plash.run(["./prog"], env=env)
    assert (done.status, done.out) == (1, "")
    assert done.err == f"plash run: cannot mount {tmp_path}/prog: squashfuse is not installed\n"
    elsewhere("true")


def test_programs_of_one_name_are_each_their_own(plash, image, tools, elsewhere, tmp_path):
    for directory in "one", "two":
        (tmp_path / directory).mkdir()
        plash("push:program", image, f"{directory}/prog", "echo", directory).ok()
        os.utime(tmp_path / directory / "prog", (1, 1))
    for directory in "one", "two":
        assert elsewhere("./prog", cwd=tmp_path / directory).ok().out == directory + "\n"
    # The first one may go, and one may be replaced.
    os.unlink(tmp_path / "one/prog")
    assert elsewhere("./prog", cwd=tmp_path / "two").ok().out == "two\n"
    number = plash("build", image, "echo new >/new").id
    plash("push:program", number, "two/prog", "cat", "/new").ok()
    assert elsewhere("./prog", cwd=tmp_path / "two").ok().out == "new\n"


def test_a_file_that_it_replaces_becomes_executable(plash, image):
    need_program("mksquashfs")
    (plash.place / "program").touch(0o640)
    plash("push:program", image, "program", "true").ok()
    assert (plash.place / "program").stat().st_mode & 0o777 == 0o750
