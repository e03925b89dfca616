"""Calls that only root of many ids can make, answered with success where one id is mapped.

Without subordinate ids a user namespace holds the caller's own id alone, and package managers
fail at the first chown(2). A seccomp filter makes such calls return 0 and do nothing, as
fakeroot does, but for static programs too and with no process beside. It rests on seccomp(2),
seccomp_unotify(2) and the kernel's Documentation/userspace-api/seccomp_filter.rst.

A filter keeps no state: what is asked afterwards, by getuid(2) or stat(2), is answered with
the truth, which is that all is root's.
"""

import errno
import os
import sys

from plashlib import namespaces

SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 1 << 2
SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
SECCOMP_RET_ERRNO = 0x00050000  # and an errno, where 0 is success
SECCOMP_RET_USER_NOTIF = 0x7FC00000
SECCOMP_RET_ALLOW = 0x7FFF0000

# struct seccomp_data: where its fields are. Of an argument, which has 64 bits, the low 32 count.
NR, ARCH, ARGS = 0, 4, 16
LOW = 0 if sys.byteorder == "little" else 4

# Instructions of classic BPF, as the filter has them.
LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
RETURN = 0x06  # BPF_RET | BPF_K

NO_ID = 0xFFFFFFFF  # (uid_t) -1, which changes nothing
NO_ID_16 = 0xFFFF  # the same in calls from when ids had 16 bits
S_IFMT, S_IFCHR, S_IFBLK = 0o170000, 0o020000, 0o060000

# What each call does, by the positions of its arguments. A name of 32 bits ends in 32.
IDS = {
    (0,): ("setuid", "setgid", "setfsuid", "setfsgid"),
    (0, 1): ("setreuid", "setregid"),
    (0, 1, 2): ("setresuid", "setresgid"),
    (1, 2): ("chown", "lchown", "fchown"),
    (2, 3): ("fchownat",),
}
MODE = {1: ("mknod",), 2: ("mknodat",)}  # the device's number follows
OTHERS = "setgroups", "capset"

# struct seccomp_notif and seccomp_notif_resp, received and sent by ioctl(2).
SECCOMP_IOCTL_NOTIF_RECV = 0xC0502100
SECCOMP_IOCTL_NOTIF_SEND = 0xC0182101

# Lines of Watch.lost(), beside those such as "uid 42".
DEVICES, UNKNOWN = "devices", "unknown"

# apt starts its downloads as another user and then checks that it is no longer root.
# Such programs get variables, unless they are set, and files of no layer: paths to contents.
ENVIRONMENT = {"APT_CONFIG": "/run/plash/apt.conf"}
FILES = {ENVIRONMENT["APT_CONFIG"]: 'APT::Sandbox::User "root";\n'}

# The numbers of the calls, from the kernel's tables: arch/*/kernel/syscalls/syscall*.tbl, and
# include/uapi/asm-generic/unistd.h for what came after 2010.
# fmt: off
_X86_64 = {
    "chown": 92, "fchown": 93, "lchown": 94, "fchownat": 260, "mknod": 133, "mknodat": 259,
    "setuid": 105, "setgid": 106, "setreuid": 113, "setregid": 114, "setgroups": 116,
    "setresuid": 117, "setresgid": 119, "setfsuid": 122, "setfsgid": 123, "capset": 126,
    "seccomp": 317,
}
_SINCE_16_BITS = {
    "chown": 182, "fchown": 95, "lchown": 16, "mknod": 14, "setuid": 23, "setgid": 46,
    "setreuid": 70, "setregid": 71, "setgroups": 81, "setresuid": 164, "setresgid": 170,
    "setfsuid": 138, "setfsgid": 139, "capset": 185,
}
_IN_32_BITS = {
    "chown32": 212, "fchown32": 207, "lchown32": 198, "setuid32": 213, "setgid32": 214,
    "setreuid32": 203, "setregid32": 204, "setgroups32": 206, "setresuid32": 208,
    "setresgid32": 210, "setfsuid32": 215, "setfsgid32": 216,
}
_I386 = {**_SINCE_16_BITS, **_IN_32_BITS, "seccomp": 354, "fchownat": 298, "mknodat": 297}
_ARM = {**_SINCE_16_BITS, **_IN_32_BITS, "seccomp": 383, "fchownat": 325, "mknodat": 324}
_GENERIC = {
    "fchown": 55, "fchownat": 54, "mknodat": 33, "setuid": 146, "setgid": 144, "setreuid": 145,
    "setregid": 143, "setgroups": 159, "setresuid": 147, "setresgid": 149, "setfsuid": 151,
    "setfsgid": 152, "capset": 91, "seccomp": 277,
}
_PPC64 = {
    **_SINCE_16_BITS,
    "chown": 181, "setresgid": 169, "fchownat": 289, "mknodat": 288, "capset": 184, "seccomp": 358,
}
_S390X = {
    **{name[:-2]: number for name, number in _IN_32_BITS.items()},
    "fchownat": 291, "mknod": 14, "mknodat": 290, "capset": 185, "seccomp": 348,
}
# fmt: on

