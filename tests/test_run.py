"""What a process in an image sees, and that it is an ordinary process."""

import os
import pty
import select
import signal
import stat
import subprocess
import time

import pytest
from requirements import need_program, needs_subordinate_ids
from world import LIBEXEC, wait_for


def test_it_runs_on_the_image_and_drops_what_it_changes(plash, image):
    assert (
        plash(
            "run", image, "sh", "-c", "grep -c root /etc/passwd; echo x > /etc/new; cat /etc/new"
        ).out
        == "1\nx\n"
    )
    assert "new" not in plash("run", image, "ls", "/etc").ok().out


def test_it_is_root_and_the_caller(plash, image):
    assert plash("run", image, "id", "-u").out == "0\n"
    plash("run", image, "touch", plash.home / "file").ok()
    assert (plash.home / "file").stat().st_uid == os.getuid()


def test_it_sees_the_host(plash, image):
    seen = (
        plash(
            "run",
            image,
            "sh",
            "-c",
            "ls /host/etc/passwd; ls -d /proc/self /sys/class /dev/null /home",
        )
        .ok()
        .out
    )
    assert seen.split() == ["/host/etc/passwd", "/dev/null", "/home", "/proc/self", "/sys/class"]
    for file in "/etc/resolv.conf", "/etc/hosts":
        if os.path.isfile(file):
            assert plash("run", image, "cat", file).out == open(file).read()


def test_tmp_is_the_hosts(plash, image, tmp_path):
    plash("run", image, "touch", tmp_path / "made").ok()
    assert (tmp_path / "made").exists()


def test_a_home_outside_of_home_is_there(plash, image):
    home = plash.data / "tmp/home"
    home.mkdir()
    (home / "file").touch()
    assert plash("run", image, "ls", home, env={"HOME": str(home)}).out == "file\n"
    (home / "file").unlink()
    home.rmdir()


