"""Root of a user namespace, and subordinate ids: subuid(5), newuidmap(1), getsubids(1).

Inside, 0 is the caller's own id, and 1 and up are its subordinate ids.
"""

import os

from plashlib import Error, is_number, namespaces

UIDS, GIDS = 1, 2  # bits that name the kinds of ids
FILES = ("newuidmap", "/etc/subuid", ()), ("newgidmap", "/etc/subgid", ("-g",))
NOT_CONFIGURED = "no subordinate ids in"
ALL_IDS = 4294967295  # how many the initial user namespace maps

_made_namespace = False


def become_root(keep_ids: "tuple[int, int] | None" = None) -> None:
    """Become uid 0 and gid 0 of a new user namespace; root with its capabilities stays root.

    newuidmap(1) and newgidmap(1) map the caller's subordinate ids. If there are none, or if
    these programs are missing or may not, only the caller's own id is mapped, and
    setgroups(2) is denied; then fallback() says why. With PLASH_NO_UNSHARE=1 the caller says
    that it is in such a namespace already.

    keep_ids  the uid and gid that the caller's own are inside, instead of 0. All
              capabilities are there until execve(2), as for root

    Raises Error.
    """
    uid, gid = os.geteuid(), os.getegid()
    if os.environ.get("PLASH_NO_UNSHARE") == "1":
        return
    if may_mount():
        return
    global _made_namespace
    _made_namespace = True
    reader, writer = os.pipe()
    inside = keep_ids or (0, 0)
    pid = _start_mapper(reader, (uid, gid), inside)
    namespaces.unshare(namespaces.CLONE_NEWUSER)
    os.write(writer, b"\n")
    os.close(reader)
    os.close(writer)
    failed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if pid else UIDS | GIDS
    maps = (UIDS, "uid_map", uid, inside[0]), (GIDS, "gid_map", gid, inside[1])
    for bit, file, outside, own in maps:
        if failed & bit:
            try:
                if file == "gid_map":
                    _write("/proc/self/setgroups", "deny")
                _write("/proc/self/" + file, f"{own} {outside} 1")
            except OSError as error:
                raise Error(f"cannot write {file}: {namespaces.reason(error)}") from None


def may_mount() -> bool:
    """Whether this process is root, and has the capability to mount."""
    read = namespaces.PR_CAPBSET_READ
    return os.geteuid() == 0 and namespaces.prctl(read, namespaces.CAP_SYS_ADMIN) == 1


def become_other(uid: int, gid: int) -> None:
    """Become uid and gid of a new user namespace in which this process has its one id.

    Its capabilities are there until execve(2). Raises Error, OSError.
    """
    own = os.geteuid(), os.getegid()
    namespaces.unshare(namespaces.CLONE_NEWUSER)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{uid} {own[0]} 1")
    _write("/proc/self/gid_map", f"{gid} {own[1]} 1")


def _start_mapper(reader, own, inside):
    """Start a process that maps this one's ids when a line comes out of reader; returns its pid.

    It has to be there first, because the right to use subordinate ids is held outside of the
    new namespace. The bits of its exit status tell which ids were not mapped. None if there is
    nothing to map.
    """
    if own[0] == 0:
        # Root of a container, without the capability to mount there: all ids that it has.
        maps = zip(("uid", "gid"), own, inside)
        codes = [_same_ids(kind) for kind, _, _ in maps]
    else:
        codes = [
            _map_code(program, own_id, as_id, subordinate(file, own[0], options))
            for (program, file, options), own_id, as_id in zip(FILES, own, inside)
        ]
    if codes == ["false", "false"]:
        return None
    # A shell, which starts while this process loads ctypes, is faster than forks of this process;
    # it runs both at once.
    code = (
        f"read line && {{ {codes[0]} & {codes[1]}; gids=$?; wait $!;"
        f" exit $((($? != 0) * {UIDS} + (gids != 0) * {GIDS})); }}"
    )
    try:
        return os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", code],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, reader, 0)],
        )
    except FileNotFoundError:
        return None


def _same_ids(kind):
    """Shell code that maps all ids of this user namespace to themselves."""
    with open(f"/proc/self/{kind}_map", encoding="utf-8") as file:
        ranges = [line.split() for line in file]
    lines = "".join(f"{first} {first} {count}\\n" for first, _, count in ranges)
    return f"printf '{lines}' 2>/dev/null >/proc/{os.getpid()}/{kind}_map"


