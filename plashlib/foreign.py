"""Programs of other architectures, which run by QEMU's user emulation.

The kernel starts an interpreter for the formats that are registered in binfmt_misc (its
Documentation/admin-guide/binfmt-misc.rst). Since Linux 6.7 a user namespace has a binfmt_misc
of its own, so an ordinary user can register there, and the host's is left alone.
`plash run` loads this only when the kernel has refused a program's format, or for a -u in an
image of another architecture.
"""

import errno
import os

from plashlib import Error, namespaces

TYPE_CHECKING = False  # for a type checker, which takes it for true
if TYPE_CHECKING:
    from typing import Literal

    Byteorder = Literal["little", "big"]

BINFMT_MISC = "/proc/sys/fs/binfmt_misc"

# F opens QEMU at once, so that the image needs none; P keeps argv[0]; O gives QEMU programs that
# may be executed but not read; C lets setuid programs be what they are.
FLAGS = "FPOC"

AS_ROOT = "as root: install qemu-user-static and binfmt-support"

FIRST_USER_NAMESPACE = "user:[4026531837]"  # the kernel's PROC_USER_INIT_INO

# In ELF headers, as elf(5) has them.
_32, _64 = 1, 2
LITTLE, BIG = 1, 2

# By QEMU's names, which are mostly uname(2)'s: class, byte order and e_machine; Debian's name;
# OCI's, with the variant.
ARCHITECTURES = {
    "aarch64": (_64, LITTLE, 183, "arm64", "arm64"),
    "arm": (_32, LITTLE, 40, "armhf", "arm v7"),
    "i386": (_32, LITTLE, 3, "i386", "386"),
    "loongarch64": (_64, LITTLE, 258, "loong64", "loong64"),
    "mips": (_32, BIG, 8, "mips", "mips"),
    "mipsel": (_32, LITTLE, 8, "mipsel", "mipsle"),
    "mips64": (_64, BIG, 8, "mips64", "mips64"),
    "mips64el": (_64, LITTLE, 8, "mips64el", "mips64le"),
    "ppc": (_32, BIG, 20, "powerpc", "ppc"),
    "ppc64": (_64, BIG, 21, "ppc64", "ppc64"),
    "ppc64le": (_64, LITTLE, 21, "ppc64el", "ppc64le"),
    "riscv64": (_64, LITTLE, 243, "riscv64", "riscv64"),
    "s390x": (_64, BIG, 22, "s390x", "s390x"),
    "x86_64": (_64, LITTLE, 62, "amd64", "amd64"),
}

_PROGRAM_INTERPRETER = 3  # PT_INTERP: the loader of a program that is linked dynamically


def debian_name(machine: str) -> str:
    """Debian's name of an architecture, from uname's or its own."""
    if machine in ("armv6l", "armv5tel"):
        return "armel"
    known = ARCHITECTURES.get(_qemu_name(machine))
    return known[3] if known else machine


def oci_name(machine: str) -> str:
    """The name in OCI configurations of uname's architecture, with a variant after a space."""
    if machine == "armv6l":
        return "arm v6"
    known = ARCHITECTURES.get(_qemu_name(machine))
    return known[4] if known else machine


def _qemu_name(machine):
    if machine.startswith("armv") and machine != "armv8l":
        return "arm"
    return "i386" if machine in ("i486", "i586", "i686") else machine


def magic_and_mask(architecture: str) -> "tuple[bytes, bytes]":
    """The first bytes of an architecture's ELF programs, and which of their bits matter."""
    elf_class, order, machine = ARCHITECTURES[architecture][:3]
    byteorder: Byteorder = "little" if order == LITTLE else "big"
    magic = b"\x7fELF" + bytes([elf_class, order, 1]) + bytes(9)
    magic += (2).to_bytes(2, byteorder) + machine.to_bytes(2, byteorder)
    # Neither the ABI and its version matter, nor whether e_type is ET_EXEC (2) or ET_DYN (3).
    mask = b"\xff" * 7 + bytes(9) + (0xFFFE).to_bytes(2, byteorder) + b"\xff\xff"
    return magic, mask


def of_header(header: bytes) -> "str | None":
    """The architecture of a program that begins with header (20 bytes); None if unknown."""
    for architecture in ARCHITECTURES:
        magic, mask = magic_and_mask(architecture)
        if len(header) >= len(magic) and all(
            (byte ^ wanted) & bits == 0 for byte, wanted, bits in zip(header, magic, mask)
        ):
            return architecture
    return None


def of_program(path: str) -> "str | None":
    """The architecture of the program at path, or of the interpreter that its first line names."""
    for _ in range(5):  # the kernel follows as many
        try:
            with open(path, "rb") as file:
                header = file.read(256)
        except OSError:
            return None
        if header[:2] != b"#!":
            return of_header(header)
        argv = header[2:].split(b"\n")[0].split()
        if not argv:
            return None
        path = os.fsdecode(argv[0])
    return None


def architecture(root: str) -> "str | None":
    """The architecture of the root filesystem at the path root, by its /bin/sh or another program.

    Symbolic links are those of the root filesystem. None if nothing tells.
    """
    for path in "/bin/sh", "/bin/busybox", "/usr/bin/env", "/sbin/init":
        found = _resolve(root, path)
        known = found and of_program(found)
        if known:
            return known
    return None


def _resolve(root, path):
    """The path of what path leads to below the directory root; None if there is nothing."""
    resolved, rest = [], path.split("/")
    for _ in range(256):
        if not rest:
            return "/".join([root, *resolved])
        name = rest.pop(0)
        if name == "..":
            resolved = resolved[:-1]
        elif name not in ("", "."):
            try:
                target = os.readlink("/".join([root, *resolved, name]))
            except OSError:
                resolved.append(name)
                continue
            resolved = [] if target[:1] == "/" else resolved
            rest = target.split("/") + rest
    return None


