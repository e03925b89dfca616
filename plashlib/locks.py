"""Locks on directories: flock(2), which the kernel drops when the process ends, however it ends."""

import os
import stat


def own(directory: str) -> int:
    """Wait for the exclusive lock of a directory, which is created if it is missing.

    Returns a descriptor that holds the lock until it is closed. Raises OSError.
    """
    while True:
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
        except FileExistsError:
            # If another process creates and removes it before makedirs() looks, try again.
            if _file_type(directory) not in (None, stat.S_IFDIR):
                raise
            continue
        try:
            fd = lock(directory)
        except FileNotFoundError:
            continue
        # The previous owner may have removed the directory, and another one may be there by now.
        if _is_at(directory, fd):
            return fd
        os.close(fd)


def lock(directory: str, shared: bool = False) -> int:
    """Wait for the lock of a directory; returns a descriptor that holds it until it is closed.

    Raises OSError.
    """
    import fcntl

    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    return fd


def try_lock(fd: int) -> bool:
    """Take the exclusive lock of an open directory, unless another process holds it."""
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _file_type(path):
    """The type of the file at path, as of stat.S_IFMT(); None if there is none."""
    try:
        return stat.S_IFMT(os.stat(path).st_mode)
    except FileNotFoundError:
        return None


def _is_at(path, fd):
    """Whether path leads to the file that the descriptor fd has open."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False
