"""Without subordinate ids, root's calls succeed and do nothing; and what is said of it."""

import os
import platform
import struct
import subprocess
import sys

import pytest
from requirements import need, need_program
from world import ROOT, Plash

from plashlib import emulate

plain = pytest.mark.only_for("plain")
LOST = "owners were not kept: what was given to {} is root's (only your own id is mapped, see plash doctor)"

# Runs a command as a plash container of one id does.
INSIDE = f"""import os, sys; sys.path.insert(0, {str(ROOT)!r})
from plashlib import emulate, ids
ids.become_root()
emulate.install()
os.execvp(sys.argv[1], sys.argv[1:])"""


PROGRAMS = "sh", "chown", "chgrp", "touch", "ls", "grep", "env", "sleep", "mknod", "test"


@pytest.fixture
def image(plash):
    return plash("pull:host", *PROGRAMS).id


@plain
def test_owners_are_given_away_and_stay_roots(plash, image):
    code = "touch /x && chown 5:7 /x && chgrp 9 /x && chown -h 5 /x && ls -ln /x"
    fields = plash("run", image, "sh", "-c", code).ok().out.split()
    assert fields[2:4] == ["0", "0"]


CALLS = """
import os
os.chown("/x", 1, 2); os.lchown("/x", 1, 2); os.fchown(os.open("/x", 0), 1, 2)
os.chown("x", 1, 2, dir_fd=os.open("/", 0))
os.setgroups([5, 6]); os.setgid(3); os.setuid(3); os.setregid(4, 4); os.setreuid(4, 4)
os.setresgid(5, 5, 5); os.setresuid(5, 5, 5); os.setegid(6); os.seteuid(6)
os.mknod("/c", 0o20666, os.makedev(1, 3)); os.mknod("/b", 0o60666, os.makedev(1, 3))
os.mknod("/f", 0o10666); os.mknod("/s", 0o140666); os.mknod("/r", 0o100666)
print(os.getresuid(), os.stat("/x").st_uid, sorted(n for n in os.listdir("/") if len(n) == 1))
for call in (
    lambda: os.mknod("/f", 0o10666), lambda: os.mkdir("/x"), lambda: os.open("/y", 0),
):
    try:
        call()
    except OSError as error:
        print(error.strerror)
"""


@plain
def test_each_call_and_the_errors_of_others(plash):
    image = plash("pull:host", sys.executable, "sh").id
    base = plash("build", image, ":>/x").id
    python = f"PYTHONHOME=/host{sys.base_prefix} exec {os.path.realpath(sys.executable)} -"
    done = plash("run", base, "sh", "-c", python, input=CALLS).ok()
    assert done.out.splitlines() == [
        "(0, 0, 0) 0 ['f', 'r', 's', 'x']",
        *("File exists", "File exists", "No such file or directory"),
    ]


@plain
def test_off(plash, image):
    off = {"PLASH_EMULATE": "0"}
    assert plash("run", image, "chown", "5", "/etc", env=off).status == 1
    assert "APT_CONFIG" not in plash("run", image, "env", env=off).out
    assert plash("doctor", env=off).out.count("off, by PLASH_EMULATE=0") == 1


@pytest.mark.only_for("root", "subids")
def test_nothing_where_more_ids_are_mapped(plash, image):
    code = "grep Seccomp: /proc/self/status; env"
    here = [line for line in open("/proc/self/status") if line.startswith("Seccomp:")]
    out = plash("run", image, "sh", "-c", code).out
    assert out.startswith(here[0]) and "APT_CONFIG" not in out


@plain
def test_whoever_is_not_root_gets_the_kernels_answers(plash, image):
    assert plash("run", "--as-me", image, "chown", "5", "/etc").status == 1


@plain
def test_chroot(plash, image):
    plash("push:dir", image, "root").ok()
    assert plash("chroot", "root", "chown", "5:5", "/etc").ok()


