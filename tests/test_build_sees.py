"""build: it reads the host and can't change it, and all that it started ends with plash."""

import os
import pathlib
import pty
import select
import shlex
import signal
import sys
import time

import pytest
from requirements import kind_of_user, need, need_program
from world import LIBEXEC, ROOT, wait_for

# A host to throw away: a tmpfs with the real host's programs read-only, and a pid namespace.
THROW_AWAY = r"""
set -e
PATH=$PATH:/usr/sbin:/sbin
mount -t tmpfs throw-away "$1"; cd "$1"
mkdir usr repo dev proc sys etc tmp home home/u srv opt store
for each in bin sbin lib lib32 lib64; do
    if [ -L /$each ]; then cp -d /$each .; elif [ -d /$each ]; then mkdir $each; mount --rbind /$each $each; fi
done
mount --rbind /usr usr; mount -o remount,bind,ro usr
mount --bind "$2" repo; mount -o remount,bind,ro repo
cp /etc/passwd /etc/group /etc/nsswitch.conf /etc/ld.so.cache etc || :
echo precious >home/u/file; echo precious >tmp/file; echo precious >srv/file; echo precious >etc/file
echo 127.0.0.1 localhost >etc/hosts; echo nameserver 127.0.0.1 >etc/resolv.conf
mkdir opt/mount; mount -t tmpfs other opt/mount; echo precious >opt/mount/file
mount -t tmpfs dev dev
for each in null zero full random urandom tty; do : >dev/$each; mount --bind /dev/$each dev/$each; done
ln -s /proc/self/fd dev/fd
mount -t proc proc proc
mount --rbind /sys sys
cp "$3" host.tar
mkdir old; pivot_root . old; umount -l old; rmdir old
cd /
export PLASH_DATA=/store/data HOME=/home/u PATH=/usr/sbin:/usr/bin:/sbin:/bin PLASH_NO_SYNC=1
chmod 777 store
"""


@pytest.fixture
def throw_away(plash, host_tar, tmp_path):
    """A function that runs shell code as this kind of user on a host to throw away."""
    need(os.path.realpath(sys.executable).startswith("/usr/"), "a Python below /usr")

    def run(code):
        (tmp_path / "throw-away").mkdir(exist_ok=True)
        setup = THROW_AWAY
        inner = "sh -ec " + shlex.quote(code)
        if kind_of_user() != "root":
            # Inside, plash is started by a user without privileges.
            inner = "chown -R 0:0 /store; unshare --user --map-user=1000 --map-group=1000 " + inner
        words = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
        words += ["sh", "-c", setup + inner, "sh", tmp_path / "throw-away", ROOT, host_tar]
        return plash("sudo", *words)

    return run


DESTRUCTIVE = {
    "rm of all": "rm -rf --no-preserve-root / || :",
    "rm of homes": "rm -rf /home/* /tmp/* /root /host /var /run || :",
    "find -delete": "find / -xdev -delete 2>/dev/null || :",
    "find -delete everywhere": "find / -delete 2>/dev/null || :",
    "find that follows links": "find -L /proc/[0-9]* /host/proc/[0-9]* -maxdepth 4 -name file -delete 2>/dev/null; :",
    "find of compiled files": "find / -name file -delete || :",
    "chown": "chown -R 5 / || :",
    "chmod": "chmod -R 0 / || :",
    "chmod of devices": "cd /dev; chmod 0 null zero tty; chown 5 null full; touch -d @0 random; : >null",
    "descriptors": "for n in 3 4 5 6 7 8 9; do rm -f /proc/1/fd/$n/home/u/file /proc/1/fd/$n/file; done; :",
    "open files": "rm -f /proc/self/fd/7/file; echo x >&8; echo x >&9; :",
    "other roots": "for p in /host/proc/[0-9]*; do rm -f $p/root/srv/file $p/cwd/file $p/fd/*/file; done; :",
    "other roots' mounts": "for p in /host/proc/[0-9]*; do nsenter --mount=$p/ns/mnt rm -f /srv/file; done; :",
    "host name": "hostname changed; mount -t proc proc /mnt; echo changed >/mnt/sys/kernel/hostname; :",
    "shared memory": "ipcrm --all; :",
    "kill": "kill -9 -1; echo still here",
    "remount": "mount -o remount,rw,bind /host; rm -rf /host/home/u/file /host/etc/file || :",
    "bind and remount": "mkdir /m; mount --bind /host/srv /m; mount -o remount,rw,bind /m; rm -f /m/file; :",
    "unmount": "umount -l /host; umount -l /dev; umount -l /proc; rm -rf /host/* || :",
    "move": "mv /host/home/u/file /x; cp /bin/true /host/home/u/file; : >/host/etc/file || :",
}


