"""Devices by their CDI name, as a vendor's specification describes them.

The Container Device Interface is the document SPEC.md of
github.com/cncf-tags/container-device-interface. A specification is a file that lists devices of
one kind, vendor/class, and the edits of a container that each one needs: device nodes, mounts,
variables and hooks. The hooks known here are those of NVIDIA's toolkit: plash makes their changes
in its layer of mount points, so that no build captures them.
"""

import errno
import json
import os
import stat

from plashlib import Error, binds, loader, namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from plashlib import container

DIRECTORIES = "/etc/cdi:/var/run/cdi"  # the last one wins
KEYS = {"env", "deviceNodes", "mounts", "hooks"}
HOOK_PROGRAMS = "nvidia-ctk", "nvidia-cdi-hook"
# Of mount(8), what a bind is anyway, and what it can be restricted to.
IGNORED_OPTIONS = {
    *("bind", "rbind", "rw", "suid", "dev", "exec", "defaults"),
    *(recursive + kind for recursive in ("", "r") for kind in ("private", "slave", "shared")),
}
MOUNT_ATTR_NOEXEC = 8
ATTRIBUTES = {
    "ro": namespaces.MOUNT_ATTR_RDONLY,
    "nosuid": namespaces.MOUNT_ATTR_NOSUID,
    "nodev": namespaces.MOUNT_ATTR_NODEV,
    "noexec": MOUNT_ATTR_NOEXEC,
}
COMPAT = "/usr/local/cuda/compat"


class Device:
    """A device of a specification: its name, the specification's path, and containerEdits.

    shared are the edits that all devices of the specification need.
    """

    def __init__(self, name: str, path: str, edits: dict, shared: dict) -> None:
        self.name, self.path, self.edits, self.shared = name, path, edits, shared


def devices() -> "tuple[dict[str, Device], list[str]]":
    """The Devices that there are, by their names, and a line on each file that cannot be read.

    A device that two files of one directory have is in neither: which one is meant is not known.

    Raises OSError if a directory of specifications cannot be read.
    """
    found: dict[str, Device] = {}
    problems = []
    for directory in os.environ.get("PLASH_CDI", DIRECTORIES).split(":"):
        here: dict[str, Device] = {}
        try:
            names = sorted(os.listdir(directory))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for name in names:
            if not name.endswith((".json", ".yaml", ".yml")):
                continue
            try:
                for device in _read(f"{directory}/{name}"):
                    other = here.setdefault(device.name, device)
                    if other is not device:
                        problems.append(f"{device.name} is in {other.path} and in {device.path}")
                        found.pop(device.name, None)
            except (Error, OSError) as error:
                problems.append(str(error))
        twice = {line.split(" is in ")[0] for line in problems}
        found.update((name, device) for name, device in here.items() if name not in twice)
    return found, problems


