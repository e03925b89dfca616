"""Helper programs: what the caller's environment changes, whose code runs, and what ends with what."""

import os
import shutil
import signal
import subprocess

import pytest
from archives import archive, info
from requirements import PROGRAMS, need_program
from servers import Files
from world import LIBEXEC, wait_for

# Variables that tar, the compressors, mksquashfs and curl read, each as it would do harm.
HOSTILE = {
    "TAR_OPTIONS": "--exclude=etc",
    "GZIP": "-1",
    "PIGZ": "-1",
    "XZ_OPT": "-0",
    "XZ_DEFAULTS": "--memlimit=1",
    "ZSTD_CLEVEL": "19",
    "BZIP2": "-1",
    "POSIXLY_CORRECT": "1",
    "SOURCE_DATE_EPOCH": "1",
    "LC_ALL": "tr_TR.UTF-8",
    "LANGUAGE": "de",
    "TMPDIR": "no/such",
    "TAPE": "/nonexistent",
    "QUOTING_STYLE": "c",
}


@pytest.mark.parametrize(
    "suffix",
    ["tar", "tar.gz", pytest.param("tar.xz", marks=pytest.mark.slow), "tar.zst", "tar.bz2"],
)
def test_the_callers_environment_changes_no_archive(plash, image, suffix):
    need_program(PROGRAMS.get(suffix.rpartition(".")[2], "tar"))
    plash("push:tarfile", image, f"a.{suffix}").ok()
    plash("push:tarfile", image, f"b.{suffix}", env=HOSTILE).ok()
    assert (plash.place / f"a.{suffix}").read_bytes() == (plash.place / f"b.{suffix}").read_bytes()
    again = plash("pull:tarfile", f"a.{suffix}", env=HOSTILE).ok()
    assert again.err == ""
    plash("push:tarfile", again.id, "c.tar").ok()
    plash("push:tarfile", image, "d.tar").ok()
    assert (plash.place / "c.tar").read_bytes() == (plash.place / "d.tar").read_bytes()


def test_the_callers_environment_changes_no_squashfs_file(plash, image):
    need_program("mksquashfs")
    plash("push:squashfs", image, "a.sqfs").ok()
    plash("push:squashfs", image, "b.sqfs", env=HOSTILE).ok()
    assert (plash.place / "a.sqfs").read_bytes() == (plash.place / "b.sqfs").read_bytes()


@pytest.fixture
def trap(plash, image, tmp_path):
    """An image with programs and a library in its root, which would make a file on this host if they ran."""
    layer = tmp_path / "layer"
    layer.mkdir()
    ran = tmp_path / "ran"
    for name in "tar", "mksquashfs", "gzip", "pigz":
        (layer / name).write_text(f'#!/bin/sh\n: >{ran}\nPATH=/usr/bin:/bin exec {name} "$@"\n')
        (layer / name).chmod(0o755)
    # ld.so ends a program that finds this in place of its library.
    for library in "libacl.so.1", "libz.so.1", "libc.so.6", "libselinux.so.1":
        (layer / library).write_text("not a library\n")
    return plash("stack", image, layer).id, ran


@pytest.mark.parametrize(
    "variable, value",
    [
        ("PATH", f".::{os.environ['PATH']}"),
        ("LD_LIBRARY_PATH", ":."),
        ("LD_LIBRARY_PATH", "/nothing;."),  # see ld.so(8)
        ("LD_LIBRARY_PATH", "/proc/self/cwd"),
    ],
)
@pytest.mark.parametrize("command", ["push:tarfile", "push:dir", "push:squashfs"])
def test_no_helper_runs_the_images_code(plash, trap, variable, value, command):
    need_program("mksquashfs")
    number, ran = trap
    # Started by its path, since env(1) would look for python3 in the working directory too.
    python = shutil.which("python3")
    words = [python, LIBEXEC / f"plash-{command}", number, "out.tar.gz"]
    plash.run(words, env={variable: value}).ok()
    assert not ran.exists()