@pytest.mark.parametrize("etc", ["a dangling link", "a file", "deleted"])
def test_resolv_conf_is_the_hosts_whatever_the_image_has(plash, image, etc, tmp_path):
    layer = tmp_path / "layer"
    layer.mkdir()
    if etc == "deleted":
        os.mknod(layer / "etc", stat.S_IFCHR)
    else:
        (layer / "etc").mkdir(mode=0o700)
        if etc == "a file":
            (layer / "etc/resolv.conf").write_text("nameserver 1.2.3.4\n")
        else:
            (layer / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    number = plash("stack", image, layer).id
    assert plash("run", number, "cat", "/etc/resolv.conf").out == open("/etc/resolv.conf").read()
    mode = "755" if etc == "deleted" else "700"
    assert plash("run", number, "stat", "-c", "%a", "/etc").out == f"{mode}\n"


def test_the_working_directory_is_kept(plash, image, tmp_path):
    assert plash("run", image, "pwd").out == f"{tmp_path}\n"
    assert plash("run", image, "pwd", cwd="/usr/lib").out == "/host/usr/lib\n"
    assert plash("run", image, "pwd", cwd="/").out == "/host\n"


def test_a_working_directory_that_is_gone(plash, image, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    run = plash.run(["sh", "-c", f"rmdir {gone}; {LIBEXEC}/plash-run {image} pwd"], cwd=gone)
    assert run.out == "/\n"


def test_the_environment(plash, image):
    given = {
        "LANG": "C",
        "LC_TIME": "C",
        "TERM": "vt100",
        "https_proxy": "http://p",
        "FOO": "1",
        "BAR": "2",
        "BAZ": "3",
        "PLASH_EXPORT": "FOO:BAR:JOB_*",
        "JOB_ID": "4",
        "TZ": "UTC",
        "LD_LIBRARY_PATH": "/x",
    }
    env = dict(
        line.split("=", 1) for line in plash("run", image, "env", env=given).ok().out.splitlines()
    )
    for name in set(given) - {"BAZ", "LD_LIBRARY_PATH"}:
        assert env[name] == given[name]
    assert not {"BAZ", "LD_LIBRARY_PATH"} & set(env)
    assert env["PATH"] == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert env["HOME"] == str(plash.home)


def test_nothing_of_pythons_is_in_the_environment(plash, image):
    words = [
        "env",
        "-i",
        f"PATH={os.environ['PATH']}",
        f"HOME={plash.home}",
        f"PLASH_DATA={plash.data}",
        LIBEXEC / "plash-run",
        image,
        "env",
    ]
    names = {line.split("=")[0] for line in plash.run(words).ok().out.splitlines()}
    assert names == {"PATH", "HOME", "PLASH_DATA", "container"} | names & {
        "_",
        "PWD",
        "SHLVL",
        "APT_CONFIG",
    }


@pytest.mark.parametrize(
    "code, status", [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", -9)]
)
def test_the_exit_status_is_the_commands(plash, image, code, status):
    assert plash("run", image, "sh", "-c", code).status == status


def test_126_and_127(plash, image):
    done = plash("run", image, "no-such-thing")
    assert (done.status, done.error) == (127, "plash run: command not found: no-such-thing")
    done = plash("run", image, "/no/such")
    assert (done.status, done.error) == (127, "plash run: command not found: /no/such")
    done = plash("run", image, "/etc/passwd")
    assert (done.status, done.error) == (
        126,
        "plash run: cannot execute /etc/passwd: Permission denied",
    )
    done = plash("run", image, "/etc")
    assert (done.status, done.error) == (126, "plash run: cannot execute /etc: Permission denied")
    script = plash("build", image, "echo '#!/no/interpreter' > /bin/s; chmod +x /bin/s").id
    done = plash("run", script, "s")
    assert (done.status, done.error) == (
        126,
        "plash run: cannot execute s: its interpreter or loader is missing",
    )


def test_it_is_the_process_that_was_started(plash, image):
    run = plash.start("run", image, "sh", "-c", "echo $$; exec cat")
    assert int(run.stdout.readline()) == run.pid
    run.terminate()
    assert run.wait() == -signal.SIGTERM


@pytest.mark.parametrize("way", ["path", "link", "search"])
def test_it_can_be_called_directly(plash, image, tmp_path, way):
    (tmp_path / "link").symlink_to(LIBEXEC / "plash-run")
    words = {"path": LIBEXEC / "plash-run", "link": tmp_path / "link", "search": "plash-run"}[way]
    env = {"PATH": f"{LIBEXEC}:{os.environ['PATH']}"}
    assert plash.run([words, image, "echo", "a  b", "*"], env=env).ok().out == "a  b *\n"


def test_binary_data_passes_through_pipes(plash, image):
    data = os.urandom(3_000_000)
    assert plash("run", image, "cat", input=data).raw == data


def test_a_closed_pipe_ends_it_by_sigpipe(plash, image):
    code = f"{{ {LIBEXEC}/plash-run {image} sh -c 'while echo y; do :; done'; echo $? >&2; }} | head -1"
    done = plash.run(["sh", "-c", code])
    assert (done.out, done.err) == ("y\n", "141\n")


def test_no_descriptor_of_plashs_is_open_in_it(plash, image):
    assert plash("run", image, "ls", "/proc/self/fd").out.split() == [
        "0",
        "1",
        "2",
        "3",
    ]  # 3 is ls's own


def test_ctrl_c_and_ctrl_z_on_a_terminal(plash, image):
    need_program("bash")
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(plash.env, PS1="ready ", HISTFILE="")
        os.execvp("bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"])
    shown = b""

    def expect(text):
        nonlocal shown
        end = time.monotonic() + 30
        while text not in shown:
            assert time.monotonic() < end and select.select([terminal], [], [], 30)[0], shown
            shown += os.read(terminal, 4096)
        shown = shown.partition(text)[2]

    def type_in(text):
        os.write(terminal, text)

    # Each job is one process: a shell's child that is not yet in exec when the Ctrl-C comes ignores it, and one
    # that is not yet stopped when bash says so reads what was meant for bash.
    run = f"{LIBEXEC}/plash-run {image} "
    expect(b"ready ")
    type_in(f"{run} sh -c 'echo started; exec sleep 100'\n".encode())
    expect(b"started\r\n")
    type_in(b"\x03")
    expect(b"ready ")
    type_in(b"echo status $?\n")
    expect(b"status 130")
    type_in(f"{run} sh -c 'echo begun; exec cat'\n".encode())
    expect(b"begun\r\n")
    type_in(b"once\n")
    expect(b"once\r\nonce\r\n")  # cat runs by now
    type_in(b"\x1a")
    expect(b"Stopped")
    expect(b"ready ")
    type_in(b"fg\n")
    expect(b"cat'\r\n")
    type_in(b"again\n")
    expect(b"again\r\nagain")
    type_in(b"\x04")
    expect(b"ready ")
    type_in(f"{run} sh -c 'test -t 1 && readlink /proc/self/fd/0'\n".encode())
    expect(b"/dev/pts/")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(terminal)


def test_without_a_command_it_is_roots_login_shell(plash, image):
    assert plash("run", image, input="echo $0; pwd").out.split() == ["/bin/sh", str(plash.place)]
    bash = plash("build", image, "echo 'root:x:0:0:root:/root:/bin/bash' > /etc/passwd").id
    assert plash("run", bash, input="shopt -q login_shell && echo $0").out == "/bin/bash\n"
    gone = plash("build", image, "echo 'root:x:0:0:root:/root:/bin/gone' > /etc/passwd").id
    assert plash("run", gone, input="echo $0").out == "/bin/sh\n"


def test_a_killed_run_leaves_nothing(plash, image):
    run = plash.start("run", image, "sh", "-c", "echo x > /big; echo up; exec sleep 100")
    assert run.stdout.readline() == b"up\n"
    run.kill()
    run.wait()
    assert plash.leftovers() == []
    assert str(plash.data) not in open("/proc/self/mounts").read()


def test_mountinfo_names_the_image(plash, image):
    with plash.start("run", image, "cat") as run:
        wait_for(
            lambda: (
                f" overlay {plash.data}/layer/0/{image}@"
                in open(f"/proc/{run.pid}/mountinfo", errors="replace").read()
            )
        )
        run.stdin.close()
    source = plash("run", image, "df", "--output=source", "/").out.split()[1]
    assert source.partition("@")[0] == f"{plash.data}/layer/0/{image}"


def test_plashs_own_mounts_are_not_to_be_seen(plash, image):
    mounts = plash("run", image, "cat", "/proc/self/mountinfo").ok().out
    assert mounts.count(str(plash.data)) == 1
    assert plash("run", image, "ls", f"/host{plash.data}/mnt").ok().out == ""


def test_a_static_program_runs_in_an_image_with_nothing_else(plash, tmp_path):
    need_program("busybox")
    (tmp_path / "root").mkdir()
    busybox = subprocess.run(
        ["sh", "-c", "command -v busybox"], capture_output=True, text=True
    ).stdout.strip()
    plash.run(["cp", busybox, tmp_path / "root/busybox"]).ok()
    number = plash("stack", "0", tmp_path / "root").id
    assert plash("run", number, "/busybox", "echo", "hi").ok().out == "hi\n"
    listed = plash("run", number, "/busybox", "ls", "/").ok().out.split()
    # /run has the settings of apt where only one id is mapped.
    assert set(listed) - {"run"} == {"busybox", "dev", "etc", "home", "host", "proc", "sys", "tmp"}
    child = plash("build", number, "/busybox", "touch", "/made").id
    assert plash("run", child, "/busybox", "ls", "/made").ok().out == "/made\n"
    assert plash("run", number).error == "plash run: command not found: /bin/sh"


@needs_subordinate_ids
def test_subordinate_ids_are_users_inside(plash, image):
    child = plash("build", image, "chown 7:9 /etc/passwd").id
    assert plash("run", child, "stat", "-c", "%u:%g", "/etc/passwd").out == "7:9\n"


@pytest.mark.parametrize(
    "name", [b"a b", b"a,b", b"a:b", b"a\\b", b"a\nb", b"\xff\xfe", b"\xc3\xa4", b"x" * 200 + b" #"]
)
def test_odd_characters_in_paths(plash, host_tar, tmp_path, name):
    odd = os.path.join(os.fsencode(tmp_path), name)
    os.mkdir(odd)
    env = {"PLASH_DATA": os.fsdecode(odd + b"/data")}
    image = plash("pull:tarfile", host_tar, env=env).id
    child = plash("build", image, "echo built > /file", env=env).id
    assert plash("run", child, "cat", "/file", env=env).out == "built\n"
    assert plash("run", child, "pwd", env=env, cwd=odd).raw == odd + b"\n"
    assert plash("run", child, "echo", name, env=env).raw == name + b"\n"
    persist = odd + b"/persist " + name
    plash("run:persist", child, persist, "touch", "/kept", env=env).ok()
    assert plash("run:persist", child, persist, "ls", "/kept", env=env).out == "/kept\n"
    tar = odd + b"/out.tar"
    plash("push:tarfile", child, tar, env=env).ok()
    with subprocess.Popen(
        [LIBEXEC / "plash-run", child, "cat"], stdin=subprocess.PIPE, env={**plash.env, **env}
    ) as run:
        mountinfo = f"/proc/{run.pid}/mountinfo"
        wait_for(lambda: "/layer/0/" in open(mountinfo, errors="replace").read())
        assert f"image {child} is in use by process {run.pid}" in plash("rm", child, env=env).error
        run.stdin.close()
    plash("rm", "--recursive", image, env=env).ok()
    plash("purge", "--yes", env=env).ok()
    plash("sudo", "rm", "-rf", odd).ok()