@pytest.mark.slow
@pytest.mark.parametrize("code", DESTRUCTIVE.values(), ids=DESTRUCTIVE)
def test_a_build_cannot_destroy_the_host(throw_away, code):
    tools = (
        "sh rm find chown chmod mount umount mv cp true ls cat kill sleep touch nsenter hostname"
        " ipcrm mkdir"
    )
    # Others write to the devices, which changes their times.
    listing = (
        "{ find / /opt/mount -xdev '(' -path /store -o -path /proc -o -path /sys ')' -prune"
        " -o -printf '%p %y %m %U %s %T@\\n'; find /dev -xdev -printf '%p %y %m %U\\n'; hostname;"
        " ipcs --shmems; }"
    )
    done = throw_away(f"""
        exec 3>&2 2>/store/err
        trap 'cat /store/err >&3' EXIT
        id=$(/repo/libexec/plash-pull:host {tools})
        sleep 1000 & sleeps=$!
        ipcmk --shmem 100 >/store/ids
        cd /home/u; exec 7</home/u 8>>/srv/file 9</srv
        {listing} | sort >/store/before
        /repo/libexec/plash-build $id {shlex.quote("echo ran; " + code)} >/store/out 2>&1 || :
        {listing} | sort >/store/after
        diff /store/before /store/after >&2
        cat /home/u/file /tmp/file /srv/file /etc/file /opt/mount/file
        kill -0 $sleeps && kill $sleeps
        ipcrm --all
        grep -x ran /store/out
        """)
    assert done.ok().out == "precious\n" * 5 + "ran\n"


def test_homes_are_the_images(plash, image):
    code = "mkdir -p /home/app /run/x /var/y; echo in >/home/app/f; echo r >/root/r; touch /tmp/t"
    built = plash("build", image, code).id
    assert plash("run", "--no-home", built, "cat", "/home/app/f", "/root/r").ok().out == "in\nr\n"
    assert not os.path.exists("/home/app/f") and not os.path.exists("/tmp/t")


def test_the_host_is_below_host_and_cannot_be_changed(plash, image):
    (plash.place / "file").write_text("mine\n")
    code = "cat file; pwd; for f in file new /host/tmp/new; do (echo x >$f) 2>/dev/null && exit 9; done; :"
    done = plash("build", image, code)
    assert done.ok().err == f"mine\n/host{plash.place}\n"
    options = [
        line.split()[5].split(",")
        for line in plash("build", image, "cat /proc/self/mountinfo").ok().err.splitlines()
        if line.split()[4].startswith("/host")
    ]
    assert len(options) > 3  # /host/proc, /host/sys ... are mounts of their own
    assert all({"ro", "nosuid", "nodev"} <= set(each) for each in options)


def test_nothing_of_plashs_own_is_visible(plash, image):
    code = f"ls -A /host{plash.data}/mnt; ls /host{plash.data}"
    listed = plash("build", image, code).ok().err.split()
    assert "layer" in listed and not {"points", "data", "work"} & set(listed)


def test_it_has_a_small_dev_of_its_own(plash, image):
    code = "ls /dev; echo x >/dev/null; echo y >/dev/stderr; test -c /dev/zero; touch /dev/shm/z /dev/new"
    listed = plash("build", image, code).ok().err.split()
    assert listed == [
        *("fd", "full", "null", "ptmx", "pts", "random", "shm"),
        *("stderr", "stdin", "stdout", "tty", "urandom", "zero", "y"),
    ]
    assert not os.path.exists("/dev/new") and not os.path.exists("/dev/shm/z")


