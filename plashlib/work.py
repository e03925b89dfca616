"""tmp/: directories that commands work in, layers that are being made, and what is garbage.

An entry of tmp/ is owned by the process that holds its lock, by the process that its name
marks, and by the processes that have an overlay mounted that writes to it. What nobody owns is
garbage. See docs/store.md.
"""

import errno
import os

from plashlib import Error, locks, mountinfo, namespaces, processes, store

TYPE_CHECKING = False  # for a type checker, which takes it for true
if TYPE_CHECKING:
    from collections.abc import Iterator

BATCH = 256  # locks held at once
REMOVED = "removed."  # the prefix of entries that only wait to be deleted
MOUNTS = "mounts."  # the prefix of entries on which container.mount() mounts squashfs files
SQUASHFS = {"squashfs", "fuse.squashfuse"}


class Work:
    """A directory in tmp/ that this process owns while a `with` statement runs.

    Its lock is dropped when the process ends, however it ends, and then it is garbage. If it
    has a name, a process waits for another that owns it, and finds what that one kept.
    """

    keep = False

    def __init__(self, name: "str | None" = None) -> None:
        processes.exit_on_signals()
        self.path = f"{store.path()}/tmp/{name or os.urandom(8).hex()}"
        self._fd = locks.own(self.path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if not self.keep:
            try:
                os.rmdir(self.path)
            except OSError:
                delete(self.path)
        os.close(self._fd)

    def delete_in_background(self) -> None:
        """Delete the directory in a background process, which owns it from now on."""
        self.keep = True
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        streams = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in range(3)]
        os.posix_spawnp(
            "rm",
            [*RM, self.path],
            os.environ,
            setsid=True,
            file_actions=[*streams, (os.POSIX_SPAWN_DUP2, self._fd, 3)],
        )
        os.close(null)


class NewLayer(Work):
    """Work that becomes an image: create and fill the directory `root`, then call stack_on()."""

    def __init__(self) -> None:
        super().__init__()
        self.root = self.path + "/root"
        self.config: dict[str, bytes] = {}  # files beside the layer

    def stack_on(self, parent: store.Image, **options) -> store.Image:
        """Make the layer a new image on parent; as store.stack()."""
        config = {**self.config, **(options.pop("config", None) or {})}
        return store.stack(self.root, parent, config, **options)


RM = "rm", "-rf", "--one-file-system", "--"


def delete(directory: str) -> None:
    """Delete a directory tree; it may be missing. Raises Error.

    What is mounted in it is not touched.
    """
    if os.path.basename(directory).startswith(MOUNTS):
        # What a killed `plash mount` left.
        for point, kind in reversed(mountinfo.mounts_below(os.path.realpath(directory))):
            if kind in SQUASHFS:
                namespaces.unmount(point)
    mounted = mountinfo.below(os.path.realpath(directory))
    if mounted:
        raise Error(f"{mounted[0]} is mounted (unmount it, and run plash clean)")
    # rm(1), because it is faster than Python, and takes paths longer than PATH_MAX.
    reader, writer = os.pipe()
    environment = {**os.environ, "LC_ALL": "C"}
    pid = os.posix_spawnp(
        "rm", [*RM, directory], environment, file_actions=[(os.POSIX_SPAWN_DUP2, writer, 2)]
    )
    os.close(writer)
    with open(reader, encoding="utf-8", errors="replace") as file:
        why = file.readline().rstrip("\n")
        while file.read(1 << 16):
            pass
    if os.waitpid(pid, 0)[1]:
        foreign = why.endswith((os.strerror(errno.EACCES), os.strerror(errno.EPERM)))
        remedy = " (if root created it, root can remove it)" if foreign else ""
        raise Error((why.removeprefix("rm: ") or f"cannot remove {directory}") + remedy)


def garbage(closed: "list[str] | None" = None) -> "Iterator[str]":
    """The paths of what no live process owns in tmp/, each locked until the next is asked for.

    A line on each entry that can't be opened is added to closed: nobody knows whose that is.
    Raises Error, OSError.
    """
    directory = store.path() + "/tmp"
    owner = os.stat(store.path()).st_uid
    names = [name for name in os.listdir(directory) if not processes.marks_live_process(name)]
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # maybe a fifo
    for start in range(0, len(names), BATCH):
        locked = {}
        for name in names[start : start + BATCH]:
            path = f"{directory}/{name}"
            try:
                locked[name] = os.open(path, flags)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno == errno.ELOOP:
                    yield path  # a symbolic link, of names.point()
                elif closed is not None:
                    closed.append(f"{path}: {error.strerror} (its owner, or root, can remove it)")
                continue
            if not locks.try_lock(locked[name]):
                os.close(locked.pop(name))
        # Look at mounts only now: a process mounts before it drops its lock.
        mounted = b"".join(line for _, _, line in processes.overlays(owner))
        for name in locked:
            if os.fsencode(f"/tmp/{name}/") not in mounted:
                yield f"{directory}/{name}"
        for fd in locked.values():
            os.close(fd)


def wait_for_deletions() -> None:
    """Wait until the files of removed images are deleted, or the process that deletes them ends.

    Raises Error, OSError.
    """
    directory = store.path() + "/tmp"
    for name in os.listdir(directory):
        if name.startswith(REMOVED):
            try:
                os.close(locks.lock(f"{directory}/{name}"))
            except OSError:
                pass  # it has gone; or it is root's, and garbage() says so
