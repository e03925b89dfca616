"""What a process sees: an image as its root filesystem, with parts of the host in it.

A container here is an ordinary process that enters namespaces, mounts, and execs: its
pid, terminal, signals and exit status are the command's own.
"""

import errno
import os
import stat

from plashlib import Error, cli, namespaces, store

HOST_DIRECTORIES = ("/dev", "/proc", "/sys", "/home")
HOST_FILES = ("/etc/resolv.conf", "/etc/hosts")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
KEPT = {
    "TERM",
    "COLORTERM",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "LANG",
    "TZ",
    "HOME",
    "USER",
    *PROXIES,
    *map(str.upper, PROXIES),
}


def run(image, command, variables=(), binds=(), as_me=False, changes=None):
    """Become command in the Image; an empty command is root's login shell.

    variables, binds  the user's own, as for environment() and host_binds()
    as_me             keep the caller's uid and gid, with names for them, instead of becoming root
    changes           where writes go, as for mount_root(); None drops them with the process

    Raises Error, OSError.
    """
    place, passed, binds = working_directory(), environment(image, variables), host_binds(binds)
    entries = _caller() if as_me else {}
    namespaces.become_root(keep_ids=as_me)
    mount_root(image, changes, binds, entries=entries)
    enter(binds, place)
    execute(command or login_shell(), passed)


def chroot(directory, command):
    """Become command with directory as the root filesystem; an empty command is root's login shell."""
    place, passed = working_directory(), environment()
    namespaces.become_root()
    namespaces.private_mounts()
    mounted = store.path() + "/mnt"
    scratch = _mount_scratch(mounted)
    namespaces.mount(directory, mounted, flags=namespaces.MS_BIND | namespaces.MS_REC)
    _leave_out_of_binds(scratch)
    # The directory is the user's own: where it has no place to mount on, none is made.
    enter([bind for bind in host_binds() if _has_point(mounted, *bind)], place)
    execute(command or login_shell(), passed)


def build(image, layer, command, variables=(), binds=()):
    """Run command in the Image so that what it writes fills the store.NewLayer layer.

    variables and binds are the user's own, as for environment() and host_binds().

    Returns the command's exit status, as a shell has it; None where it could not be started,
    which stderr tells by then. What the command leaves running is killed, because an image does
    not change once it is there. The caller is root of its user namespace already.
    """
    place, mounted, passed = (
        working_directory(),
        store.path() + "/mnt",
        environment(image, ["HOME=/root", *variables]),
    )
    tmp = layer.path + "/tmp"
    os.mkdir(tmp)
    os.chmod(tmp, 0o1777)
    binds = host_binds(binds, tmp)
    entry = layer.path[len(store.path()) + 1 :]
    # volatile: what the build's programs sync need not reach the disk before all of the layer does.
    written = mount_root(image, (store.path(), entry + "/root", entry + "/work"), binds, "volatile")

    reader, writer = os.pipe()

    def child():
        try:
            namespaces.die_with_parent()
            namespaces.private_mounts()
            os.dup2(2, 1)
            enter(binds, place)
            execute(command or login_shell(), passed)
        finally:
            os.write(writer, b"not started")  # the pipe closes when it is

    status = namespaces.run_child(child)
    os.close(writer)
    with open(reader, "rb") as told:
        if told.read():
            return None
    namespaces.unmount(mounted)
    if status == 0 and written != layer.root:
        from plashlib import layers

        layers.copy_layer(written, layer.root)
    return status


def working_directory():
    """The working directory's path, and what tells later whether a path leads to the same one."""
    try:
        return os.getcwd(), os.stat(".")
    except FileNotFoundError:
        return "/", None


def host_binds(more=(), tmp=None):
    """What of the host a process sees, as pairs of its path and the path in the container.

    more  the user's own, each SOURCE or SOURCE:TARGET; they come last
    tmp   the directory to be the /tmp of a build, whose home is the image's own /root

    Raises Error, OSError.
    """
    home = os.path.normpath(os.environ.get("HOME") or "/")
    directories = [*HOST_DIRECTORIES, *([] if tmp else ["/tmp"])]
    seen = any(
        (home + "/").startswith(directory + "/") for directory in (*HOST_DIRECTORIES, "/tmp")
    )
    if home[:1] == "/" and home.strip("/") and not seen and not (tmp and home == "/root"):
        directories.append(home)
    binds = [(path, path) for path in directories if os.path.isdir(path)]
    binds += [(path, path) for path in HOST_FILES if os.path.isfile(path)]
    return binds + ([(tmp, "/tmp")] if tmp else []) + [_own_bind(words) for words in more]


