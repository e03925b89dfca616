"""push:command: programs of an image as commands of the host."""

import os
import subprocess
from pathlib import Path

import pytest
from requirements import need_program
from world import wait_for


@pytest.fixture
def command(plash, image):
    """A function that makes commands of the image's programs, in a directory, and returns a path."""

    def made(*argv, number=image):
        directory = plash.place / "bin"
        done = plash("push:command", f"--dir={directory}", *argv[:-1], number, argv[-1]).ok()
        assert done.err == f"plash push:command: {directory} is not on PATH\n"
        return done.out.rstrip("\n")

    return made


def test_a_command_is_the_program(plash, command):
    path = command("sh")
    odd = ["", " ", "a b", "*", "$HOME", "'", '"', "\\", "-x", "\n", "é"]
    code = 'for each; do printf "<%s>" "$each"; done; cat; exit 7'
    done = plash.run([path, "-c", code, "sh", *odd], input="in")
    assert done.out == "".join(f"<{each}>" for each in odd) + "in" and done.status == 7
    assert plash.run([path, "-c", "pwd; id -u"]).out == f"{plash.place}\n{os.getuid()}\n"
    assert plash.run([path, "-c", "kill -9 $$"]).status == -9


def test_it_is_one_process(plash, command):
    child = subprocess.Popen(
        [command("sh"), "-c", "echo $$; exec cat"],
        env=plash.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert int(child.stdout.readline()) == child.pid
    child.communicate()


def test_it_finds_its_store_without_the_variable(plash, command):
    path = command("echo")
    env = {name: value for name, value in plash.env.items() if name != "PLASH_DATA"}
    done = subprocess.run([path, "hi"], env=env, stdout=subprocess.PIPE)
    assert done.stdout == b"hi\n"


def test_other_files_are_not_replaced(plash, image, command):
    path = command("--as=tool", "echo")
    assert path == f"{plash.place}/bin/tool"
    assert command("--as=tool", "cat") == path  # its own
    (plash.place / "bin/cat").write_text("mine")
    error = plash("push:command", f"--dir={plash.place}/bin", image, "cat").error
    assert error == (
        f"plash push:command: {plash.place}/bin/cat exists, and is no command of plash's"
        " (use --force to replace it)"
    )
    assert (plash.place / "bin/cat").read_text() == "mine"
    command("--force", "cat")
    assert "push:command" in (plash.place / "bin/cat").read_text()


def test_a_program_that_the_image_lacks_is_told(plash, image):
    env = {"PATH": f"{plash.place}/bin:{os.environ['PATH']}"}
    argv = ("push:command", f"--dir={plash.place}/bin", image, "cat", "nosuch", "/bin/sh", "/etc")
    lines = plash(*argv, env=env).ok().err.splitlines()
    assert [line for line in lines if "has no program" in line] == [
        f"plash push:command: image {image} has no program '{name}' now"
        for name in ("nosuch", "/etc")
    ]
    child = plash("build", image, "mkdir /opt; cp /bin/true /opt/mine").id
    with_path = plash("config", "--env=PATH=/opt:/bin", child).id
    assert plash(*argv[:2], with_path, "mine", env=env).ok().err == ""


def test_a_hidden_program_is_told(plash, image):
    path = f"{plash.place}/bin:{plash.env['PATH']}"
    done = plash("push:command", f"--dir={plash.place}/bin", image, "cat", env={"PATH": path}).ok()
    assert f"{plash.place}/bin/cat hides /" in done.err and "is not on PATH" not in done.err


@pytest.mark.parametrize(
    "argv, error",
    [
        (["--as=a/b", "1", "cat"], "not a name for a command: 'a/b'"),
        (["--as=x", "1", "cat", "ls"], "--as takes one PROGRAM"),
        (["99", "cat"], "no image: 99"),
    ],
)
def test_what_cannot_be(plash, image, argv, error):
    assert plash("push:command", *argv).error == "plash push:command: " + error
    assert not (plash.home / ".local").exists()


def test_rm_says_which_commands_lose_their_image(plash, image, command):
    other = plash("build", image, "touch /x").id
    plash("map", "tool", other).ok()
    lost, named, gone = (
        command(f"--as={name}", "cat", number=number)
        for name, number in (("lost", other), ("named", "tool"), ("gone", other))
    )
    command("--as=kept", "cat")
    os.unlink(gone)
    error = plash("rm", other).ok().err.splitlines()
    assert error[-2:] == [
        f"plash rm: {lost} runs image {other}, which is removed",
        f"plash rm: {named} runs image tool, which is removed",
    ]
    assert not any("kept" in line or "gone" in line for line in error)
    # Once there is an image of that name again, or the file is another's, all is well.
    (plash.place / "bin/lost").write_text("mine")
    plash("map", "tool", image).ok()
    assert plash("rm", plash("build", image, "touch /y").id).ok().err == ""


@pytest.fixture
def display(plash):
    """An X server that keeps no windows; yields the variables that lead to it."""
    need_program("Xvfb", "xauth", "xdpyinfo")
    # A number that no other run of the tests takes: -displayfd may give one to two servers.
    number = 100 + os.getpid() % 50000
    authority = plash.place / "Xauthority"
    plash.run(["xauth", "-f", authority, "add", f":{number}", ".", "01234567" * 4]).ok()
    argv = ["Xvfb", f":{number}", "-auth", authority, "-nolisten", "tcp"]
    with open(plash.place / "log", "wb") as log:
        server = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        wait_for(Path(f"/tmp/.X11-unix/X{number}").exists)
        yield {"DISPLAY": f":{number}", "XAUTHORITY": str(authority)}
    finally:
        server.terminate()
        server.wait()


@pytest.mark.slow
def test_a_graphical_program(plash, command, display):
    number = plash("pull:host", "xdpyinfo").id
    path = command("xdpyinfo", number=number)
    done = plash.run([path], env=display)
    assert f"name of display:    {display['DISPLAY']}\n" in done.ok().out
    assert plash.run([path], env={**display, "XAUTHORITY": "/dev/null"}).status == 1