def test_switches_of_the_kernel_cannot_be_turned(plash, image):
    switches = "/proc/sys/kernel/hostname /proc/sys/vm/drop_caches /proc/sysrq-trigger /sys/x"
    code = f"for f in {switches}; do (: >>$f) 2>/dev/null && echo wrote $f; done; :"
    assert plash("build", image, code).ok().err == ""


def test_umask_is_022(plash, image):
    code = "umask; mkdir -p /opt/t; echo >/etc/c"
    built = plash.run(["sh", "-c", f'umask 077; {LIBEXEC}/plash-build {image} "{code}"'])
    assert built.err == "0022\n"
    assert plash("run", built.id, "stat", "-c", "%a", "/opt/t", "/etc/c").out == "755\n644\n"


def test_a_long_script(plash, image):
    assert plash("build", image, input=f"# {1:0140000}\necho x $0").ok().err == "x /bin/sh\n"
    assert plash("build", image, f"# {1:0100000}\necho x $0").ok().err == "x /bin/sh\n"


def test_the_directory_of_a_project(plash, image):
    project = plash.place / "project"
    project.mkdir()
    (project / "app.py").write_text("code\n")
    copied = plash("build", image, "cp -r . /app", cwd=project).id
    assert plash("run", copied, "cat", "/app/app.py").ok().out == "code\n"
    assert plash("build", "-b", ".", image, "pwd; touch made", cwd=project).ok().err == (
        f"{project}\n"
    )
    assert (project / "made").exists()
    done = plash("build", "-b", ".:/src:ro", image, "ls /src; (: >/src/x) || :", cwd=project)
    assert done.ok().err.startswith("app.py\nmade\n") and not (project / "x").exists()


def test_its_processes_are_its_own(plash, image):
    with plash.start("run", image, "cat") as other:
        code = f"echo $PPID; ls /proc | grep -c '^[0-9]'; kill -0 {other.pid} && exit 9; :"
        lines = plash("build", image, code).ok().err.splitlines()
        assert lines[0] == "1" and int(lines[1]) < 8
        other.stdin.close()


LEAVES = 'sleep 60 & setsid sleep 60 & (setsid sh -c "trap : HUP TERM USR1; sleep 60; :" &)'


@pytest.mark.parametrize("number", ["SIGKILL", "SIGUSR1", "SIGXCPU", "SIGALRM"])
def test_whatever_ends_it_ends_all_that_it_started(plash, number):
    image = plash("pull:host", "sh", "sleep", "setsid").id
    build = plash.start("build", image, f"{LEAVES}; echo up; sleep 60")
    assert build.stderr.readline() == b"up\n"
    inside = [pid for pid in os.listdir("/proc") if pid.isdigit() and is_below(pid, build.pid)]
    assert len(inside) > 4
    build.send_signal(getattr(signal, number))
    assert build.wait(timeout=20) == -getattr(signal, number)
    build.stdout.read()  # until the last of them has closed it
    build.stderr.read()
    wait_for(lambda: not any(is_alive(pid) for pid in inside))
    plash.clean()


def stat_fields(pid):
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return None


def is_alive(pid):
    fields = stat_fields(pid)
    return fields is not None and fields[0] not in "ZX"


def is_below(pid, ancestor):
    """Whether a process is a descendant of another, or in a pid namespace below it."""
    while pid not in ("0", "1"):
        if pid == str(ancestor):
            return True
        fields = stat_fields(pid)
        if fields is None:
            return False
        pid = fields[1]
    return False


