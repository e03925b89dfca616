"""Becoming the command: how its program is found, also one of another architecture.

It rests on execve(2). Error messages are those of a shell: 127 for not found, 126 for the rest.
"""

import errno
import os
import stat
import sys

from plashlib import CannotExecute, CommandNotFound, Error, caller, namespaces

host_root: "str | int" = "/"  # the host's root directory: its path now, or a descriptor


def login_shell(user: str = "root") -> "list[str]":
    """The argv of a user's login shell, by the image's own /etc/passwd; else of /bin/sh."""
    shell = ""
    try:
        with open(namespaces.open_in_mount("/etc/passwd"), "rb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                for line in file:
                    if line.startswith(os.fsencode(user) + b":"):
                        shell = os.fsdecode(line.rstrip(b"\n").split(b":")[-1])
                        break
    except OSError:
        pass
    return [shell if os.access(shell, os.X_OK) else "/bin/sh", "-l"]


def execute(argv: "list[str]", environment: "dict[str, str]", emulate=None) -> None:
    """Become the program argv[0], looked up in the PATH of environment, which it gets.

    emulate, of a View, is called just before. Raises CommandNotFound, CannotExecute.
    """
    program = argv[0]
    if not program:
        raise CommandNotFound("command not found: ''")
    candidates = [program]
    if "/" not in program:
        directories = environment.get("PATH", caller.PATH).split(":")
        candidates = [f"{directory or '.'}/{program}" for directory in directories]
    elif _starts_itself(argv):
        raise CannotExecute(f"cannot execute {program}: its first line runs itself forever")
    namespaces.default_signals()
    namespaces.default_limits()
    failure = None
    if emulate:
        emulate()
    # Not os.execvpe(), which imports a module when it is called: the host's files are out of sight.
    for path in candidates:
        try:
            os.execve(path, argv, environment)
        except (FileNotFoundError, NotADirectoryError):
            if os.path.isfile(path):
                failure = "its interpreter or loader is missing"
        except (OSError, ValueError) as error:
            if isinstance(error, PermissionError) and path != program and not os.path.lexists(path):
                continue  # a directory of PATH that can't be searched
            if getattr(error, "errno", None) == errno.ENOEXEC:
                error = _execute_foreign(path, argv, environment)
            failure = failure or getattr(error, "strerror", None) or str(error)
    if failure:
        raise CannotExecute(f"cannot execute {program}: {failure}")
    raise CommandNotFound(f"command not found: {program}")


def _starts_itself(argv):
    """Whether argv[0] is a script whose first line has plash run argv[0] as this process does."""
    try:
        with open(os.open(argv[0], os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", 0) as file:
            line = file.read(256)
    except OSError:
        return False
    if line[:2] != b"#!" or b"plash" not in line:
        return False
    options = [os.fsencode(each) for each in sys.argv[1 : len(sys.argv) - len(argv)]]
    return line.split(b"\n")[0].split()[-len(options) :] == options


def _execute_foreign(path, argv, environment):
    """Become the program at path, whose format the kernel refused; returns what prevents it."""
    try:
        foreign = _foreign()
    # plash's files were on a mount that is no longer there, or this is a user that can't chroot(2).
    except (ImportError, PermissionError):
        return OSError(errno.ENOEXEC, os.strerror(errno.ENOEXEC))
    try:
        foreign.register(path, host_root)
        os.execve(path, argv, environment)
    except (Error, OSError) as error:
        return error


def prepare_foreign():
    """Let programs of the architecture of /bin/sh start, if it is not this machine's own."""
    headers = []
    for path in "/proc/self/exe", "/bin/sh":
        try:
            with open(path, "rb", buffering=0) as file:
                headers.append(file.read(20))
        except OSError:
            return
    # Class, byte order and e_machine of elf(5).
    if len({(header[4:6], header[18:]) for header in headers}) > 1:
        try:
            _foreign().register("/bin/sh", host_root)
        except (Error, OSError, ImportError):
            pass  # it may run all the same; if not, execute() says why


def _foreign():
    """The module, loaded when needed: plash's files are the host's, which is out of sight."""
    root, directory = (os.open(path, os.O_PATH | os.O_CLOEXEC) for path in ("/", "."))
    try:
        os.chdir(host_root)
        os.chroot(".")
        try:
            from plashlib import foreign
        finally:
            os.fchdir(root)
            os.chroot(".")
    finally:
        os.fchdir(directory)
    return foreign
