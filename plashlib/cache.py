"""Ids that commands printed: by the argv that made them, for `cache`, and by session, for `recall`.

Standard modules that are slow to import are left to the calls that run a command.
"""

import os
import sys

from plashlib import Error, docs, headers, names, namespaces, processes, store, work


def cached(argv, make):
    """The id of the image that is remembered for argv, a list; else the one that make() returns.

    Order and image_id of the argv matter. Of processes that ask for the same at once, one
    calls make(), and the others wait for it; where it ends without an id, the next one does.
    """
    link = f"{store.path()}/cache/{_digest(argv)}"
    image_id = names.target(link)
    if image_id:
        return image_id
    with work.Work("cache." + os.path.basename(link)):
        image_id = names.target(link)
        if not image_id:
            image_id = make()
            names.point(link, image_id)
    return image_id


def _digest(argv):
    # As the standard library's random does it: hashlib loads OpenSSL, a third of Python's own start.
    try:
        from _sha2 import sha256
    except ImportError:
        try:
            from _sha256 import sha256
        except ImportError:
            from hashlib import sha256
    # No word holds a NUL, so no two lists of argv are joined to the same.
    return sha256(b"\0".join(map(os.fsencode, argv))).hexdigest()


def printed(argv):
    """Run a plash command; returns the id that it prints.

    Exits with its status where it fails. Raises Error where what it prints is no image's id.
    """
    reader, writer = os.pipe()

    def run():
        # It undoes its work then, as for Ctrl-C.
        namespaces.die_with_parent(namespaces.SIGTERM)
        os.dup2(writer, 1)
        become(argv)

    child = processes.Child(run)
    os.close(writer)
    try:
        with open(reader, encoding="utf-8", errors="replace") as file:
            output = file.read()
        status = child.wait()
    except BaseException as error:
        # A Ctrl-C reached the child as well; another signal while it undoes its work would be one too many.
        if not isinstance(error, KeyboardInterrupt):
            os.kill(child.pid, namespaces.SIGTERM)
        child.wait()
        raise
    if status:
        sys.exit(status)
    try:
        return store.image(output.rstrip("\n")).id
    except Error:
        raise Error(
            f"`plash {argv[0]}` printed no id of an image; there is nothing to remember"
        ) from None


def become(argv):
    """Become the plash command of these argv, with plash's own commands first on PATH."""
    path = os.environ.get("PATH", "")
    if path.partition(":")[0] != docs.own:
        path = f"{docs.own}:{path}"
    file = docs.find(argv[0])
    if not file:
        file, argv = docs.find("help"), ["help", "--", *argv[:1]]
    namespaces.default_signals()
    os.execve(file, [file, *argv[1:]], {**os.environ, "PATH": path})


def recall(argv, remembered=False):
    """Run a plash command with the session's image as its ID, and save the id that it prints for the session.

    remembered says that cached() may answer for it. Does not return where the command prints
    no id: this process becomes that command. Raises Error where it takes an ID and there is none.
    """
    header = docs.header(docs.find(argv[0]))
    if header.takes_image():
        roles = header.roles(argv[1:])
        first = 1 + (roles.index(headers.OPERAND) if headers.OPERAND in roles else len(roles))
        argv = [*argv[:first], saved(), *argv[first:]]
    if not header.prints_new_image():
        become(argv)
    save(cached(argv, lambda: printed(argv)) if remembered else printed(argv))


# Each of this process's ancestors in the session has an id saved: the last that was printed below it. So
# the shells and scripts of a session share one, and scripts that run at once don't disturb each other.


def _links():
    return [f"{store.path()}/recall/{processes.mark(pid)}" for pid in processes.ancestors()]


def saved():
    """The id that was saved for the nearest ancestor that has one. Raises Error where there is none."""
    for link in _links():
        if os.path.lexists(link):
            image_id = names.target(link)
            if image_id:
                return image_id
            gone = os.path.basename(os.readlink(link))
            raise Error(
                f"image {gone}, the session's last, was removed; begin again with one such as `plash do pull:lxc`"
            )
    raise Error(
        "the session has no image yet; begin with one such as `plash do pull:lxc alpine:edge`"
    )


def save(image_id):
    """Save an id for this process's ancestors in its session."""
    for link in _links():
        if names.target(link) != image_id:
            names.point(link, image_id)