class _OwnBind(tuple):
    """A bind that the user asked for: where there is no place for it, that is an error."""


def _own_bind(words):
    source, colon, target = words.partition(":")
    source = os.path.abspath(source)
    os.stat(source)
    target = target if colon else source
    if target[:1] != "/" or (os.path.normpath(target).lstrip("/") + "/").startswith(("/", "host/")):
        raise Error(
            f"cannot bind {source} on {target!r}: not an absolute path, or / or /host itself"
        )
    return _OwnBind((source, "/" + os.path.normpath(target).lstrip("/")))


def mount_root(image, changes, binds, options="", entries=None):
    """Mount the Image, writable, on the store's mnt/ in a new mount namespace.

    changes  (directory, upperdir, workdir): the paths below directory are made where they
             are missing; None writes to a tmpfs
    binds    as of host_binds(); those for which the image has no place are taken out
    options  more of overlayfs's options
    entries  lines for files such as /etc/passwd: a dict of their paths to lines

    Returns the directory that takes the writes: one in a tmpfs where the store's own
    filesystem can hold no upper layer. Raises OSError, Error.
    """
    namespaces.private_mounts()
    mounted = store.path() + "/mnt"
    scratch = _mount_scratch(mounted)
    layers = image.layers(lambda file: open_file(file, mounted))
    points = mounted + "/points"
    umask = os.umask(0o022)
    os.makedirs(points + "/host")
    binds[:] = [bind for bind in binds if _place_bind(points, layers, binds, bind)]
    for path, line in (entries or {}).items():
        if _make_point(points, layers, os.devnull, path):
            _write_entry(_find(layers, path[1:]), points + path, line)
    lower = [os.open(points, os.O_PATH | os.O_CLOEXEC), *layers]
    in_memory = mounted, "data", "work"
    if changes is None:
        changes = in_memory if _holds_user_xattrs(points) else _on_disk()
    try:
        written = _mount_overlay(image, mounted, layers[0], lower, changes, options)
    except OSError as error:
        if error.errno != errno.EINVAL or changes[0] != store.path():
            raise
        os.rmdir("/".join(changes[:2]))
        written = _mount_overlay(image, mounted, layers[0], lower, in_memory, options)
    os.umask(umask)
    _leave_out_of_binds(scratch)
    if not os.path.exists(image.path):
        raise store.gone(image)
    return written


def mount(image, target, changes=None):
    """Mount the Image on the directory target, which is returned.

    changes is a directory that keeps what is written; None mounts read-only.
    Raises OSError, Error.
    """
    passing = []

    def open_in_work(file):
        passing.append(store.Work())
        return open_file(file, passing[-1].path)

    try:
        layers = image.layers(open_in_work)
        if changes:
            _mount_overlay(image, target, layers[0], layers, (changes, "data", "work"))
        else:
            # A read-only overlay must have two layers: the empty one is the second of image 1.
            bottom = os.open(store.path() + "/layer/0/_data/root", os.O_PATH | os.O_CLOEXEC)
            namespaces.overlay(image.path, target, [*layers, bottom])
    finally:
        # The overlay keeps what it stands on; the places are of no more use.
        for work in passing:
            with work:
                for name in os.listdir(work.path):
                    namespaces.unmount(f"{work.path}/{name}")
    return target


def open_file(file, place):
    """Mount a squashfs file below the directory place; returns a descriptor of its root directory."""
    from plashlib import squashfs

    directory = f"{place}/squashfs{len(os.listdir(place))}"
    os.mkdir(directory)
    squashfs.mount(file, directory)
    return os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _mount_scratch(mounted):
    """Mount a tmpfs on mounted, for plash's own use; returns a descriptor of it."""
    namespaces.mount("plash", mounted, "tmpfs", options="mode=0755")
    return os.open(mounted, os.O_PATH | os.O_CLOEXEC)


def _leave_out_of_binds(scratch):
    """Keep binds of the host's directories from copying the tmpfs and what is mounted on it."""
    namespaces.mount(None, f"/proc/self/fd/{scratch}", flags=namespaces.MS_UNBINDABLE)