WITHOUT_MOUNT_SETATTR = """
import ctypes, os, struct, sys
code = (0x20, 0, 0, 0), (0x15, 0, 1, 442), (0x06, 0, 0, 0x50000 | 38), (0x06, 0, 0, 0x7FFF0000)
filters = b"".join(struct.pack("HBBI", *each) for each in code)
class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
libc = ctypes.CDLL(None)
if os.getuid():
    libc.prctl(38, 1, 0, 0, 0)
assert libc.prctl(22, 2, ctypes.byref(Program(len(code), filters)), 0, 0) == 0
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_without_mount_setattr_the_host_is_not_in_a_build(plash, image):
    """Linux before 5.12; a seccomp filter answers for it."""
    words = [sys.executable, "-c", WITHOUT_MOUNT_SETATTR]
    done = plash.run(
        [*words, LIBEXEC / "plash-build", image, "ls -A /host; ! ls /sys/kernel 2>/made; pwd"]
    )
    assert done.ok().err.startswith("/\n")
    assert "/host and /sys are left out" in done.err.splitlines()[-1]
    done = plash("build", "--no-host", image, "ls /sys/kernel >/made; ls -A /host").ok()
    assert done.err == ""
    done = plash.run([*words, LIBEXEC / "plash-run", image, "ls", "-d", "/host/usr"])
    assert done.ok().out == "/host/usr\n"
    done = plash.run([*words, LIBEXEC / "plash-run", "-b", "/usr:/x:ro", image, "true"])
    assert done.error == "plash run: cannot bind /usr on /x: read-only directories need Linux 5.12"


def test_where_no_proc_can_be_mounted(plash, image):
    """As in docker and podman, whose /proc is partly covered; what it leaves running is killed."""
    sleeper = plash("pull:host", "sh", "sleep", "setsid", "ls").id
    code = (
        "mount -t tmpfs cover /proc/tty; exec unshare --user --map-root-user --mount"
        f" {LIBEXEC}/plash-build {sleeper} 'sleep 61 & setsid sleep 61 & ls -d /proc/{os.getpid()}'"
    )
    # stderr ends when the last of its processes has.
    assert plash("sudo", "sh", "-c", code).ok().err == f"/proc/{os.getpid()}\n"


def test_a_terminal(plash, image):
    """Ctrl-C, Ctrl-Z, a shell with job control, and a build in the background."""
    need_program("bash")
    typed = Terminal(plash)
    build = f"{LIBEXEC}/plash-build {image} "
    typed(f"{build} 'echo st''arted; sleep 60'", "started\r\n")
    typed("\x03", "ready ")
    typed("echo status $?", "status 130", "ready ")
    typed(f"{build} 'echo be''gun; exec cat'", "begun\r\n")
    typed("once", "once\r\nonce\r\n")
    typed("\x1a", "Stopped", "ready ")
    typed.wait_for("cat", "T")  # until then, it may read what is meant for bash
    typed("fg", "cat'\r\n")
    typed("again", "again\r\nagain")
    typed("\x04", "ready ")
    typed(f"{build} 'sleep 1; echo do''ne' &", "ready ")
    typed("echo ty''ped", "typed\r\n", "done\r\n")
    typed("wait; echo wa''it $?", "wait 0", "ready ")
    typed(build, "# ")
    typed("echo in''side; sleep 60 && :", "inside\r\n")
    typed.wait_for("sleep", "S")
    typed("\x03", "# ")
    typed("echo st''op; sleep 61", "stop\r\n")
    typed.wait_for("sleep", "S")
    typed("\x1a", "Stopped", "# ")
    typed("fg", "sleep 61\r\n")
    typed.wait_for("sleep", "S")
    typed("\x03", "# ")
    typed("exit 0", "ready ")
    typed("echo af''ter", "after\r\n", "ready ")
    typed.close()


class Terminal:
    """bash on a terminal; a call types a line, or one control character, and waits for texts."""

    def __init__(self, plash):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(plash.env, PS1="ready ", HISTFILE="")
            os.execvp("bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"])
        self.shown = b""
        self.expect("ready ")

    def __call__(self, text, *expected):
        os.write(self.fd, (text if text < " " else text + "\n").encode())
        for each in expected:
            self.expect(each)

    def expect(self, text):
        end = time.monotonic() + 30
        while text.encode() not in self.shown:
            assert time.monotonic() < end and select.select([self.fd], [], [], 30)[0], self.shown
            self.shown += os.read(self.fd, 4096)
        self.shown = self.shown.partition(text.encode())[2]

    def wait_for(self, program, state):
        """Wait until the session has processes of a program, all in a state of proc(5)."""
        wait_for(lambda: set(self.states(program)) == {state})

    def states(self, program):
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                name, _, rest = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(") ")
            except OSError:
                continue
            state, _, _, session, *_ = rest.split()
            if name.endswith(f"({program}") and int(session) == self.pid:
                yield state

    def close(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)
