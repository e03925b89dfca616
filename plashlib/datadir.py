"""The data directory: where it is, what it consists of, and how it is created and repaired.

docs/store.md describes it.
"""

import errno
import os

from plashlib import Error

TYPE_CHECKING = False  # for a type checker, which takes it for true
if TYPE_CHECKING:
    from collections.abc import Iterator

EMPTY = "0"  # the id of the image without files, on which all others stand
VERSION = "1"  # of the store's format: the first line of the file `format`
PARTS = "index", "map", "cache", "recall", "pidns", "tmp", f"layer/{EMPTY}/_data/root", "mnt"
# No other user reaches the files in these: there may be setuid programs among them.
PRIVATE = "layer", "tmp"

_location = None  # what location() found
_whole = None  # the data directory that init() has found whole


def path() -> str:
    """The absolute path of the data directory, which is created if it is missing. Raises Error."""
    data = location()
    if data != _whole:
        init(data)
    return data


def exists() -> bool:
    """Whether there is a data directory; this creates none. Raises Error."""
    return _is_whole(location()) or _is_older(location())


def location() -> str:
    """The absolute path of the data directory, which may be missing.

    Raises Error if the user has no home directory, and no variable names another.
    """
    # Found once: later, the working directory and the uid, whose home it may be in, are others.
    global _location
    if not _location:
        data = os.environ.get("PLASH_DATA")
        if not data:
            shared = os.environ.get("XDG_DATA_HOME")
            if not shared:
                from plashlib import caller

                shared = caller.home() + "/.local/share"
            data = shared + "/plash"
        _location = os.path.realpath(data)
    return _location


def init(data: "str | None" = None) -> None:
    """Create the data directory, or any missing part of it.

    Raises Error, also if the directory holds something else.
    """
    global _whole
    data = data or location()
    try:
        if not _is_whole(data):
            _create(data)
    except OSError as error:
        # A store to read only: of another user, or of a filesystem that is read-only.
        if error.errno not in READ_ONLY or not (_has_marker(data) or _is_older(data)):
            why = os.strerror(errno.ENOTDIR) if os.path.isfile(data) else error.strerror
            raise Error(
                f"cannot use the data directory {data}: {why} (PLASH_DATA can name another)"
            ) from None
    _whole = data


READ_ONLY = errno.EROFS, errno.EACCES, errno.EPERM


def _is_whole(data):
    """Whether a directory is a store, no part is missing, and others are kept out of it."""
    try:
        for part in PARTS:
            os.stat(f"{data}/{part}")
        os.lstat(f"{data}/index/{EMPTY}")
        os.stat(data + "/id_counter")
        # A link has the mode 0777.
        private = not any(os.lstat(f"{data}/{name}").st_mode & 0o077 for name in PRIVATE)
    except OSError:
        return False
    return private and _has_marker(data)


def _has_marker(data):
    """Whether the file `format` says that a directory is a store. Raises Error."""
    try:
        version = _format(data)[0]
    except OSError:
        return False
    if version and version != VERSION:
        raise Error(f"{data} is a store of another version of plash (its format is {version!r})")
    return True


def _format(data):
    """The lines of the file `format`. Raises OSError."""
    with open(data + "/format", encoding="utf-8", errors="replace") as file:
        return [*file.read(100).split("\n"), ""]


def is_copy(data: str) -> bool:
    """Whether the store at data is a copy of one, as far as that is known.

    The second line of the file `format` is the inode of the directory that it was made in. What
    copied it may have lost owners, whiteouts and xattrs. Raises OSError.
    """
    inode = _format(data)[1]
    return inode not in ("", str(os.stat(data).st_ino))


def _is_older(data):
    """Whether a directory is a store of the time before there was a file `format`."""
    parts = "id_counter", f"layer/{EMPTY}/_data/root", "map"
    return all(os.path.exists(f"{data}/{part}") for part in parts)


def _create(data):
    from plashlib import locks

    lock = locks.own(data)
    try:
        _create_locked(data)
    finally:
        os.close(lock)


def _create_locked(data):
    for name in PRIVATE:
        if os.path.islink(f"{data}/{name}"):
            raise Error(f"{data}/{name} is a symbolic link, and what that leads to is not plash's")
    if not _has_marker(data):
        if set(os.listdir(data)) - {"lost+found"} and not _is_older(data):
            raise Error(
                f"{data} is not a plash data directory, and is not empty"
                " (set PLASH_DATA to another)"
            )
        # First of all, so that a store that is half made is known for one.
        with open(data + "/format", "w", encoding="utf-8") as file:
            file.write(f"{VERSION}\n{os.stat(data).st_ino}\n")
        drop_acls(data)
    lost = not os.path.lexists(f"{data}/index/{EMPTY}")
    for part in PARTS:
        os.makedirs(f"{data}/{part}", exist_ok=True)
    for name in PRIVATE:
        if os.stat(f"{data}/{name}").st_mode & 0o077:
            os.chmod(f"{data}/{name}", 0o700)
    found = list(nodes(data)) if lost else []
    if not os.path.exists(data + "/id_counter"):
        newest = max([0, *(int(os.path.basename(each)) for each in nodes(data))])
        _write_counter(data, newest)
    for directory in [f"{data}/layer/{EMPTY}", *found]:
        try:
            os.symlink(".." + directory[len(data) :], f"{data}/index/{os.path.basename(directory)}")
        except FileExistsError:
            pass


def drop_acls(directory: str) -> None:
    """Remove the ACLs that a directory has from the one that it was made in; see acl(5).

    All that is made in it would have them too, whatever the umask is.
    """
    for name in "system.posix_acl_default", "system.posix_acl_access":
        try:
            os.removexattr(directory, name)
        except OSError:
            pass  # it has none


def nodes(data: str) -> "Iterator[str]":
    """The directories of the images of the store at data, whether index/ has them or not."""
    pending = [f"{data}/layer/{EMPTY}"]
    while pending:
        for entry in os.scandir(pending.pop()):
            if entry.name.isascii() and entry.name.isdigit() and is_image(entry.path):
                yield entry.path
                pending.append(entry.path)


def _write_counter(data, newest):
    """Make the counter anew, as large as the newest id that is known."""
    temporary = f"{data}/id_counter.new"
    with open(temporary, "wb") as file:
        file.write(b"." * newest)
    os.rename(temporary, data + "/id_counter")


def is_image(directory: str) -> bool:
    """Whether a directory of layer/ is an image, rather than one that is being made."""
    return os.path.lexists(directory + "/_data/root")
