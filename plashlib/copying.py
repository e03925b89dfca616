"""COPY and ADD: files from a Tree into an image's new layer.

It happens in the image as root directory (chroot(2)), so that its links lead inside it and
images without any program work. What exists there is replaced as BuildKit's copy does it: a
directory merges with a directory, a file replaces a file or a link, and nothing else goes.
"""

import errno
import os
import re
import shutil
import stat
import tarfile

from plashlib import (
    Error,
    archive,
    container,
    namespaces,
    processes,
    sources,
    store,
    users,
    work,
)

CHUNK = 1 << 20
KEPT_XATTRS = ("user.", "security.capability", "system.posix_acl")


def change_files(image: "store.Image", layer: "work.NewLayer", function):
    """Call function in a process whose root directory is the image; what it writes fills the layer.

    This process is root of its user namespace already. Returns what function returns, and raises
    what it raises.
    """
    return processes.call(_change_files, image, layer, function)


def _change_files(image, layer, function):
    if image.id == store.EMPTY:
        container.make_layer(image, layer.root)
        return processes.call(_in_root, layer.root, function)
    view = container.View(image, without=container.ABSENT)
    view.mounts = []
    inside = layer.path[len(store.path()) + 1 :]
    changes = store.path(), inside + "/root", inside + "/work"
    root = container.mount_root(image, view, changes, "xino=on,volatile")
    result = processes.call(_in_root, store.path() + "/mnt", function)
    if root.upper != layer.root:
        from plashlib import layers

        # The upper directory is in the tmpfs that the overlay covers.
        namespaces.unmount(store.path() + "/mnt")
        layers.copy_layer(root.upper, layer.root)
    return result


def _in_root(directory, function):
    os.chroot(directory)
    os.chdir("/")
    os.umask(0o022)
    return function()


def find_owner(text: "str | None") -> "tuple[int, int]":
    """The uid and gid of USER[:GROUP], by this root directory's passwd and group. Raises Error.

    A user without a group has the group of its own number, as in BuildKit.
    """
    if not text:
        return 0, 0
    user, group = users.find(text, _read), text.partition(":")[2]
    return user.uid, user.uid if text.isdigit() and not group else user.gid


def _read(path):
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return file.read().decode(errors="surrogateescape")
    except OSError:
        pass
    return None


