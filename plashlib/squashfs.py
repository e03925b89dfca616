"""Squashfs files, mounted without unpacking: by the kernel for root, by squashfuse(1) for others.

It rests on mount(2), mount_namespaces(7) and fuse(4).
"""

import os

from plashlib import Error, ids, namespaces, processes

MAGIC = b"hsqs"
PROGRAM = b"#!/bin/sh\n# plash program: a squashfs file begins at byte "  # see push:program
APPIMAGE = b"AI\x02"  # at byte 8 of an ELF file, by the AppImage specification
SIF = b"SIF_MAGIC\0"  # at byte 32, by the Singularity Image Format
SIF_PARTITION = 0x4004  # the type of a file system's descriptor
BYTES_USED = 40  # where a superblock has the filesystem's size, in 8 bytes
PADDING = 4096  # mksquashfs makes the size of a file a multiple of this, in bytes
SETTINGS = b"plash image\n"  # then a JSON object: behind the filesystem, where nobody reads
FUSE = 3  # the descriptor of /dev/fuse that squashfuse gets


def find(file: str) -> "int | None":
    """The offset of the squashfs in a file, in bytes; None if there is none. Raises OSError.

    The file is one as mksquashfs writes it, one of push:program, an AppImage, or a SIF file.
    """
    with open(file, "rb") as opened:
        head, size = opened.read(4096), os.fstat(opened.fileno()).st_size
        offset = 0
        if head.startswith(PROGRAM):
            digits = head[len(PROGRAM) :].partition(b"\n")[0]
            offset = int(digits) if digits.isdigit() else 0
        elif head.startswith(b"\x7fELF") and head[8:11] == APPIMAGE:
            offset = _elf_size(head)
        elif head[32:42] == SIF:
            offset = _sif_partition(opened, head, size)
        opened.seek(min(offset, size))
        return offset if opened.read(len(MAGIC)) == MAGIC else None


def _elf_size(head):
    """Where an ELF file ends, by its header: its section headers are the last of it."""
    order = "little" if head[5] == 1 else "big"
    at, size, entry = (40, 8, 58) if head[4] == 2 else (32, 4, 46)
    start = int.from_bytes(head[at : at + size], order)
    length, count = (int.from_bytes(head[i : i + 2], order) for i in (entry, entry + 2))
    return start + length * count


def _sif_partition(opened, head, size):
    """Where the first file system of a SIF file begins: 0 if it has none."""
    # A header of 128 bytes: the number of free and all descriptors, their offset and size.
    _, total, start, length = (int.from_bytes(head[i : i + 8], "little") for i in range(80, 112, 8))
    opened.seek(min(start, size))
    table = opened.read(min(length, 1 << 20))
    each = len(table) // total if 0 < total <= len(table) else 0
    for at in range(0, total * each, each or 1):
        if int.from_bytes(table[at : at + 4], "little") == SIF_PARTITION and table[at + 4]:
            return int.from_bytes(table[at + 17 : at + 25], "little")
    return 0


def missing_bytes(file: str) -> int:
    """How many bytes of a file that holds a squashfs were cut off at its end. Raises OSError."""
    offset = find(file) or 0
    with open(file, "rb") as opened:
        end = offset + _bytes_used(opened, offset)
        return max(0, end - os.fstat(opened.fileno()).st_size)


def settings(file: str) -> "dict[str, bytes]":
    """The files beside an image's layer that write_settings() put into a squashfs file.

    A dict of names to contents, empty if there are none. Raises OSError.
    """
    offset = find(file) or 0
    with open(file, "rb") as opened:
        opened.seek(_end(opened, offset))
        if opened.read(len(SETTINGS)) != SETTINGS:
            return {}
        import json

        try:
            found = json.load(opened)
            return {name: found[name].encode(errors="surrogateescape") for name in found}
        except (ValueError, AttributeError, RecursionError):
            return {}  # it was cut off


def write_settings(file: str, offset: int, files: "dict[str, bytes]") -> None:
    """Put files that are beside an image's layer behind the squashfs at offset in a file."""
    import json

    texts = {name: files[name].decode(errors="surrogateescape") for name in sorted(files)}
    with open(file, "r+b") as opened:
        opened.seek(_end(opened, offset))
        opened.write(SETTINGS + json.dumps(texts).encode())


def _end(opened, offset):
    """Where the squashfs at offset in an open file ends."""
    return offset + -(-_bytes_used(opened, offset) // PADDING) * PADDING


def _bytes_used(opened, offset):
    """The size of the squashfs at offset in an open file, without its padding."""
    opened.seek(offset + BYTES_USED)
    return int.from_bytes(opened.read(8), "little")


def mount(file: str, directory: str) -> None:
    """Mount a squashfs file on directory, in a mount namespace of this process's own.

    The process that serves it ends when that namespace, and all that was mounted on top of the
    file, are gone. Raises Error, OSError.
    """
    offset = find(file) or 0
    if namespaces.mapped("uid") == ids.ALL_IDS:
        options = f"loop,ro,offset={offset}"
        if _run(["mount", "-t", "squashfs", "-o", options, "--", file, directory]) == 0:
            return
    try:
        fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Error(f"cannot mount {file}: /dev/fuse: {error.strerror}") from None
    owner = f"user_id={os.geteuid()},group_id={os.getegid()}"
    options = f"fd={fuse},rootmode=40000,{owner},allow_other,default_permissions"
    namespaces.mount("squashfuse", directory, "fuse.squashfuse", namespaces.MS_RDONLY, options)
    status = processes.Child(_serve, file, offset, directory, fuse).wait()
    os.close(fuse)
    if status:
        namespaces.unmount(directory)
        why = (
            "squashfuse is not installed"
            if status == 127
            else f"squashfuse ended with status {status}"
        )
        raise Error(f"cannot mount {file}: {why}")


def _serve(file, offset, directory, fuse):
    """Become squashfuse, which serves the file from offset through the descriptor fuse."""
    # In a namespace without the mount: else it would keep what it serves, and never end.
    namespaces.unshare(namespaces.CLONE_NEWNS)
    namespaces.unmount(directory)
    os.dup2(fuse, FUSE)
    os.set_inheritable(FUSE, True)
    namespaces.default_signals()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    # Among them the locks that this process holds for what it becomes.
    os.closerange(FUSE + 1, 1024)
    try:
        os.execvp("squashfuse", ["squashfuse", "-o", f"offset={offset}", file, f"/dev/fd/{FUSE}"])
    except FileNotFoundError:
        os._exit(127)


def _run(argv):
    """Run a program whose output nobody needs; returns its exit status."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        pid = os.posix_spawnp(
            argv[0],
            argv,
            {**os.environ, "LC_ALL": "C"},
            file_actions=[(os.POSIX_SPAWN_DUP2, null, fd) for fd in range(3)],
        )
    except FileNotFoundError:
        return 127
    finally:
        os.close(null)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
