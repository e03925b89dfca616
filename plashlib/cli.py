"""The command line that every command shares: arguments, errors, exit statuses.

Importing this sets how a command fails: one line on stderr, and no traceback unless PLASH_DEBUG=1.
stdout is written line by line, so that an error in it is seen.
"""

import errno
import os
import sys

from plashlib import Error, headers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO, NoReturn

FAILED, USAGE, CANNOT_EXECUTE, NOT_FOUND = 1, 2, 126, 127

# What to do about errors that say too little by themselves.
REMEDIES = {
    errno.EAGAIN: " (too many processes: see `ulimit -u`)",
    errno.ENOLCK: " (let PLASH_DATA name a directory on another filesystem)",
}

name = os.path.basename(sys.argv[0]).replace("-", " ", 1)


def parse(doc: str) -> dict:
    """Match the command line with the usage in a header text; returns what docopt would.

    That is a dict of options and operands by their names. --help prints doc and exits 0;
    arguments that do not fit exit 2 with one line. `--` ends options, and is not an operand.

    Raises Error if there are options, and docopt is not installed.
    """
    header, arguments = headers.Header(doc), sys.argv[1:]
    roles = header.roles(arguments)
    options = [word for word, role in zip(arguments, roles) if role == headers.OPTION]
    operands = [word for word, role in zip(arguments, roles) if role == headers.OPERAND]
    if "-h" in options or "--help" in options:
        print(doc.strip())
        sys.exit(0)
    args = None if options else _match_operands(header, operands)
    return _docopt(header, arguments, roles) if args is None else args


def _match_operands(header: headers.Header, operands: "list[str]") -> "dict | None":
    """Match a command line without options with the usage, as docopt does; None if it doesn't fit.

    This is for speed: docopt takes 30 ms to import. It also gets the usages with alternatives.
    """
    if len(header.usage) != 1 or header.usage[0].has_alternatives:
        return None
    args: dict = {}
    rest = list(operands)
    for element in header.usage[0].elements:
        value: object = element.absent()
        if rest and not element.option:
            value, rest = (rest, []) if element.repeated else (rest[0], rest[1:])
        elif not element.optional:
            return None
        args[element.key] = value
    return None if rest else args


def _docopt(header: headers.Header, arguments: "list[str]", roles: "list[str]") -> dict:
    """Match a command line with a usage by docopt."""
    usage = " or ".join(usage.line for usage in header.usage)
    if sys.flags.no_site:
        # Installed commands start without site, for speed; docopt may be in its directories.
        import site

        site.main()
    try:
        import docopt
    except ImportError:
        if headers.OPTION not in roles:
            usage_error(usage)
        raise Error(
            "options need the Python package docopt, which is not installed (`make install`"
            " of plash bundles it)"
        ) from None
    # docopt would read an operand that begins with `-` as an option: a NUL, which no argument
    # holds, marks it.
    marked = [
        "\0" + word if role == headers.OPERAND and word[:1] == "-" and word != "-" else word
        for word, role in zip(arguments, roles)
        if role != headers.END
    ]
    try:
        args = docopt.docopt(_docopt_text(header), marked, help=False)
    except docopt.DocoptExit:
        for word, role in zip(arguments, roles):
            if role == headers.OPTION and not header.option(word):
                usage_error(usage, f"(there is no option {word})")
        usage_error(usage)
    return {name: _unmarked(value) for name, value in args.items()}


def _docopt_text(header: headers.Header) -> str:
    """The usage and the options of a Header in the form that all versions of docopt read."""
    # docopt takes one word for the program's name.
    lines = ["Usage:", *("  " + usage.line.replace(" ", "-", 1) for usage in header.usage)]
    lines += ["", "Options:"]
    for option in header.options:
        value = f" {option.value}" if option.value else ""
        lines.append("  " + ", ".join(name + value for name in option.names))
    return "\n".join(lines)


def _unmarked(value: object) -> object:
    if isinstance(value, list):
        return [_unmarked(each) for each in value]
    return value.replace("\0", "") if isinstance(value, str) else value


def directory(text: str) -> str:
    """The absolute path, without symbolic links, of a directory. Raises OSError."""
    if not os.path.isdir(text):
        os.stat(text)
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), text)
    return os.path.realpath(text)


def usage_error(usage: str, note: str = "") -> "NoReturn":
    """Exit 2 with the usage in one line."""
    die(USAGE, f"usage: {usage} {note}".rstrip())


def die(status: int, text: str) -> "NoReturn":
    """Exit with status and one line on stderr."""
    warn(text)
    sys.exit(status)


def finish() -> "NoReturn":
    """Exit 0 without Python's own clean-up, which takes a fifth of a lookup's time.

    For the end of commands that are quick, and have no threads and no open files to write.
    """
    os._exit(0)