class Copier:
    """Copies into the directory that is this process's root.

    owner   the uid and gid of all that is made; None keeps those of the sources
    mode    a mode of chmod(1), octal or symbolic; None keeps the sources'
    xattrs  whether those of the sources are copied

    lost has the owners that files could not have, as where only one id is mapped: lines as those
    of emulate.Watch.lost().
    """

    def __init__(self, owner, mode: "str | None" = None, xattrs: bool = False) -> None:
        self.owner, self.mode, self.xattrs = owner, mode, xattrs
        self.lost: set[str] = set()
        if mode:
            change_mode(mode, 0, False)

    def make_directories(self, path: str) -> None:
        """Make the directory at path and those above it that are missing. Raises OSError."""
        made = ""
        for part in path.split("/"):
            if not part:
                continue
            made += "/" + part
            if not os.path.isdir(made):
                # The target of a dangling link is made, inside the image.
                where = os.path.realpath(made)
                if where != made and not os.path.lexists(where):
                    self.make_directories(where)
                    continue
                if os.path.lexists(made):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), made)
                os.mkdir(made, 0o755)
                os.chmod(made, 0o755)
                self.own(made, self.owner or (0, 0))

    def copy(
        self, tree: "sources.Tree", source: "sources.Source", target: str, exclude=None
    ) -> None:
        """Copy a Source to target: a directory's contents, into it. Raises Error, OSError."""
        if not source.is_directory():
            where = os.path.realpath(target)  # of a dangling link too
            self.make_directories(os.path.dirname(where))
            self._put(tree, source.path, source.status, where)
            return
        if os.path.lexists(target) and not os.path.isdir(target):
            raise Error(f"cannot copy a directory to {target}, which is not one")
        self.make_directories(target)
        if self.mode:
            os.chmod(target, change_mode(self.mode, 0o755, True))
        directories = []
        for below, status in tree.walk(source.path, exclude):
            if stat.S_ISSOCK(status.st_mode):
                continue
            path = f"{source.path}/{below}".lstrip("/")
            self._put(tree, path, status, f"{target}/{below}")
            if stat.S_ISDIR(status.st_mode):
                directories.append((f"{target}/{below}", status))
        for path, status in reversed(directories):
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _put(self, tree, path, status, target):
        kind = stat.S_IFMT(status.st_mode)
        try:
            there = os.lstat(target).st_mode
        except FileNotFoundError:
            there = None
        if kind == stat.S_IFDIR:
            if there is None:
                os.mkdir(target, 0o700)
            elif not stat.S_ISDIR(there):
                raise Error(f"cannot copy a directory to {target}, which is not one")
        else:
            if there is not None and stat.S_ISDIR(there):
                raise Error(f"cannot copy a file to {target}, which is a directory")
            if there is not None:
                os.unlink(target)
            self._make(tree, path, status, target, kind)
        self.own(target, self.owner or (status.st_uid, status.st_gid))
        if kind != stat.S_IFLNK:
            mode = stat.S_IMODE(status.st_mode)
            if self.mode:
                mode = change_mode(self.mode, mode, kind == stat.S_IFDIR)
            os.chmod(target, mode)
        if self.xattrs and kind in (stat.S_IFREG, stat.S_IFDIR):
            self._copy_xattrs(tree, path, target)
        times = status.st_atime_ns, status.st_mtime_ns
        os.utime(target, ns=times, follow_symlinks=False)

    def _make(self, tree, path, status, target, kind):
        if kind == stat.S_IFLNK:
            os.symlink(tree.readlink(path), target)
        elif kind == stat.S_IFREG:
            with tree.open(path) as file, open(target, "xb") as made:
                copy_content(file.fileno(), made.fileno(), status.st_size)
        elif kind == stat.S_IFIFO:
            os.mkfifo(target)
        else:
            raise Error(f"cannot copy {path}: neither file, directory, link nor FIFO")

    def own(self, path: str, owner: "tuple[int, int]") -> None:
        """Give what is at path the owner, if that can be."""
        try:
            os.chown(path, *owner, follow_symlinks=False)
        except OSError:
            kinds = zip(("uid", "gid"), owner)
            self.lost |= {f"{kind} {number}" for kind, number in kinds if number}

    def _copy_xattrs(self, tree, path, target):
        # By descriptor: the host's /proc is not in this root directory.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(path, flags, dir_fd=tree.fd)
        try:
            for name in os.listxattr(fd):
                if name.startswith(KEPT_XATTRS) and not name.startswith("user.overlay."):
                    os.setxattr(target, name, os.getxattr(fd, name))
        finally:
            os.close(fd)

    def extract(self, file, target: str) -> None:
        """Unpack a tar archive, from a binary file object, in the directory target.

        What is in it has its own owners; the target has those of the Copier if it is new. The file
        is read to its end. Raises Error if it is no sound archive, and OSError.
        """
        try:
            self._extract(file, target)
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise Error(f"not a sound tar archive: {error}") from None
        while file.read(CHUNK):
            pass

    def _extract(self, file, target):
        self.make_directories(target)
        directories = []
        with tarfile.open(fileobj=file, mode="r|", errorlevel=1) as tar:
            for member in tar:
                path = _below(target, member.name)
                if member.ischr() or member.isblk() or path == target.rstrip("/"):
                    continue
                self.make_directories(os.path.dirname(path))
                _make_room(path, member.isdir())
                if member.islnk():
                    os.link(_below(target, member.linkname), path, follow_symlinks=False)
                    continue
                self._make_member(tar, member, path)
                if member.isdir():
                    directories.append((path, member))
                    continue
                self.own(path, (member.uid, member.gid))
                if not member.issym():
                    os.chmod(path, member.mode)
                os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)
        for path, member in reversed(directories):
            self.own(path, (member.uid, member.gid))
            os.chmod(path, member.mode)
            os.utime(path, (member.mtime, member.mtime))

    def _make_member(self, tar, member, path):
        if member.isdir():
            if not os.path.isdir(path):
                os.mkdir(path, 0o700)
        elif member.issym():
            os.symlink(member.linkname, path)
        elif member.isfifo():
            os.mkfifo(path)
        else:
            tar.makefile(member, path)


