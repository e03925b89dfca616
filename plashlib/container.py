"""What a process sees: an image as its root filesystem, with parts of the host in it.

A container here is an ordinary process that enters namespaces, mounts, and execs: its pid,
terminal, signals and exit status are the command's own.
"""

import errno
import os

from plashlib import Error, binds, caller, datadir, execution, ids, namespaces, store

HOST_DIRECTORIES = ("/dev", "/proc", "/sys")
HOST_FILES = ("/etc/resolv.conf", "/etc/hosts")
HOST = "/host"  # where the rest of the host is
ABSENT = {"home", "tmp", "host"}  # what can be left out


class View:
    """What a process sees and has, besides the image: what its caller brings, and asks for.

    variables  more variables, as for caller.environment()
    mounts     more binds, each a binds.Mount, or text as for binds.parse()
    directory  the working directory inside; None for the caller's
    user       a user of the image's: NAME or UID, and :GROUP; None for root
    as_me      keep the caller's own uid and gid, with names for them, instead of becoming root
    without    what of ABSENT is left out
    devices    CDI names or paths of devices, as for cdi.add()

    emulate is what execute() calls at its end, and watch the emulate.Watch of a build, if only one
    id is mapped. root_home is the home that root has by the container's passwd(5), if not the
    image's. warnings has a line on each thing that cannot be kept. Raises Error, OSError.
    """

    def __init__(
        self,
        image: "store.Image | None" = None,
        variables: "list[str] | tuple[()]" = (),
        mounts: "list | tuple[()]" = (),
        directory: "str | None" = None,
        user: "str | None" = None,
        as_me: bool = False,
        without: "set[str] | tuple[()]" = (),
        devices: "list[str] | tuple[()]" = (),
    ) -> None:
        self.working_directory = caller.WorkingDirectory()
        self.directory, self.user = directory, user
        own = (image and image.read("env")) or b""
        shared = "home" not in without
        self.environment = caller.environment(own, variables, shared)
        self.images = caller.parse(own)
        self.given = {entry.partition("=")[0] for entry in variables}
        self.as_me, self.without = as_me, without
        self.keep_ids = (os.geteuid(), os.getegid()) if as_me else None
        self.root_home: "str | None" = None
        self.emulate: object = None
        self.watch = None
        unkept = self.working_directory.warning
        self.warnings = [unkept] if unkept and not directory else []
        self.make_directory = False  # whether directory is made if the image lacks it
        self.edits: list = []  # called with the binds.Points and the mounts that are placed
        self.mounts = self._default_mounts()
        if devices:
            from plashlib import cdi

            cdi.add(self, devices)
        self.mounts += [binds.parse(each) if isinstance(each, str) else each for each in mounts]
        self.environment.setdefault("HOME", "/" if as_me else "/root")
        self.entries = caller.entries(self.environment["HOME"]) if as_me else {}

    def find_user(self, points: "binds.Points"):
        """The users.User that it asks for, with its home; None for root. Raises Error."""
        if self.user is None:
            return None
        from plashlib import users

        user = users.find(self.user, points.read)
        if user.uid:
            self.emulate = None  # for root alone, chown(2) and the like succeed
        own = {"HOME": user.home, "USER": user.name, "LOGNAME": user.name}
        own.update((name, self.images[name]) for name in own.keys() & self.images.keys())
        for name in own.keys() - self.given:
            self.environment.pop(name, None)
            if own[name]:
                self.environment[name] = own[name]
        return user

    def _default_mounts(self):
        """The parts of the host that are seen at their own paths."""
        directories = [*HOST_DIRECTORIES]
        if "home" not in self.without:
            directories.append("/home")
        if "tmp" not in self.without:
            directories.append("/tmp")
        if "home" not in self.without:
            try:
                home = caller.home()
            except Error:
                # A uid without an entry in passwd(5), and no HOME.
                self.warnings.append("you have no home directory (set HOME)")
                home = "/"
            else:
                self.environment.setdefault("HOME", home)
            # /dev and the like are no homes, whatever HOME says; the rest needs a mount of its own.
            if not _is_seen(home, directories):
                directories.append(home)
            for name in caller.SOCKETS:
                path = caller.socket(name, self.environment)
                if path and not _is_seen(path, directories):
                    directories.append(path)
        mounts = [binds.Bind(path) for path in directories if os.path.exists(path)]
        return mounts + [binds.Bind(path) for path in HOST_FILES if os.path.isfile(path)]


def _is_seen(path, directories):
    return path == "/" or any((path + "/").startswith(each + "/") for each in directories)


def run(image: store.Image, command: "list[str]", view: View, changes=None) -> None:
    """Become command in the Image; an empty one is the login shell of the view's user, else root's.

    changes  where writes go, as for mount_root(); None drops them with the process

    Raises Error, OSError.
    """
    ids.become_root(keep_ids=view.keep_ids)
    root = mount_root(image, view, changes)
    user = view.find_user(root.points)
    enter(view)
    if user:
        from plashlib import users

        users.become(user)
    execution.execute(
        command or execution.login_shell(user.name if user else "root"),
        view.environment,
        view.emulate,
    )


