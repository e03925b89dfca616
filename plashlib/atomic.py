"""Files that appear whole or not at all.

They have no name before they are whole, where the filesystem allows that: O_TMPFILE, open(2).
"""

import contextlib
import errno
import os

from plashlib import processes

MODE = 0o7777  # the bits of a mode that chmod(2) sets


@contextlib.contextmanager
def whole_file(file: str, sync: bool = True, executable: bool = False):
    """Open a file to write to that is there whole, or not at all, when the `with` statement ends.

    A file that it replaces keeps its mode, but for the bits that make it executable. With sync, it
    and its name are on the disk then. What is no regular file, such as a device or a pipe, is
    written to as it is. Raises OSError.
    """
    processes.exit_on_signals()
    if not os.path.basename(file):
        code = errno.EISDIR if file else errno.ENOENT
        raise OSError(code, os.strerror(code), file)
    if os.path.exists(file) and not os.path.isfile(file):
        with open(file, "wb") as opened:
            yield opened
        return
    directory, name = os.path.split(os.path.realpath(file))
    passing = f".plash-{os.urandom(8).hex()}"
    try:
        # All is relative to this descriptor: it leads to the same mount from other namespaces too.
        parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        opened, has_name = _open_nameless(parent, passing)
    except OSError as error:
        raise OSError(error.errno, error.strerror, file) from None
    try:
        with opened:
            yield opened
            opened.flush()
            _take_mode(opened.fileno(), parent, name)
            if executable:
                # For all who may read it.
                mode = os.fstat(opened.fileno()).st_mode & MODE
                os.fchmod(opened.fileno(), mode | (mode & 0o444) >> 2)
            if sync:
                os.fsync(opened.fileno())
            if not has_name:
                has_name = not _link(opened.fileno(), parent, name, passing)
        if has_name:
            os.rename(passing, name, src_dir_fd=parent, dst_dir_fd=parent)
            has_name = False
        if sync:
            os.fsync(parent)
    finally:
        if has_name:
            os.unlink(passing, dir_fd=parent)
        os.close(parent)


def _open_nameless(parent, name):
    """Open a new file in the directory parent: without a name where that can be, else with name.

    Returns the file object, and whether it has the name.
    """
    try:
        return open(os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o666, dir_fd=parent), "wb"), False
    except OSError:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        return open(os.open(name, flags, 0o666, dir_fd=parent), "wb"), True


def _link(fd, parent, name, passing):
    """Give the nameless file fd its name; returns False where it only got the name passing."""
    for each in name, passing:
        try:
            os.link(f"/proc/self/fd/{fd}", each, src_dir_fd=parent, dst_dir_fd=parent)
            return each == name
        except FileExistsError:
            continue
    raise FileExistsError(passing)


def _take_mode(fd, parent, name):
    """Give the file fd the mode, and if possible the owner, of the file that it is to replace."""
    try:
        old = os.stat(name, dir_fd=parent)
    except FileNotFoundError:
        return
    with contextlib.suppress(OSError):
        os.fchown(fd, old.st_uid, old.st_gid)
    os.fchmod(fd, old.st_mode & MODE)
