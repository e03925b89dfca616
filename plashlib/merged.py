"""What an image's layers show together, read without mounting them.

Reading through an overlay takes half as long again as reading the layers themselves. The kernel's
Documentation/filesystems/overlayfs.rst says what a layer hides of those below; with `userxattr`
the xattrs are user.overlay.*.
"""

import errno
import os
import stat

OPAQUE, WHITEOUT = "user.overlay.opaque", "user.overlay.whiteout"
ROOT = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
ABSENT = (errno.ENODATA, errno.EOPNOTSUPP)  # getxattr(2) of a file without the xattr


def write_list(roots: "list[int]", file) -> None:
    """Write the names that layers show together, for tar's options --files-from --no-recursion.

    roots  descriptors of the layers' directories, the topmost first
    file   a binary file object

    Each name begins with the layer's number in roots: 0/./etc/passwd. They are in the order of
    tar's --sort=name. Raises OSError.
    """
    marks = [opaque_mark(root) == b"x" for root in roots]
    left = [(b".", list(range(len(roots))), True)]
    while left:
        path, layers, is_directory = left.pop()
        escaped = path.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
        file.write(b"%d/%b\n" % (layers[0], escaped))
        if is_directory:
            found = sorted(entries(roots, marks, path, layers).items(), reverse=True)
            left += [(path + b"/" + name, *entry) for name, entry in found if entry]


def entries(
    roots: "list[int]", marks: "list[bool]", path: bytes, layers: "list[int]"
) -> "dict[bytes, tuple[list[int], bool] | None]":
    """Return a directory's entries: a dict of names to pairs, or to None for a whiteout.

    A pair is of the layers that an entry is in, the topmost first, and whether it is a directory.

    roots   descriptors of the layers' directories
    marks   for each, whether its opaque_mark() is x
    path    of the directory, from the roots on
    layers  those that the directory is in, the topmost first

    Raises OSError.
    """
    found, ended = {}, set()
    for layer in layers:
        directory = os.open(path, DIRECTORY, dir_fd=roots[layer])
        try:
            opaque = opaque_mark(directory) if marks[layer] or layer != layers[-1] else None
            with os.scandir(directory) as listed:
                for entry in listed:
                    name, is_directory = (
                        os.fsencode(entry.name),
                        entry.is_dir(follow_symlinks=False),
                    )
                    if name not in found:
                        hidden = not is_directory and is_whiteout(directory, entry, opaque)
                        found[name] = None if hidden else ([layer], is_directory)
                    elif not is_directory:
                        ended.add(name)
                    elif found[name] and found[name][1] and name not in ended:
                        found[name][0].append(layer)
        finally:
            os.close(directory)
        if opaque == b"y":
            break
    return found


def opaque_mark(directory: int) -> "bytes | None":
    """Return the xattr that makes a directory opaque (y), or says that it has whiteouts (x)."""
    try:
        # By path, for fgetxattr(2) takes no descriptor of O_PATH.
        return os.getxattr(f"/proc/self/fd/{directory}", OPAQUE)
    except OSError as error:
        if error.errno not in ABSENT:
            raise
        return None


def is_whiteout(directory: int, entry: os.DirEntry, opaque: "bytes | None") -> bool:
    """Tell whether an entry of an open directory, which has that opaque_mark(), is a whiteout."""
    if entry.is_symlink():
        return False
    if entry.is_file(follow_symlinks=False):
        if opaque != b"x":
            return False
        try:
            os.getxattr(f"/proc/self/fd/{directory}/{entry.name}", WHITEOUT, follow_symlinks=False)
        except OSError as error:
            if error.errno not in ABSENT:
                raise
            return False
        return True
    status = entry.stat(follow_symlinks=False)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def whiteouts(root: str) -> "list[bytes]":
    """Return the paths of the devices below root that are whiteouts. Raises OSError."""
    found, left = [], [b"."]
    top = os.open(root, DIRECTORY)
    try:
        while left:
            path = left.pop()
            # By descriptor, for root and path together may be longer than a path can be.
            directory = os.open(path, DIRECTORY, dir_fd=top)
            try:
                with os.scandir(directory) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            left.append(path + b"/" + os.fsencode(entry.name))
                        elif is_whiteout(directory, entry, None):
                            found.append(path + b"/" + os.fsencode(entry.name))
            finally:
                os.close(directory)
    finally:
        os.close(top)
    return sorted(found)
