"""What a process has of its caller: working directory, home, session, and what cannot be kept."""

import os
import socket

import pytest
from requirements import need, need_program
from world import LIBEXEC


def test_a_working_directory_that_cannot_be_searched(plash, image, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir()
    for command, last in ("run", "pwd"), ("build", "pwd >&2"):
        code = f"chmod 0 .; {LIBEXEC}/plash-{command} {image} '{last}'"
        done = plash.run(["sh", "-c", code.replace("'pwd'", "pwd")], cwd=closed).ok()
        closed.chmod(0o700)
        if os.getuid() and command == "run":
            assert (done.out, done.err) == (
                "/\n",
                "plash run: cannot keep the working directory: Permission denied; starting in /\n",
            )
        else:
            assert str(closed) in done.out + done.err


@pytest.mark.parametrize("command", ["run", "build", "chroot"])
def test_a_working_directory_that_is_gone_is_said(plash, image, tmp_path, command):
    gone = tmp_path / "gone"
    gone.mkdir()
    root = image
    if command == "chroot":
        root = tmp_path / "root"
        plash("push:dir", image, root).ok()
    words = f"{LIBEXEC}/plash-{command} {root} pwd"
    done = plash.run(["sh", "-c", f"rmdir {gone}; {words}"], cwd=gone).ok()
    warning = (
        f"plash {command}: cannot keep the working directory: No such file or directory;"
        " starting in /\n"
    )
    assert warning in done.err
    assert "/" in (done.err if command == "build" else done.out).splitlines()


def test_a_working_directory_through_a_link(plash, image, tmp_path):
    (tmp_path / "real/u").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    code = f"cd link/u; {LIBEXEC}/plash-run {image} sh -c 'pwd -L; echo $PWD'"
    done = plash.run(["bash", "-c", code]).ok()
    assert set(done.out.split()) <= {f"{tmp_path}/link/u", f"{tmp_path}/real/u"}


def test_a_home_that_is_a_link(plash, image, tmp_path):
    (tmp_path / "real/u").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for home in tmp_path / "link", tmp_path / "link/u":
        env = {"HOME": str(home), "TMPDIR": "/"}
        # Without the host's /tmp, where this test is, home needs a mount of its own.
        code = "cd && touch made && pwd"
        done = plash("run", "--no-tmp", image, "sh", "-c", code, env=env).ok()
        assert done.out == f"{home}\n" and (home / "made").exists()


def test_home_below_a_link_of_the_image(plash, image, tmp_path):
    linked = plash("build", image, "mkdir -p /var/homes; ln -s var/homes /people").id
    code = f"""
        mount -t tmpfs people /opt && mkdir -p /opt/people/u && cd / && mkdir -p {tmp_path}/x
        HOME=/opt/people/u {LIBEXEC}/plash-run {linked} sh -c 'cd && touch made && pwd'
        ls /opt/people/u
        """
    done = plash("sudo", "sh", "-c", code, env={"PLASH_DATA": str(plash.data)})
    assert done.ok().out == "/opt/people/u\nmade\n"


def test_a_user_without_a_home(plash, image):
    env = [f"{name}={value}" for name, value in plash.env.items() if name != "HOME"]
    done = plash.run(["env", "-i", *env, LIBEXEC / "plash-run", image, "sh", "-c", "echo $HOME"])
    assert done.ok().out.startswith("/") and done.err == ""


@pytest.mark.only_for("root")
def test_a_uid_without_a_passwd_entry(plash, host_tar, tmp_path):
    need_program("setpriv")
    # pytest's directories are for their owner alone.
    for directory in tmp_path, *list(tmp_path.parents)[:2], host_tar.parent:
        need(directory.stat().st_uid == 0, "a directory of its own")
        directory.chmod(0o755)
    os.chmod(host_tar, 0o644)
    place = tmp_path / "place"
    place.mkdir()
    os.chown(place, 12345, 12345)

    def as_nobody(*words):
        ids = ["--reuid", "12345", "--regid", "12345", "--clear-groups"]
        env = ["env", "-i", f"PATH={plash.env['PATH']}", f"PLASH_DATA={place}/data"]
        command = [LIBEXEC / f"plash-{words[0]}", *words[1:]]
        return plash.run(["setpriv", *ids, *env, *command], cwd=place).ok()

    image = as_nobody("pull:tarfile", host_tar).id
    done = as_nobody("run", image, "sh", "-c", "id -u; echo $HOME")
    assert (done.out, done.err) == (
        "0\n/root\n",
        "plash run: you have no home directory (set HOME)\n",
    )
    done = as_nobody("run", "--as-me", image, "sh", "-c", "id -u; echo $HOME")
    assert done.out == "12345\n/\n"
    assert as_nobody("build", image, "echo $HOME; touch /x").err == "/root\n"


def test_roots_home_agrees(plash, image):
    code = "echo $HOME; grep ^root: /etc/passwd | cut -d: -f6"
    assert plash("run", image, "sh", "-c", code).ok().out == f"{plash.home}\n" * 2
    assert plash("build", image, code).ok().err == "/root\n" * 2
    assert plash("run", "--no-home", image, "sh", "-c", code).ok().out == "/root\n" * 2


def test_the_sockets_of_a_session_pass_with_their_variables(plash, image, tmp_path):
    runtime = tmp_path / "run"
    runtime.mkdir()
    with socket.socket(socket.AF_UNIX) as wayland:
        os.chdir(runtime)  # the path of a socket has at most 108 bytes
        wayland.bind("wayland-9")
        os.chdir(tmp_path)
        env = {
            "XDG_RUNTIME_DIR": str(runtime),
            "WAYLAND_DISPLAY": "wayland-9",
            "SSH_AUTH_SOCK": str(tmp_path / "gone"),
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={runtime}/gone",
        }
        code = (
            "env | grep -E '^(XDG_R|WAYLAND|SSH_A|DBUS)' | sort; test -S $XDG_RUNTIME_DIR/wayland-9"
        )
        for more in (), ("--no-tmp",):
            done = plash("run", *more, image, "sh", "-c", code, env=env).ok()
            assert done.out == f"WAYLAND_DISPLAY=wayland-9\nXDG_RUNTIME_DIR={runtime}\n"
        code = "env | grep -cE '^(XDG_R|WAYLAND|SSH_A|DBUS)' || :"
        assert plash("build", image, code, env=env).ok().err == "0\n"
        done = plash("run", "--no-home", image, "sh", "-c", code, env=env)
        assert done.ok().out == "0\n"


def test_container_says_plash(plash, image):
    for words in ["run"], ["run", "--as-me"]:
        assert plash(*words, image, "sh", "-c", "echo $container").ok().out == "plash\n"
    assert plash("build", image, "echo $container").ok().err == "plash\n"


@pytest.fixture(params=["a link to a file of the host", "a fifo"])
def odd_passwd(request, plash, image):
    secret = plash.place / "secret"
    secret.write_text("root:x:0:0::/secret:/bin/cat\nuser:x:5:5::/secret:/bin/cat\n")
    made = f"ln -s {secret}" if "link" in request.param else "mkfifo"
    tools = plash("pull:host", "sh", "rm", "ln", "mkfifo", "cat", "id").id
    return plash("build", tools, f"rm -f /etc/passwd; {made} /etc/passwd").id


def test_a_passwd_that_is_no_file_of_the_image_is_not_read(plash, odd_passwd):
    assert plash("run", odd_passwd, input="echo $0").ok().out == "/bin/sh\n"
    assert plash("run", odd_passwd, "sh", "-c", "echo $HOME").ok().out == f"{plash.home}\n"
    assert plash("run", "-u", "user", odd_passwd, "true").error == (
        "plash run: the image has no user 'user' in /etc/passwd"
    )
    named = plash("run", "--as-me", odd_passwd, "cat", "/etc/passwd").ok().out
    assert "/secret" not in named and f":{os.getuid()}:" in named


@pytest.mark.parametrize("way", ["plash-run", "env"])
def test_a_script_with_plash_as_its_interpreter(plash, image, way):
    line = (
        f"{LIBEXEC}/plash-run {image}"
        if way == "plash-run"
        else f"/usr/bin/env -S plash run {image}"
    )
    script = plash.place / "script"
    script.write_text(f"#!{line}\necho $0\n")
    script.chmod(0o755)
    env = {"PATH": f"{LIBEXEC.parent}/bin:{plash.env['PATH']}"}
    assert plash.run([script], env=env).error == (
        f"plash run: cannot execute {script}: its first line runs itself forever"
    )
    script.write_text(f"#!/usr/bin/env -S plash run {image} sh\necho $0 $1\n")
    assert plash.run([script, "x"], env=env).ok().out == f"{script} x\n"