def _holds_user_xattrs(directory):
    """Whether the filesystem can hold overlayfs's xattrs; a tmpfs can since Linux 6.6."""
    try:
        os.setxattr(directory, "user.plash", b"")
    except OSError:
        return False
    return True


def _on_disk():
    """Where the changes of a run go that no tmpfs can take; `plash clean` removes it afterwards."""
    # Its lock goes when this process becomes the command; by then the mount shows whose it is.
    entry = "tmp/" + os.path.basename(store.Work().path)
    return store.path(), entry + "/data", entry + "/work"


def _mount_overlay(image, mounted, own, lower, changes, options=""):
    """Mount the descriptors lower with the places of changes, made where missing, on top.

    own is the descriptor of the image's own layer. Returns the upper directory's path.
    """
    directory, upper, work = changes
    if not os.path.isdir(f"{directory}/{upper}"):
        make_layer(image, f"{directory}/{upper}", f"/proc/self/fd/{own}")
    os.makedirs(f"{directory}/{work}", exist_ok=True)
    fd = os.open(directory, os.O_PATH | os.O_CLOEXEC)
    namespaces.overlay(image.path, mounted, lower, (fd, upper, work), options)
    return f"{directory}/{upper}"


def make_layer(image, root, own=None):
    """Make the directory root, to go on top of the Image's layers: its attributes are the root directory's own.

    own is the path of the image's own layer where that is mounted elsewhere than in the store.
    """
    os.mkdir(root)
    try:
        _copy_attributes(own or image.path + "/_data/root", root)
    except FileNotFoundError:
        raise store.gone(image) from None


def _place_bind(points, layers, binds, bind):
    """Make the place for one of the binds; False where there can be none. Raises Error for the user's own."""
    source, target = bind
    if not isinstance(bind, _OwnBind):
        return _make_point(points, layers, source, target)
    # What comes before covers what is made here: the host's own directories have to have the place.
    covered = any(
        target == other or target.startswith(other + "/") for _, other in binds[: binds.index(bind)]
    )
    if not covered and not _make_point(points, layers, source, target):
        raise Error(
            f"cannot bind {source} on {target}: a part of that path is no directory in the image"
        )
    return True


def _caller():
    """The lines that name this process's user and group, by the paths of their files."""
    import grp
    import pwd

    uid, gid = os.geteuid(), os.getegid()
    try:
        user = pwd.getpwuid(uid)
        name, real_name = user.pw_name, user.pw_gecos
    except KeyError:
        name, real_name = os.environ.get("USER") or f"user{uid}", ""
    try:
        group = grp.getgrgid(gid).gr_name
    except KeyError:
        group = name
    home = os.environ.get("HOME") or "/"
    return {
        "/etc/passwd": f"{name}:x:{uid}:{gid}:{real_name}:{home}:/bin/sh",
        "/etc/group": f"{group}:x:{gid}:",
    }


