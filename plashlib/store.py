"""The data directory: images, and how an image appears.

    format                    marks the directory, and says the version of its format
    id_counter                grows by one byte for each image; its size is the newest id
    layer/0/_data/root        the root directory of the empty image 0
    layer/0/1/_data/root      image 1, on 0; layer/0/1/5 is image 5, on 1
    index/ID                  -> ../layer/0/.../ID
    map/NAME                  -> ../index/ID of the image with that name
    cache/SHA256              -> ../index/ID of the image that a command made
    recall/PROCESS            -> ../index/ID of the image that a process's children made last
    commands/SHA256           the path and the image of a command that push:command wrote
    pidns/PIDNS.BOOT          a pid namespace whose processes used an image, and the boot
    tmp/                      work in progress
    mnt/                      the mount point used in private mount namespaces

An image appears in one rename(2) and goes in one: readers see all of it or nothing.
Files in layers belong to subordinate ids, so what creates or removes layers calls
ids.become_root() first.
"""

import errno
import os

from plashlib import Error, is_number
from plashlib.datadir import EMPTY, exists, init, is_image, location, path

__all__ = ["EMPTY", "exists", "init", "is_image", "location", "path"]

# The kernel's OVL_MAX_STACK, so many lower layers one overlay can have, less plash's own one.
MAX_LAYERS = 500 - 1
PATH_MAX = 4096  # of path_resolution(7), in bytes, the NUL at the end among them
# Files beside an image's layer. An image has these from its parent, unless it is given its own:
# the variables of its processes, with NUL between them, its OCI configuration, and the owners
# that were not kept, by emulate.Watch.
INHERITED = "env", "config.json", "owners"
LAYER, DESCRIPTOR = "layer", "descriptor.json"  # a layer's archive in a registry; what that is
FILE = "file"  # the fingerprint of the squashfs file that the layer is a link to


