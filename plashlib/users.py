"""The users of an image, by its own passwd(5) and group(5) files."""

import os

from plashlib import Error, ids, is_number, namespaces

PASSWD, GROUP = "/etc/passwd", "/etc/group"
HIGHEST_ID = (1 << 32) - 2  # -1 means "unchanged" to setresuid(2)


class User:
    """A user of an image: uid, gid, supplementary groups, name ("" if unknown), home."""

    def __init__(
        self, uid: int, gid: int, groups: "list[int]", name: str = "", home: str = "/"
    ) -> None:
        self.uid, self.gid, self.groups, self.name, self.home = uid, gid, groups, name, home


def find(text: str, read) -> User:
    """The User of NAME, UID, NAME:GROUP or UID:GID. Raises Error if the image has none.

    Without a name it is root; a group without a name is the user's own.

    read  returns the text of a file of the image by its path, or None
    """
    who, _, group = text.partition(":")
    who = who or "0"
    entry = _entry(read(PASSWD), who)
    if entry:
        user = User(_number(entry[2]), _number(entry[3]), [], entry[0], entry[5] or "/")
    elif is_number(who):
        user = User(_number(who), 0, [])
    else:
        raise Error(f"the image has no user {who!r} in {PASSWD}")
    groups = read(GROUP)
    if group:
        found = _entry(groups, group, 3)
        if not found and not is_number(group):
            raise Error(f"the image has no group {group!r} in {GROUP}")
        user.gid = _number(found[2] if found else group)
    elif user.name:
        lines = [line.split(":") for line in (groups or "").splitlines()]
        user.groups = [
            int(each[2])
            for each in lines
            if len(each) == 4 and user.name in each[3].split(",") and _is_id(each[2])
        ]
    return user


def _is_id(text):
    return is_number(text) and int(text) <= HIGHEST_ID


def _number(text):
    """The uid or gid that text is. Raises Error if there can be none."""
    if not _is_id(text):
        raise Error(f"not a uid or gid: {text}")
    return int(text)


def _entry(text, who, fields=7):
    """The fields of the line with that name, else with that number; None if there is none."""
    lines = [line.split(":") for line in (text or "").splitlines()]
    lines = [line for line in lines if len(line) >= fields and line[2].isdigit()]
    named = [line for line in lines if line[0] == who]
    return next(iter(named or [line for line in lines if line[2] == who]), None)


def become(user: User) -> None:
    """Become a User of this user namespace. Raises Error if its ids are not mapped."""
    if (os.geteuid(), os.getegid()) == (user.uid, user.gid):
        return
    try:
        if max(map(namespaces.mapped, ("uid", "gid"))) == 1:
            # The one id that there is becomes this user's.
            ids.become_other(user.uid, user.gid)
            return
        try:
            os.setgroups(user.groups)
        except OSError as error:
            groups = ", ".join(map(str, user.groups))
            raise Error(
                f"cannot become a member of the groups {groups}: {error.strerror}"
            ) from None
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    except OSError as error:
        raise Error(f"cannot become {user.uid}:{user.gid}: {error.strerror}") from None
