"""RUN --mount: what a build's command sees besides its image, by BuildKit's reference."""

import errno
import hashlib
import os
import stat

from plashlib import Error, binds, container, namespaces, sources, store, work

TYPES = {
    "bind": {"target", "source", "from", "rw"},
    "cache": {"id", "target", "ro", "sharing", "from", "source", "mode", "uid", "gid"},
    "tmpfs": {"target", "size"},
    "secret": {"id", "target", "required", "mode", "uid", "gid", "env"},
    "ssh": {"id", "target", "required", "mode", "uid", "gid"},
}
SAME = {
    "dst": "target",
    "destination": "target",
    "src": "source",
    "readwrite": "rw",
    "readonly": "ro",
}
SWITCHES = {"rw", "ro", "required"}
SHARING = "shared", "private", "locked"
AGENT = "/run/buildkit/ssh_agent.0"


class Mount:
    """One --mount; key says what of it decides on the result.

    image   the id of the image that it is from; tree is the Tree and the Source in it otherwise
    """

    def __init__(self, type: str, given: "dict[str, str]") -> None:
        self.type, self.given = type, given
        self.id = given.get("id", "")
        self.target, self.source = given.get("target", ""), given.get("source", "")
        self.from_image = given.get("from")
        self.required = given.get("required") == "true"
        self.env = given.get("env")
        self.image: "str | None" = None
        self.tree = None
        self.key: dict[str, object] = {"type": type, **given}

    def owner(self) -> "tuple[int, int, int]":
        """The uid, gid and mode that it has inside."""
        mode = {"cache": "0755", "secret": "0400", "ssh": "0600"}.get(self.type, "0755")
        return (
            int(self.given.get("uid", "0")),
            int(self.given.get("gid", "0")),
            int(self.given.get("mode", mode), 8),
        )


def parse(text: str, expand) -> Mount:
    """The Mount of a --mount; expand is called with each value. Raises Error."""
    given = {}
    for field in text.split(","):
        name, equals, value = field.strip().partition("=")
        name = SAME.get(name.lower(), name.lower())
        given[name] = expand(value) if equals else "true"
    kind = given.pop("type", "bind")
    if kind not in TYPES:
        raise Error(f"there is no --mount of type {kind!r}")
    for name, opposite in ("ro", "rw"), ("rw", "ro"):
        if name in given and name not in TYPES[kind]:
            value = given.pop(name)
            given[opposite] = "false" if value == "true" else "true"
    for name, value in given.items():
        if name not in TYPES[kind]:
            raise Error(f"--mount=type={kind} has no {name!r}")
        if name in SWITCHES and value not in ("true", "false"):
            raise Error(f"{name} of --mount is true or false, not {value!r}")
    mount = Mount(kind, given)
    try:
        mount.owner()
    except ValueError:
        raise Error("uid, gid and mode of --mount are numbers") from None
    if kind in ("bind", "cache", "tmpfs") and not mount.target:
        raise Error(f"--mount=type={kind} needs a target")
    if kind == "cache":
        mount.id = mount.id or os.path.normpath(mount.target)
        if given.get("sharing", "shared") not in SHARING:
            raise Error(f"sharing of --mount is {', '.join(SHARING[:2])} or {SHARING[2]}")
        if mount.source and not mount.from_image:
            raise Error("source of --mount=type=cache needs from")
    if kind == "secret":
        mount.id = mount.id or os.path.basename(mount.target)
        if not mount.id:
            raise Error("--mount=type=secret needs an id")
        if not mount.target and not mount.env:
            mount.target = "/run/secrets/" + mount.id
    if kind == "ssh":
        if mount.owner() != (0, 0, 0o600):
            raise Error("the agent's socket keeps its owner and its mode")
        mount.target = mount.target or AGENT
        socket = os.environ.get("SSH_AUTH_SOCK", "")
        if not os.path.exists(socket):
            socket = ""
        if not socket and mount.required:
            raise Error("there is no ssh agent (SSH_AUTH_SOCK is not set)")
        mount.source = socket
    return mount


