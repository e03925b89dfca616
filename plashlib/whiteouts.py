"""What a layer of an OCI image hides of the layers below, and what it has of their directories.

The image specification names what is removed, whether it is there or not; overlayfs needs a
whiteout for each name that is, and shows one that hides nothing in listings. The directories
that a layer has no entry for have the attributes that they have below. See layer.md, and
overlayfs.rst, of which plash uses the xattrs user.overlay.*.
"""

import errno
import os
import shutil
import stat

from plashlib import Error, merged, unpack

CANNOT = (errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL)


class Below:
    """The layers below one that is being unpacked: descriptors, the topmost first."""

    def __init__(self, roots: "list[int]") -> None:
        self._roots = roots
        self._directories = {b"/": list(range(len(roots)))}

    def directories(self, path: bytes) -> "list[int]":
        """The layers that a directory, by its absolute path, is merged from; [] for none."""
        current = b"/"
        for part in path.strip(b"/").split(b"/"):
            current = os.path.join(current, part)
            if current not in self._directories:
                self._directories[current] = self._find(current)[1]
            if not self._directories[current]:
                return []
        return self._directories[current]

    def _find(self, path):
        """Whether a path is there, and the layers of it if it is a directory.

        The layers of the directory that it is in are known.
        """
        found = []
        for layer in self._directories[os.path.dirname(path)]:
            try:
                status = os.lstat(path[1:], dir_fd=self._roots[layer])
            except FileNotFoundError:
                continue
            if not stat.S_ISDIR(status.st_mode):
                there = bool(found) or not self._is_whiteout(layer, path, status)
                return there, found
            found.append(layer)
            if self._xattr(layer, path, merged.OPAQUE) == b"y":
                break
        return bool(found), found

    def _is_whiteout(self, layer, path, status):
        if stat.S_ISCHR(status.st_mode):
            return status.st_rdev == 0
        is_file = stat.S_ISREG(status.st_mode)
        return is_file and self._xattr(layer, path, merged.WHITEOUT) is not None

    def _xattr(self, layer, path, name):
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(path[1:], flags, dir_fd=self._roots[layer])
        try:
            return os.getxattr(fd, name)
        except OSError as error:
            if error.errno not in merged.ABSENT:
                raise
            return None
        finally:
            os.close(fd)

    def has(self, path: bytes) -> bool:
        """Whether these layers together show a path."""
        if not self.directories(os.path.dirname(path)):
            return False
        return self._find(path)[0]

    def names(self) -> "list[bytes]":
        """The names in the root directory."""
        found: set = set()
        for root in self._roots:
            fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
            try:
                found.update(os.fsencode(name) for name in os.listdir(fd))
            finally:
                os.close(fd)
        return sorted(name for name in found if self.has(b"/" + name))

    def copy_attributes(self, path: bytes, target: bytes) -> None:
        """Give a directory the owner, mode, xattrs and time that it has below."""
        layer = self.directories(path)[0] if path != b"/" else 0
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path[1:] or b".", flags, dir_fd=self._roots[layer])
        try:
            _copy_attributes(fd, target)
        finally:
            os.close(fd)

    def copy_file(self, path: bytes, target: bytes) -> None:
        """Make an empty file a copy of the regular file that these layers show at a path.

        Raises Error if there is none.
        """
        name = ascii(os.fsdecode(path[1:]))[1:-1]
        if not self.has(path):
            raise Error(f"cannot unpack a layer: a hard link to what is nowhere: {name}")
        for layer in self._directories[os.path.dirname(path)]:
            try:
                mode = os.lstat(path[1:], dir_fd=self._roots[layer]).st_mode
            except FileNotFoundError:
                continue
            if not stat.S_ISREG(mode):
                raise Error(f"cannot unpack a layer: a hard link across layers to no file: {name}")
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(path[1:], flags, dir_fd=self._roots[layer])
            with open(fd, "rb") as source, open(target, "wb") as copy:
                shutil.copyfileobj(source, copy, unpack.PIECE)
                copy.flush()
                _copy_attributes(fd, target)
            return


def _copy_attributes(fd, target):
    """Give a path the owner, mode, xattrs and time of a descriptor."""
    status = os.fstat(fd)
    os.chown(target, status.st_uid, status.st_gid)
    os.chmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(fd):
        if name.startswith(unpack.DROPPED):
            continue
        try:
            os.setxattr(target, name, os.getxattr(fd, name))
        except OSError as error:
            if error.errno not in CANNOT:
                raise
    os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))


