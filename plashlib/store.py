"""The data directory: images, their names, and work in progress.

    id_counter                grows by one byte for each image; its size is the newest id
    layer/0/_data/root        the empty root image "0"
    layer/0/1/_data/root      image 1, on 0; layer/0/1/5 is image 5, on 1
    index/ID                  -> ../layer/0/.../ID
    map/KEY                   -> ../index/ID of the image that KEY names
    cache/SHA256              -> ../index/ID of the image that a command line made
    recall/PROCESS            -> ../index/ID of the image that a process's children made last
    tmp/                      work in progress
    mnt/                      the mount point used inside private mount namespaces

An image appears in one rename(2) and goes in one: a reader sees all of it or nothing.
Files in layers belong to subordinate ids, so what makes or removes layers calls
namespaces.become_root() first.
"""

import errno
import os
import stat

from plashlib import Error, namespaces

# One overlay's limit, less the layer of mount points that plash puts on top.
DEEPEST = namespaces.OVERLAY_LAYERS - 1
INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # the kernel's PROC_PID_INIT_INO
# What an image can have beside its layer's root directory: the variables of its processes, NUL between them, and its
# OCI configuration, which it has from its parent; the layer's own file, as a registry has it, and what that is.
CONFIG = "env", "config.json"
LAYER, DESCRIPTOR = "layer", "descriptor.json"
FILE = "file"  # of a link to a squashfs file: its size and the time of its last change
BATCH = 256  # locks held at once
REMOVED = "removed."  # what names of work begin with that only waits to be deleted

_place = None  # what place() found


def path():
    """The absolute path of the data directory, which is made where it is missing."""
    data = place()
    if not os.path.isdir(data + "/mnt"):
        init(data)
    return data


def is_there():
    """Whether there is a data directory; to ask makes none."""
    return os.path.isdir(place() + "/mnt")


def place():
    """The absolute path of the data directory, whether it is there or not."""
    # Found once: the working directory and the uid, whose home it may be in, are others later.
    global _place
    if not _place:
        data = os.environ.get("PLASH_DATA")
        if not data:
            shared = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
            data = shared + "/plash"
        _place = os.path.realpath(data)
    return _place


def init(data=None):
    """Make the data directory, or what is missing of it. Raises Error."""
    data = data or place()
    try:
        _make(data)
    except OSError as error:
        why = os.strerror(errno.ENOTDIR) if os.path.isfile(data) else error.strerror
        raise Error(
            f"cannot use the data directory {data}: {why} (PLASH_DATA can name another)"
        ) from None