def _write_entry(source, target, entry):
    """Write the lines of the file source, which may be None, to target, with entry in place of those of its name or id."""
    name, _, number = entry.split(":")[:3]
    lines = []
    if source:
        with open(source, encoding="utf-8", errors="surrogateescape") as file:
            lines = [
                line
                for line in file.read().splitlines()
                if name != line.split(":")[0] and [number] != line.split(":")[2:3]
            ]
    with open(target, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write("".join(line + "\n" for line in [*lines, entry]))


def _make_point(points, layers, source, target):
    """Make the place to mount source on, in plash's own layer; False where there can be none.

    That layer stands on top of the image's, so that no build captures it and that it covers
    whatever the image has there, such as a dangling symbolic link. A directory on the way
    has the attributes that it has in the image, which is what a build copies up.
    """
    *parents, _ = target[1:].split("/")
    way = ""
    for parent in parents:
        way += "/" + parent
        if os.path.isdir(points + way):
            continue
        found = _find(layers, way[1:])
        if found and not _is_directory(found):
            return False
        os.mkdir(points + way)
        if found:
            _copy_attributes(found, points + way)
    if os.path.isdir(source):
        os.mkdir(points + target)
    else:
        os.close(os.open(points + target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    return True


def _find(layers, path):
    """The path of the topmost layer's entry of that name; None where there is none."""
    for fd in layers:
        try:
            status = os.stat(path, dir_fd=fd, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            continue
        whiteout = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
        return None if whiteout else f"/proc/self/fd/{fd}/{path}"
    return None


def _is_directory(path):
    return os.path.isdir(path) and not os.path.islink(path)


def _has_point(root, source, target):
    """Whether target is in root and of the same kind as source, with no symbolic link on the way."""
    place = root
    for part in target[1:].split("/"):
        place += "/" + part
        if os.path.islink(place):
            return False
    return os.path.isdir(place) if os.path.isdir(source) else os.path.isfile(place)


def _copy_attributes(source, target):
    """Give target the owner, mode, times and xattrs of source, but for overlayfs's own xattrs."""
    status = os.stat(source)
    try:
        os.chown(target, status.st_uid, status.st_gid)
    except OSError:
        pass  # an owner that is not mapped here: it stays the caller's
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


def enter(binds, place):
    """Make what is mounted on the store's mnt/ the root filesystem, with binds in it.

    place is the working_directory() to go to: itself where it can be seen, else below
    /host, else "/". Raises OSError.
    """
    mounted = store.path() + "/mnt"
    os.chdir(mounted)
    for source, target in binds:
        try:
            namespaces.mount(source, "." + target, flags=namespaces.MS_BIND | namespaces.MS_REC)
        except OSError as error:
            raise Error(f"cannot bind {source} on {target}: {error.strerror}") from None
    old = "host" if _is_directory("host") else "."
    if namespaces.pivot(old):
        # What is left of plash's own, or all of the old root.
        namespaces.unmount("/host" + mounted if old == "host" else ".")
    path, status = place
    for directory in path, "/host" + path, "/":
        try:
            os.chdir(directory)
            if os.path.samestat(os.stat("."), status):
                break
        except (OSError, AttributeError):
            continue


def variables():
    """The environment that this process was started with."""
    given = dict(os.environ)
    if given.get("LC_CTYPE", "").lower().endswith(("utf-8", "utf8")):
        # Python sets this one in its own environment where the locale is C (PEP 538).
        with open("/proc/self/environ", "rb") as file:
            if not any(entry.startswith(b"LC_CTYPE=") for entry in file.read().split(b"\0")):
                del given["LC_CTYPE"]
    return given


def environment(image=None, more=()):
    """The variables of a container, a dict: the Image's own, PATH, those of the caller that pass, and more.

    more  the user's own: NAME=VALUE, or NAME for the value that the caller has

    Raises Error.
    """
    given = variables()
    exported = given.get("PLASH_EXPORT", "").split(":")
    kept = {*KEPT, *exported}
    beginnings = "LC_", "PLASH_", *(name[:-1] for name in exported if name.endswith("*"))
    passed = {
        name: value for name, value in given.items() if name in kept or name.startswith(beginnings)
    }
    own = (image and image.read("env") or b"").decode(errors="surrogateescape")
    passed = {
        "PATH": PATH,
        **dict(words.split("=", 1) for words in own.split("\0") if words),
        **passed,
    }
    for words in more:
        name, equals, value = words.partition("=")
        if not name:
            raise Error(f"not a variable: {words!r} (NAME or NAME=VALUE)")
        if equals or name in given:
            passed[name] = value if equals else given[name]
    return passed


def login_shell():
    """Root's shell by the container's /etc/passwd, else /bin/sh, as the words that start it."""
    shell = ""
    try:
        with open("/etc/passwd", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                if line.startswith("root:"):
                    shell = line.rstrip("\n").split(":")[-1]
                    break
    except OSError:
        pass
    return [shell if os.access(shell, os.X_OK) else "/bin/sh", "-l"]


def execute(command, passed):
    """Become command, with the environment passed, in whose PATH its first word is looked up.

    Exits 127 where it is not found and 126 where it can't be executed.
    """
    program = command[0]
    places = [program]
    if "/" not in program:
        places = [
            f"{directory or '.'}/{program}" for directory in passed.get("PATH", PATH).split(":")
        ]
    namespaces.default_signals()
    failure = None
    # Not os.execvpe(), which imports a module when it is called: the host's files are out of sight by now.
    for place in places:
        try:
            os.execve(place, command, passed)
        except (FileNotFoundError, NotADirectoryError):
            if os.path.isfile(place):
                failure = "its interpreter or loader is missing"
        except (OSError, ValueError) as error:
            failure = failure or getattr(error, "strerror", None) or str(error)
    if failure:
        cli.die(cli.CANNOT_EXECUTE, f"cannot execute {program}: {failure}")
    cli.die(cli.NOT_FOUND, f"command not found: {program}")