def warn(text: str) -> None:
    """Print one line on stderr: what a user should know of a command that succeeds, too."""
    try:
        if sys.stderr:
            print(f"{name}: {printable(text)}", file=sys.stderr)
    except OSError:
        _discard(2)  # on a full disk, say; the exit status still tells


def printable(text: str) -> str:
    """Return text in one line, without what a terminal would obey; a server may have sent it.

    Control characters, bytes that are no UTF-8, and marks that turn the direction of text are
    written as Python writes them.
    """
    return "".join(_escaped(each) if _is_obeyed(each) else each for each in text)


def _is_obeyed(character: str) -> bool:
    return (
        character < " "
        or "\x7f" <= character <= "\x9f"
        or character in "\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
        or "\ud800" <= character <= "\udfff"
    )


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte, see PEP 383
        return f"\\x{ord(character) - 0xDC00:02x}"
    return repr(character)[1:-1]


def binary_stdin() -> "BinaryIO":
    """stdin, unbuffered, for bytes. Raises OSError if it is closed."""
    try:
        os.read(0, 0)
    except OSError as error:
        error.filename = "stdin"
        raise
    return open(0, "rb", buffering=0, closefd=False)


def binary_stdout() -> "BinaryIO":
    """stdout, unbuffered, for bytes. Raises OSError if it is closed."""
    try:
        os.write(1, b"")
    except OSError as error:
        error.filename = "stdout"
        raise
    return open(1, "wb", buffering=0, closefd=False)


def explain(error: BaseException) -> str:
    """The one line that describes an exception to the user."""
    if isinstance(error, FileNotFoundError):
        if str(error.filename).startswith("/proc/self/") and not os.path.exists("/proc/self"):
            return "/proc is not mounted here, and plash needs it"
        if error.filename is None and _working_directory_has_gone():
            return "the working directory has gone"
    if isinstance(error, OSError) and error.strerror:
        if error.errno == errno.EMFILE:
            return f"{error.strerror} (the limit is {os.sysconf('SC_OPEN_MAX')}, see `ulimit -n`)"
        names = [
            os.fsdecode(each) or "''"
            for each in (error.filename, error.filename2)
            if isinstance(each, (str, bytes))
        ]
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
            names = [*dict.fromkeys(map(_outside_of_store, names))]
        remedy = "" if names == ["stdout"] else REMEDIES.get(error.errno or 0, "")
        return ": ".join([*([" -> ".join(names)] if names else []), error.strerror]) + remedy
    if isinstance(error, (Error, OSError)):
        return str(error)
    return f"internal error: {type(error).__name__}: {error} (PLASH_DEBUG=1 shows where)"


def _outside_of_store(path):
    """The path; the data directory in words, if the path is of what only plash names there."""
    from plashlib import datadir

    try:
        data = datadir.location()
    except Error:
        return path
    own = any(path.startswith(f"{data}/{part}/") for part in ("tmp", "layer"))
    return f"the data directory {data}" if own else path


def _working_directory_has_gone():
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _fail(kind, error, trace):
    if os.environ.get("PLASH_DEBUG") == "1":
        sys.__excepthook__(kind, error, trace)
    # If the reader of stdout is gone, as in `plash help | head -1`, that is no error to speak of.
    elif not issubclass(kind, (BrokenPipeError, KeyboardInterrupt)):
        warn(explain(error))
        if isinstance(error, Error) and error.status != FAILED:
            # Python itself exits with 1 after this.
            os._exit(error.status)
    _flush_output()


def _flush_output():
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        _discard(1)


def _discard(fd):
    """Lose what is still to be written to stdout or stderr, rather than fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), fd)


def _name_stdout(write):
    """The function write, with a name for the file in what it raises."""

    pending = ""

    def named(text):
        nonlocal pending
        pending = pending.rpartition("\n")[2] + text
        try:
            return write(text)
        except OSError as error:
            lost = pending.strip()
            # The id of a new image, say, which nobody else knows.
            note = f" ({lost} was not printed)" if lost.isdigit() else ""
            raise OSError(error.errno, f"{error.strerror}{note}", "stdout") from None

    return named


def _occupy_closed_descriptors():
    """Open /dev/null for whichever of stdin, stdout and stderr is closed.

    Otherwise another file would get its number. stdin and stdout then fail as closed ones do: with
    EBADF.
    """
    for stream, flags in (
        (sys.stdin, os.O_WRONLY),
        (sys.stdout, os.O_RDONLY),
        (sys.stderr, os.O_WRONLY),
    ):
        if stream is None:
            os.open(os.devnull, flags)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)


sys.excepthook = _fail
_occupy_closed_descriptors()
if sys.stdout:
    # File names may hold any bytes.
    sys.stdout.reconfigure(  # type: ignore[union-attr]
        line_buffering=True, errors="surrogateescape"
    )
    sys.stdout.write = _name_stdout(sys.stdout.write)  # type: ignore[method-assign]