def _map_code(program, own, inside, ranges):
    """Shell code that maps this process's ids: inside is its own id, the ranges are the others.

    The ranges have the ids from 1 up, but if one of these is inside, 0 in its place.
    """
    if not ranges:
        return "false"
    argv = [program, os.getpid(), inside, own, 1]
    first = 1
    for start, count in ranges:
        before = inside - first  # the ids of this range that are below inside
        if inside and 0 <= before < count:
            parts = (
                (first, start, before),
                (0, start + before, 1),
                (inside + 1, start + before + 1, count - before - 1),
            )
        else:
            parts = ((first, start, count),)
        for part in parts:
            argv += part if part[2] else ()
        first += count
    # If the program fails, the caller's own id is mapped, and fallback() says why.
    return " ".join(map(str, argv)) + " 2>/dev/null"


def subordinate(
    file: str, uid: int, getsubids_options: "tuple[str, ...]" = ()
) -> "list[tuple[int, int]]":
    """A user's ranges of subordinate ids, as pairs of first id and count.

    They are those of a subuid(5) file, by name and by uid. If it has none, and nsswitch.conf
    names another source, they are what getsubids(1) prints.
    """
    import pwd

    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = None
    found = []
    for line in _lines(file):
        owner, _, numbers = line.partition(":")
        start, _, count = numbers.partition(":")
        if owner in (name, str(uid)) and is_number(start) and is_number(count):
            found.append((int(start), int(count)))
    if not found and any(line.startswith("subid:") for line in _lines("/etc/nsswitch.conf")):
        found = _getsubids(name or str(uid), getsubids_options)
    return _without_overlaps(found)


def _lines(file):
    try:
        with open(file, encoding="utf-8", errors="surrogateescape") as opened:
            return opened.read().split("\n")
    except OSError:
        return []


def _getsubids(user, options):
    """The ranges that getsubids(1) prints, in lines such as `0: user 100000 65536`."""
    import subprocess

    try:
        done = subprocess.run(
            ["getsubids", *options, user],
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            text=True,
        )
    except OSError:
        return []
    fields = [line.split() for line in done.stdout.splitlines()]
    return [(int(each[-2]), int(each[-1])) for each in fields if len(each) == 4]


def _without_overlaps(ranges):
    """The ranges in their order, each without the ids that are in one before it."""
    kept = []
    for start, count in ranges:
        pieces = [(start, start + count)]
        for other, size in kept:
            pieces = [
                piece
                for first, end in pieces
                for piece in ((first, min(end, other)), (max(first, other + size), end))
                if piece[0] < piece[1]
            ]
        kept += [(first, end - first) for first, end in pieces]
    return kept


def _write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def fallback() -> "str | None":
    """Why only the caller's own id is mapped, in a phrase; None if more ids are mapped."""
    if min(map(namespaces.mapped, ("uid", "gid"))) > 1:
        return None
    with open("/proc/self/status", encoding="utf-8") as file:
        no_new_privs = "NoNewPrivs:\t1" in file.read()
    with open("/proc/self/uid_map", encoding="utf-8") as file:
        uid = int(file.read().split()[1])
    for _, file_name, options in FILES:
        if not subordinate(file_name, uid, options):
            return f"{NOT_CONFIGURED} {file_name}"
    for program, _, _ in FILES:
        path = _program(program)
        if not path:
            return f"{program} is not installed"
        if no_new_privs:
            return f"no_new_privs forbids {program}"
        if not os.stat(path).st_mode & 0o4000 and "security.capability" not in os.listxattr(path):
            return f"{program} is neither setuid nor has capabilities"
    return "newuidmap or newgidmap refused"


def lost() -> "list[str]":
    """Warnings for a command that writes images: why configured subordinate ids are not used."""
    reason = fallback() if _made_namespace else None
    if not reason or reason.startswith(NOT_CONFIGURED):
        return []
    return [f"only your own id is mapped, so root owns all files: {reason} (see plash doctor)"]


def _program(name):
    """The path of a program on PATH; None if it is not there."""
    for directory in os.environ.get("PATH", os.defpath).split(":"):
        if os.access(f"{directory}/{name}", os.X_OK):
            return f"{directory}/{name}"
    return None
