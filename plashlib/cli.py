"""The command line that every command shares: arguments, errors, exit statuses.

Importing this sets how a command fails: one line on stderr, never a traceback
(but for PLASH_DEBUG=1), and stdout written line by line, so that an error in it is seen.
"""

import errno
import os
import sys

from plashlib import Error, docs

FAILED, USAGE, CANNOT_EXECUTE, NOT_FOUND = 1, 2, 126, 127

name = os.path.basename(sys.argv[0]).replace("-", " ", 1)


def parse(doc):
    """The command line, matched with the usage in doc; a dict as docopt returns it.

    --help prints doc and exits 0; arguments that do not fit exit 2 with one line.
    Where the last argument is a command (CMD), options end at the first argument.
    """
    arguments = sys.argv[1:]
    usage = docs.usage(doc)
    command_last = "CMD" in usage[0]
    for word in arguments:
        if word in ("-h", "--help"):
            print(doc.strip())
            sys.exit(0)
        if command_last and not word.startswith("-"):
            break
    args = _positional(usage, arguments, command_last)
    return _docopt(doc, usage, arguments, command_last) if args is None else args


def _positional(usage, arguments, command_last):
    """Match arguments without options; None leaves it to docopt, which costs 30 ms to import."""
    if (
        len(usage) != 1
        or not command_last
        and any(word[:1] == "-" and word != "-" for word in arguments)
    ):
        return None
    if arguments and arguments[0][:1] == "-" and arguments[0] != "-":
        return None
    args, left, optional = {}, list(arguments), 0
    words = (
        usage[0].replace("[", " [ ").replace("]", " ] ").replace("...", " ... ").split()[2:]
        + [""] * 3
    )
    skip = False
    for word, following, last in zip(words, words[1:], words[3:] + [""]):
        if skip:
            skip = False
        elif word in ("[", "]", "|"):
            optional += {"[": 1, "]": -1, "|": 0}[word]
        elif word.startswith("-"):
            option, equals, _ = word.partition("=")
            skip = following not in ("]", "|")  # a value of its own, as in [-e VAR]...
            args[option] = [] if skip and last == "..." else None if skip or equals else False
        elif following == "...":
            args[word], left = left, []
            if not args[word] and not optional:
                return None
        elif word not in ("...", ""):
            args[word] = left.pop(0) if left else None
            if args[word] is None and not optional:
                return None
    return None if left else args


def _docopt(doc, usage, arguments, command_last):
    if sys.flags.no_site:
        # Installed commands start without site, for speed; docopt may be in its directories.
        import site

        site.main()
    try:
        import docopt
    except ImportError:
        usage_error(
            usage[0], "(and the Python package docopt, which reads options, is not installed)"
        )
    # docopt takes one word for the program's name.
    program = " ".join(usage[0].split()[:2])
    try:
        return dict(
            docopt.docopt(
                doc.replace(program, program.replace(" ", "-")),
                arguments,
                help=False,
                options_first=command_last,
            )
        )
    except docopt.DocoptExit:
        known = doc.replace("=", " ").replace("[", " ").replace("]", " ").split()
        for word in arguments:
            if word[:1] != "-" and command_last:
                break
            if word[:1] == "-" and word != "-" and word.partition("=")[0] not in known:
                usage_error(usage[0], f"(there is no option {word})")
        usage_error(usage[0])


def directory(text):
    """The absolute path, without symbolic links, of the directory that text names. Raises OSError."""
    if not os.path.isdir(text):
        os.stat(text)
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), text)
    return os.path.realpath(text)


def usage_error(usage, note=""):
    """Exit 2 with the usage in one line."""
    die(USAGE, f"usage: {usage} {note}".rstrip())


def _printable(text):
    """Return text with control characters, which a server may have sent, written as Python does."""
    return "".join(
        repr(each)[1:-1] if each < " " or "\x7f" <= each <= "\x9f" else each for each in text
    )


def _say(text):
    try:
        if sys.stderr:
            print(name + ": " + _printable(text), file=sys.stderr)
    except OSError:
        pass  # on a full disk, say; the exit status still tells


def die(status, text):
    """Exit with status and one line on stderr."""
    _say(text)
    sys.exit(status)


def warn(text):
    """One line on stderr for what the user should know of a success."""
    _say(text)


def explain(error):
    """The one line that tells the user of an exception."""
    if isinstance(error, OSError) and error.strerror:
        names = [
            os.fsdecode(each)
            for each in (error.filename, error.filename2)
            if isinstance(each, (str, bytes))
        ]
        return ": ".join([*([" -> ".join(names)] if names else []), error.strerror])
    if isinstance(error, (Error, OSError)):
        return str(error)
    return f"internal error: {type(error).__name__}: {error} (PLASH_DEBUG=1 shows where)"


def _fail(kind, error, trace):
    if os.environ.get("PLASH_DEBUG") == "1":
        sys.__excepthook__(kind, error, trace)
    elif issubclass(kind, BrokenPipeError):
        # Whoever read stdout has gone, as in `plash help | head -1`: that is no error to speak of.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    elif not issubclass(kind, KeyboardInterrupt):
        _say(explain(error))
        if isinstance(error, Error) and error.status != FAILED:
            # Python itself exits with 1 after this.
            os._exit(error.status)


sys.excepthook = _fail
for stream in sys.stdout, sys.stderr:
    # File names may hold any bytes.
    if stream:
        stream.reconfigure(line_buffering=True, errors="surrogateescape")
