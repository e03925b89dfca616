"""Binds: what of the host is mounted in a container, and the mount points for it.

Each one needs a mount point. Mount points are made in a layer of plash's own, which stands on top
of the image's: no build captures it, and it covers what the image has there, such as a
dangling symbolic link.
"""

import errno
import os
import stat

from plashlib import Error, namespaces

TYPE_CHECKING = False  # for a type checker, which takes it for true
if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_LINKS = 40  # followed on the way to a target, as the kernel does


class Mount:
    """Something that is mounted at target, a path in the container.

    directory says whether the mount point is a directory or a file. requested is whether the user
    asked for it: then links on the way to target are followed, and no mount point is an error.
    What is private has nothing of the host's: mount points can be made in it.
    """

    private = False
    make_point = False  # whether mount() makes the mount point, in something private

    def __init__(self, target: str, directory: bool = True, requested: bool = False) -> None:
        self.target, self.directory, self.requested = target, directory, requested

    def mount(self, path: str) -> None:
        """Mount it on path, in the new root filesystem. Raises OSError, Error."""
        raise NotImplementedError


class Bind(Mount):
    """A file or directory of the host: source is its path here."""

    def __init__(
        self,
        source: str,
        target: "str | None" = None,
        requested: bool = False,
        read_only: bool = False,
    ) -> None:
        super().__init__(target or source, os.path.isdir(source), requested)
        self.source, self.read_only = source, read_only
        self.shown = source  # what errors call it

    def mount(self, path: str) -> None:
        try:
            if self.make_point:
                _make_point(path, self.directory)
            namespaces.mount(self.source, path, flags=namespaces.MS_BIND | namespaces.MS_REC)
            if self.read_only:
                namespaces.restrict_mount(path, namespaces.MOUNT_ATTR_RDONLY)
        except OSError as error:
            missing = error.errno == errno.ENOSYS
            why = "read-only directories need Linux 5.12" if missing else error.strerror
            raise self.error(why) from None

    def error(self, why: str) -> Error:
        return Error(f"cannot bind {self.shown} on {self.target}: {why}")


def parse(text: str) -> Bind:
    """The Bind of a user's SOURCE, SOURCE:TARGET or SOURCE:TARGET:ro; \\: is a colon in a path.

    Raises Error, and OSError if SOURCE is missing.
    """
    fields = [field.replace("\0", ":") for field in text.replace("\\:", "\0").split(":")]
    mode = fields.pop() if len(fields) == 3 and fields[2] in ("ro", "rw") else "rw"
    if len(fields) > 2:
        raise Error(f"not a bind: {text!r} (SOURCE[:TARGET[:ro]]; \\: is a colon in a path)")
    if not fields[0]:
        raise Error(f"no SOURCE in the bind {text!r}")
    os.stat(fields[0])
    source = os.path.abspath(fields[0])
    target = fields[1] if fields[1:] else source
    normal = "/" + os.path.normpath(target).lstrip("/")
    if target[:1] != "/" or (normal + "/").startswith(("//", "/host/")):
        raise Error(
            f"cannot bind {source} on {target!r}: TARGET must be an absolute path other than /,"
            " and outside /host"
        )
    # The links of TARGET are the image's: it is normalized only where they have been followed.
    return Bind(source, target, requested=True, read_only=mode == "ro")