class Image:
    """An image of the store; path is its directory there, its "nodepath"."""

    def __init__(self, directory: str) -> None:
        self.path = directory
        self.id = os.path.basename(directory)
        self.parent = os.path.basename(os.path.dirname(directory))

    def read(self, name: str) -> "bytes | None":
        """The content of a file beside the image's layer; None if there is none."""
        try:
            with open(f"{self.path}/_data/{name}", "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def _split(self):
        """The directory of the empty image, and the ids from there down to this image."""
        above, _, ids = self.path.rpartition(f"/layer/{EMPTY}")
        return f"{above}/layer/{EMPTY}", ids.split("/")[1:]

    def depth(self) -> int:
        """The number of the image's layers; 0 for the empty image."""
        return len(self._split()[1])

    def ancestry(self) -> "list[Image]":
        """This Image and those it stands on, the lowest first, without the empty image."""
        bottom, ids = self._split()
        return [Image("/".join([bottom, *ids[:depth]])) for depth in range(1, len(ids) + 1)]

    def source(self) -> str:
        """What names the image in /proc/PID/mountinfo: its path, and its identity behind @.

        Raises Error if the image is missing.
        """
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            raise removed_meanwhile(self) from None
        return f"{self.path}@{status.st_dev}:{status.st_ino}"

    def children(self) -> "list[Image]":
        """The images that were built on this one, the lowest id first. Raises OSError."""
        found = [entry.name for entry in os.scandir(self.path) if is_number(entry.name)]
        nodes = [f"{self.path}/{each}" for each in sorted(found, key=int)]
        return [Image(each) for each in nodes if is_image(each)]

    def open_layers(self) -> "list[int | str]":
        """Open the layers' root directories, the topmost first.

        Returns a descriptor for each, or the path of a squashfs file that is yet to be mounted.
        Raises Error if the image, or what it links to, is missing.
        """
        from plashlib import namespaces

        opened: "list[int | str]" = []
        mark_used(self.id)
        _note_pid_namespace()
        namespaces.allow_open_files(self.depth())
        try:
            node = os.open(self.path, os.O_PATH | os.O_CLOEXEC)
            for _ in range(self.depth()):
                try:
                    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
                    opened.append(os.open("_data/root", flags, dir_fd=node))
                except NotADirectoryError:
                    opened.append(_linked_file(node))
                above = os.open("..", os.O_PATH | os.O_CLOEXEC, dir_fd=node)
                os.close(node)
                node = above
        except FileNotFoundError:
            for image in self.ancestry():
                root = image.path + "/_data/root"
                if os.path.islink(root) and not os.path.exists(root):
                    raise Error(
                        f"image {image.id} is a link to {os.readlink(root)}, which is missing"
                    ) from None
            raise Error(f"no image: {self.id}") from None
        os.close(node)
        return opened


def mark_used(image_id: str) -> None:
    """Note that an image is used now: the modification time of its link in index/ tells when."""
    try:
        os.utime(f"{path()}/index/{image_id}", follow_symlinks=False)
    except OSError:
        pass  # it is gone, or another user's store


def _note_pid_namespace():
    """Note that processes of this pid namespace use the store, for processes.hidden_users()."""
    from plashlib import namespaces

    try:
        name = f"{namespaces.pid_namespace()}.{namespaces.boot_id()}"
        os.close(os.open(f"{path()}/pidns/{name}", os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError:
        pass  # known already, no /proc, or another user's store


def last_used(image_id: str) -> float:
    """When an image was used last, else made, in seconds since the epoch. Raises OSError."""
    return os.lstat(f"{path()}/index/{image_id}").st_mtime


def _linked_file(node):
    """The squashfs file that the image in the open directory node links to. Raises Error."""
    file = os.readlink("_data/root", dir_fd=node)
    with open(os.open(f"_data/{FILE}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=node), "rb") as opened:
        if opened.read() != fingerprint(file):
            raise Error(f"{file} has changed since it was linked (link it again)")
    return file


def fingerprint(file: str) -> bytes:
    """A fingerprint of a file: its size and modification time. Raises OSError."""
    status = os.stat(file)
    return b"%d %d" % (status.st_size, status.st_mtime_ns)


def node(image_id: str) -> str:
    """The directory that index/ has for an id. Raises OSError if it has none."""
    data = path()
    return os.path.normpath(f"{data}/index/{os.readlink(f'{data}/index/{image_id}')}")


def empty() -> Image:
    """The empty image, on which root filesystems are stacked. Raises Error."""
    return Image(f"{path()}/layer/{EMPTY}")


def image(text: str, allow_empty: bool = False) -> Image:
    """The Image whose id is text, a positive decimal number, or "0" if that is allowed.

    Text that is no number is a name of map/. Raises Error if there is no such image.
    """
    if not is_number(text):
        return _named(text)
    if text != EMPTY and text[0] == "0":
        raise Error(f"not an image id: {text!r}")
    if text == EMPTY and not allow_empty:
        raise Error("image 0 is the empty root image, which this command does not take")
    try:
        directory = node(text)
        os.lstat(directory + "/_data/root")
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
            raise
        raise Error(f"no image: {text}") from None
    return Image(directory)


def _named(name):
    """The Image with a name of map/. Raises Error if there is none."""
    if name not in ("", ".", "..") and "/" not in name and len(os.fsencode(name)) < 256:
        link = f"{path()}/map/{name}"
        if os.path.lexists(link):
            try:
                os.stat(link)
            except FileNotFoundError:
                raise Error(f"no image: the one with the name {name!r} was removed") from None
            return Image(node(os.path.basename(os.readlink(link))))
    raise Error(f"no image: {name!r} is neither an id nor a name")


def images() -> "list[Image]":
    """All Images, the lowest id first, without the empty one. Raises Error, OSError."""
    found = []
    numbers = sorted(int(each) for each in os.listdir(path() + "/index") if is_number(each))
    for number in numbers:
        try:
            directory = node(str(number))
        except OSError:
            continue  # removed meanwhile, or nothing of plash's
        if number and is_image(directory):
            found.append(Image(directory))
    return found


def is_below(inside: str, outside: str) -> bool:
    """Whether inside is the directory outside, or in it; both absolute, without symbolic links."""
    return (inside + "/").startswith(outside.rstrip("/") + "/")


def is_part(directory: str) -> bool:
    """Whether an absolute path without links is the data directory, or in it but not in tmp/."""
    return is_below(directory, path()) and not directory.startswith(path() + "/tmp/")


def removed_meanwhile(image: Image) -> Error:
    """The Error for an Image that was there a moment ago."""
    return Error(f"no image: {image.id} (it was removed meanwhile)")


def stack(
    directory: str,
    parent: Image,
    config: "dict[str, bytes] | None" = None,
    file: "str | None" = None,
) -> Image:
    """Make directory the layer of a new image on parent.

    config  files beside the layer: names to contents. Those of INHERITED that it lacks are
            the parent's; without history.FILE, this process's argv made the image
    file    the path of the layer's archive, which gets a second name there

    directory is moved into the store in one rename(2): readers see all of it or nothing.
    Raises Error if parent was removed meanwhile or has as many layers as can be mounted, and
    OSError, such as EXDEV if directory is on another filesystem; then directory is unharmed.
    """
    from plashlib import history, locks, namespaces

    require_room(parent)
    data = path()
    new_id = _next_id(data)
    if durable():
        fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
        namespaces.syncfs(fd)
        os.close(fd)
    link, directory_of_new = f"{data}/index/{new_id}", f"{parent.path}/{new_id}"
    # removal.forget_missing() removes links that lead nowhere, as this one does for a moment: it
    # takes the same lock.
    lock = locks.lock(data + "/index", shared=True)
    os.symlink(f"..{directory_of_new[len(data) :]}", link)
    try:
        os.mkdir(directory_of_new)
        os.mkdir(directory_of_new + "/_data")
        files = {name: parent.read(name) for name in INHERITED}
        files[history.FILE] = history.made()
        for name, content in {**files, **(config or {})}.items():
            assert "/" not in name
            if content:
                _write(f"{directory_of_new}/_data/{name}", content)
        if file:
            os.link(file, f"{directory_of_new}/_data/{LAYER}")
        # One rename, from the user's own directory too: killed before, it is where it was.
        os.rename(directory, directory_of_new + "/_data/root")
    except BaseException as error:
        if not is_image(directory_of_new):
            discard(link, directory_of_new)
        if isinstance(error, FileNotFoundError) and not os.path.exists(parent.path):
            raise removed_meanwhile(parent) from None
        raise
    finally:
        os.close(lock)
    if durable():
        for changed in directory_of_new + "/_data", directory_of_new, parent.path, data + "/index":
            sync_directory(changed)
    return Image(directory_of_new)


def _write(file, content):
    with open(file, "wb") as opened:
        opened.write(content)
        if durable():
            os.fsync(opened.fileno())


def discard(link: str, directory: str) -> None:
    """Remove what stack() creates before the image is there."""
    from plashlib import history

    beside = (*INHERITED, history.FILE, LAYER, DESCRIPTOR, FILE)
    files = [(os.unlink, f"{directory}/_data/{name}") for name in beside]
    rest = [(os.rmdir, directory + "/_data"), (os.rmdir, directory), (os.unlink, link)]
    for remove, name in [*files, *rest]:
        try:
            remove(name)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
                raise


def durable() -> bool:
    """Whether what becomes visible must be on the disk first: yes, unless PLASH_NO_SYNC=1."""
    return os.environ.get("PLASH_NO_SYNC") != "1"


def require_room(parent: Image) -> None:
    """Raise Error if one more layer on parent could never be mounted."""
    if parent.depth() >= MAX_LAYERS:
        raise Error(
            f"image {parent.id} has {MAX_LAYERS} layers, the most that the kernel mounts"
            " (push and pull it to make them one)"
        )
    below = os.path.getsize(path() + "/id_counter") + 1
    if len(os.fsencode(f"{parent.path}/{below}/_data/{DESCRIPTOR}")) >= PATH_MAX:
        raise Error(
            f"image {parent.id} has {parent.depth()} layers, and the path of one more would be"
            " longer than a path can be (push and pull it to make them one)"
        )


def _next_id(data):
    """Take the next id: append a byte to the counter; the offset behind it is the id."""
    fd = os.open(data + "/id_counter", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(fd, b".")
        return os.lseek(fd, 0, os.SEEK_CUR)
    finally:
        os.close(fd)


def sync_directory(directory: str) -> None:
    """fsync(2) a directory."""
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
