"""Layers: whiteouts and opaque directories, and the layer archives of OCI images.

The OCI image specification and the kernel's Documentation/filesystems/overlayfs.rst say what
a layer removes, each in its own way; this translates one into the other.
"""

import contextlib
import os
import stat

from plashlib import Error, archive, processes, whiteouts

WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"  # names in OCI layers


def create_layer(root: str, target: int, compress: "list[str]", directory: str) -> str:
    """Write the directory root of an image's layer to the descriptor target, for an OCI image.

    compress   the argv of the program that compresses it
    directory  a new directory for files that this makes

    overlayfs's whiteouts become those of the OCI image specification. One layer gives the same
    bytes each time. Returns the SHA-256 of the archive before it is compressed. Raises Error,
    OSError.
    """
    import hashlib

    marks = directory + "/marks"
    os.makedirs(marks)
    lists = [f"{directory}/{name}" for name in ("directories", "marked", "others")]
    with contextlib.ExitStack() as opened:
        _list_layer(
            os.fsencode(root),
            os.fsencode(marks),
            *(opened.enter_context(open(file, "wb")) for file in lists),
        )
    # Directories first: an extractor has them with their attributes before anything is in them.
    # Whiteouts next, before what has the names that they hide. ACLs go as xattrs, in numbers:
    # tar's own option for them writes the names that users have on this host.
    argv = [*archive.PACK, "--no-acls", *archive.NO_OVERLAY, "--sparse", "--no-recursion", "--null"]
    for each, file in zip((root, marks, root), lists):
        argv += ["-C", each, "-T", file]
    reader, writer = os.pipe()
    digest = hashlib.sha256()
    packing = processes.Child(_pack, argv, reader, writer)
    os.close(writer)
    try:
        archive.run_pipeline("pack", [compress], archive.Source(reader, digest), target)
    finally:
        os.close(reader)
        try:
            packing.result()
        finally:
            packing.wait()
    return digest.hexdigest()


def _pack(argv, reader, writer):
    os.close(reader)
    return archive.run_pipeline("pack", [argv], target=writer)


def _list_layer(root, marks, directories, marked, others):
    """Write the paths in a layer to three files, with a NUL after each.

    The files that stand for whiteouts are made in the directory marks.
    """

    def mark(directory, name):
        os.makedirs(os.path.join(marks, directory), exist_ok=True)
        path = os.path.join(directory, name)
        os.close(os.open(os.path.join(marks, path), os.O_WRONLY | os.O_CREAT, 0o600))
        os.utime(os.path.join(marks, path), (0, 0))
        marked.write(path + b"\0")

    left = [b""]
    while left:
        directory = left.pop()
        opaque = _xattr(os.path.join(root, directory), "user.overlay.opaque")
        directories.write((directory or b".") + b"\0")
        if opaque == b"y":
            mark(directory, OPAQUE.encode())
        below = []
        for entry in sorted(
            os.scandir(os.path.join(root, directory)), key=lambda entry: entry.name
        ):
            path = os.path.join(directory, entry.name)
            if entry.name.startswith(WHITEOUT.encode()):
                raise Error(
                    "a layer of OCI cannot hold files of this name, which is for whiteouts:"
                    f" {os.fsdecode(path)}"
                )
            if entry.is_dir(follow_symlinks=False):
                below.append(path)
            elif _is_whiteout(entry, opaque):
                mark(directory, WHITEOUT.encode() + entry.name)
            else:
                others.write(path + b"\0")
        left += reversed(below)


def _is_whiteout(entry, opaque):
    """Whether an os.DirEntry is one of overlayfs's whiteouts.

    opaque  the value of the xattr user.overlay.opaque of its directory
    """
    if entry.is_symlink():
        return False
    if entry.is_file():
        return opaque == b"x" and _xattr(entry.path, "user.overlay.whiteout") is not None
    status = entry.stat(follow_symlinks=False)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _xattr(path, name):
    """The value of a path's xattr; None where it has none."""
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError:
        return None


def copy_layer(source: str, target: str) -> "list[str]":
    """Copy a layer, a directory that overlayfs wrote to, to the new directory target.

    Where target's filesystem refuses the device files that are whiteouts, as an overlay
    does, they become overlayfs's other kind: an empty file with an xattr (Linux 6.8; see
    "Nesting overlayfs mounts" in the kernel's overlayfs.rst). Returns a line on each kind of
    thing that was left out. Raises OSError, Error.
    """
    os.mkdir(target)
    devices = "device nodes left out"
    warnings = [line for line in archive.copy(source, target) if devices not in line]
    lost = []
    for directory, _, files in os.walk(source):
        for name in files:
            status = os.lstat(f"{directory}/{name}")
            place = target + directory[len(source) :]
            is_device = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
            if is_device and not os.path.lexists(f"{place}/{name}"):
                if status.st_rdev == 0:
                    whiteouts.make_xattr_whiteout(*map(os.fsencode, (target, place, name)))
                else:
                    lost.append(f"{directory[len(source) + 1 :]}/{name}".lstrip("/"))
    return [*warnings, *([f"{len(lost)} {devices} (the first: {lost[0]})"] if lost else [])]
