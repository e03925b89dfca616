"""Programs of other architectures, run by QEMU's user emulation without anything that root registered."""

import contextlib
import json
import os
import shutil
import signal
import struct
import subprocess
from pathlib import Path

import pytest
from archives import archive, info
from requirements import as_user, kind_of_user, need, need_program
from world import ROOT

MACHINES = {
    "aarch64": (183, "f94007e1 d2800002 38626823 34000063 91000442 17fffffd d2800020 d2800808 d4000001"
                     " f94003e0 d2800ba8 d4000001"),
    "riscv64": (243, "00813583 00000613 00c586b3 0006c683 00068663 00160613 ff1ff06f 00100513 04000893"
                     " 00000073 00013503 05d00893 00000073"),
}  # fmt: skip
LOOPS = {"aarch64": "14000000", "riscv64": "0000006f"}
FOREIGN = sorted(set(MACHINES) - {os.uname().machine})
BINFMT_MISC = "/proc/sys/fs/binfmt_misc"


def program(architecture, code=None):
    """A static program that writes its argv[0] and exits with the number of its arguments, argv[0] included.

    code is other instructions: 32-bit words, in hexadecimal.
    """
    machine, own = MACHINES[architecture]
    text = b"".join(struct.pack("<I", int(word, 16)) for word in (code or own).split())
    size, address = 64 + 56 + len(text), 0x400000
    header = b"\x7fELF\2\1\1" + bytes(9)
    header += struct.pack(
        "<HHIQQQIHHHHHH", 2, machine, 1, address + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, address, address, size, size, 4096)
    return header + segment + text


def executable(name):
    return info(name, mode=0o755)


@pytest.fixture(params=FOREIGN)
def architecture(request):
    need_program(f"qemu-{request.param}-static")
    return request.param


@pytest.fixture
def foreign_image(plash, architecture):
    """An image of one program, under the names of a shell and its own, and a script for it."""
    tar = plash.place / "foreign.tar"
    own = program(architecture)
    tar.write_bytes(
        archive(
            (executable("bin/sh"), own),
            (executable("bin/hello"), own),
            (executable("bin/loop"), program(architecture, LOOPS[architecture])),
            (executable("bin/script"), b"#!/bin/hello argument\n"),
            (executable("bin/nonsense"), b"\x7fELF\0\0\0\0"),
        )
    )
    return plash("pull:tarfile", tar).id


def host_registered():
    try:
        return {name: Path(BINFMT_MISC, name).read_text() for name in os.listdir(BINFMT_MISC)
                if name != "register"}  # fmt: skip
    except OSError:
        return {}


@as_user
def test_a_program_runs_with_its_argv_and_exit_status(plash, foreign_image):
    before = host_registered()
    result = plash("run", foreign_image, "hello", "a", "b")
    assert (result.out, result.err, result.status) == ("hello", "", 3)
    assert host_registered() == before


@as_user
def test_a_script_of_a_foreign_interpreter_runs(plash, foreign_image):
    result = plash("run", foreign_image, "script", "b")
    assert (result.out, result.err, result.status) == ("/bin/hello", "", 4)


@as_user
def test_a_signal_ends_it(plash, foreign_image):
    running = plash.start("run", foreign_image, "loop")
    with contextlib.suppress(subprocess.TimeoutExpired):
        running.wait(0.5)
    running.send_signal(signal.SIGTERM)
    assert running.wait(20) == -signal.SIGTERM
    running.communicate()


@as_user
def test_it_runs_as_another_user_and_without_the_host(plash, foreign_image):
    kinds = [["-u", "12"], ["-u", "12", "--no-host"]]
    for options in kinds + [["--as-me"]] * (kind_of_user() == "subids"):
        result = plash("run", *options, foreign_image, "hello")
        assert (result.out, result.err, result.status) == ("hello", "", 1)
    if kind_of_user() == "plain":
        error = plash("run", "--as-me", foreign_image, "hello").error
        assert "only root can register it: run it as root, or get subordinate ids" in error
    result = plash("run", "--no-host", foreign_image, "hello")
    assert (result.out, result.err, result.status) == ("hello", "", 1)


@as_user
def test_a_build_runs_it(plash, foreign_image):
    result = plash("build", foreign_image, "hello", "x", "y")
    assert result.err.startswith("hello") and "exit status 3" in result.err
    assert result.status == 1


@as_user
def test_a_chroot_runs_it(plash, architecture):
    root = plash.place / "root"
    for name in "bin", "proc", "host":
        (root / name).mkdir(parents=True)
    (root / "bin/hello").write_bytes(program(architecture))
    (root / "bin/hello").chmod(0o755)
    result = plash("chroot", root, "hello")
    assert (result.out, result.err, result.status) == ("hello", "", 1)
    (root / "host").rmdir()
    result = plash("chroot", root, "hello")
    assert (result.out, result.err, result.status) == ("hello", "", 1)


@as_user
def test_a_missing_qemu_is_named(plash, foreign_image, architecture):
    path = f"{ROOT}/.venv/bin:{plash.place}"
    for program_of_host in "python3", "newuidmap", "newgidmap":
        with contextlib.suppress(FileExistsError, TypeError):
            (plash.place / program_of_host).symlink_to(shutil.which(program_of_host))
    result = plash("run", foreign_image, "hello", env={"PATH": path})
    assert result.status == 126
    assert result.error == (
        f"plash run: cannot execute hello: it is for {architecture}, and qemu-{architecture}-static"
        " is not installed (install qemu-user-static)"
    )


