"""What the caller brings into a container: working directory, environment, home, user.

Nothing here knows of images or namespaces.
"""

import os

from plashlib import Error

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
# Variables that pass into every container; into one that shares the session, also the next two.
PASSED = {"TERM", "COLORTERM", "LANG", "TZ", *PROXIES, *map(str.upper, PROXIES)}
SESSION = ("DISPLAY", "XAUTHORITY", "HOME", "USER")
# Each passes only with the directory or socket that it leads to.
SOCKETS = ("XDG_RUNTIME_DIR", "WAYLAND_DISPLAY", "DBUS_SESSION_BUS_ADDRESS", "SSH_AUTH_SOCK")


def home() -> str:
    """The caller's home directory: $HOME, else the one of passwd(5). Raises Error."""
    given = os.environ.get("HOME")
    if given:
        return os.path.abspath(given)
    import pwd

    try:
        return os.path.abspath(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:
        raise Error(
            f"uid {os.geteuid()} has no home directory (set HOME, or PLASH_DATA for the store)"
        ) from None


class WorkingDirectory:
    """The caller's working directory: the paths that lead to it, and its identity.

    warning says, in one line, why it cannot be kept; None if it can.
    """

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.status = None
        self.warning = None
        try:
            self.status = os.stat(".")
            path = os.getcwd()
        except OSError as error:
            self.warning = f"cannot keep the working directory: {error.strerror}; starting in /"
            return
        logical = os.environ.get("PWD", "")
        if logical[:1] == "/" and logical != path and self._is_at(logical):
            self.paths.append(logical)
        self.paths.append(path)

    def _is_at(self, path):
        try:
            return os.path.samestat(os.stat(path), self.status)
        except OSError:
            return False

    def change(self, prefix: str = "") -> bool:
        """Change to it, if a path with the prefix leads to it here; returns whether one did."""
        for path in self.paths:
            try:
                os.chdir(prefix + path)
                if os.path.samestat(os.stat("."), self.status):
                    return True
            except OSError:
                continue
        return False


def variables() -> "dict[str, str]":
    """The environment that this process was started with."""
    given = dict(os.environ)
    if given.get("LC_CTYPE", "").lower().endswith(("utf-8", "utf8")):
        # Python sets this one in its own environment where the locale is C (PEP 538).
        with open("/proc/self/environ", "rb") as file:
            if not any(entry.startswith(b"LC_CTYPE=") for entry in file.read().split(b"\0")):
                del given["LC_CTYPE"]
    return given


def environment(
    own: bytes = b"", more: "list[str] | tuple[()]" = (), shared: bool = True
) -> "dict[str, str]":
    """The variables of a container: the image's own, PATH, those of the caller that pass, and more.

    own     the image's own, each NAME=VALUE, with NUL between them
    more    the user's own: NAME=VALUE, or NAME for the value that the caller has
    shared  whether the container shares the caller's home and session

    Raises Error.
    """
    given = variables()
    exported = given.get("PLASH_EXPORT", "").split(":")
    kept = {*PASSED, *exported, *(SESSION if shared else ())}
    prefixes = "LC_", "PLASH_", *(name[:-1] for name in exported if name.endswith("*"))
    passed = {
        name: value for name, value in given.items() if name in kept or name.startswith(prefixes)
    }
    if not passed.get("HOME"):
        passed.pop("HOME", None)  # as if it were not set
    if shared:
        for name in SOCKETS:
            if os.path.exists(socket(name, given) or ""):
                passed[name] = given[name]
    result = {"PATH": PATH, **parse(own), **passed, "container": "plash"}
    for entry in more:
        name, equals, value = entry.partition("=")
        if not name:
            raise Error(f"not a variable: {entry!r} (NAME or NAME=VALUE)")
        if equals or name in given:
            result[name] = value if equals else given[name]
    return result


def parse(own: bytes) -> "dict[str, str]":
    """The variables of NAME=VALUE entries with NUL between them, as an image has them."""
    entries = own.decode(errors="surrogateescape").split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry[1:])


def socket(name: str, variables: "dict[str, str]") -> "str | None":
    """The path that a variable of SOCKETS leads to; None if it is not set to a path."""
    value = variables.get(name, "")
    if name == "WAYLAND_DISPLAY" and value[:1] != "/":
        directory = variables.get("XDG_RUNTIME_DIR")
        return f"{directory}/{value}" if value and directory else None
    if name == "DBUS_SESSION_BUS_ADDRESS":
        value = value.removeprefix("unix:path=").partition(",")[0]
    return os.path.normpath(value) if value[:1] == "/" else None


def entries(home_directory: str) -> "dict[str, str]":
    """The lines that name the caller's own user and group, by the paths of their files."""
    import grp
    import pwd

    uid, gid = os.geteuid(), os.getegid()
    if {":", "\n"} & set(home_directory):
        home_directory = "/"  # passwd(5) can't hold it
    try:
        user = pwd.getpwuid(uid)
        name, real_name = user.pw_name, user.pw_gecos
    except KeyError:
        name, real_name = os.environ.get("USER") or f"user{uid}", ""
    try:
        group = grp.getgrgid(gid).gr_name
    except KeyError:
        group = name
    return {
        "/etc/passwd": f"{name}:x:{uid}:{gid}:{real_name}:{home_directory}:/bin/sh",
        "/etc/group": f"{group}:x:{gid}:",
    }
