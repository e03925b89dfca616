"""Layers: whiteouts and opaque directories, and the layer archives of OCI images.

The OCI image specification and the kernel's Documentation/filesystems/overlayfs.rst say what
a layer removes, each in its own way; this translates one into the other.
"""

import contextlib
import os
import stat
import subprocess

from plashlib import Error, archive

WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"  # names in OCI layers


def extract_layer(source, root):
    """Unpack a layer of an OCI image, a tar archive that the descriptor of a file reads, into the new directory root.

    Its whiteouts, as the OCI image specification has them, become those of overlayfs.
    Returns the SHA-256 of the expanded archive, in hexadecimal, which is the layer's diff
    id, and lines on what could not be made. Raises Error, OSError; root is then to be thrown away.
    """
    import hashlib

    os.mkdir(root)
    digest = hashlib.sha256()
    with subprocess.Popen(
        archive.decompressor(os.pread(source, archive.BLOCK, 0)) or ["cat"],
        stdin=source,
        stdout=subprocess.PIPE,
    ) as expanding:
        told = archive.run_pipeline(
            "unpack",
            [archive.extractor()],
            archive.Source(expanding.stdout.fileno(), digest),
            extract_to=root,
        )
    if expanding.returncode:
        raise Error(f"cannot unpack: {expanding.args[0]} ended with status {expanding.returncode}")
    _translate_whiteouts(root)
    return digest.hexdigest(), told


def _translate_whiteouts(root):
    for directory, names, files in os.walk(root):
        whiteouts = [name for name in files if name.startswith(WHITEOUT)]
        times = os.stat(directory)
        for name in whiteouts:
            os.unlink(f"{directory}/{name}")
        for name in whiteouts:
            if name == OPAQUE:
                os.setxattr(directory, "user.overlay.opaque", b"y")
            elif not name.startswith(WHITEOUT * 2) and name[len(WHITEOUT) :] not in ("", ".", ".."):
                hidden = name[len(WHITEOUT) :]
                place = f"{directory}/{hidden}"
                if os.path.isdir(place) and not os.path.islink(place):
                    # Removed and made again: what was in it before is to stay away.
                    os.setxattr(place, "user.overlay.opaque", b"y")
                elif not os.path.lexists(place):
                    _make_whiteout(root, directory, hidden)
        if whiteouts:
            os.utime(directory, ns=(times.st_atime_ns, times.st_mtime_ns))


def _make_whiteout(root, directory, name):
    try:
        os.mknod(f"{directory}/{name}", stat.S_IFCHR, 0)
    except PermissionError:
        _xattr_whiteout(root, directory, name)


def create_layer(root, target, compress, place):
    """Write the directory of an image's layer to the file descriptor target, as a layer of an OCI image.

    compress  a program's words
    place     a new directory for files that this makes

    overlayfs's whiteouts become those of the OCI image specification. One layer gives the same
    bytes each time. Returns the SHA-256 of the archive before it is compressed. Raises Error, OSError.
    """
    import hashlib
    import threading

    marks = place + "/marks"
    os.makedirs(marks)
    lists = [f"{place}/{name}" for name in ("directories", "marked", "others")]
    with contextlib.ExitStack() as opened:
        _list_layer(
            os.fsencode(root),
            os.fsencode(marks),
            *(opened.enter_context(open(file, "wb")) for file in lists),
        )
    # Directories first: an extractor has them with their attributes before anything is in them. Whiteouts
    # next, before what has the names that they hide.
    words = [*archive.PACK, "--xattrs-exclude=user.overlay.*", "--no-recursion", "--null"]
    for directory, file in zip((root, marks, root), lists):
        words += ["-C", directory, "-T", file]
    reader, writer = os.pipe()
    digest, failures = hashlib.sha256(), []

    def pack():
        try:
            archive.run_pipeline("pack", [words], target=writer)
        except (Error, OSError) as error:
            failures.append(error)
        finally:
            os.close(writer)

    packing = threading.Thread(target=pack)
    packing.start()
    try:
        archive.run_pipeline("pack", [compress], archive.Source(reader, digest), target)
    finally:
        os.close(reader)
        packing.join()
    if failures:
        raise failures[0]
    return digest.hexdigest()


def _list_layer(root, marks, directories, marked, others):
    """Write the paths in a layer to three files, NUL after each; what stands for whiteouts is made in the directory marks."""

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
                    f"a layer of OCI cannot hold files of this name, which is for whiteouts: {os.fsdecode(path)}"
                )
            if entry.is_dir(follow_symlinks=False):
                below.append(path)
            elif _is_whiteout(entry, opaque):
                mark(directory, WHITEOUT.encode() + entry.name)
            else:
                others.write(path + b"\0")
        left += reversed(below)


def _is_whiteout(entry, opaque):
    """Whether the os.DirEntry, in a directory that is opaque as the xattr says, is a whiteout of overlayfs's."""
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


def copy_layer(source, target):
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
                    _xattr_whiteout(target, place, name)
                else:
                    lost.append(f"{directory[len(source) + 1 :]}/{name}".lstrip("/"))
    return [*warnings, *([f"{len(lost)} {devices} (the first: {lost[0]})"] if lost else [])]


def _xattr_whiteout(root, directory, name):
    if _xattr(directory, "user.overlay.opaque") == b"y":
        return  # nothing below shows through: there is nothing to hide
    os.setxattr(root, "user.overlay.opaque", b"x")
    os.setxattr(directory, "user.overlay.opaque", b"x")
    os.close(os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    os.setxattr(f"{directory}/{name}", "user.overlay.whiteout", b"y")