@as_user
def test_an_unknown_format_is_said_to_be_one(plash, foreign_image):
    result = plash("run", foreign_image, "nonsense")
    assert result.status == 126
    assert (
        result.error
        == "plash run: cannot execute nonsense: its format is unknown (a script needs a #! line)"
    )


@pytest.mark.only_for("root")
def test_root_is_told_how_to_register(plash, foreign_image, architecture):
    need(not host_registered().get(f"qemu-{architecture}"), "a host that has registered nothing")
    before = host_registered()
    result = plash("run", foreign_image, "hello")
    assert result.status == 126
    assert result.error == (
        f"plash run: cannot execute hello: it is for {architecture}, and nothing is registered on"
        " this host for it (as root: install qemu-user-static and binfmt-support)"
    )
    assert host_registered() == before


@as_user
def test_an_old_kernel_is_named(plash, foreign_image):
    """strace makes the mount of binfmt_misc fail as it does before Linux 6.7; all others are before it."""
    need_program("strace")
    inside = ["sudo", "strace", "-f", "-qq", "-o", "calls", "-e", "trace=mount"]
    run = [ROOT / "bin/plash", "run", foreign_image, "hello"]
    assert plash(*inside, *run).status == 1
    calls = (plash.place / "calls").read_text().splitlines()
    assert "binfmt_misc" in calls[-1]
    result = plash(*inside, "-e", f"inject=mount:error=EPERM:when={len(calls)}", *run)
    assert result.status == 126
    assert (
        "cannot mount binfmt_misc: Operation not permitted (users need Linux 6.7, and this is "
        in result.error
    )


def test_a_native_run_neither_loads_nor_looks(plash, image):
    need_program("strace")
    plash.run(
        ["strace", "-f", "-qq", "-o", "calls", ROOT / "libexec/plash-run", image, "true"]
    ).ok()
    calls = (plash.place / "calls").read_text()
    assert "execve" in calls and "binfmt_misc" not in calls and "plashlib/foreign" not in calls


def test_push_oci_says_what_architecture_an_image_has(
    plash, foreign_image, architecture, oci_tools
):
    plash("push:oci", foreign_image, f"oci:{plash.place}/layout:x").ok()
    layout = plash.place / "layout"

    def blob(digest):
        return json.loads((layout / "blobs" / digest.replace(":", "/")).read_text())

    manifest = blob(json.loads((layout / "index.json").read_text())["manifests"][0]["digest"])
    assert blob(manifest["config"]["digest"])["architecture"] == {"aarch64": "arm64"}.get(
        architecture, architecture
    )


@as_user
def test_doctor_lists_the_architectures_that_run(plash):
    need_program("qemu-aarch64-static", "qemu-riscv64-static")
    line = next(each for each in plash("doctor").out.splitlines() if "architectures" in each)
    assert line.startswith("ok  architectures ") and "riscv64" in line and line.endswith("by QEMU")


@as_user
def test_a_user_namespace_inside_runs_it_too(plash, foreign_image):
    """The kernel looks for the nearest binfmt_misc: that of the namespace that registered."""
    own = [ROOT / "bin/plash", "run", foreign_image, "hello"]
    result = plash("sudo", *own)
    assert (result.out, result.err, result.status) == ("hello", "", 1)


@pytest.fixture
def arm64(plash):
    """The first stage of an arm64 Debian: PLASH_TEST_ARM64 names an archive of what debootstrap --foreign makes."""
    need_program("qemu-aarch64-static")
    need(os.environ.get("PLASH_TEST_ARM64"), "PLASH_TEST_ARM64, an archive of an arm64 Debian")
    return plash("pull:tarfile", os.environ["PLASH_TEST_ARM64"]).id


@as_user
@pytest.mark.slow
def test_pipes_signals_and_nested_runs(plash, arm64):
    def sh(code):
        return plash("run", arm64, "sh", "-c", code, input="a b\n")

    result = sh("uname -m; cat | tr a c | rev; kill -TERM $$")
    assert (result.out, result.status) == ("aarch64\nb c\n", -signal.SIGTERM)
    assert sh("exec bash -c 'echo $0' name").out == "name\n"
    assert "qemu-aarch64" in sh(f"ls {BINFMT_MISC}").out
    assert sh("exec /bin/missing").status == 127
    assert sh("unshare --mount uname -m").out == "aarch64\n"
    assert sh("chroot / /usr/bin/uname -m").out == "aarch64\n"


@pytest.mark.only_for("plain")
@pytest.mark.slow
def test_apt_in_an_arm64_debian(plash, arm64):
    # In a container, as debootstrap has it, no device nodes are made.
    base = plash("build", arm64, "container=lxc /debootstrap/debootstrap --second-stage").id
    code = "apt-get -qq update && apt-get -qq install -y --no-install-recommends jq file hello"
    installed = plash("build", base, code).id
    out = plash("run", installed, "sh", "-c", "hello; file -L /bin/sh; echo [1] | jq .[0]").ok().out
    assert "Hello, world!" in out and "ARM aarch64" in out and out.endswith("\n1\n")