def _read(path):
    """The Devices of the specification at path. Raises Error, OSError."""
    with open(path, encoding="utf-8") as file:
        try:
            if path.endswith(".json"):
                content = json.load(file)
            else:
                import yaml

                try:
                    content = yaml.safe_load(file)
                except yaml.YAMLError as error:
                    raise ValueError(" ".join(str(error).split())) from None
        except ImportError:
            raise Error(
                f"cannot read {path}: PyYAML is not installed"
                " (`nvidia-ctk cdi generate --format=json` writes JSON)"
            ) from None
        except ValueError as error:
            raise Error(f"{path} is no CDI specification: {error}") from None
    if not isinstance(content, dict):
        raise Error(f"{path} is no CDI specification: not an object")
    try:
        shared = content.get("containerEdits") or {}
        return [
            Device(
                f"{content['kind']}={each['name']}", path, each.get("containerEdits") or {}, shared
            )
            for each in content["devices"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise _unsound(path, error) from None


def _unsound(path, error):
    """The Error for a specification that an exception says to be none."""
    why = str(error)
    if isinstance(error, KeyError):
        why = f"no field {error}"
    elif isinstance(error, (TypeError, AttributeError)):
        why = "something in it is not an object, a list or a string, and should be"
    return Error(f"{path} is no CDI specification: {why}")


def add(view: "container.View", names: "list[str]") -> None:
    """Add devices to what a container sees: CDI names, or paths of the host.

    Raises Error if there is no such device, or if it needs what plash cannot do; OSError.
    """
    wanted: list[Device] = []
    known = problems = None
    for name in names:
        if name.startswith(("/", ".")):
            path = _existing(os.path.abspath(name))
            if not _has_devices(path):
                raise Error(f"not a device: {name} (-b binds files and directories)")
            view.mounts.append(binds.Bind(path, requested=True))
            continue
        if known is None:
            known, problems = devices()
        if name not in known:
            why = f": {problems[0]}" if problems else " (see plash device)"
            raise Error(f"no device: {name or repr(name)}{why}")
        wanted.append(known[name])
    edits = Edits(view)
    seen = set()
    for device in wanted:
        # The edits of a specification come before those of its first device.
        parts = [] if device.path in seen else [device.shared]
        seen.add(device.path)
        for part in [*parts, device.edits]:
            try:
                edits.add(part, device.name)
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise _unsound(device.path, error) from None
    edits.finish()


def _has_devices(path):
    """Whether path is a device, or a directory of devices such as /dev/dri."""
    if os.path.isdir(path):
        found = [entry.stat(follow_symlinks=False) for entry in os.scandir(path)]
    else:
        found = [os.stat(path)]
    return any(stat.S_ISCHR(each.st_mode) or stat.S_ISBLK(each.st_mode) for each in found)


class Edits:
    """Collects the containerEdits of devices, in their order, for a view."""

    def __init__(self, view):
        self.view = view
        self.mounts = []
        self.changes = []  # called with the binds.Points and the mounts
        self.folders = []  # whose libraries the loader is to find
        self.in_dev = []  # paths there that the host's /dev may lack

    def add(self, part, device):
        unknown = {key for key, value in part.items() if value} - KEYS
        if unknown:
            raise Error(f"{device} needs {', '.join(sorted(unknown))}, which plash cannot do")
        for entry in part.get("env") or []:
            name, _, value = entry.partition("=")
            if name not in self.view.given:
                self.view.environment[name] = value
        for node in part.get("deviceNodes") or []:
            source = _existing(node.get("hostPath") or node["path"], device)
            self.in_dev.append(node["path"])
            self.mounts.append(Edit(source, node["path"]))
        for mount in part.get("mounts") or []:
            self.mounts.append(self.mount(mount, device))
        for hook in part.get("hooks") or []:
            self.hook(hook, device)

    def mount(self, mount, device):
        options = set(mount.get("options") or [])
        unknown = options - IGNORED_OPTIONS - set(ATTRIBUTES)
        if unknown or mount.get("type") not in (None, "", "none", "bind"):
            what = ", ".join(sorted(unknown)) or mount["type"]
            raise Error(f"{device} needs a mount of {what}, which plash cannot do")
        attributes = sum(ATTRIBUTES[each] for each in options & set(ATTRIBUTES))
        return Edit(_existing(mount["hostPath"], device), mount["containerPath"], attributes)

    def hook(self, hook, device):
        program, args = os.path.basename(hook["path"]), [*(hook.get("args") or [])][1:]
        args = args[1:] if args[:1] == ["hook"] else args
        name, options = "".join(args[:1]), _options(args[1:])
        known = program in HOOK_PROGRAMS and hook["hookName"] == "createContainer"
        if known and name == "create-symlinks":
            for text, _, path in (value.partition("::") for value in options.get("link", [])):
                self.in_dev.append(path)
                self.changes.append(Link(path, text).place)
        elif known and name == "chmod":
            for path in options["path"]:
                self.changes.append(Mode(path, _number(options["mode"][0], 8)).place)
        elif known and name == "update-ldcache":
            self.folders += options.get("folder", [])
        elif known and name == "enable-cuda-compat":
            version = options.get("host-driver-version", [""])[0]
            if version:
                major = _number(version.split(".")[0], 10)
                self.changes.append(lambda points, _: self.use_compat(points, major))
        elif not (known and name == "disable-device-node-modification"):
            # That one keeps the driver's library from making nodes in /dev: they are the host's.
            what = " ".join([hook["hookName"], program, name]).rstrip()
            raise Error(f"{device} needs the hook {what}, which plash cannot do")

    def use_compat(self, points, major):
        """Prefer the CUDA libraries of the image's own compat package, if they are newer."""
        folder = points.find(points.resolve(COMPAT))
        names = os.listdir(folder) if folder and binds.is_directory(folder) else []
        majors = [name.split(".")[2] for name in names if name.startswith("libcuda.so.")]
        if any(each.isascii() and each.isdigit() and int(each) > major for each in majors):
            self.folders.insert(0, COMPAT)

    def finish(self):
        """Give the view what was collected."""
        view = self.view
        missing = [
            path for path in self.in_dev if path.startswith("/dev/") and not os.path.lexists(path)
        ]
        if missing:
            view.mounts = [
                Devices(missing) if isinstance(each, binds.Bind) and each.target == "/dev" else each
                for each in view.mounts
            ]
        view.mounts += self.mounts
        view.edits += [*self.changes, self.update_cache]

    def update_cache(self, points, mounts):
        """Link the libraries that were mounted to their sonames, and have the loader find them."""
        if not self.folders:
            return
        folders = {points.resolve(folder, mounts) for folder in self.folders}
        for mount in [each for each in mounts if isinstance(each, Edit) and not each.directory]:
            folder, _, name = mount.target.rpartition("/")
            soname = loader.soname(mount.source) if folder in folders else None
            if soname and soname != name and "/" not in soname:
                Link(f"{folder}/{soname}", name).place(points, mounts)
        mounts += points.make_all([loader.Cache(self.folders)])


def _options(args):
    """The values of options, by their names: `--name value` and `--name=value`."""
    options: dict[str, list[str]] = {}
    args = list(args)
    while args:
        name, equals, value = args.pop(0).partition("=")
        if not equals and not args:
            raise ValueError(f"the hook's option {name} has no value")
        options.setdefault(name.lstrip("-"), []).append(value if equals else args.pop(0))
    return options


def _number(text, base):
    try:
        return int(text, base)
    except ValueError:
        raise ValueError(f"not a number: {text!r}") from None


def _existing(path, device=None):
    if not os.path.exists(path):
        what = f"{device} needs {path}" if device else path
        raise Error(f"{what}: {os.strerror(errno.ENOENT)}")
    return path


class Edit(binds.Bind):
    """A device node or a mount of a specification, with attributes of MOUNT_ATTR_*."""

    def __init__(self, source: str, target: str, attributes: int = 0) -> None:
        if target[:1] != "/":
            raise ValueError(f"not an absolute path: {target!r}")
        super().__init__(source, target, requested=True)
        self.attributes = attributes

    def mount(self, path: str) -> None:
        super().mount(path)
        if self.attributes:
            try:
                namespaces.restrict_mount(path, self.attributes)
            except OSError as error:
                raise self.error(error.strerror) from None


class Devices(binds.Mount):
    """All that is in the host's /dev, in a tmpfs that can hold more: the paths missing."""

    private = True

    def __init__(self, missing: "list[str]") -> None:
        super().__init__("/dev")
        self.missing = missing

    def mount(self, path: str) -> None:
        namespaces.mount("plash", path, "tmpfs", namespaces.MS_NOSUID, "mode=0755")
        self._fill("/dev", path)

    def _fill(self, source, target):
        for entry in os.scandir(source):
            point = f"{target}/{entry.name}"
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), point)
                continue
            if entry.is_dir():
                os.mkdir(point, 0o755)
                if any(path.startswith(entry.path + "/") for path in self.missing):
                    self._fill(entry.path, point)
                    continue
            else:
                os.close(os.open(point, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
            namespaces.mount(entry.path, point, flags=namespaces.MS_BIND | namespaces.MS_REC)


def _covering(path, mounts):
    """The last of the mounts that path is at or below; None if there is none."""
    return next(
        (each for each in reversed(mounts) if f"{path}/".startswith(f"{each.target}/")), None
    )


class Change(binds.Mount):
    """A change of one path: in the layer of mount points, or below what is private, once mounted.

    What is the host's stays as it is.
    """

    def place(self, points: binds.Points, mounts: "list[binds.Mount]") -> None:
        parent, _, name = self.target.rstrip("/").rpartition("/")
        self.target = f"{points.resolve(parent or '/', mounts).rstrip('/')}/{name}"
        covering = _covering(self.target, mounts)
        if covering and covering.private:
            mounts.append(self)
        elif not covering:
            try:
                self.change_point(points)
            except OSError as error:
                raise Error(f"cannot change {self.target}: {error.strerror}") from None

    def change_point(self, points: binds.Points) -> None:
        raise NotImplementedError


class Link(Change):
    """A symbolic link with that text."""

    def __init__(self, path: str, text: str) -> None:
        super().__init__(path, directory=False)
        self.text = text

    def change_point(self, points: binds.Points) -> None:
        point = points.directory + self.target
        if os.path.islink(point):
            os.unlink(point)
        points.make(self.target, directory=False)
        os.unlink(point)
        os.symlink(self.text, point)

    def mount(self, path: str) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if not os.path.lexists(path):
            os.symlink(self.text, path)


class Mode(Change):
    """The mode of a directory, if it is there."""

    def __init__(self, path: str, mode: int) -> None:
        super().__init__(path)
        self.mode = mode

    def change_point(self, points: binds.Points) -> None:
        point = points.directory + self.target
        found = points.find(self.target)
        if not os.path.lexists(point):
            if not found:
                return
            if not binds.is_directory(found):
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            points.make(self.target)
            binds.copy_attributes(found, point)
        os.chmod(point, self.mode)

    def mount(self, path: str) -> None:
        if os.path.exists(path):
            os.chmod(path, self.mode)