@plain
def test_a_build_tells_what_was_lost_and_push_tells_it_again(plash, image, layers):
    need_program("mksquashfs")
    plain_build = plash("build", image, "touch /x; chown 0:0 /x; chgrp 0 /x; ls /run/plash").ok()
    assert plain_build.err == "apt.conf\n"
    assert layers(plain_build.id) == ["x"]
    lost = plash("build", plain_build.id, "chown 5:7 /x; chown 0 /x; chgrp 12 /x").ok()
    assert lost.err == "plash build: " + LOST.format("gid 7, gid 12, uid 5") + "\n"
    again = plash("build", lost.id, "touch /y").ok()
    assert again.err == ""
    more = plash("build", again.id, "chown 9 /y").ok()
    for name, target in ("tarfile", "x.tar"), ("dir", "x"), ("program", "x.run"):
        err = plash("push:" + name, more.id, target).ok().err
        assert err == f"plash push:{name}: " + LOST.format("gid 7, gid 12, uid 5, uid 9") + "\n"
    assert plash("push:tarfile", plain_build.id, "y.tar").ok().err == ""


@plain
def test_devices_that_were_not_made_are_told(plash, image):
    done = plash("build", image, "mknod /c c 1 3; mknod /p p; test -p /p; test ! -e /c").ok()
    assert done.err == (
        "plash build: device nodes were not made, which a user namespace can't have\n"
    )


@plain
def test_a_failed_build_says_how_it_failed_alone(plash, image):
    done = plash("build", image, "chown 5 /etc; exit 3")
    assert done.error == "plash build: the command failed with exit status 3; nothing was kept"


@plain
def test_a_build_ends_while_calls_wait_for_an_answer(plash, image):
    code = "touch /x; (while :; do chown 5 /x; done) & (while :; do chown 6 /x; done) & sleep 0.3"
    assert (
        plash("build", image, code).ok().err == "plash build: " + LOST.format("uid 5, uid 6") + "\n"
    )


@plain
def test_a_filter_below_a_filter(plash, image):
    """As plash in plash: nobody knows what is given away, which is told when it leaves."""
    python = [sys.executable, "-c", INSIDE]
    done = plash.run([*python, ROOT / "bin/plash", "build", image, "chown 5 /etc"]).ok()
    assert done.err == ""
    err = plash("push:tarfile", done.id, "x.tar").ok().err
    assert err.startswith("plash push:tarfile: owners may not have been kept")


@plain
def test_the_callers_apt_configuration_stays(plash, image):
    code = 'echo "$APT_CONFIG"'
    assert plash("run", image, "sh", "-c", code).out == "/run/plash/apt.conf\n"
    assert plash("run", "-e", "APT_CONFIG=/x", image, "sh", "-c", code).out == "/x\n"


def i386(*calls):
    """A program for i386 that makes calls, by numbers of them and of arguments; exits with the first error."""
    code = b""
    for number, *arguments in calls:
        # mov eax, number; mov ebx|ecx|edx|esi|edi, argument; int 0x80; neg eax; jnz to the exit
        code += b"\xb8" + struct.pack("<I", number)
        for register, argument in zip(b"\xbb\xb9\xba\xbe\xbf", arguments):
            code += bytes([register]) + struct.pack("<I", argument & 0xFFFFFFFF)
        code += b"\xcd\x80\xf7\xd8\x0f\x85" + b"EXIT"
    code += b"\x31\xc0"
    exit_at = len(code)
    while (at := code.find(b"EXIT")) >= 0:
        code = code[:at] + struct.pack("<I", exit_at - at - 4) + code[at + 4 :]
    code += b"\x89\xc3\xb8\x01\0\0\0\xcd\x80"  # mov ebx, eax; mov eax, 1; int 0x80
    base, size = 0x08048000, 84 + len(code)
    header = b"\x7fELF\x01\x01\x01" + bytes(9)
    header += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, base + 84, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    return header + struct.pack("<8I", 1, 0, base, base, size, size, 5, 0x1000) + code


@plain
def test_programs_of_32_bits(plash, image):
    need(platform.machine() == "x86_64", "x86-64")
    path = plash.place / "i386"
    numbers, no_path = emulate.ABIS["x86_64"][1][2], 0
    ids = ("setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid")
    calls = [(numbers[name + end], 5, 5, 5) for name in ids for end in ("", "32")]
    calls += [(numbers[name], no_path, 5, 5) for name in ("chown", "chown32", "lchown32")]
    calls += [(numbers["fchownat"], 0, no_path, 5, 5, 0), (numbers["capset"], 0, 0)]
    calls += [(numbers["mknod"], no_path, 0o20666, 5), (numbers["setgroups32"], 1, 0)]
    path.write_bytes(i386(*calls))
    path.chmod(0o755)
    need(subprocess.run([path]).returncode < 126, "programs for i386")
    assert plash("run", image, f"/host{path}", env={"PLASH_EMULATE": "0"}).status != 0
    assert plash("run", image, f"/host{path}").ok()
    lost = plash("build", image, f"/host{path}").ok().err
    assert lost.startswith("plash build: " + LOST.format("gid 5, uid 5"))
    path.write_bytes(i386((numbers["mknod"], no_path, 0o10666, 0)))
    assert plash("run", image, f"/host{path}").status == 14  # EFAULT, for a FIFO