class Mounted:
    """Mounts that are made ready while a `with` statement runs, in a mount namespace of its own.

    binds      what the command is to see: binds.Bind
    variables  NAME=VALUE that the command gets

    Entering it raises Error, OSError.
    """

    def __init__(self, mounts: "list[Mount]", directory: str) -> None:
        self.mounts, self.directory = mounts, directory
        self.binds: list[binds.Bind] = []
        self.variables: list[str] = []
        self._kept: list[work.Work] = []
        self._is_mounted = False

    def __enter__(self):
        try:
            self._mount()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def _mount(self):
        # Of two builds with the same caches, one waits for the other: locked in one order.
        names = sorted({_cache_name(each) for each in self.mounts if each.type == "cache"})
        self._caches = {name: self._open_cache(name) for name in names}
        if self.mounts:
            namespaces.private_mounts()
            os.mkdir(self.directory)
            namespaces.mount("plash", self.directory, "tmpfs", options="mode=0755")
            self._is_mounted = True
        for number, mount in enumerate(self.mounts):
            getattr(self, "_" + mount.type)(mount, f"{self.directory}/{number}")

    def __exit__(self, *error):
        for each in self._kept:
            each.__exit__(*error)
        if self._is_mounted:
            # With what is mounted in it.
            namespaces.unmount(self.directory)
            os.rmdir(self.directory)

    def _add(self, path, mount, read_only):
        path = os.path.abspath(path)
        bind = binds.Bind(path, mount.target, requested=True, read_only=read_only)
        bind.shown = f"the {mount.type} mount"
        # A mount below this one gets a mount point in it: it is no directory of the user's.
        bind.private = not read_only and mount.type != "ssh"
        self.binds.append(bind)

    def _open_cache(self, name):
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()
        # `plash clean` removes it, when no build uses it.
        kept = work.Work("mount-" + digest[:32])
        kept.keep = True
        self._kept.append(kept)
        return kept.path + "/data"

    def _bind(self, mount, path):
        if mount.image is not None:
            tree, source = _mount_image(mount, path)
            os.close(tree.fd)
            path = f"{path}/{source.path}".rstrip("/")
        else:
            tree, source = mount.tree
            self._copy_context(tree, source, path)
        if mount.given.get("rw") == "true":
            path = self._writable(path, mount)
        self._add(path, mount, mount.given.get("rw") != "true")

    def _copy_context(self, tree, source, path):
        """The context is seen without what is ignored: a copy, unless all is seen."""
        if tree.ignored is None:
            root = os.readlink(f"/proc/self/fd/{tree.fd}")
            full = f"{root}/{source.path}".rstrip("/")
            if source.is_directory():
                os.mkdir(path)
            else:
                open(path, "x").close()
            namespaces.mount(full, path, flags=namespaces.MS_BIND | namespaces.MS_REC)
            return
        from plashlib import copying

        copier = copying.Copier((0, 0))
        copier.copy(tree, source, path)

    def _writable(self, path, mount):
        """What is written goes to a tmpfs, and is dropped."""
        if not os.path.isdir(path):
            raise Error("rw of --mount is for directories")
        changes = f"{self.directory}/rw-{len(self.binds)}"
        for name in "", "/data", "/work", "/merged", "/empty":
            os.mkdir(changes + name)
        lower = [os.open(each, os.O_PATH | os.O_CLOEXEC) for each in (path, changes + "/empty")]
        fd = os.open(changes, os.O_PATH | os.O_CLOEXEC)
        namespaces.overlay("plash", changes + "/merged", lower, (fd, "data", "work"))
        return changes + "/merged"

    def _cache(self, mount, path):
        cache = self._caches[_cache_name(mount)]
        if not os.path.isdir(cache):
            import shutil

            # Complete or not there, also after a kill.
            shutil.rmtree(cache + ".new", ignore_errors=True)
            if mount.image is not None:
                self._copy_image(mount, path, cache + ".new")
            else:
                os.mkdir(cache + ".new")
                _own(cache + ".new", *mount.owner())
            os.rename(cache + ".new", cache)
        self._add(cache, mount, mount.given.get("ro") == "true")

    def _copy_image(self, mount, path, target):
        from plashlib import copying

        tree, source = _mount_image(mount, path)
        if not source.is_directory():
            raise Error(f"{mount.source} is not a directory")
        copying.Copier(None).copy(tree, source, target)
        os.close(tree.fd)

    def _tmpfs(self, mount, path):
        os.mkdir(path)
        size = mount.given.get("size")
        options = "mode=0755" + (f",size={size}" if size else "")
        flags = namespaces.MS_NOSUID | namespaces.MS_NODEV
        try:
            namespaces.mount("plash", path, "tmpfs", flags, options)
        except OSError as error:
            if size and error.errno == errno.EINVAL:
                raise Error(f"not a size of --mount=type=tmpfs: {size!r}") from None
            raise
        self._add(path, mount, False)

    def _secret(self, mount, path):
        if mount.source is None:
            return
        with open(mount.source, "rb") as file:
            content = file.read()
        if mount.env:
            value = content.decode(errors="surrogateescape")
            self.variables.append(f"{mount.env}={value}")
        if mount.target:
            uid, gid, mode = mount.owner()
            with open(path, "xb") as made:
                made.write(content)
            _own(path, uid, gid, mode)
            self._add(path, mount, True)

    def _ssh(self, mount, path):
        if mount.source:
            self._add(mount.source, mount, False)
            self.variables.append(f"SSH_AUTH_SOCK={mount.target}")


def _cache_name(mount):
    """What a cache is found by: with from, it begins as a copy, and is one for each original."""
    return "\0".join([mount.id, mount.image, mount.source]) if mount.image else mount.id


def _mount_image(mount, path):
    """Mount the image of a mount at path; returns its Tree and the Source in it."""
    os.mkdir(path)
    container.mount(store.image(mount.image, allow_empty=True), path)
    tree = sources.Tree(path)
    return tree, tree.find(mount.source or ".")[0]


def _own(path, uid, gid, mode):
    try:
        os.chown(path, uid, gid)
    except OSError:
        if not stat.S_IMODE(mode):
            raise
    os.chmod(path, mode)