def _make(data):
    lock = _own(data)
    for name in "index", "map", "cache", "recall", "tmp", "layer/0/_data/root":
        os.makedirs(f"{data}/{name}", exist_ok=True)
    os.close(os.open(data + "/id_counter", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    try:
        os.symlink("../layer/0", data + "/index/0")
    except FileExistsError:
        pass
    # The last thing made: where it is, the rest is.
    os.makedirs(data + "/mnt", exist_ok=True)
    os.close(lock)


class Image:
    """An image of the store; path is its directory there, its "nodepath"."""

    def __init__(self, directory):
        self.path = directory
        self.id = os.path.basename(directory)
        self.parent = os.path.basename(os.path.dirname(directory))

    def read(self, name):
        """The bytes of a file beside the image's layer, as CONFIG names them; None where it has none."""
        try:
            with open(f"{self.path}/_data/{name}", "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def ancestry(self):
        """This Image and those it stands on, the lowest first; not the empty image 0."""
        below, _, names = self.path.rpartition("/layer/0/")
        names = names.split("/")
        return [
            Image("/".join([below + "/layer/0", *names[:depth]]))
            for depth in range(1, len(names) + 1)
        ]

    def layers(self, open_file):
        """Open the layers' root directories, topmost first; a list of file descriptors.

        The empty image 0 is not among them. open_file is called for a link to a file, with its
        path, and returns the descriptor. Raises Error where the image, or what it links to, is gone.
        """
        depth = self.path.rpartition("/layer/0")[2].count("/")
        fds = []
        try:
            node = os.open(self.path, os.O_PATH | os.O_CLOEXEC)
            for _ in range(depth):
                try:
                    fds.append(
                        os.open(
                            "_data/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=node
                        )
                    )
                except NotADirectoryError:
                    fds.append(open_file(_same_file(node)))
                above = os.open("..", os.O_PATH | os.O_CLOEXEC, dir_fd=node)
                os.close(node)
                node = above
        except FileNotFoundError:
            for image in self.ancestry():
                root = image.path + "/_data/root"
                if os.path.islink(root) and not os.path.exists(root):
                    raise Error(
                        f"image {image.id} is a link to {os.readlink(root)}, which is not there"
                    ) from None
            raise Error(f"no image: {self.id}") from None
        os.close(node)
        return fds


def _same_file(node):
    """The path of the squashfs file that the image with the open directory node links to. Raises Error, OSError."""
    path = os.readlink("_data/root", dir_fd=node)
    with open(os.open(f"_data/{FILE}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=node), "rb") as file:
        if file.read() != state(path):
            raise Error(f"{path} is not the file that it was when it was linked (link it anew)")
    return path


def state(path):
    """What tells whether a file is still the one that it was: bytes. Raises OSError."""
    status = os.stat(path)
    return b"%d %d" % (status.st_size, status.st_mtime_ns)


def image(text, allow_zero=False):
    """The Image whose id is text, a positive decimal number; 0 only where allowed.

    Raises Error where text is no id or where there is no such image.
    """
    if not (text.isascii() and text.isdigit()) or text != "0" and text[0] == "0":
        raise Error(f"not an image id: {text!r}")
    if text == "0" and not allow_zero:
        raise Error("image 0 is the empty root image, which this command does not take")
    data = path()
    try:
        directory = os.path.join(data, os.readlink(f"{data}/index/{text}")[3:])
        os.lstat(directory + "/_data/root")
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
            raise
        raise Error(f"no image: {text}") from None
    return Image(directory)


def is_below(inside, outside):
    """Whether the path inside is the directory outside, or in it; both absolute and without symbolic links."""
    return (inside + "/").startswith(outside.rstrip("/") + "/")


def gone(img):
    """The Error for an Image that was there a moment ago."""
    return Error(f"no image: {img.id} (it was removed meanwhile)")


class Work:
    """A directory in tmp/ that this process owns for as long as a `with` statement runs.

    Its lock goes with the process, however that ends, and then it is garbage. One with a
    name is waited for while another process owns it, and is found again if it was kept.
    """

    keep = False

    def __init__(self, name=None):
        # Not the module signal, which makes enums of its numbers: that takes half as long as Python's own start.
        import _signal

        for number in _signal.SIGTERM, _signal.SIGHUP:
            if _signal.getsignal(number) == _signal.SIG_DFL:
                _signal.signal(number, _end)
        data = path()
        self.path = f"{data}/tmp/{name or os.urandom(8).hex()}"
        self._fd = _own(self.path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if not self.keep:
            try:
                os.rmdir(self.path)
            except OSError:
                delete(self.path)
        os.close(self._fd)

    def delete_later(self):
        """Leave the directory to a process that deletes it, and owns it from now on."""
        self.keep = True
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        streams = [(os.POSIX_SPAWN_DUP2, null, number) for number in range(3)]
        os.posix_spawnp(
            "rm",
            ["rm", "-rf", "--", self.path],
            os.environ,
            setsid=True,
            file_actions=[*streams, (os.POSIX_SPAWN_DUP2, self._fd, 3)],
        )
        os.close(null)


def _end(number, _):
    """End by an exception where a signal would end at once, so that `with` statements clean up."""
    raise SystemExit(128 + number)


def _own(directory):
    """Wait for the lock of a directory, which is made where it is missing; returns a descriptor that holds it."""
    while True:
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
        except FileExistsError:
            # Where another made it, and removed it before makedirs() looked, that is to be tried again.
            if _kind(directory) not in (None, stat.S_IFDIR):
                raise
            continue
        try:
            fd = _lock(directory)
        except FileNotFoundError:
            continue
        # Whoever had the lock first may have removed the directory, and another be there by now.
        if _is_at(directory, fd):
            return fd
        os.close(fd)


def _kind(path):
    """The type of file at path, as of stat.S_IFMT(); None where there is none."""
    try:
        return stat.S_IFMT(os.stat(path).st_mode)
    except FileNotFoundError:
        return None


def _is_at(path, fd):
    """Whether path leads to what the descriptor fd is of."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _lock(directory, shared=False):
    """Wait for the lock of a directory; returns a descriptor that holds it until it is closed."""
    import fcntl

    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    return fd


class NewLayer(Work):
    """Work that becomes an image: make and fill the directory `root`, then call stack_on()."""

    def __init__(self):
        super().__init__()
        self.root = self.path + "/root"

    def stack_on(self, parent, **options):
        """Make the layer a new image on the Image parent; returns its id. As stack()."""
        return stack(self.root, parent, **options)


def stack(directory, parent, config=None, file=None):
    """Make directory, which is moved, the layer of a new image on the Image parent; returns its id.

    config  a dict of what the image has beside its layer: names to bytes. What it lacks
            of CONFIG is as the parent has it
    file    the path of the layer's own file, which gets a second name

    Raises Error if parent is gone meanwhile or has as many layers as can be mounted, and
    OSError, such as EXDEV where directory is on another filesystem; it is unharmed then.
    """
    require_room(parent)
    data = path()
    number = _next_id(data)
    if durable():
        fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
        namespaces.syncfs(fd)
        os.close(fd)
    link, node = f"{data}/index/{number}", f"{parent.path}/{number}"
    # Whoever removes entries that lead nowhere waits meanwhile, for this makes one.
    lock = _lock(data + "/index", shared=True)
    os.symlink(f"..{node[len(data) :]}", link)
    try:
        os.mkdir(node)
        os.mkdir(node + "/_data")
        for name, content in {
            **{name: parent.read(name) for name in CONFIG},
            **(config or {}),
        }.items():
            if content:
                _write(f"{node}/_data/{name}", content)
        if file:
            os.link(file, f"{node}/_data/{LAYER}")
        # One rename, from the user's own place too: killed before it, the directory is where it was.
        os.rename(directory, node + "/_data/root")
    except BaseException as error:
        if not _is_image(node):
            _forget(link, node)
        if isinstance(error, FileNotFoundError) and not os.path.exists(parent.path):
            raise gone(parent) from None
        raise
    finally:
        os.close(lock)
    if durable():
        for changed in node + "/_data", node, parent.path, data + "/index":
            _sync_directory(changed)
    return number


def _write(file, content):
    with open(file, "wb") as opened:
        opened.write(content)
        if durable():
            os.fsync(opened.fileno())


def _is_image(node):
    return os.path.lexists(node + "/_data/root")


def _forget(link, node):
    """Remove what stack() made before the image was there."""
    files = [(os.unlink, f"{node}/_data/{name}") for name in (*CONFIG, LAYER, DESCRIPTOR, FILE)]
    for remove, name in *files, (os.rmdir, node + "/_data"), (os.rmdir, node), (os.unlink, link):
        try:
            remove(name)
        except FileNotFoundError:
            pass


def temporary_directory(pid):
    """Make a directory in tmp/ that belongs to the process pid, and is garbage once that has ended."""
    directory = f"{path()}/tmp/{mark(pid)}.{os.urandom(8).hex()}"
    os.mkdir(directory, 0o700)
    return directory


def mark(pid):
    """A name for a process that no other has, now or later. Raises OSError where there is none."""
    return f"{pid}.{_status(pid)[2]}.{_pid_namespace('self')}.{_boot()}"


def ancestors():
    """The pids of this process's ancestors that are in its session, the nearest first."""
    session, found = str(os.getsid(0)), []
    pid = str(os.getppid())
    while pid != "0":
        try:
            parent, its_session, _ = _status(pid)
        except OSError:
            break
        if its_session != session:
            break
        found.append(pid)
        pid = parent
    return found


def _marks_live_process(name):
    """Whether name begins with the mark() of a process that may be alive."""
    if name.count(".") < 3:
        return False
    pid, start, namespace, boot = name.split(".")[:4]
    if boot != _boot():
        return False
    if namespace == str(_pid_namespace("self")):
        try:
            return _status(pid)[2] == start
        except OSError:
            return False
    # Of another pid namespace, only those below this one can be seen to be empty.
    if _pid_namespace("self") != INITIAL_PID_NAMESPACE:
        return True
    return namespace in {
        str(_pid_namespace(each)) for each in filter(str.isdigit, os.listdir("/proc"))
    }


def _status(pid):
    """A process's parent, its session, and its start in clock ticks after boot; see proc(5). Raises OSError."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return fields[1], fields[3], fields[19]


def _pid_namespace(pid):
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    except OSError:
        return None


def _boot():
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        return file.read().strip()


def unowned():
    """The paths of what no live process owns in tmp/, each locked until the next is asked for.

    An entry is owned by the process that holds its lock, by the one that its name tells of,
    and by those that have an overlay mounted which writes to it.
    """
    import fcntl

    directory = path() + "/tmp"
    names = [name for name in os.listdir(directory) if not _marks_live_process(name)]
    for start in range(0, len(names), BATCH):
        locked = {}
        for name in names[start : start + BATCH]:
            try:
                locked[name] = os.open(
                    f"{directory}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                )
                fcntl.flock(locked[name], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except FileNotFoundError:
                continue
            except BlockingIOError:
                os.close(locked.pop(name))
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                yield f"{directory}/{name}"  # a symbolic link, by point()
        # Looked for only now, because a process mounts before it lets go of the lock.
        mounted = b"".join(line for _, _, line in _overlays())
        for name in locked:
            if f"/tmp/{name}/".encode() not in mounted:
                yield f"{directory}/{name}"
        for fd in locked.values():
            os.close(fd)


def wait_for_deletions():
    """Wait until what remove() left to be deleted is gone, or the process that does it."""
    directory = path() + "/tmp"
    for name in os.listdir(directory):
        if name.startswith(REMOVED):
            try:
                os.close(_lock(f"{directory}/{name}"))
            except FileNotFoundError:
                pass


def hold(directory):
    """Lock a directory for as long as this process, or one that it becomes or starts, runs.

    Raises Error where another process holds it.
    """
    import fcntl

    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Error(f"{directory} is in use by another process") from None
    # It stays open when this becomes a command: out of the way of descriptors that scripts use.
    fcntl.fcntl(fd, fcntl.F_DUPFD, 100)


def durable():
    """Whether what becomes visible must be on the disk first: yes, but for PLASH_NO_SYNC=1."""
    return os.environ.get("PLASH_NO_SYNC") != "1"


def require_room(parent):
    """Raise Error where one layer more on the Image parent could never be mounted."""
    if parent.path.rpartition("/layer/0")[2].count("/") >= DEEPEST:
        raise Error(
            f"image {parent.id} has {DEEPEST} layers, the most that the kernel mounts"
            " (push and pull it to make them one)"
        )


def _next_id(data):
    """Take the next id: a byte more, and where this process's own byte ends is the id."""
    fd = os.open(data + "/id_counter", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(fd, b".")
        return os.lseek(fd, 0, os.SEEK_CUR)
    finally:
        os.close(fd)


def _sync_directory(directory):
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def users():
    """The processes that use images: a dict of the directories of these, and those above, to sets of pids.

    Mounts are read from /proc/PID/mountinfo, which is readable from outside the process's
    namespace; see proc(5).
    """
    using = {}
    for pid, source, _ in _overlays():
        directory = os.fsdecode(source)
        while directory.strip("/"):
            using.setdefault(directory, set()).add(pid)
            directory = os.path.dirname(directory)
    return using


def _overlays():
    """The overlays that processes have mounted: the pid, the source, the line of mountinfo."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/mountinfo", "rb") as file:
                lines = [line for line in file if b" - overlay " in line]
        except OSError:
            continue
        for line in lines:
            yield int(pid), _unescape(line.partition(b" - overlay ")[2].split(b" ")[0]), line


def _unescape(field):
    """A field of mountinfo without its octal escapes."""
    first, *rest = field.split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


def _in_use(what, pids):
    return Error(
        f"{what} is in use by {'processes' if len(pids) > 1 else 'process'}"
        f" {', '.join(map(str, sorted(pids)))} (--force removes it all the same)"
    )


def delete(directory):
    """Remove a directory tree; where it does not exist, that is fine. Raises Error."""
    # rm(1), because it is faster than Python and needs no path shorter than PATH_MAX.
    reader, writer = os.pipe()
    pid = os.posix_spawnp(
        "rm",
        ["rm", "-rf", "--", directory],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, writer, 2)],
    )
    os.close(writer)
    with open(reader, encoding="utf-8", errors="replace") as file:
        why = file.readline().rstrip("\n")
        while file.read(1 << 16):
            pass
    if os.waitpid(pid, 0)[1]:
        foreign = why.endswith((os.strerror(errno.EACCES), os.strerror(errno.EPERM)))
        raise Error(
            (why.removeprefix("rm: ") or f"cannot remove {directory}")
            + (" (where root made it, root can remove it)" if foreign else "")
        )


def remove(images, used="refuse"):
    """Remove Images, which come after their children where both are given, with all that was built on them.

    used says what becomes of those that processes use: "refuse" raises an Error that names
    the pids, with nothing removed; "keep" leaves them; "remove" takes no notice.

    Their files are deleted by a process of its own, which goes on after this one.
    Returns the names that went along, as pairs of key and id. Raises Error where an image is gone.
    """
    with Work(REMOVED + os.urandom(8).hex()) as work:
        lock = _lock(path() + "/index")
        away = []
        try:
            # The first look leaves images in use where they are. The second finds who came meanwhile,
            # and whoever comes later finds the image gone.
            images = _unused(images, used)
            for img in images:
                os.rename(img.path, f"{work.path}/{img.id}")
                away.append(img)
            kept = set(away) - set(_unused(away, used))
        except BaseException as error:
            _put_back(work, away)
            if isinstance(error, FileNotFoundError):
                raise Error(f"no image: {img.id}") from None
            raise
        _put_back(work, [img for img in away if img in kept])
        gone = _forget_gone()
        os.close(lock)
        work.delete_later()
    return gone


def _unused(images, used):
    """Those of the Images that may be removed, by remove()'s rule for used ones."""
    using = users() if used != "remove" else {}
    for img in images:
        if used == "refuse" and img.path in using:
            raise _in_use(f"image {img.id}", using[img.path])
    return [img for img in images if img.path not in using]


def _put_back(work, images):
    for img in reversed(images):
        os.rename(f"{work.path}/{img.id}", img.path)


def purge(force=False):
    """Remove all images, names and work in progress, and the data directory.

    Refused with an Error while a process uses an image or works in tmp/, but for force.
    """
    data = path()
    lock = _own(data)
    wait_for_deletions()
    if not force:
        using = users().get(data + "/layer")
        if using:
            raise _in_use("an image", using)
        if set(os.listdir(data + "/tmp")) - {os.path.basename(entry) for entry in unowned()}:
            raise Error(f"a running command works in {data}/tmp (--force removes it all the same)")
    with Work() as work:
        # mnt/ first, since init() makes what is missing where that is; the counter last, lest an id that
        # something still names be given again.
        for name in "mnt", "layer", "map", "cache", "recall", "index", "id_counter":
            os.rename(f"{data}/{name}", f"{work.path}/{name}")
        delete(data + "/tmp")
    try:
        os.rmdir(data)
    except OSError:
        pass  # a mount point, or more in it than plash put there
    os.close(lock)


def images():
    """All Images, the lowest id first."""
    data = path()
    found = []
    for number in sorted(map(int, os.listdir(data + "/index"))):
        try:
            directory = os.path.join(data, os.readlink(f"{data}/index/{number}")[3:])
        except FileNotFoundError:
            continue
        if number and _is_image(directory):
            found.append(Image(directory))
    return found


def forget_gone():
    """Remove the entries of index/, map/ and cache/ whose image is not there, and those of
    recall/ whose process has ended."""
    lock = _lock(path() + "/index")
    _forget_gone()
    os.close(lock)
    for entry in os.scandir(path() + "/recall"):
        if not _marks_live_process(entry.name):
            os.unlink(entry.path)


def _forget_gone():
    """The same of index/, map/ and cache/, with index/ locked; returns the pairs that map/ lost."""
    data = path()
    for entry in os.scandir(data + "/index"):
        node = os.path.join(data, os.readlink(entry.path)[3:])
        if not _is_image(node):
            _forget(entry.path, node)
    gone = []
    for directory in "map", "cache":
        for entry in os.scandir(f"{data}/{directory}"):
            number = os.path.basename(os.readlink(entry.path))
            if not os.path.exists(entry.path):
                os.unlink(entry.path)
                if directory == "map":
                    gone.append((entry.name, number))
    return sorted(gone)


def target(link):
    """The id of the image that a link in map/, cache/ or recall/ leads to; None where it is not there."""
    return os.path.basename(os.readlink(link)) if os.path.exists(link) else None


def point(link, number):
    """Let a link in map/, cache/ or recall/ lead to the image number from now on."""
    to = f"../index/{number}"
    while True:
        try:
            os.symlink(to, link)
            return
        except FileExistsError:
            pass
        passing = f"{path()}/tmp/{os.urandom(8).hex()}"
        os.symlink(to, passing)
        try:
            os.rename(passing, link)
            return
        except FileNotFoundError:
            continue  # `plash clean` took it for garbage


def _key(key):
    if key in ("", ".", "..") or "/" in key or len(os.fsencode(key)) > 255:
        raise Error(f"not a name: {key!r} (a name is that of a file: no /, at most 255 bytes)")
    return f"{path()}/map/{key}"


def named(key):
    """The id of the image that key names; None where it names none. Raises Error for a bad key."""
    return target(_key(key))


def set_name(key, img):
    """Let key name the Image img from now on."""
    point(_key(key), img.id)
    if durable():
        _sync_directory(path() + "/map")


def forget_name(key):
    """Let key name nothing; fine where it does not."""
    try:
        os.unlink(_key(key))
    except FileNotFoundError:
        pass


def names():
    """All names, sorted, as pairs of key and id."""
    keys = sorted(os.listdir(path() + "/map"))
    return [(key, number) for key in keys for number in [named(key)] if number]
