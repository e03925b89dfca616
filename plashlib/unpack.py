"""Layer archives of OCI images, unpacked as root filesystems.

An archive is unpacked by a process whose root directory, by chroot(2), is the layer: whatever
links and names the archive holds, they lead nowhere else. See the OCI image specification's
layer.md, tar(5), and xattr(7) and acl(5) for what goes into pax headers.
"""

import errno
import hashlib
import io
import os
import stat
import struct
import tarfile

from plashlib import Error, archive, namespaces, programs

WHITEOUT, OPAQUE = b".wh.", b".wh..wh..opq"  # names in layers
ACLS = {
    "SCHILY.acl.access": "system.posix_acl_access",
    "SCHILY.acl.default": "system.posix_acl_default",
}
# Tags of acl(5) in xattrs, by the first letter: of an entry without a name, of one with a name.
TAGS = {"u": (1, 2), "g": (4, 8), "m": (0x10, 0x10), "o": (0x20, 0x20)}
NOBODY = 0xFFFFFFFF
# Orders to overlayfs, not content.
DROPPED = "user.overlay.", "trusted.overlay."
PIECE = 1 << 20
UNSETTABLE = (errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSPC, errno.E2BIG, errno.ERANGE)
DEVICES = "device nodes left out, which can't be made here"
OWNERS = "files given to root, since their owners are not mapped here"
ACLS_LOST = "ACLs left out, which can't be set here"
XATTRS = "extended attributes left out, which can't be set here"
UNKNOWN = "entries left out, which are of no kind that a layer can hold"


def unpack(file: str, root: str) -> "dict":
    """Unpack the layer archive in file into the new directory root. To be called by a child.

    Returns a dict: `digest`, the SHA-256 of the decompressed archive in hexadecimal, which is the
    layer's diff id; `whiteouts` and `opaque`, the paths that the archive removes from the layers
    below; `implied`, directories that have no entry of their own; `links`, empty files that stand
    for hard links, and the paths in the layers below that they lead to; `warnings`. This process
    has root as its root directory from then on. Raises Error, OSError.
    """
    source = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    decompress = archive.decompressor(os.pread(source, archive.BLOCK, 0))
    process = None
    if decompress:
        process = programs.start(decompress, stdin=source, stdout=-1, stderr=-3)
        source = process.stdout.fileno()
    own_owners = min(map(namespaces.mapped, ("uid", "gid"))) > 1
    os.umask(0o022)
    os.mkdir(root)
    enter(root)
    stream = _Stream(source)
    layer, why = _Layer(own_owners), None
    try:
        layer.add_all(stream)
        stream.seek(None)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        why = str(error).partition("\n")[0] or type(error).__name__
    finally:
        # A decompressor with more output is killed by SIGPIPE.
        os.close(source) if process is None else process.stdout.close()
        status = process.wait() if process else 0
    if status > 0 or status and not why:
        name = os.path.basename(decompress[0])
        raise Error(f"cannot unpack a layer: {programs.ending(name, status)}")
    if why:
        raise Error(f"a layer is no sound tar archive: {why}")
    return {**layer.answer(), "digest": stream.digest.hexdigest()}


def enter(root: str) -> None:
    """Make a layer's directory the root directory of this process."""
    os.chroot(root)
    os.chdir("/")


class _Raw(io.RawIOBase):
    """Bytes from a descriptor, all of which a hash sees."""

    def __init__(self, fd, digest):
        super().__init__()
        self._fd, self._digest = fd, digest

    def readable(self):
        return True

    def readinto(self, buffer):
        count = os.readv(self._fd, [buffer])
        self._digest.update(memoryview(buffer)[:count])
        return count


class _Stream:
    """A file object that is read once, from its start to its end; `last` is what was read last."""

    def __init__(self, fd):
        self.digest = hashlib.sha256()
        self._file = io.BufferedReader(_Raw(fd, self.digest), PIECE)
        self._offset, self.last = 0, b""

    def is_empty(self):
        return not self._file.peek(1)

    def read(self, size):
        self.last = self._file.read(size)
        self._offset += len(self.last)
        return self.last

    def tell(self):
        return self._offset

    def seek(self, offset):
        """Read up to an offset, or to the end (None)."""
        while offset is None or self._offset < offset:
            piece = self._file.read(PIECE if offset is None else min(PIECE, offset - self._offset))
            if not piece:
                break
            self._offset += len(piece)


