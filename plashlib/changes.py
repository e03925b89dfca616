"""Directories outside of the store that keep what is written on top of an image."""

import os

from plashlib import Error, locks, store

IMAGE = "image"  # the file that holds the id of the image that the changes belong to


def claim(directory: str, image: store.Image) -> None:
    """Make an empty directory, or one that was claimed before, keep changes of the Image.

    No other process can claim it before this one ends or becomes a command; by then it has an
    overlay mounted, which container.mount_root() finds. Raises Error if another process has it, if
    it holds something else, or another image's changes, and OSError.
    """
    if store.is_part(os.path.realpath(directory)):
        raise Error(f"{directory} is in the data directory, which is plash's own")
    if not locks.try_lock(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)):
        raise Error(f"{directory} is in use by another process")
    file = f"{directory}/{IMAGE}"
    if _is_older(directory):
        _write(file, image)
        return
    try:
        with open(file, encoding="utf-8", errors="replace") as opened:
            owner = opened.read(100).strip()
    except FileNotFoundError:
        raise Error(f"{directory} is not empty, and holds no changes of an image") from None
    if not owner:
        _write(file, image)  # a process was killed before it had written it
    elif owner != image.id:
        raise Error(f"{directory} holds changes of image {owner}, not of {image.id}")


def is_claimed(directory: str) -> bool:
    """Whether a directory, which is not empty, keeps changes of an image. Raises OSError."""
    return {"data", IMAGE, "work"} == set(os.listdir(directory)) or _is_older(directory)


def _write(file, image):
    with open(file, "w", encoding="utf-8") as opened:
        opened.write(image.id + "\n")


def _is_older(directory):
    """Whether a directory is empty, or one of the time before there was a file `image`."""
    names = set(os.listdir(directory))
    if not names:
        return True
    try:
        # The kernel makes work/work, with mode 0.
        status = os.stat(directory + "/work/work")
        return names == {"data", "work"} and status.st_mode & 0o777 == 0
    except OSError:
        return False