def find_qemu(architecture: str) -> str:
    """The path of QEMU's user emulation of an architecture, looked up in PATH.

    It has to be linked statically: its loader and libraries would be looked for in the image.
    Raises Error.
    """
    program = f"qemu-{architecture}"
    dynamic = None
    # Not programs.find(), whose module imports subprocess.
    directories = [each for each in os.environ.get("PATH", "").split(":") if each[:1] == "/"]
    for name in program + "-static", program:
        for directory in directories or os.defpath.split(":"):
            path = f"{directory}/{name}"
            if os.path.isfile(path) and os.access(path, os.X_OK):
                if _is_static(path):
                    return path
                dynamic = path
    if dynamic:
        raise Error(f"{dynamic} is linked dynamically (install qemu-user-static)")
    raise Error(f"{program}-static is not installed (install qemu-user-static)")


def _is_static(path):
    """Whether a program of this machine's own architecture asks for no loader."""
    try:
        with open(path, "rb") as file:
            header = file.read(4096)
    except OSError:
        return True  # it can be executed, and nothing more is known
    if header[:4] != b"\x7fELF":
        return False
    wide, order = header[4] == _64, "little" if header[5] == LITTLE else "big"

    def number(offset, size):
        return int.from_bytes(header[offset : offset + size], order)

    first, size, count = (
        (number(32, 8), number(54, 2), number(56, 2))
        if wide
        else (number(28, 4), number(42, 2), number(44, 2))
    )
    return _PROGRAM_INTERPRETER not in [number(first + size * each, 4) for each in range(count)]


def installed() -> "list[str]":
    """The architectures, besides this machine's own, for which find_qemu() finds a program."""
    found = []
    for architecture in ARCHITECTURES:
        if architecture != _qemu_name(os.uname().machine):
            try:
                find_qemu(architecture)
                found.append(architecture)
            except Error:
                pass
    return found


def registered() -> "list[str]":
    """The architectures that the binfmt_misc in /proc has, whoever registered them."""
    magics = {magic_and_mask(each)[0].hex(): each for each in ARCHITECTURES}
    found = set()
    try:
        for name in os.listdir(BINFMT_MISC):
            if name not in ("register", "status"):
                with open(f"{BINFMT_MISC}/{name}", encoding="utf-8") as file:
                    words = file.read().split()
                if words[0] == "enabled" and "magic" in words:
                    found.add(magics.get(words[words.index("magic") + 1]))
    except OSError:
        pass  # not mounted
    return sorted(found - {None})


def is_host_root() -> bool:
    """Whether this process is in the first user namespace, whose binfmt_misc is the host's own."""
    return os.readlink("/proc/self/ns/user") == FIRST_USER_NAMESPACE


def mount_binfmt_misc() -> None:
    """Mount the binfmt_misc of this process's user namespace in its /proc. Raises Error.

    The caller has a mount namespace of its own. What is registered holds while it is mounted.
    """
    try:
        namespaces.mount("binfmt_misc", BINFMT_MISC, "binfmt_misc")
    except OSError as error:
        if error.errno == errno.EBUSY:
            return  # it is mounted there already
        if error.errno == errno.EPERM:
            remedy = f"users need Linux 6.7, and this is {os.uname().release}; {AS_ROOT}"
        elif error.errno == errno.ENODEV:
            remedy = "as root: modprobe binfmt_misc"
        elif error.errno == errno.ENOENT:
            remedy = f"there is no {BINFMT_MISC}"
        else:
            remedy = AS_ROOT
        raise Error(f"cannot mount binfmt_misc: {error.strerror} ({remedy})") from None


def register(program: str, host: "str | int") -> None:
    """Let the kernel start program, which it has refused, and others of the same architecture.

    host  the host's root directory, where QEMU is: its path, or a descriptor

    Raises Error.
    """
    architecture = of_program(program)
    if not architecture:
        raise Error("its format is unknown (a script needs a #! line)")
    try:
        if is_host_root():
            raise Error(f"nothing is registered on this host for it ({AS_ROOT})")
        with HostRoot(host):
            qemu = find_qemu(architecture)
        mount_binfmt_misc()
        _register(architecture, qemu, host)
    except Error as error:
        raise Error(f"it is for {architecture}, and {error}") from None


def _register(architecture, qemu, host):
    magic, mask = (
        "".join(f"\\x{byte:02x}" for byte in each) for each in magic_and_mask(architecture)
    )
    line = f":qemu-{architecture}:M::{magic}:{mask}:{qemu}:{FLAGS}"
    try:
        opened = os.open(BINFMT_MISC + "/register", os.O_WRONLY | os.O_CLOEXEC)
        with HostRoot(host):
            os.write(opened, os.fsencode(line))
        os.close(opened)
    except OSError as error:
        if error.errno == errno.EACCES:
            # The files of binfmt_misc are the namespace's root's, who is nobody here.
            raise Error(
                "only root can register it: run it as root, or get subordinate ids"
                + namespaces.SEE_DOCTOR
            ) from None
        if error.errno != errno.EEXIST:
            raise Error(f"{qemu} cannot be registered: {error.strerror}") from None


class HostRoot:
    """While it is entered, directory is this process's root: its path, or a descriptor."""

    def __init__(self, directory: "str | int") -> None:
        self._directory = directory

    def __enter__(self):
        self._back = [os.open(path, os.O_PATH | os.O_CLOEXEC) for path in ("/", ".")]
        os.chdir(self._directory)
        os.chroot(".")

    def __exit__(self, *_):
        root, directory = self._back
        os.fchdir(root)
        os.chroot(".")
        os.fchdir(directory)
        for fd in self._back:
            os.close(fd)
