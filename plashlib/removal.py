"""Removal of images: they go in one rename(2), and their files are deleted afterwards."""

import os

from plashlib import Error, locks, mountinfo, processes, store, work


def remove(
    images: "list[store.Image]", observer: processes.Observer, used: str = "refuse"
) -> "list[tuple[str, str]]":
    """Remove Images, children before their parents, with all that was built on them.

    observer was started before this process entered a user namespace. used says what happens to
    images that processes use: "refuse" raises an Error that names the pids, and removes nothing;
    "keep" leaves them; "remove" removes them too.

    A background process deletes their files. Returns the names that were removed too, as pairs
    of name and id. Raises Error if an image is missing.
    """
    with work.Work(work.REMOVED + os.urandom(8).hex()) as removed:
        lock = locks.lock(store.path() + "/index")
        away = []
        try:
            # The first look leaves images in use where they are. The second one finds processes
            # that came meanwhile; processes that come later find that the image is gone.
            images = _removable(images, observer, used)
            for image in images:
                os.rename(image.path, f"{removed.path}/{image.id}")
                away.append(image)
            kept = set(away) - set(_removable(away, observer, used))
        except BaseException as error:
            _put_back(removed, away)
            if isinstance(error, FileNotFoundError):
                missing = [image.id for image in images if not os.path.exists(image.path)]
                raise Error(f"no image: {', '.join(missing)}") from None
            raise
        _put_back(removed, [image for image in away if image in kept])
        names = _forget_missing_locked()
        os.close(lock)
        removed.delete_in_background()
    return names


def _removable(images, observer, used):
    """Those of the Images that may be removed by remove()'s rule for images in use."""
    using = {}
    if used != "remove":
        using = observer.image_users()
        refuse_hidden_users("" if used == "keep" else ", or use --force")
    points = mountinfo.below(store.path() + "/layer")  # once, however many images there are
    for image in images:
        if used == "refuse" and image.path in using:
            raise in_use(f"image {image.id}", using[image.path])
        for point in points:
            if f"{point}/".startswith(f"{image.path}/"):
                raise Error(f"image {image.id} has a mount at {point} (unmount it first)")
    return [image for image in images if image.path not in using]


def refuse_hidden_users(remedy: str) -> None:
    """Raise Error if processes of other pid namespaces may use images, unseen from this one."""
    if processes.hidden_users(store.path()):
        raise Error(
            "images were used outside of this pid namespace, where processes can't be seen"
            f" (remove them there{remedy})"
        )


def _put_back(removed, images):
    for image in reversed(images):
        os.rename(f"{removed.path}/{image.id}", image.path)


def in_use(what: str, pids: "set[int]") -> Error:
    """The Error that names the processes that use something."""
    listed = ", ".join(map(str, sorted(pids)))
    plural = "es" if len(pids) > 1 else ""
    return Error(f"{what} is in use by process{plural} {listed} (use --force to remove it anyway)")


def forget_missing() -> None:
    """Remove links to images that are missing, and what is known of processes that have ended.

    Raises Error, OSError.
    """
    lock = locks.lock(store.path() + "/index")
    _forget_missing_locked()
    os.close(lock)
    for entry in os.scandir(store.path() + "/recall"):
        if not processes.marks_live_process(entry.name):
            os.unlink(entry.path)
    processes.forget_pid_namespaces(store.path())


def _forget_missing_locked():
    """Like forget_missing(), for callers that hold the lock of index/.

    Returns the names that were removed, as pairs of name and id.
    """
    data = store.path()
    for entry in os.scandir(data + "/index"):
        if entry.is_symlink() and entry.name.isdigit():
            node = store.node(entry.name)
            if not store.is_image(node):
                store.discard(entry.path, node)
    removed = []
    for directory in "map", "cache":
        for entry in os.scandir(f"{data}/{directory}"):
            if not entry.is_symlink():
                continue  # no link of plash's
            image_id = os.path.basename(os.readlink(entry.path))
            if not os.path.exists(entry.path):
                try:
                    os.unlink(entry.path)
                except FileNotFoundError:
                    continue  # `map NAME ''` was faster
                if directory == "map":
                    removed.append((entry.name, image_id))
    return sorted(removed)