def run(code, arch, number, arguments):
    """What a filter, of instructions as emulate.program() makes them, returns."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *(*arguments, *[0] * 6)[:6])
    at, accumulator = 0, 0
    while True:
        operation, if_equal, otherwise, k = struct.unpack("=HBBI", code[at])
        at += 1
        if operation == emulate.LOAD:
            accumulator = struct.unpack_from("=I", data, k)[0]
        elif operation == emulate.AND:
            accumulator &= k
        elif operation == emulate.JUMP_EQUAL:
            at += if_equal if accumulator == k else otherwise
        else:
            assert operation == emulate.RETURN
            return k


NAMES = sorted({"setgroups", "capset"}.union(*emulate.IDS.values(), *emulate.MODE.values()))
MACHINES = {
    "x86_64": {0xC000003E: "x86_64", 0x40000003: "x86"},
    "aarch64": {0xC00000B7: "aarch64", 0x40000028: "arm"},
    "riscv64": {0xC00000F3: "riscv64"},
    "ppc64le": {0xC0000015: "ppc64le"},
    "s390x": {0x80000016: "s390x"},
}


@pytest.mark.parametrize("machine", MACHINES)
def test_the_filter_of_each_architecture(machine):
    """Numbers as libseccomp has them; all other calls, and other architectures, are let through."""
    need_program("scmp_sys_resolver")
    notify = emulate._instruction(emulate.RETURN, emulate.SECCOMP_RET_USER_NOTIF)
    code, watching = (emulate.program(emulate.ABIS[machine], *more) for more in ((), (notify,)))
    allow, succeed = emulate.SECCOMP_RET_ALLOW, emulate.SECCOMP_RET_ERRNO
    for arch, name in MACHINES[machine].items():
        known = {}
        for call in [*NAMES, *(name + "32" for name in NAMES)]:
            words = ["scmp_sys_resolver", "-a", name, call]
            number = int(subprocess.run(words, capture_output=True, check=True).stdout)
            if number >= 0:
                known[number] = call.removesuffix("32")
        assert len(known) >= 13
        for number in range(1024):
            call = known.get(number)
            device = run(code, arch, number, [7, 0o20666, 0o20666, 7])
            fifo = run(code, arch, number, [7, 0o10666, 0o10666, 7])
            assert device == (succeed if call else allow), (name, number, call)
            assert fifo == (succeed if call and "mknod" not in call else allow)
            root = run(watching, arch, number, [0, 0, 0, 0xFFFFFFFF])
            user = run(watching, arch, number, [5, 5, 5, 5])
            gives = call and call not in ("setgroups", "capset") and "mknod" not in call
            assert user == (emulate.SECCOMP_RET_USER_NOTIF if gives else root)
            assert root == (allow if not call or "mknod" in call else succeed)
    assert run(code, 0x1234, 92, [5, 5, 5]) == allow
    if machine == "x86_64":
        assert run(code, 0xC000003E, 92 | 0x40000000, [5, 5, 5]) == succeed  # x32


@plain
@pytest.mark.slow
def test_debian_packages_that_change_owners(debian_tar, tmp_path):
    plash = Plash(tmp_path)
    debian = plash("pull:tarfile", debian_tar).id
    code = "apt-get -qq update && apt-get install -qq -y --no-install-recommends man-db dbus cron"
    done = plash("build", debian, code).ok()
    assert "owners were not kept: what was given to gid " in done.err.splitlines()[-1]
    check = "man --version && dbus-run-session -- true && echo '* * * * * true' | crontab -"
    assert plash("run", done.id, "sh", "-ec", check).ok()
    plash("purge", "--yes").ok()
