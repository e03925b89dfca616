"""Removal of images: they go in one rename(2), and their files are deleted afterwards."""

import errno
import os

from plashlib import Error, locks, mountinfo, names, processes, store, work


def remove(
    images: "list[store.Image]",
    observer: processes.Observer,
    used: str = "refuse",
    recursive: bool = True,
) -> "list[tuple[str, str]]":
    """Remove Images, children before their parents.

    observer   was started before this process entered a user namespace
    used       what happens to images that processes use: "refuse" raises an Error that names the
               pids, and removes nothing; "remove" removes them too; "keep" leaves them, and those
               that have a name, that another user made, or that others were built on
    recursive  remove what was built on them too; else that is an Error

    A background process deletes their files. Returns the names that were removed too, as pairs
    of name and id. Raises Error if an image is missing, OSError.
    """
    try:
        removed = work.Work(work.REMOVED + os.urandom(8).hex())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return _remove_on_full_disk(images, observer, used, recursive)
    with removed:
        lock = locks.lock(store.path() + "/index")
        away = []
        try:
            # The first look leaves images in use where they are. The second one finds processes
            # that came meanwhile; processes that come later find that the image is gone.
            images = _removable(_chosen(images, used, recursive), observer, used)
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
        gone = _forget_missing_locked()
        os.close(lock)
        removed.delete_in_background()
    return gone


def _remove_on_full_disk(images, observer, used, recursive):
    """As remove(), where there is no room for a directory; their files are deleted at once."""
    lock = locks.lock(store.path() + "/index")
    for image in _removable(_chosen(images, used, recursive), observer, used):
        directory = f"{store.path()}/tmp/{work.REMOVED}{os.urandom(8).hex()}"
        its_lock = locks.lock(image.path)
        os.rename(image.path, directory)
        if _removable([image], observer, used):
            work.delete(directory)
        else:
            os.rename(directory, image.path)
        os.close(its_lock)
    gone = _forget_missing_locked()
    os.close(lock)
    return gone


def _chosen(images, used, recursive):
    """Those of the Images that go by remove()'s rules; index/ is locked, so there come no more."""
    if used != "keep" and recursive:
        return images
    owner = os.stat(store.path()).st_uid
    named = {image_id for _, image_id in names.all_names()}
    chosen: dict[str, store.Image] = {image.path: image for image in images if used != "keep"}
    for image in images:
        try:
            others = [child.id for child in image.children() if child.path not in chosen]
            own = os.stat(image.path).st_uid == owner
        except FileNotFoundError:
            if used == "keep":
                continue
            raise Error(f"no image: {image.id}") from None
        if used == "keep":
            if own and not others and image.id not in named:
                chosen[image.path] = image
        elif others:
            raise Error(
                f"image {image.id} has images that were built on it: {', '.join(others)}"
                " (use --recursive to remove them too)"
            )
    return [*chosen.values()]


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
            if store.is_below(point, image.path):
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
            try:
                os.unlink(entry.path)
            except OSError:
                pass  # another command was faster, or it is none of plash's
    processes.forget_pid_namespaces(store.path())


def _forget_missing_locked():
    """Like forget_missing(), for callers that hold the lock of index/.

    Returns the names that were removed, as pairs of name and id.
    """
    data = store.path()
    for entry in os.scandir(data + "/index"):
        if entry.is_symlink() and entry.name.isdigit():
            try:
                node = store.node(entry.name)
                if not store.is_image(node):
                    store.discard(entry.path, node)
            except OSError:
                pass  # it is damaged, and plash doctor says what to do
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