# By uname's name of the machine: for the programs that it runs, of 64 bits first, the AUDIT_ARCH_*
# of include/uapi/linux/audit.h, the bits of a number that count, and the numbers.
_ALL = 0xFFFFFFFF
_X86 = [(0xC000003E, _ALL & ~0x40000000, _X86_64), (0x40000003, _ALL, _I386)]  # x32 has that bit
_ARMS = [(0xC00000B7, _ALL, _GENERIC), (0x40000028, _ALL, _ARM)]
ABIS = {
    "x86_64": _X86,
    "i686": _X86,
    "aarch64": _ARMS,
    "armv8l": _ARMS,
    "armv7l": _ARMS,
    "riscv64": [(0xC00000F3, _ALL, _GENERIC)],
    "loongarch64": [(0xC0000102, _ALL, _GENERIC)],
    "ppc64le": [(0xC0000015, _ALL, _PPC64)],
    "s390x": [(0x80000016, _ALL, _S390X)],
}


def _instruction(code, k, if_equal=0, otherwise=0):
    """A struct sock_filter: its code, how many to skip by what was compared, and the operand k."""
    return (
        code.to_bytes(2, sys.byteorder)
        + bytes([if_equal, otherwise])
        + k.to_bytes(4, sys.byteorder)
    )


def _load_argument(position):
    return _instruction(LOAD, ARGS + 8 * position + LOW)


SUCCEED = _instruction(RETURN, SECCOMP_RET_ERRNO)
ALLOW = _instruction(RETURN, SECCOMP_RET_ALLOW)


def _answer_ids(positions, action):
    """What answers a call that sets ids: action where one of them is not root's, else success."""
    if action == SUCCEED:
        return [SUCCEED]
    code = []
    for position in positions:
        code += [
            _load_argument(position),
            _instruction(JUMP_EQUAL, 0, if_equal=2),
            _instruction(JUMP_EQUAL, NO_ID, if_equal=1),
            action,
        ]
    return [*code, SUCCEED]


def _answer_mode(position, action):
    """What answers mknod: action for a device; all else is made, and so is a whiteout, 0/0."""
    return [
        _load_argument(position),
        _instruction(AND, S_IFMT),
        _instruction(JUMP_EQUAL, S_IFBLK, if_equal=3),
        _instruction(JUMP_EQUAL, S_IFCHR, otherwise=3),
        _load_argument(position + 1),
        _instruction(JUMP_EQUAL, 0, if_equal=1),
        action,
        ALLOW,
    ]


def program(abis: list, action: bytes = SUCCEED) -> "list[bytes]":
    """The filter for the programs of ABIS' entry abis: a list of its instructions.

    action  the instruction that ends a call which gives away what root has
    """
    code = [_instruction(LOAD, ARCH)]
    for arch, bits, numbers in abis:
        section = [_instruction(LOAD, NR)]
        if bits != _ALL:
            section.append(_instruction(AND, bits))
        for names, answer in (
            *((names, _answer_ids(positions, action)) for positions, names in IDS.items()),
            *((names, _answer_mode(position, action)) for position, names in MODE.items()),
            (OTHERS, [SUCCEED]),
        ):
            found = [
                numbers[each] for name in names for each in (name, name + "32") if each in numbers
            ]
            for left, number in zip(range(len(found) - 1, -1, -1), found):
                # The last one that is not equal skips the answer.
                skip = 0 if left else len(answer)
                section.append(_instruction(JUMP_EQUAL, number, left, skip))
            section += answer if found else ()
        section.append(ALLOW)
        code += [_instruction(JUMP_EQUAL, arch, otherwise=len(section)), *section]
    return [*code, ALLOW]


def is_wanted() -> bool:
    """Whether this process is root of a user namespace with one id, and PLASH_EMULATE is not 0."""
    return (
        os.geteuid() == 0
        and os.environ.get("PLASH_EMULATE") != "0"
        and 1 in (namespaces.mapped("uid"), namespaces.mapped("gid"))
    )


def is_active() -> bool:
    """Whether a filter answers already, as in a plash inside of a plash."""
    try:
        namespaces.call("syscall", _own_numbers()["capset"], 0, 0)
    except OSError:
        return False  # EFAULT: the kernel looked for what is to be set
    return True


def _own_numbers():
    """The numbers of calls in this process, which may have 32 bits on a kernel of 64."""
    return ABIS[os.uname().machine][0 if sys.maxsize > 1 << 32 else -1][2]


def install() -> None:
    """Install the filter for this process and all that it starts, for good.

    Nothing is done where is_active(), on an architecture that ABIS lacks, or where the kernel or
    what started this process allows no filters: the calls then fail, as they do without.
    """
    try:
        if not is_active():
            _install(SUCCEED)
    except (OSError, KeyError):
        pass


