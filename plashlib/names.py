"""Symbolic links to images: map/ for names, cache/ and recall/ for what commands remember.

A link leads to index/ID. It is replaced by rename(2), so it leads to a whole image or to nothing.
"""

import os

from plashlib import Error, is_number, store


def target(link: str) -> "str | None":
    """The id of the image that a link leads to; None if there is no link, or no image."""
    try:
        return os.path.basename(os.readlink(link)) if os.path.exists(link) else None
    except OSError:
        return None  # no link, and nothing of plash's


def point(link: str, image_id: str) -> None:
    """Make a link lead to an image from now on."""
    from plashlib import locks

    # removal.forget_missing() looks whether a link leads somewhere and then removes it: it takes
    # the same lock, lest it remove what the link has become meanwhile.
    lock = locks.lock(store.path() + "/index", shared=True)
    try:
        _point(link, f"../index/{image_id}")
    finally:
        os.close(lock)


def _point(link, to):
    while True:
        try:
            os.symlink(to, link)
            return
        except FileExistsError:
            pass
        temporary = f"{store.path()}/tmp/{os.urandom(8).hex()}"
        os.symlink(to, temporary)
        try:
            os.rename(temporary, link)
            return
        except FileNotFoundError:
            continue  # `plash clean` took it for garbage


def _link(name):
    if is_number(name):
        raise Error(f"not a name: {name!r} (a number is an id)")
    if not name.isprintable():
        raise Error(f"not a name: {name!r} (it has control characters)")
    if name in ("", ".", "..") or "/" in name or len(os.fsencode(name)) > 255:
        raise Error(f"not a name: {name!r} (a name is a file name: no /, at most 255 bytes)")
    return f"{store.path()}/map/{name}"


def lookup(name: str) -> "str | None":
    """The id of the image with that name; None if there is none.

    Raises Error for a bad name, or if the data directory cannot be used.
    """
    return target(_link(name))


def assign(name: str, image: store.Image) -> None:
    """Give an Image a name, which may have been another's. Raises Error for a bad name."""
    point(_link(name), image.id)
    if store.durable():
        store.sync_directory(store.path() + "/map")


def remove(name: str) -> None:
    """Remove a name; it may be missing. Raises Error for a bad name, OSError."""
    try:
        os.unlink(_link(name))
    except FileNotFoundError:
        pass


def all_names() -> "list[tuple[str, str]]":
    """All names with the ids of their images, sorted."""
    directory = store.path() + "/map"
    found = [(name, target(f"{directory}/{name}")) for name in sorted(os.listdir(directory))]
    return [(name, image_id) for name, image_id in found if image_id and _is_valid(name)]


def _is_valid(name):
    """Whether a name is one that assign() gives, rather than a link of somebody else's."""
    try:
        return bool(_link(name))
    except Error:
        return False