class Root:
    """A mounted root filesystem: upper is the directory that takes its writes."""

    def __init__(self, points: "binds.Points", upper: str) -> None:
        self.points, self.upper = points, upper


def mount_root(
    image: store.Image,
    view: View,
    changes: "tuple[str, str, str] | None" = None,
    options: str = "xino=on",
) -> Root:
    """Mount the Image, writable, on the store's mnt/ in a new mount namespace.

    changes  (directory, upperdir, workdir): the paths below directory are created if they are
             missing; None writes to a tmpfs
    options  more options of overlayfs

    The mounts of view that have no mount point are taken out of it. The upper directory is in a
    tmpfs if the store's own filesystem cannot hold one. Raises OSError, Error.
    """
    namespaces.private_mounts()
    mounted = store.path() + "/mnt"
    scratch = mount_scratch(mounted)
    layers = open_layers(image, mounted)
    umask = os.umask(0o022)
    points = binds.Points(mounted + "/points", layers)
    os.makedirs(points.directory + HOST)
    view.mounts = points.make_all(view.mounts)
    for edit in view.edits:
        edit(points, view.mounts)
    _write_entries(points, view)
    prepare_emulation(view, points)
    lower = [os.open(points.directory, os.O_PATH | os.O_CLOEXEC), *layers]
    in_memory = mounted, "data", "work"
    if changes is None:
        changes = in_memory if _holds_user_xattrs(points.directory) else _on_disk()
    try:
        upper = _mount_overlay(image, mounted, layers[0], lower, changes, options)
    except OSError as error:
        if error.errno != errno.EINVAL or changes[0] != store.path():
            raise
        os.rmdir("/".join(changes[:2]))
        upper = _mount_overlay(image, mounted, layers[0], lower, in_memory, options)
    os.umask(umask)
    keep_from_binds(scratch)
    if not os.path.exists(image.path):
        raise store.removed_meanwhile(image)
    return Root(points, upper)


def _write_entries(points, view):
    """Put files with the entries of view on top of the image's /etc/passwd and /etc/group."""
    for path, entry in view.entries.items():
        name, _, number = entry.split(":")[:3]
        lines = [
            line
            for line in (points.read(path) or "").splitlines()
            if name != line.split(":")[0] and [number] != line.split(":")[2:3]
        ]
        _write_lines(points, path, [*lines, entry])
    if view.root_home and not {":", "\n"} & set(view.root_home):
        # Programs such as ssh and java look for root's home there, others in HOME.
        lines = (points.read("/etc/passwd") or "").splitlines()
        fields = [line.split(":") for line in lines]
        wrong = [each for each in fields if each[0] == "root" and each[5:6] != [view.root_home]]
        for each in wrong:
            each[5:6] = [view.root_home]
        if wrong:
            _write_lines(points, "/etc/passwd", map(":".join, fields))


def _write_lines(points, path, lines):
    try:
        points.write(path, "".join(line + "\n" for line in lines))
    except OSError:
        pass  # the image has something else there, and no names for users


def prepare_emulation(view: View, points: "binds.Points | None" = None) -> None:
    """Have execute() let root's calls succeed, if this process is root of one id."""
    if 1 not in map(namespaces.mapped, ("uid", "gid")):
        return
    from plashlib import emulate

    if not emulate.is_wanted():
        return
    view.emulate = view.watch.install if view.watch else emulate.install
    if points:
        try:
            for path, text in emulate.FILES.items():
                points.write(path, text)
        except OSError:
            return  # the image has something else there
        view.environment = {**emulate.ENVIRONMENT, **view.environment}


def open_layers(image: store.Image, directory: str) -> "list[int]":
    """Descriptors of an image's layers, the topmost first; squashfs files are mounted in directory.

    Raises Error, OSError.
    """
    return _mount_files(image.open_layers(), directory)


