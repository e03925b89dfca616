"""What the result of a command that makes an image depends on, as far as it can be known.

Besides its argv that is: images by their ids, files and directories that it names, variables, stdin
where the command reads it, and the working directory of what it runs. docs/store.md lists what
does not count. The usage of the command says what an argument is.
"""

import os
import stat

from plashlib import Error, docs, headers, store

# Of plash's own variables, all others count.
SETTINGS = "PLASH_DATA", "PLASH_DEBUG", "PLASH_EXPORT"
PREFIXES = "PLASH_NO_", "PLASH_TEST_"
TRANSPORTS = ("oci", "oci-archive", "docker-archive", "dir")  # of skopeo, that name a path here
BLOCK = 1 << 20  # bytes read at once


class Inputs:
    """The inputs of a plash command.

    argv   the command, with the ids of images in place of names
    key    a list of str: with the same key, the command makes the same image
    stdin  what the command is to read from stdin; None if it reads nothing

    Raises Error if an input cannot be known, or if an image is missing; OSError for files.
    """

    def __init__(self, argv: "list[str]") -> None:
        file = docs.find(argv[0])
        self._header = docs.header(file)
        self._arguments = self._header.arguments(argv[1:])
        self.stdin = None
        self.argv, described = argv[:1], argv[:1]
        for argument in self._arguments:
            if argument.name == "ID":
                argument.value = store.image(argument.value, allow_empty=True).id
            self.argv.append(argument.prefix + argument.value)
            described.append(f"{argument.name}={argument.prefix}{_described(argument)}")
        runs = any(element.name == "CMD" for element in self._header.operands())
        self._read_stdin(runs)
        self.key = [*described, os.uname().machine, *_variables(runs)]
        if self.stdin is not None:
            self.key.append(sha256(self.stdin).hexdigest())
        elsewhere = any(
            each.name == "DIR" and each.role != headers.OPERAND for each in self._arguments
        )
        if runs and not elsewhere:
            self.key.append(os.getcwd())
        if file and os.path.dirname(file) != docs.own:
            self.key.append(_identity(os.path.realpath(file)))
        self.key += self._files()

    def _given(self, name):
        return [
            each for each in self._arguments if each.role == headers.OPERAND and each.name == name
        ]

    def _read_stdin(self, runs):
        optional = {each.name for each in self._header.operands() if each.optional}
        files = self._given("FILE")
        if any(each.value == "-" for each in files) or "FILE" in optional and not files:
            raise Error(
                f"what `plash {self.argv[0]}` reads from stdin cannot be remembered"
                " (name a FILE, or use plash recall)"
            )
        if not runs or self._given("CMD"):
            return
        if os.isatty(0):
            raise Error("what is typed in a shell cannot be remembered (use plash recall)")
        self.stdin = b"".join(iter(lambda: os.read(0, BLOCK), b""))

    def _files(self):
        """A description of each file and directory that is named, as it is now."""
        found = []
        for argument in self._arguments:
            if argument.name == "BIND":
                from plashlib import binds

                bind = binds.parse(argument.value)
                found += _tree(bind.source, bind.read_only)
            else:
                path = _path(argument)
                if path:
                    found += _tree(path, not os.path.lexists(path + "/_data/root"))
        return found

    def are_same(self) -> bool:
        """Whether the files and directories are still the same."""
        try:
            files = self._files()
        except OSError:
            return False
        return self.key[len(self.key) - len(files) :] == files


def _described(argument):
    """The value of an argument, with what it says in this environment."""
    value = argument.value
    if argument.name == "VAR" and "=" not in value and value in os.environ:
        return f"{value}={os.environ[value]}"
    return value


def _path(argument):
    """The path of a file or directory that an argument names; None if it names none."""
    name, value = argument.name, argument.value
    if name == "FILE" or name in ("DIR", "PATH") and argument.role == headers.OPERAND:
        return value
    if name == "URL" and value.lower().startswith("file:"):
        from urllib.parse import unquote, urlsplit

        return unquote(urlsplit(value).path)
    if name == "REF":
        transport, _, rest = value.partition(":")
        if transport in TRANSPORTS and rest:
            path = rest if transport == "dir" or os.path.exists(rest) else rest.rpartition(":")[0]
            return path or rest
    if name == "PROGRAM":
        directories = os.environ.get("PATH", "").split(":")
        paths = [f"{each or '.'}/{value}" for each in directories] if "/" not in value else [value]
        return next((path for path in paths if os.access(path, os.X_OK)), None)
    return None


def _variables(runs):
    """The variables of this environment that count."""
    exported = os.environ.get("PLASH_EXPORT", "").split(":") if runs else []
    prefixes = tuple(name[:-1] for name in exported if name.endswith("*"))

    def counts(name):
        if name in exported or prefixes and name.startswith(prefixes):
            return True
        is_setting = name in SETTINGS or name.startswith(PREFIXES)
        return name.startswith("PLASH_") and not is_setting

    return sorted(f"{name}={value}" for name, value in os.environ.items() if counts(name))


def _tree(path, content):
    """Describe what is at path, and if content is true all that is below it: a list of str.

    Raises OSError.
    """
    path = os.path.realpath(path)
    try:
        return _walk(path, content)
    except PermissionError:
        # Subordinate ids may own it.
        from plashlib import ids, processes

        def as_root():
            ids.become_root()
            return _walk(path, content)

        return processes.call(as_root)


def _walk(path, content):
    if not content or not os.path.isdir(path):
        return [_identity(path)]
    left = [path]
    content_of = sha256()
    while left:
        directory = left.pop()
        with os.scandir(directory) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                content_of.update(os.fsencode(f"{_identity(entry.path)}\0"))
                if entry.is_dir(follow_symlinks=False):
                    left.append(entry.path)
    return [_identity(path), content_of.hexdigest()]


def _identity(path):
    """What tells a file from another at the same path, or from itself before it changed."""
    status = os.lstat(path)
    described = f"{path} {status.st_mode:o} {status.st_ino}"
    if stat.S_ISDIR(status.st_mode):
        return described
    return f"{described} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def sha256(content: bytes = b""):
    """hashlib.sha256(), without OpenSSL, which takes a third of Python's own start to load."""
    # As the standard library's random does it.
    try:
        from _sha2 import sha256 as function
    except ImportError:
        try:
            from _sha256 import sha256 as function
        except ImportError:
            from hashlib import sha256 as function
    return function(content)
