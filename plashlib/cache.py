"""Ids that commands printed: by the inputs of those, for `cache`, and by session, for `recall`.

Standard modules that are slow to import are left to the calls that run a command.
"""

import os
import sys

from plashlib import Error, docs, headers, inputs, names, namespaces, processes, store, work

TYPE_CHECKING = False  # for a type checker, which takes it for true
if TYPE_CHECKING:
    from collections.abc import Callable


def cached(
    key: "list[str]",
    make: "Callable[[], str]",
    anew: bool = False,
    are_same: "Callable[[], bool] | None" = None,
) -> str:
    """The id of the image that is remembered for key; else the one that make() returns.

    anew      call make() in any case, as PLASH_NO_CACHE=1 says too
    are_same  tells after make() whether the inputs are still those of key: only then the id is
              remembered

    Of processes that ask for the same at once, one calls make(), and the others wait for it; if
    it ends without an id, the next one does. Raises Error, OSError, and what make() raises.
    """
    # No argument holds a NUL, so no two keys are joined to the same.
    digest = inputs.sha256(b"\0".join(map(os.fsencode, key))).hexdigest()
    link = f"{store.path()}/cache/{digest}"
    anew = anew or os.environ.get("PLASH_NO_CACHE") == "1"
    image_id = None if anew else names.target(link)
    if not image_id:
        with work.Work("cache." + digest):
            image_id = None if anew else names.target(link)
            if not image_id:
                image_id = make()
                if not are_same or are_same():
                    names.point(link, image_id)
    store.mark_used(image_id)
    return image_id


def remembered(
    argv: "list[str]", anew: bool = False, begin: "Callable[[], None] | None" = None
) -> str:
    """The id of the image that a plash command makes, or made before from the same inputs.

    anew says to make it in any case; begin is called before that. Exits and raises as
    printed(), and raises as inputs.Inputs.
    """
    if argv[0] in ("check", "build:file"):
        # They remember, by content.
        if anew:
            os.environ["PLASH_NO_CACHE"] = "1"
        if begin:
            begin()
        return printed(argv)
    found = inputs.Inputs(argv)

    def make():
        if begin:
            begin()
        return printed(found.argv, found.stdin or b"")

    return cached(found.key, make, anew, found.are_same)


def printed(argv: "list[str]", stdin: "bytes | None" = None) -> str:
    """Run a plash command; returns the id that it prints.

    stdin is what it reads there, unless that is a terminal; None for this process's stdin.

    Exits with its status if it fails. Raises Error if what it prints is not the id of an image.
    """
    command = docs.find(argv[0])
    header = docs.header(command) if command else None
    if header and header.prints and not header.prints_new_image(argv[1:]):
        raise Error(f"`plash {argv[0]}` makes no image, so there is nothing to remember")
    reader, writer = os.pipe()

    def run():
        # It undoes its work then, as for Ctrl-C.
        namespaces.die_with_parent(namespaces.SIGTERM)
        os.dup2(writer, 1)
        if stdin or stdin is not None and not os.isatty(0):
            os.dup2(_readable(stdin), 0)
        become(argv)

    child = processes.Child(run)
    os.close(writer)
    try:
        with open(reader, encoding="utf-8", errors="replace") as file:
            output = file.read()
        status = child.wait()
    except BaseException as error:
        # A Ctrl-C reached the child as well, which now undoes its work: no other signal then.
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
            f"`plash {argv[0]}` did not print an image id, so there is nothing to remember"
        ) from None


def _readable(content):
    """A descriptor that content can be read from."""
    if not content:
        return os.open(os.devnull, os.O_RDONLY)
    fd = os.memfd_create("stdin")
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


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


def recall(argv: "list[str]", remember: bool = False) -> None:
    """Run a plash command with the session's image as its ID, and save the id that it prints.

    remember says that remembered() may answer for it. Does not return if the command makes no
    image: this process becomes that command. Raises Error if it takes an ID and there is none.
    """
    file = docs.find(argv[0])
    header = docs.header(file)
    roles, operands = header.roles(argv[1:]), [each.name for each in header.operands()]
    if header.takes_image():
        first = 1 + (roles.index(headers.OPERAND) if headers.OPERAND in roles else len(roles))
        argv = [*argv[:first], saved(), *argv[first:]]
    elif "ID" in operands[1:] and roles.count(headers.OPERAND) == operands.index("ID"):
        argv = [*argv, saved()]  # as for `map NAME`
    if file and not header.prints_new_image(argv[1:]):
        become(argv)
    if not file or not remember:
        _begin()
    if not file:
        become(argv)
    try:
        image_id = remembered(argv, begin=_begin) if remember else printed(argv)
    except BaseException:
        _begin()
        raise
    save(image_id)


# Each of this process's ancestors in the session has an id saved: the last that was printed below
# it. So the shells and scripts of a session share one, and scripts that run at once don't disturb
# each other.
#
# While a step makes an image, the links of these lead to UNFINISHED, the id before and the step's
# process: a step that ended without an image has failed, however it ended. A shell that a person
# types in keeps the id before.

UNFINISHED = "unfinished"


def _links():
    return [f"{store.path()}/recall/{processes.mark(pid)}" for pid in processes.ancestors()]


def _begin():
    """Note that a step of this process begins, for its ancestors but a person's shell."""
    step = processes.mark(os.getpid())
    for link in _links()[: -1 if _has_job_control() else None]:
        before = os.path.basename(os.readlink(link)) if os.path.lexists(link) else store.EMPTY
        if UNFINISHED not in before:
            names.point(link, f"{step}.{UNFINISHED}.{before}")


def _has_job_control():
    """Whether the session's leader is a shell on a terminal that runs this as a job of its own."""
    leader = os.getsid(0)
    try:
        with open(f"/proc/{leader}/stat", encoding="utf-8", errors="replace") as file:
            _, _, group, _, terminal = file.read().rpartition(")")[2].split()[:5]
    except OSError:
        return False
    ancestors = processes.ancestors()
    is_ancestor = ancestors[-1:] == [str(leader)]
    return is_ancestor and terminal != "0" and int(group) != os.getpgrp()


def saved() -> str:
    """The id that was saved for the nearest ancestor that has one. Raises Error if none has."""
    for link in _links():
        if not os.path.lexists(link):
            continue
        image_id = os.path.basename(os.readlink(link))
        step, unfinished, before = image_id.partition(f".{UNFINISHED}.")
        if unfinished:
            if not processes.marks_live_process(step):
                raise Error(
                    "a step before this one failed (begin again with one such as"
                    " `plash do pull:lxc alpine:edge`)"
                )
            image_id = before
        if image_id == store.EMPTY:
            continue
        if os.path.exists(f"{store.path()}/index/{image_id}"):
            return image_id
        raise Error(
            f"image {image_id}, the session's last, was removed;"
            " begin again with one such as `plash do pull:lxc alpine:edge`"
        )
    raise Error(
        "the session has no image yet; begin with one such as `plash do pull:lxc alpine:edge`"
    )


def save(image_id: str) -> None:
    """Save an id for this process's ancestors in its session. Raises Error, OSError."""
    for link in _links():
        if names.target(link) != image_id:
            names.point(link, image_id)