class _Layer:
    """A layer that is being unpacked in the root directory."""

    def __init__(self, owners):
        self._owners = owners
        self._parents = {(): b"/"}  # parsed directory names to where they are
        self._implied, self._times, self._links = {b"/"}, {}, {}
        self._whiteouts, self._opaque, self._lost = set(), set(), {}
        self._default_acls = {}  # of directories; what is made in these would get them
        self._lost_devices = set()

    def answer(self):
        for path, value in self._default_acls.items():
            self._set(path, ACLS["SCHILY.acl.default"], value)
        for path, times in self._times.items():
            os.utime(path, ns=times)
        warnings = [f"{n} {what} (the first: {first})" for what, (n, first) in self._lost.items()]
        return {
            "whiteouts": sorted(self._whiteouts),
            "opaque": sorted(self._opaque),
            "implied": sorted(self._implied),
            "links": self._links,
            "warnings": warnings,
        }

    def _lose(self, what, path):
        count, first = self._lost.get(what, (0, os.fsdecode(path[1:]) or "."))
        self._lost[what] = count + 1, first

    def add_all(self, stream):
        if stream.is_empty():
            return
        tar = tarfile.TarFile(fileobj=stream, encoding="utf-8", errors="surrogateescape")
        while info := tar.next():
            try:
                self._add(info, stream)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                    raise
                raise Error(
                    f"cannot unpack a layer: {ascii(info.name)[1:-1]}: {error.strerror}"
                ) from None
            # It would keep all of them.
            tar.members = []
        if stream.last.strip(b"\0"):
            raise tarfile.ReadError("a header is damaged")

    def _add(self, info, stream):
        # With sparse files of pax, tarfile takes another name for a long one.
        parts = _parts(info.pax_headers.get("GNU.sparse.name", info.name))
        if any(part.startswith(WHITEOUT) for part in parts[:-1]):
            return
        if parts and parts[-1].startswith(WHITEOUT):
            self._add_whiteout(parts)
            return
        if not parts:
            if info.isdir():
                self._set_attributes(b"/", info)
            return
        time = _time(info)
        self._times.setdefault(b"/", (time, time))
        path = os.path.join(self._parent(parts[:-1], time), parts[-1])
        if info.type in (tarfile.CHRTYPE, tarfile.BLKTYPE):
            # A device 0/0 would be a whiteout of overlayfs's.
            if info.type == tarfile.CHRTYPE and not info.devmajor and not info.devminor:
                self._lose_device(path)
                return
        elif not (info.isreg() or info.isdir() or info.issym() or info.islnk() or info.isfifo()):
            self._lose(UNKNOWN, path)
            return
        if info.islnk():
            source = _parts(info.linkname)
            if not source:
                raise OSError(errno.EPERM, "a hard link to the root directory")
            source = os.path.join(os.path.realpath(b"/" + b"/".join(source[:-1])), source[-1])
            if source == path:
                return
        self._make_room(path, info.isdir())
        if info.isdir():
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                pass
        elif info.issym():
            os.symlink(info.linkname.encode("utf-8", "surrogateescape"), path)
        elif info.islnk():
            self._link(source, path)
            return
        elif info.isfifo():
            os.mkfifo(path, 0o600)
        elif info.isreg():
            self._write(path, info, stream)
        else:
            kind = stat.S_IFCHR if info.type == tarfile.CHRTYPE else stat.S_IFBLK
            try:
                os.mknod(path, kind | 0o600, os.makedev(info.devmajor, info.devminor))
            except (PermissionError, OverflowError):
                self._lose_device(path)
                return
        self._set_attributes(path, info)

    def _lose_device(self, path):
        self._lose(DEVICES, path)
        self._lost_devices.add(path)

    def _link(self, source, path):
        if source in self._lost_devices:
            self._lose_device(path)
            return
        try:
            os.link(source, path, follow_symlinks=False)
        except FileNotFoundError:
            # overlayfs links nothing across layers: what the layer below has is copied later.
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            self._links[path] = source
        else:
            if source in self._links:
                self._links[path] = self._links[source]

    def _add_whiteout(self, parts):
        name = parts[-1][len(WHITEOUT) :]
        parent = os.path.realpath(b"/" + b"/".join(parts[:-1]))
        if parts[-1] == OPAQUE:
            self._opaque.add(parent)
        # What else begins so is aufs's own.
        elif not name.startswith(WHITEOUT) and name not in (b"", b".", b".."):
            self._whiteouts.add(os.path.join(parent, name))

    def _parent(self, parts, time):
        """The path, without links, of a directory, which is made if it is missing: of that time."""
        found = self._parents.get(parts)
        if found is None:
            found = os.path.realpath(b"/" + b"/".join(parts))
            made = b""
            for part in found.split(b"/")[1:]:
                made += b"/" + part
                try:
                    os.mkdir(made)
                except FileExistsError:
                    continue
                # Not the group, and the set-group-ID bit, of the directory that it is in.
                os.chown(made, 0, 0)
                os.chmod(made, 0o755)
                self._implied.add(made)
                self._times[made] = time, time
            if not stat.S_ISDIR(os.lstat(found).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            self._parents[parts] = found
        return found

    def _make_room(self, path, for_directory):
        """Remove what an earlier entry made, as the last entry of a name counts."""
        self._lost_devices.discard(path)
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(mode):
            os.unlink(path)
            self._links.pop(path, None)
            if stat.S_ISLNK(mode):
                self._parents = {(): b"/"}
        elif not for_directory:
            _remove(path)
            self._parents = {(): b"/"}
            inside = path + b"/"
            for kept in self._times, self._implied, self._links, self._default_acls:
                for each in [each for each in kept if each == path or each.startswith(inside)]:
                    kept.discard(each) if kept is self._implied else kept.pop(each)

    def _write(self, path, info, stream):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
        try:
            stream.seek(info.offset_data)
            for offset, size in info.sparse or ((0, info.size),):
                if info.sparse:
                    os.lseek(fd, offset, os.SEEK_SET)
                while size:
                    piece = stream.read(min(size, PIECE))
                    if not piece:
                        raise tarfile.ReadError("unexpected end of data")
                    size -= len(piece)
                    while piece:
                        piece = piece[os.write(fd, piece) :]
            if info.sparse:
                os.ftruncate(fd, info.size)
        finally:
            os.close(fd)

    def _set_attributes(self, path, info):
        self._implied.discard(path)
        self._default_acls.pop(path, None)
        if self._owners:
            try:
                os.lchown(path, info.uid, info.gid)
            except (OSError, OverflowError):
                self._lose(OWNERS, path)
        if not info.issym():
            os.chmod(path, info.mode & 0o7777)
        for name, value in info.pax_headers.items():
            if name.startswith("SCHILY."):
                self._set_xattr(path, name, value)
        time = _time(info)
        if info.isdir():
            self._times[path] = time, time
        else:
            os.utime(path, ns=(time, time), follow_symlinks=False)

    def _set_xattr(self, path, name, value):
        if name in ACLS:
            name, value = ACLS[name], _acl(value)
        elif name.startswith("SCHILY.xattr."):
            name, value = name[len("SCHILY.xattr.") :], value.encode("utf-8", "surrogateescape")
        else:
            return
        if name.startswith(DROPPED):
            return
        if value is None:
            self._lose(ACLS_LOST, path)
        elif name == ACLS["SCHILY.acl.default"]:
            self._default_acls[path] = value
        else:
            self._set(path, name, value)

    def _set(self, path, name, value):
        try:
            os.setxattr(path, name, value, follow_symlinks=False)
        except OSError as error:
            if error.errno not in UNSETTABLE:
                raise
            self._lose(ACLS_LOST if name in ACLS.values() else XATTRS, path)


def _parts(name):
    """A name's components, as a tuple of bytes: `..` leads no higher than the root."""
    parts = []
    for part in name.encode("utf-8", "surrogateescape").split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return tuple(parts)


def _time(info):
    """An entry's modification time, in nanoseconds."""
    text = info.pax_headers.get("mtime") or str(info.mtime)
    sign = -1 if text.startswith("-") else 1
    seconds, _, fraction = text.lstrip("-").partition(".")
    if not f"{seconds}{fraction}".isdigit():
        raise ValueError(f"not a time: {text!r}")
    return sign * (min(int(seconds or 0), 1 << 40) * 10**9 + int(f"{fraction[:9]:0<9}"))


def _acl(text):
    """The xattr of an ACL as text, see acl_to_text(3); None where it names who has no number.

    star(1) writes a fourth field, the number of who is named.
    """
    entries = []
    for line in text.replace(",", "\n").split("\n"):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        fields = [field.strip() for field in line.split(":")]
        if len(fields) == 2:  # mask and other may lack the empty field
            fields.insert(1, "")
        if len(fields) < 3 or fields[0][:1] not in TAGS:
            return None
        number = fields[3] if len(fields) > 3 else fields[1]
        if fields[1] and not (number.isascii() and number.isdigit() and int(number) < NOBODY):
            return None
        tag = TAGS[fields[0][0]][bool(fields[1])]
        bits = sum({"r": 4, "w": 2, "x": 1}.get(letter, 0) for letter in fields[2])
        entries.append((tag, bits, int(number) if fields[1] else NOBODY))
    ordered = sorted(entries, key=lambda entry: (entry[0], entry[2]))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in ordered)


def _remove(path):
    """Remove a directory with all that is in it; not by recursion, which has an end."""
    left = [path]
    while left:
        below = []
        with os.scandir(left[-1]) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
                else:
                    os.unlink(entry.path)
        if below:
            left += below
        else:
            os.rmdir(left.pop())