def _mount_files(layers, directory):
    """The layers, with a descriptor for each squashfs file, which is mounted in directory."""
    opened = []
    for layer in layers:
        if isinstance(layer, str):
            from plashlib import squashfs

            point = f"{directory}/squashfs{len(opened)}"
            os.mkdir(point)
            squashfs.mount(layer, point)
            layer = os.open(point, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.append(layer)
    return opened


def mount(image: store.Image, target: str, changes: "tuple[str, str, str] | None" = None) -> str:
    """Mount the Image on the directory target, which is returned.

    changes says where writes go, as for mount_root(); None mounts read-only. Raises OSError, Error.
    """
    layers = image.open_layers()
    if any(isinstance(layer, str) for layer in layers):
        from plashlib import work

        with work.Work(work.MOUNTS + os.urandom(8).hex()) as place:
            try:
                _mount_layers(image, target, _mount_files(layers, place.path), changes)
            finally:
                # The overlay keeps what it stands on; the mount points are of no more use.
                for name in os.listdir(place.path):
                    namespaces.unmount(f"{place.path}/{name}")
    else:
        _mount_layers(image, target, layers, changes)
    return target


def _mount_layers(image, target, layers, changes):
    # As root, every user of the host sees it.
    flags = namespaces.MS_NOSUID | namespaces.MS_NODEV
    if changes:
        _mount_overlay(image, target, layers[0], layers, changes, flags=flags)
        return
    # A read-only overlay must have two layers: the empty image's is the second of image 1.
    bottom = os.open(store.empty().path + "/_data/root", os.O_PATH | os.O_CLOEXEC)
    namespaces.overlay(image.source(), target, [*layers, bottom], flags=flags)


def mount_scratch(mounted: str) -> int:
    """Mount a tmpfs on mounted, for plash's own use; returns a descriptor of it."""
    namespaces.mount("plash", mounted, "tmpfs", options="mode=0755")
    return os.open(mounted, os.O_PATH | os.O_CLOEXEC)


def keep_from_binds(scratch: int) -> None:
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
    from plashlib import work

    # Its lock goes when this process becomes the command; by then the mount shows whose it is.
    entry = "tmp/" + os.path.basename(work.Work().path)
    return store.path(), entry + "/data", entry + "/work"


def _mount_overlay(image, mounted, own, lower, changes, options="", flags=0):
    """Mount the descriptors lower, with the directories of changes on top, which may be missing.

    own is the descriptor of the image's own layer. Returns the upper directory's path. Raises
    Error, OSError; EINVAL if the store's own filesystem cannot hold changes.
    """
    directory, upper, work = changes
    if not os.path.isdir(f"{directory}/{upper}"):
        make_layer(image, f"{directory}/{upper}", f"/proc/self/fd/{own}")
    elif _is_in_use(f"{directory}/{upper}"):
        raise Error(f"{directory} is in use by another process")
    os.makedirs(f"{directory}/{work}", exist_ok=True)
    fd = os.open(directory, os.O_PATH | os.O_CLOEXEC)
    try:
        namespaces.overlay(image.source(), mounted, lower, (fd, upper, work), options, flags)
    except OSError as error:
        if error.errno != errno.EINVAL or directory in (store.path(), store.path() + "/mnt"):
            raise
        raise Error(
            f"{directory} cannot keep changes: its filesystem takes no overlay"
            " (ext4, xfs, btrfs and tmpfs do)"
        ) from None
    return f"{directory}/{upper}"


def _is_in_use(upper):
    """Whether another process has an overlay mounted that writes to the directory upper."""
    import time

    # The mounts of a process that has just ended may go a moment later.
    for _ in range(20):
        if not namespaces.takes_writes(upper):
            return False
        time.sleep(0.025)
    return True


def make_layer(image: store.Image, root: str, own: "str | None" = None) -> None:
    """Create the directory root as a layer on the Image: it has the root directory's attributes.

    own is the path of the image's own layer, if that is not in the store. Raises Error, OSError.
    """
    os.mkdir(root)
    datadir.drop_acls(root)
    try:
        binds.copy_attributes(own or image.path + "/_data/root", root)
    except FileNotFoundError:
        raise store.removed_meanwhile(image) from None


def enter(view: View) -> None:
    """Make what is mounted on the store's mnt/ the root filesystem, with the mounts of view.

    The old root filesystem stays below HOST, unless view is without it. The working directory
    is the one that view asks for, or the caller's: under its own path, else below HOST, else "/".
    Raises OSError, Error.
    """
    mounted, host = store.path() + "/mnt", "host" not in view.without
    os.chdir(mounted)
    for each in view.mounts:
        each.mount("." + each.target)
    old = HOST[1:] if binds.is_directory(HOST[1:]) else "."
    kept = old != "." and host
    execution.host_root = HOST if kept else os.open("/", os.O_PATH | os.O_CLOEXEC)
    if namespaces.pivot(old):
        # What is left of plash's own, or all of the old root filesystem.
        namespaces.unmount(HOST + mounted if old != "." else ".")
    if old != "." and not host:
        namespaces.unmount(HOST)
    if view.user:
        execution.prepare_foreign()  # the user itself won't have the capabilities for that
    change_directory(view)


def change_directory(view: View) -> None:
    """Change to the working directory of view. Raises Error."""
    if view.directory is not None:
        try:
            os.chdir("/")
            if view.make_directory:
                os.makedirs(view.directory, exist_ok=True)
            os.chdir(view.directory)
        except OSError as error:
            where = view.directory or "''"
            raise Error(f"cannot change to {where}: {error.strerror}") from None
    elif not view.working_directory.change() and not view.working_directory.change(HOST):
        os.chdir("/")