def helpers(plash, name):
    """The pids of processes of that name that work for this test's store."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                argv = file.read().split(b"\0")
            with open(f"/proc/{pid}/status") as file:
                parents = file.read()
            environment = open(f"/proc/{pid}/environ", "rb").read()
        except OSError:
            continue
        if os.path.basename(argv[0]) == os.fsencode(name) and "State:\tZ" not in parents:
            if f"HOME={plash.home}".encode() in environment:
                found.append(int(pid))
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_tar_ends_with_pull_tarfile(plash, number):
    plash("init").ok()
    pull = plash.start("pull:tarfile")
    pull.stdin.write(archive((info("big"), bytes(5_000_000)))[:3_000_000])
    pull.stdin.flush()
    wait_for(lambda: any(plash.data.glob("tmp/*/root/big")) and helpers(plash, "tar"))
    pull.send_signal(number)
    assert pull.wait() in (-number, 128 + number)
    wait_for(lambda: not helpers(plash, "tar"))
    if number == signal.SIGKILL:
        plash.clean()
    assert plash.leftovers() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_curl_ends_with_pull_url(plash, number):
    need_program("curl")
    server = Files()
    try:
        server.files["/a.tar"] = archive((info("big"), bytes(5_000_000)))
        server.breaks["/a.tar"] = 1_000_000
        server.stalls.add("/a.tar")
        plash("init").ok()
        pull = plash.start("pull:url", server.url + "/a.tar")
        wait_for(lambda: helpers(plash, "curl"))
        pull.send_signal(number)
        assert pull.wait() in (-number, 128 + number)
        wait_for(lambda: not helpers(plash, "curl"))
    finally:
        server.stop()
    if number == signal.SIGKILL and plash.leftovers():
        plash.clean()


@pytest.fixture
def large(plash):
    """The id of an image that takes a while to write out."""
    noise = [(info(f"f{each}"), os.urandom(1_000_000)) for each in range(60)]
    return plash("pull:tarfile", input=archive(*noise)).id


@pytest.fixture
def slow_tar(tmp_path):
    """A directory with a tar that takes a second for each record, lest it ends before it is seen."""
    directory = tmp_path / "slow"
    directory.mkdir()
    options = "--checkpoint=1 --checkpoint-action=sleep=1"
    (directory / "tar").write_text(f'#!/bin/sh\nexec {shutil.which("tar")} {options} "$@"\n')
    (directory / "tar").chmod(0o755)
    return directory


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    "command, helper",
    [("push:tarfile", "xz"), ("push:squashfs", "mksquashfs"), ("push:dir", "tar")],
)
def test_a_push_that_is_stopped_leaves_nothing(plash, large, slow_tar, number, command, helper):
    need_program(helper)
    file = "out.tar.xz" if command == "push:tarfile" else "out"
    before = sorted(os.listdir(plash.place))
    env = {**plash.env, "PATH": f"{slow_tar}:{plash.env['PATH']}"} if helper == "tar" else plash.env
    push = plash.start(command, large, file, env=env)
    wait_for(lambda: helpers(plash, helper))
    push.send_signal(number)
    assert push.wait() in (-number, 128 + number)
    wait_for(lambda: not any(helpers(plash, name) for name in ("tar", "xz", "mksquashfs")))
    if command == "push:dir" and number == signal.SIGKILL:
        plash("sudo", "rm", "-rf", "out").ok()
    assert sorted(os.listdir(plash.place)) == before
    assert push.stderr.read() == b""


def test_a_file_that_is_replaced_keeps_its_mode(plash, image):
    file = plash.place / "a.tar"
    file.touch()
    file.chmod(0o600)
    plash("push:tarfile", image, file).ok()
    assert file.stat().st_mode & 0o777 == 0o600 and file.stat().st_size
    (plash.place / "link").symlink_to("a.tar")
    inode = file.stat().st_ino
    plash("push:tarfile", image, "link").ok()
    assert (plash.place / "link").is_symlink() and file.stat().st_ino != inode
    umask = os.umask(0o027)
    plash("push:tarfile", image, "new.tar").ok()
    os.umask(umask)
    assert (plash.place / "new.tar").stat().st_mode & 0o777 == 0o640


def test_a_file_and_its_directory_are_synced(plash, image):
    need_program("strace")
    words = ["strace", "-f", "-y", "-e", "trace=fsync", "-o", "log", LIBEXEC / "plash-push:tarfile"]
    plash.run([*words, image, "a.tar"], env={"PLASH_NO_SYNC": "0"}).ok()
    synced = (plash.place / "log").read_text()
    assert f"<{plash.place}>) = 0" in synced and synced.count("fsync(") == 2


def test_a_program_is_found_beside_relative_entries_of_path(plash, image, tmp_path):
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in "python3", "env", "rm", "newuidmap", "newgidmap":
        if shutil.which(name):
            (bare / name).symlink_to(shutil.which(name))
    done = plash.run(
        [LIBEXEC / "plash-push:tarfile", image, "a.tar"], env={"PATH": f".::{bare}:bin"}
    )
    assert done.error == "plash push:tarfile: cannot pack: install tar"
    assert not (tmp_path / "a.tar").exists()


def test_control_characters_of_a_server_do_not_reach_the_terminal(plash):
    need_program("curl")
    done = plash("pull:url", "file:///none/\x1b]0;owned\x07/\x9b31m")
    assert "\\x1b]0;owned\\x07/\\x9b31m" in done.error
    assert not any(each in done.err for each in "\x1b\x07\x9b")


def test_helpers_start_from_many_threads(plash, tmp_path):
    """As layers are unpacked; no child is lost between fork and exec."""
    code = (
        "import concurrent.futures as f; from plashlib import programs\n"
        "with f.ThreadPoolExecutor(16) as pool:\n"
        "    print(sum(pool.map(lambda _: programs.run(['true']).returncode, range(400))))"
    )
    root = str(LIBEXEC.parent)
    done = subprocess.run(
        ["python3", "-W", "error::RuntimeWarning", "-c", code],
        env={**plash.env, "PYTHONPATH": root},
        capture_output=True,
        timeout=120,
    )
    assert done.stdout == b"0\n", done.stderr