def _install(action, flags=0):
    """Install the filter with what program() calls action; returns what seccomp(2) does."""
    from _ctypes import _SimpleCData

    class CharPointer(_SimpleCData):
        _type_ = "z"

    code = program(ABIS[os.uname().machine], action)
    text = b"".join(code)  # which has to be there as long as the pointer
    pointer = bytes(CharPointer(text))
    # struct sock_fprog: a short, padding, a pointer.
    fprog = len(code).to_bytes(2, sys.byteorder) + bytes(len(pointer) - 2) + pointer
    flags |= SECCOMP_FILTER_FLAG_SPEC_ALLOW
    return namespaces.call(
        "syscall", _own_numbers()["seccomp"], SECCOMP_SET_MODE_FILTER, flags, fprog
    )


class Watch:
    """What the processes of a build give to others than root, so that it can be told.

    Such a call waits for answer(), in the parent of the process that calls install(). It
    costs some 0.05 ms; calls that name root alone, which are most, the filter answers.
    """

    def __init__(self):
        import _socket

        self._parent, self._child = _socket.socketpair()
        self._lost = set()

    def install(self) -> None:
        """As install() above; then answer() has to be called in the parent process."""
        import _socket  # as above, so that nothing is read: this host's modules are out of sight

        try:
            if is_active():
                # That filter's answer is the one that counts, and nobody hears of it here.
                self._child.send(b"?")
                return
            notify = _instruction(RETURN, SECCOMP_RET_USER_NOTIF)
            listener = _install(notify, SECCOMP_FILTER_FLAG_NEW_LISTENER)
        except (OSError, KeyError):
            self._child.send(b"-")
            return
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, listener.to_bytes(4, sys.byteorder))]
        self._child.sendmsg([b"+"], rights)
        os.close(listener)

    def answer(self, pid: int) -> None:
        """Answer the calls until the process pid, which is or has the one that installs, ends."""
        import select

        self._child.close()
        listener = self._receive()
        if listener is None:
            return
        process = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(process, select.POLLIN)
        poll.register(listener, select.POLLIN)
        while process not in (ready := dict(poll.poll())):
            if ready[listener] & select.POLLIN:
                self._answer_one(listener)
            else:
                poll.unregister(listener)  # POLLHUP: nobody has the filter any more
        os.close(process)
        os.close(listener)

    def _receive(self):
        """The descriptor that install() sends, or None."""
        import _socket

        message, control, _, _ = self._parent.recvmsg(1, _socket.CMSG_SPACE(4))
        if message == b"?":
            self._lost.add(UNKNOWN)
        return int.from_bytes(control[0][2], sys.byteorder) if control else None

    def _answer_one(self, listener):
        import fcntl
        import struct

        request = bytearray(80)  # struct seccomp_notif
        try:
            fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, request)
            key, _, _, number, arch, _, *arguments = struct.unpack("=QIIIIQ6Q", request)
            self._lost |= _given_away(arch, number, arguments)
            # struct seccomp_notif_resp: id, val, error, flags
            fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, struct.pack("=QqiI", key, 0, 0, 0))
        except OSError as error:
            # A signal ended the call: that is made again, or its process is gone.
            if error.errno != errno.ENOENT:
                raise

    def warnings(self) -> "list[str]":
        """Lines on what was given away, as far as that is known."""
        return warnings("\n".join(self._lost - {UNKNOWN}).encode())

    def lost(self, before: "bytes | None" = None) -> bytes:
        """What was given away, a line for each user; with what is known from before."""
        return "".join(
            line + "\n" for line in sorted({*self._lost, *(before or b"").decode().splitlines()})
        ).encode()


def _given_away(arch, number, arguments):
    """Whom a call gives what root has, as lines of Watch.lost()."""
    for known, bits, numbers in ABIS[os.uname().machine]:
        if known == arch:
            name = next(each for each in numbers if numbers[each] == number & bits)
            unset = NO_ID_16 if name + "32" in numbers else NO_ID
    name = name.removesuffix("32")
    for positions, names in IDS.items():
        if name in names:
            own = "gid" if "gid" in name else "uid"
            kinds = ("uid", "gid") if "chown" in name else [own] * len(positions)
            ids = [arguments[position] & NO_ID for position in positions]
            return {
                f"{kind} {number}" for kind, number in zip(kinds, ids) if number not in (0, unset)
            }
    return {DEVICES}


def warnings(lost: "bytes | None") -> "list[str]":
    """Lines that say what Watch.lost() has."""
    lines = (lost or b"").decode().splitlines()
    ids = sorted(
        (line.split() for line in lines if " " in line), key=lambda id: (id[0], int(id[1]))
    )
    names = [" ".join(id) for id in ids]
    if len(names) > 6:
        names[5:] = [f"{len(names) - 5} more"]
    found = []
    if names:
        found.append(
            f"owners were not kept: what was given to {', '.join(names)} is root's"
            " (only your own id is mapped, see plash doctor)"
        )
    if DEVICES in lines:
        found.append("device nodes were not made, which a user namespace can't have")
    if UNKNOWN in lines:
        found.append(
            "owners may not have been kept: the outer plash emulates chown, so it can't be seen"
            " here"
        )
    return found
