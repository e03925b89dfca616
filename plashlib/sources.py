"""What COPY and ADD copy from: a directory tree, seen through .dockerignore and patterns.

Paths are relative to the tree's root. Symbolic links on the way to a source are followed inside
the root, and never out of it; those below a source are copied as links. Pattern rules are those
of moby's patternmatcher, and globs those of Go's filepath.Match.
"""

import errno
import os
import re
import stat

from plashlib import Error, containerfile, inputs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_LINKS = 40


class Source:
    """A file or directory to copy: name as it was asked for, and path without symbolic links."""

    def __init__(self, name: str, path: str, status: os.stat_result) -> None:
        self.name, self.path, self.status = name, path, status

    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)


class Tree:
    """The directory root, which stays open, without what the patterns ignore."""

    def __init__(self, root: str, ignore: "list[str] | tuple[()]" = ()) -> None:
        self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.ignored = matcher(ignore)

    def lstat(self, path: str) -> os.stat_result:
        """The status of what is at path, which has no links on the way. Raises OSError."""
        return os.lstat(path or ".", dir_fd=self.fd)

    def listdir(self, path: str) -> "list[str]":
        """The sorted names in the directory at path. Raises OSError."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path or ".", flags, dir_fd=self.fd)
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def open(self, path: str):
        """The regular file at path, opened. Raises OSError."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return open(os.open(path, flags, dir_fd=self.fd), "rb")

    def readlink(self, path: str) -> str:
        """The target of the symbolic link at path."""
        return os.readlink(path, dir_fd=self.fd)

    def resolve(self, path: str) -> str:
        """The path without links, "." and "..": they lead inside the root. Raises OSError."""
        done: list[str] = []
        left, links = path.split("/"), 0
        while left:
            part = left.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                del done[-1:]
                continue
            joined = "/".join([*done, part])
            if not stat.S_ISLNK(self.lstat(joined).st_mode):
                done.append(part)
                continue
            links += 1
            if links > MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            target = self.readlink(joined)
            left = target.split("/") + left
            done = [] if target[:1] == "/" else done
        return "/".join(done)

    def find(self, pattern: str, deep: bool = False) -> "list[Source]":
        """What a path or glob of COPY names, sorted. Raises Error if a path is missing.

        deep  whether ** is any number of directories, as with --parents
        """
        parts = [part for part in _normal(pattern).split("/") if part]
        if not any(map(_is_glob, parts)):
            name = "/".join(parts)
            try:
                path = self.resolve(name)
                status = self.lstat(path)
            except OSError as error:
                above = " in the context, which .. does not leave" * (".." in pattern.split("/"))
                raise Error(f"{pattern}: {error.strerror}{above}") from None
            if self.is_ignored(path) and not (stat.S_ISDIR(status.st_mode) and self._below(path)):
                raise Error(f"{pattern}: excluded by the ignore file")
            return [Source(name, path, status)]
        found = [""]
        for part in parts:
            if deep and part == "**":
                found = [below for directory in found for below in self._directories(directory)]
                continue
            found = [
                f"{directory}/{name}".lstrip("/")
                for directory in found
                for name in self._matching(directory, part)
            ]
        sources = []
        for name in sorted(set(found)):
            try:
                path = self.resolve(name)
                status = self.lstat(path)
            except OSError:
                continue
            if not self.is_ignored(path) or stat.S_ISDIR(status.st_mode) and self._below(path):
                sources.append(Source(name, path, status))
        return sources

    def _directories(self, directory):
        """A directory, and all below it."""
        yield directory
        for below, status in self.walk(directory):
            if stat.S_ISDIR(status.st_mode):
                yield f"{directory}/{below}".lstrip("/")

    def _matching(self, directory, part):
        if not _is_glob(part):
            return [re.sub(r"\\(.)", r"\1", part)]
        try:
            expression = re.compile(_expression(part), re.DOTALL)
        except re.error as error:
            raise Error(f"not a pattern: {part!r}: {error}") from None
        try:
            names = self.listdir(self.resolve(directory))
        except OSError:
            return []
        return [name for name in names if expression.fullmatch(name)]

    def is_ignored(self, path: str) -> bool:
        return bool(path and self.ignored and self.ignored.matches(path))

    def _below(self, path):
        return next(self.walk(path), None) is not None

    def walk(
        self, path: str, exclude=None, below: str = ""
    ) -> "Iterator[tuple[str, os.stat_result]]":
        """What is below the directory at path: pairs of the path below it, and its status.

        A directory comes before what is in it; one that is ignored, only if something in it
        is not. exclude is one more matcher, of paths below.
        """
        for name in self.listdir(path):
            full, part = f"{path}/{name}".lstrip("/"), f"{below}/{name}".lstrip("/")
            status = self.lstat(full)
            hidden = [
                matcher
                for matcher, what in ((self.ignored, full), (exclude, part))
                if matcher and matcher.matches(what)
            ]
            if not stat.S_ISDIR(status.st_mode):
                if not hidden:
                    yield part, status
                continue
            inside = self.walk(full, exclude, part)
            if hidden:
                what = {id(self.ignored): full, id(exclude): part}
                if not all(each.may_match_under(what[id(each)]) for each in hidden):
                    continue
                first = next(inside, None)
                if first is None:
                    continue
                yield part, status
                yield first
            else:
                yield part, status
            yield from inside

    def digest(self, sources: "list[Source]", exclude=None) -> str:
        """A digest of names, kinds, modes and contents of Sources, in hexadecimal; not of times."""
        total = inputs.sha256()

        def add(name, path, status):
            total.update(b"%s\0%o\0" % (os.fsencode(name), status.st_mode))
            if stat.S_ISLNK(status.st_mode):
                total.update(os.fsencode(self.readlink(path)) + b"\0")
            elif stat.S_ISREG(status.st_mode):
                content = inputs.sha256()
                with self.open(path) as file:
                    while True:
                        piece = file.read(1 << 20)
                        if not piece:
                            break
                        content.update(piece)
                total.update(content.digest())

        for source in sources:
            add(source.name, source.path, source.status)
            if source.is_directory():
                for below, status in self.walk(source.path, exclude):
                    add(f"{source.name}/{below}", f"{source.path}/{below}".lstrip("/"), status)
        return total.hexdigest()