class Points:
    """The layer of mount points: directory is its root, on top of the image's open layers."""

    def __init__(self, directory: str, layers: "list[int]") -> None:
        self.directory = directory
        self.layers = layers
        self._known: dict[str, tuple[list, Iterator]] = {}

    def make_all(self, mounts: "list[Mount]") -> "list[Mount]":
        """Make mount points for Mounts, in their order; returns those that have one.

        The target of each is then a path without links. Raises Error if there can be none for
        one that the user asked for.
        """
        placed: list[Mount] = []
        for mount in mounts:
            try:
                if mount.requested:
                    self._make_requested(mount, placed)
                else:
                    # It covers what the image has there, a link too.
                    parent, _, name = mount.target.rpartition("/")
                    mount.target = f"{self.resolve(parent).rstrip('/')}/{name}"
                    self.make(mount.target, mount.directory)
            except OSError as error:
                if not mount.requested:
                    continue
                why = error.strerror
                raise (mount.error(why) if isinstance(mount, Bind) else error) from None
            placed.append(mount)
        return placed

    def _make_requested(self, mount, placed):
        mount.target = self.resolve(mount.target, placed)
        if mount.target == "/":
            raise OSError(errno.EBUSY, "that is the root directory in the image")
        if f"{mount.target}/".startswith("/host/"):
            raise OSError(errno.EBUSY, "links of the image lead to /host, where the host is")
        covering = _covering(mount.target, placed)
        if not covering:
            found = self.find(mount.target)
            if found and is_directory(found) != mount.directory:
                code = errno.ENOTDIR if mount.directory else errno.EISDIR
                raise OSError(code, os.strerror(code))
            self.make(mount.target, mount.directory)
            return
        mount.make_point = covering.private
        there = _host_path(mount.target, covering)
        if covering.private or not there:
            return
        if not os.path.exists(there):
            raise OSError(errno.ENOENT, f"{covering.target} is the host's, and lacks it")
        if os.path.isdir(there) != mount.directory:
            code = errno.ENOTDIR if mount.directory else errno.EISDIR
            raise OSError(code, os.strerror(code))

    def resolve(self, path: str, placed: "list[Mount] | None" = None) -> str:
        """The path in the container without links, ".." and ".": links lead inside it.

        placed are the Mounts that are on the way. What is missing is taken as it is. Raises
        OSError for too many links.
        """
        done, left, links = "", path.split("/"), 0
        while left:
            part = left.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                done = done.rpartition("/")[0]
                continue
            link = self._link(f"{done}/{part}", placed or [])
            if link is None:
                done = f"{done}/{part}"
                continue
            links += 1
            if links > MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            left = link.split("/") + left
            done = "" if link[:1] == "/" else done
        return done or "/"

    def _link(self, path, placed):
        """What the symbolic link at path in the container contains; None if it is none."""
        covering = _covering(path, placed)
        if covering:
            there = _host_path(path, covering) if path != covering.target else None
        elif os.path.lexists(self.directory + path):
            there = None
        else:
            there = self.find(path)
        try:
            return os.readlink(there) if there else None
        except OSError:
            return None

    def find(self, path: str) -> "str | None":
        """Where the image has path, which has no links on the way; None if it has not."""
        return next(self._entries(path.strip("/")), None)

    def _entries(self, path):
        """The layers' entries of that path that overlayfs merges, the topmost first."""
        if path not in self._known:
            self._known[path] = [], self._search(path)
        found, rest = self._known[path]
        index = 0
        while True:
            # Several look for entries of one path at the same time.
            if index == len(found):
                entry = next(rest, None)
                if entry is None:
                    return
                found.append(entry)
            yield found[index]
            index += 1

    def _search(self, path):
        if not path:
            for layer in self.layers:
                yield f"/proc/self/fd/{layer}"
            return
        parent, _, name = path.rpartition("/")
        for directory in self._entries(parent):
            entry = f"{directory}/{name}"
            try:
                status = os.lstat(entry)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if _is_whiteout(entry, status):
                return
            yield entry
            if not stat.S_ISDIR(status.st_mode) or _xattr(entry, "user.overlay.opaque") == b"y":
                return

    def make(self, target: str, directory: bool = True) -> None:
        """Make a mount point at target, which has no links on the way. Raises OSError.

        A directory on the way has the attributes that it has in the image: a build that writes
        below it copies them up.
        """
        *parents, _ = target[1:].split("/")
        above = ""
        for parent in parents:
            above += "/" + parent
            if os.path.isdir(self.directory + above):
                continue
            found = self.find(above)
            if found and not is_directory(found):
                raise OSError(errno.ENOTDIR, f"{above} is not a directory in the image")
            os.mkdir(self.directory + above)
            if found:
                copy_attributes(found, self.directory + above)
        point = self.directory + target
        if os.path.lexists(point):
            if os.path.isdir(point) != directory:
                code = errno.ENOTDIR if directory else errno.EISDIR
                raise OSError(code, os.strerror(code))
        elif directory:
            os.mkdir(point)
        else:
            os.close(os.open(point, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))

    def read(self, path: str) -> "str | None":
        """The text of a regular file of the image; None if there is none."""
        try:
            found = self.find(self.resolve(path))
        except OSError:
            return None  # a loop of links
        if not found:
            return None
        # Not to wait for a FIFO's writer; and links have been followed, inside the image.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(found, flags)
        except OSError:
            return None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return None
            return os.read(fd, status.st_size).decode(errors="surrogateescape")
        finally:
            os.close(fd)

    def write(self, path: str, text: str) -> None:
        """Put a file with that text on top of the image's, with its attributes. Raises OSError.

        It covers a link that leads to nothing in the image.
        """
        target = self.resolve(path)
        if not self.find(target):
            parent, _, name = path.rpartition("/")
            target = f"{self.resolve(parent).rstrip('/')}/{name}"
        self.make(target, directory=False)
        fd = os.open(self.directory + target, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        os.write(fd, text.encode(errors="surrogateescape"))
        os.close(fd)
        found = self.find(target)
        if found and not os.path.islink(found):
            copy_attributes(found, self.directory + target)


def _make_point(path, directory):
    """Make a mount point that may be there."""
    if directory:
        os.makedirs(path, exist_ok=True)
    elif not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))


def _covering(path, mounts):
    """The last of the Mounts that path is at or below; None if there is none."""
    for mount in reversed(mounts):
        if path == mount.target or path.startswith(mount.target + "/"):
            return mount
    return None


def _host_path(path, mount):
    """The host's path of what is at path in the container, below a Bind; else None."""
    if not isinstance(mount, Bind):
        return None
    return os.path.realpath(mount.source) + path[len(mount.target) :]


def _is_whiteout(path, status):
    if stat.S_ISCHR(status.st_mode):
        return status.st_rdev == 0
    empty = stat.S_ISREG(status.st_mode) and status.st_size == 0
    return empty and _xattr(path, "user.overlay.whiteout") is not None


def _xattr(path, name):
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError:
        return None


def is_directory(path: str) -> bool:
    """Whether path is a directory, and no link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def copy_attributes(source: str, target: str) -> None:
    """Give target the owner, mode, times and xattrs of source, without overlayfs's own xattrs."""
    status = os.stat(source)
    try:
        os.chown(target, status.st_uid, status.st_gid)
    except OSError:
        pass  # an owner that is not mapped here: the caller's stays
    os.chmod(target, stat.S_IMODE(status.st_mode))
    try:
        names = os.listxattr(source)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        names = []  # a filesystem that has none
    for name in names:
        if not name.startswith("user.overlay."):
            try:
                os.setxattr(target, name, os.getxattr(source, name))
            except OSError:
                pass  # one that the filesystem, or this user namespace, does not take
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
