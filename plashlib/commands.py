"""Commands of the host that `plash push:command` wrote, and which of them lost their image.

commands/HASH, in the data directory, has the path of one and the image that it names.
"""

import os

from plashlib import Error, atomic, store

MARK = "# Written by plash push:command."


def is_own(path: str) -> bool:
    """Whether push:command wrote the file at path. Raises OSError."""
    with open(path, "rb") as file:
        return MARK.encode() in file.read(200).splitlines()


def record(path: str, image: str) -> None:
    """Remember the command at path, which runs the image of that id or name."""
    import hashlib

    directory = store.path() + "/commands"
    os.makedirs(directory, exist_ok=True)
    name = hashlib.sha256(os.fsencode(path)).hexdigest()
    with atomic.whole_file(f"{directory}/{name}", store.durable()) as file:
        file.write(os.fsencode(f"{path}\0{image}"))


def blind() -> "list[tuple[str, str]]":
    """The commands that are there and whose image is not, as pairs of path and image.

    What is remembered of commands that are gone is removed.
    """
    directory = store.path() + "/commands"
    found = []
    for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
        with open(f"{directory}/{name}", "rb") as file:
            path, _, image = os.fsdecode(file.read()).partition("\0")
        try:
            if not is_own(path):
                continue
        except FileNotFoundError:
            try:
                os.unlink(f"{directory}/{name}")
            except OSError:
                pass  # another process's, or a store that can only be read
            continue
        except OSError:
            continue
        try:
            store.image(image)
        except Error:
            found.append((path, image))
    return sorted(found)