def _below(directory, name):
    """The path of a member's name in a directory: .. leads no higher."""
    return f"{directory.rstrip('/')}/{os.path.normpath('/' + name).lstrip('/')}".rstrip("/")


def _make_room(path, for_directory):
    """Remove what is at path, unless it and what comes are directories."""
    try:
        is_directory = stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_directory:
        os.unlink(path)
    elif not for_directory:
        shutil.rmtree(path)


def copy_content(source: int, target: int, size: int) -> None:
    """Copy a file's content, from descriptor to descriptor; holes stay holes. Raises OSError."""
    position = 0
    while position < size:
        start, end = _next_data(source, position, size)
        os.lseek(source, start, os.SEEK_SET)
        os.lseek(target, start, os.SEEK_SET)
        while start < end:
            sent = os.sendfile(target, source, None, min(CHUNK, end - start))
            if not sent:
                break
            start += sent
        position = end
    os.ftruncate(target, size)


def _next_data(source, position, size):
    """Where the next data of a file of that size begins and ends, see lseek(2)."""
    try:
        start = os.lseek(source, position, os.SEEK_DATA)
        return start, os.lseek(source, start, os.SEEK_HOLE)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size, size  # the rest is a hole
        if error.errno == errno.EINVAL:
            return position, size  # the filesystem tells no holes
        raise


def change_mode(text: str, mode: int, directory: bool) -> int:
    """The mode that chmod(1) makes of one, by an octal or symbolic mode. Raises Error."""
    if re.fullmatch(r"0*[0-7]{1,4}", text):
        return int(text, 8)
    for clause in text.split(","):
        match = re.fullmatch(r"([ugoa]*)((?:[-+=](?:[rwxXst]*|[ugo]))+)", clause)
        if not match:
            raise Error(f"not a mode: {text!r}")
        who = match[1].replace("a", "ugo") or "ugo"
        for operator, what in re.findall(r"([-+=])([rwxXst]+|[ugo]|)", match[2]):
            mode = _change(mode, who, operator, what, directory)
    return mode


def _change(mode, who, operator, what, directory):
    shifts = {"u": 6, "g": 3, "o": 0}
    bits = mask = 0
    for each in who:
        shift = shifts[each]
        mask |= 7 << shift
        if what in shifts and what:
            bits |= (mode >> shifts[what] & 7) << shift
            continue
        for letter, bit in ("r", 4), ("w", 2), ("x", 1):
            bits |= bit << shift if letter in what else 0
        if "X" in what and (directory or mode & 0o111):
            bits |= 1 << shift
        if "s" in what:
            bits |= {"u": 0o4000, "g": 0o2000, "o": 0}[each]
        if "t" in what and each == "o":
            bits |= 0o1000
    if operator == "+":
        return mode | bits
    return mode & ~bits if operator == "-" else mode & ~mask | bits


def archive_program(head: bytes, peek) -> "list[str] | None":
    """The argv that decompresses a tar archive; [] for a plain tar, None if it is not an archive.

    head  the first bytes of a file
    peek  returns the first bytes of what an argv makes of the file
    """
    argv = archive.decompressor(head)
    if argv:
        head = peek(argv)
    return (argv or []) if is_tar(head) else None


def is_tar(head: bytes) -> bool:
    """Whether these are the first bytes of a tar archive: its header's checksum is right."""
    if len(head) < 512 or not head[:512].strip(b"\0"):
        return False
    try:
        return tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape") is not None
    except tarfile.HeaderError:
        return False
