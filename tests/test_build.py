"""build: what a layer captures and what it does not."""

import glob
import os
import signal
import time

import pytest
from requirements import need, need_program
from world import ROOT, wait_for


def test_shell_code_makes_a_new_image(plash, image, layers):
    built = plash(
        "build", image, "mkdir /app; echo x > /app/file; echo said; echo and this >&2"
    ).ok()
    assert built.err == "said\nand this\n"
    assert plash("parent", built.id).out == f"{image}\n"
    assert plash("run", built.id, "cat", "/app/file").out == "x\n"
    assert layers(built.id) == ["app", "app/file"]


def test_more_words_are_a_command(plash, image):
    assert plash("build", image, "sh", "-c", "echo $1 > /file", "sh", "a  b").ok()
    assert plash("run", "2", "cat", "/file").out == "a b\n"


def test_code_is_read_from_stdin(plash, image):
    number = plash("build", image, input="cat; echo 1 > /one\necho 2 > /two\n").id
    assert plash("run", number, "cat", "/one", "/two").out == "1\n2\n"


def test_code_on_stdin_may_hold_any_bytes(plash, image):
    number = plash(
        "build", image, input=b"echo \377 >/x\n", env={"PYTHONIOENCODING": "utf-8:strict"}
    ).id
    assert plash("run", number, "cat", "/x").raw == b"\xff\n"


def test_a_closed_stdin_is_no_terminal(plash, image):
    done = plash.run(["sh", "-c", f'exec "$0" build {image} <&-', ROOT / "bin/plash"])
    assert done.error == "plash build: stdin: Bad file descriptor"


def test_the_first_failing_command_ends_it(plash, image):
    before = plash.snapshot()
    done = plash("build", image, "touch /a; (exit 3); touch /b")
    assert done.error == "plash build: the command failed with exit status 3; nothing was kept"
    assert done.status == 1
    assert plash.snapshot() == before


def test_nothing_of_the_host_is_captured(plash, image, layers, tmp_path):
    need(os.path.exists("/etc/hosts"), "/etc/hosts")
    number = plash(
        "build",
        image,
        "touch /tmp/x ~/.profile; pwd; ls -d /host; cat /etc/hosts /etc/resolv.conf",
        cwd=tmp_path,
    ).id
    assert layers(number) == ["root", "root/.profile"]
    number = plash("build", image, "true").id
    assert layers(number) == []


def test_home_is_the_images_root(plash, image):
    assert (
        plash("build", image, "echo $HOME; ls -A /tmp; pwd", cwd=plash.home).err
        == f"/root\n/host{plash.home}\n"
    )


def test_the_parents_directories_keep_their_attributes(plash, image):
    first = plash(
        "build", image, "chmod 750 /etc; chmod 711 /; touch -d 2001-02-03T00:00:00 /etc"
    ).id
    second = plash("build", first, "echo 1 > /etc/passwd").id
    third = plash("build", second, "true").id
    for number in first, second, third:
        assert plash("run", number, "stat", "-c", "%a %u", "/etc", "/").out == "750 0\n711 0\n"


def test_a_directory_of_a_lower_layer_is_replaced(plash, image):
    first = plash("build", image, "mkdir /d; touch /d/old").id
    second = plash("build", first, "rm -rf /d; mkdir /d; touch /d/new").id
    assert plash("run", second, "ls", "/d").out == "new\n"
    third = plash("build", second, "rm -rf /d").id
    assert plash("run", third, "ls", "/d").status == 2
    assert plash("run", first, "ls", "/d").out == "old\n"


def test_what_it_leaves_running_is_killed(plash, image):
    number = plash(
        "build",
        image,
        "(while :; do echo x >> /tmp/log; echo x >> /grows; sleep 0.02; done) & sleep 0.2",
    ).id
    size = plash("run", number, "stat", "-c", "%s", "/grows").ok().out
    time.sleep(0.2)
    assert plash("run", number, "stat", "-c", "%s", "/grows").out == size


@pytest.mark.parametrize(
    "number, status", [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_an_interrupted_build_leaves_nothing(plash, image, number, status):
    before = plash.snapshot()
    build = plash.start("build", image, "touch /x; echo up; sleep 100")
    assert build.stderr.readline() == b"up\n"
    build.send_signal(number)
    assert build.wait(timeout=20) == status
    assert build.stdout.read() == build.stderr.read() == b""
    assert plash.snapshot() == before


SLEEPS = "sleep 100 & setsid sleep 100 & exec sleep 100"


def holders(file):
    """The processes that have a file open."""
    found = []
    for fd in glob.glob("/proc/[0-9]*/fd/*"):
        try:
            if os.path.samefile(fd, file):
                found.append(fd)
        except OSError:
            continue
    return found


def test_the_command_of_a_killed_build_is_killed(plash, image):
    build = plash.start(
        "build", "-b", f"{plash.place}:/w", image, f"exec 8>/w/held; echo; {SLEEPS}"
    )
    build.stderr.readline()
    build.kill()
    build.wait()
    wait_for(lambda: not holders(plash.place / "held"))
    plash.clean()


def test_an_image_removed_meanwhile(plash, image):
    build = plash.start("build", image, "echo up; read x; : > /x")
    assert build.stderr.readline() == b"up\n"
    assert "is in use by process" in plash("rm", "--recursive", image).error
    plash("rm", "--recursive", "--force", image).ok()
    out, err = build.communicate(b"go\n")
    assert (build.returncode, out) == (1, b"")
    assert err == f"plash build: no image: {image} (it was removed meanwhile)\n".encode()


def test_a_terminal_opens_a_shell(plash, image):
    need_program("script")
    typed = plash.run(
        [
            "script",
            "-qefc",
            f"{os.path.dirname(__file__)}/../libexec/plash-build {image}",
            "/dev/null",
        ],
        input="echo typed > /file\nexit\n",
    ).ok()
    number = typed.out.split()[-1]
    assert plash("run", number, "cat", "/file").out == "typed\n"


def test_builds_at_once_get_ids_of_their_own(plash, image):
    builds = [plash.start("build", image, f"echo {n} > /n") for n in range(8)]
    ids = [build.communicate()[0].decode().strip() for build in builds]
    assert len(set(ids)) == 8
    for n, number in enumerate(ids):
        assert plash("run", number, "cat", "/n").out == f"{n}\n"


def test_a_command_that_can_not_be_started(plash, image):
    before = plash.snapshot()
    assert (
        plash("build", image, "no-such-program", "x").error
        == "plash build: command not found: no-such-program"
    )
    assert (
        plash("build", image, "/etc", "x").error
        == "plash build: cannot execute /etc: Permission denied"
    )
    assert plash.snapshot() == before