def finish(root: str, layers: "list[str]", found: dict) -> None:
    """Make a layer that unpack.unpack() filled one of overlayfs's. To be called by a child.

    root    the layer's directory, the root directory of this process from then on
    layers  those of the layers below, the topmost first
    found   what unpack() returned

    Raises Error, OSError.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    below = Below([os.open(layer, flags) for layer in layers])
    os.umask(0o022)
    unpack.enter(root)
    _Finish(below, found).run()


class _Finish:
    """A layer in the root directory of this process."""

    def __init__(self, below, found):
        self._below, self._found = below, found
        self._hidden = set()  # directories of this layer in which nothing from below shows
        self._remade = set()  # those of them that were removed, and made again

    def run(self):
        for path, source in self._found["links"].items():
            self._below.copy_file(source, path)
        if not self._below.directories(b"/"):
            return
        hidden = set(self._found["whiteouts"])
        for path in self._found["opaque"]:
            if path == b"/":
                # overlayfs knows no opaque root directory.
                hidden.update(b"/" + name for name in self._below.names())
            else:
                hidden.add(path + b"/" + unpack.OPAQUE)
        # A directory before what is in it.
        for path in sorted(hidden, key=lambda path: path.replace(b"/", b"\0")):
            self._hide(path)
        for path in self._found["implied"]:
            parent = os.path.dirname(path)
            if path == b"/" or path not in self._remade and self._shows_below(parent):
                self._as_below(path)

    def _shows_below(self, path):
        """Whether something below a directory shows through this layer."""
        parts, current = path.strip(b"/").split(b"/"), b""
        for part in parts if path != b"/" else []:
            current += b"/" + part
            if current in self._hidden:
                return False
            try:
                mode = os.lstat(current).st_mode
            except FileNotFoundError:
                break
            if not stat.S_ISDIR(mode):
                return False
        return bool(self._below.directories(path))

    def _as_below(self, path):
        if self._below.directories(path):
            self._below.copy_attributes(path, path)

    def _hide(self, path):
        parent, name = os.path.split(path)
        if not self._shows_below(parent):
            return
        if name == unpack.OPAQUE:
            self._make(parent)
            self._make_opaque(parent)
            return
        if not self._below.has(path):
            return
        self._make(parent)
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            times = os.lstat(parent).st_mtime_ns
            make_whiteout(b"/", parent, name)
            os.utime(parent, ns=(times, times))
            return
        if stat.S_ISDIR(mode):
            self._remade.add(path)
            self._make_opaque(path)

    def _make(self, path):
        """Make a directory that is below, with all above it."""
        current = b""
        for part in path.split(b"/")[1:] if path != b"/" else []:
            parent, current = current or b"/", current + b"/" + part
            times = os.lstat(parent).st_mtime_ns
            try:
                os.mkdir(current, 0o755)
            except FileExistsError:
                continue
            self._as_below(current)
            os.utime(parent, ns=(times, times))

    def _make_opaque(self, path):
        if self._below.directories(path):
            os.setxattr(path, merged.OPAQUE, b"y")
        self._hidden.add(path)


def make_whiteout(root: bytes, directory: bytes, name: bytes) -> None:
    """Make a whiteout of that name in a directory of the layer root: a device, if that may be."""
    try:
        os.mknod(os.path.join(directory, name), stat.S_IFCHR, 0)
    except PermissionError:
        make_xattr_whiteout(root, directory, name)


def make_xattr_whiteout(root: bytes, directory: bytes, name: bytes) -> None:
    """Make a whiteout of overlayfs's other kind: an empty file with an xattr (Linux 6.8).

    See "Nesting overlayfs mounts" in the kernel's overlayfs.rst.
    """
    try:
        if os.getxattr(directory, merged.OPAQUE) == b"y":
            return  # nothing below shows through: there is nothing to hide
    except OSError as error:
        if error.errno not in merged.ABSENT:
            raise
    os.setxattr(root, merged.OPAQUE, b"x")
    os.setxattr(directory, merged.OPAQUE, b"x")
    path = os.path.join(directory, name)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    os.setxattr(path, merged.WHITEOUT, b"y")
