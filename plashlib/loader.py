"""The loader of shared libraries: its cache in a container, and the names that it looks for."""

import os
import stat

from plashlib import Error, binds, namespaces

PATH = "/etc/ld.so.cache"
# On Ubuntu, the first is the program, and the second a script.
LDCONFIG = "/sbin/ldconfig.real", "/sbin/ldconfig"


class Cache(binds.Mount):
    """The cache of ld.so(8) with the libraries of more directories, made by the host's ldconfig(8).

    It runs in the new root directory, which it cannot write to: the image's own ldconfig could be
    anything, and a build would capture the files that it writes.
    """

    def __init__(self, folders: "list[str]") -> None:
        super().__init__(PATH, directory=False)
        self.folders = folders

    def mount(self, path: str) -> None:
        program = next((each for each in LDCONFIG if os.access(each, os.X_OK)), None)
        if not program:
            return  # a host without glibc has no libraries for one
        # The old root directory is not there yet.
        scratch = "./host"
        namespaces.mount("plash", scratch, "tmpfs", namespaces.MS_NOSUID, "mode=0755")
        ldconfig = os.open(program, os.O_RDONLY | os.O_CLOEXEC)
        child = os.fork()
        if not child:
            try:
                self._run(ldconfig)
            finally:
                os._exit(127)
        os.close(ldconfig)
        _, status = os.waitpid(child, 0)
        if status:
            raise Error(f"cannot make {PATH}: {program} failed")
        namespaces.mount(f"{scratch}/ld.so.cache", path, flags=namespaces.MS_BIND)
        namespaces.unmount(scratch)

    def _run(self, ldconfig):
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for fd in range(3):
            os.dup2(null, fd)
        namespaces.private_mounts()
        flags = namespaces.MS_BIND | namespaces.MS_REMOUNT | namespaces.MS_RDONLY
        namespaces.mount(None, ".", flags=flags)
        os.chroot(".")
        argv = ["ldconfig", "-X", "-C", "/host/ld.so.cache", *self.folders]
        os.execve(ldconfig, argv, {"LC_ALL": "C"})


def soname(path: str) -> str:
    """The DT_SONAME of a shared library, see elf(5); "" if it has none. Raises OSError."""
    import struct

    def read(form, offset):
        return struct.unpack_from(form, os.pread(fd, struct.calcsize(form), offset))

    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        magic, wide, order = read("4sBB", 0)
        if magic != b"\x7fELF":
            return ""
        end = "<" if order == 1 else ">"
        table, size, count = read(end + "Q14xHH", 32) if wide == 2 else read(end + "I10xHH", 28)
        loaded, dynamic = [], None
        for index in range(count):
            if wide == 2:
                kind, _, offset, address, _, length = read(end + "IIQQQQ", table + index * size)
            else:
                kind, offset, address, _, length = read(end + "IIIII", table + index * size)
            if kind == 1:
                loaded.append((address, offset, length))
            elif kind == 2:
                dynamic = offset, length
        if not dynamic:
            return ""
        form = end + ("qQ" if wide == 2 else "iI")
        entry = struct.calcsize(form)
        entries = dict(
            read(form, at) for at in range(dynamic[0], dynamic[0] + dynamic[1] - entry + 1, entry)
        )
        # DT_STRTAB is 5, an address, and DT_SONAME 14, an offset in it.
        if 5 not in entries or 14 not in entries:
            return ""
        for address, offset, length in loaded:
            if address <= entries[5] < address + length:
                text = os.pread(fd, 4096, entries[5] - address + offset + entries[14])
                return os.fsdecode(text.partition(b"\0")[0])
        return ""
    except struct.error:
        return ""
    finally:
        os.close(fd)