def _normal(path):
    return os.path.normpath("/" + path).lstrip("/")


def _is_glob(part):
    return any(each in part for each in "*?[\\")


def _expression(glob):
    """The regular expression of a glob of one path component."""
    found, index = "", 0
    while index < len(glob):
        character = glob[index]
        index += 1
        if character == "*":
            found += ".*"
        elif character == "?":
            found += "."
        elif character == "\\" and index < len(glob):
            found += re.escape(glob[index])
            index += 1
        elif character == "[" and "]" in glob[index + 1 :]:
            end = glob.index("]", index + 1)
            found += "[" + glob[index:end].replace("[", "\\[") + "]"
            index = end + 1
        else:
            found += re.escape(character)
    return found


def matcher(patterns: "list[str] | tuple[()]"):
    """A matcher of paths that patterns exclude; None for no patterns. Raises Error."""
    if not patterns:
        return None
    try:
        return containerfile.library().PatternMatcher(list(patterns))
    except ValueError as error:
        raise Error(str(error)) from None


def ignore_patterns(file: str, context: str) -> "list[str]":
    """The patterns of FILE.dockerignore, else of the context's own ignore file."""
    candidates = [file + ".containerignore", file + ".dockerignore"] if file else []
    candidates += [f"{context}/{name}" for name in containerfile.IGNORE_NAMES]
    for path in candidates:
        try:
            with open(path, encoding="utf-8-sig", errors="surrogateescape") as opened:
                return opened.read().splitlines()
        except FileNotFoundError:
            continue
    return []
