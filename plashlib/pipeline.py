"""Pipelines of tar and compression programs: how data gets in and out, and what they complain of.

This decides which of tar's complaints are failures, and which tell what had to be left out.
"""

import contextlib
import os
import signal
import subprocess

from plashlib import Error, programs, progress

BLOCK = 512  # of a tar archive, in bytes
PIECE = 1 << 20  # what is read at once, in bytes

# What tar says at the end of an archive, with --block-number, where blocks of zeros are missing.
NO_END = "** End of File **"
# What tar says where a user namespace can't make a device node.
NO_NODE = ": Cannot mknod: Operation not permitted"
# What tar says, by its words, and what that means: nothing (None), or what was left out, which
# plash says once, with a count. The first that fits counts; all else is a failure.
COMPLAINTS = (
    ("Exiting with failure status", None),
    ("Removing leading", None),
    ("time stamp", None),
    ("Ignoring unknown extended header", None),
    ("Extracting contiguous files as regular files", None),
    ("extracted as normal file", None),
    ("Substituting `.' for empty member name", None),
    ("A lone zero block", None),
    ("** Block of NULs **", None),
    (NO_END, None),
    ("Cannot drop default POSIX ACLs", None),
    ("file is on a different filesystem; not dumped", None),
    ("socket ignored", "sockets left out, which no archive holds"),
    (
        NO_NODE,
        "device nodes left out, which a user namespace can't make",
    ),
    ("Cannot mknod: ", "device nodes left out, which this filesystem can't hold"),
    (
        "Cannot change ownership to uid",
        "files given to root, since their owners are not mapped here",
    ),
    ("Cannot set POSIX ACLs", "ACLs left out, which can't be set here"),
    ("Cannot set 'system.posix_acl", "ACLs left out, which can't be set here"),
    ("Cannot set '", "extended attributes left out, which can't be set here"),
)


class Source:
    """What an archive is read from: a file, which its reader inherits, or a pipe."""

    def __init__(self, fd: int, digest=None):
        """Read the first block from the descriptor fd, as `head`.

        digest  a hash, updated with all that a pipe gives
        """
        self.fd, self.size, self._digest = fd, None, digest
        try:
            self.head = os.pread(fd, BLOCK, os.lseek(fd, 0, os.SEEK_CUR))
            self.size = os.fstat(fd).st_size
        except OSError:
            self.head = b""
            while len(self.head) < BLOCK:
                piece = os.read(fd, BLOCK - len(self.head))
                if not piece:
                    break
                self.head += piece

    def feed(self, target, shown) -> None:
        """Write all of a pipe to the file object target, and close it."""
        done, piece = 0, self.head
        try:
            with target:
                while piece:
                    if self._digest:
                        self._digest.update(piece)
                    target.write(piece)
                    done += len(piece)
                    if shown:
                        shown.show(done)
                    piece = os.read(self.fd, PIECE)
        except BrokenPipeError:
            # Its reader ended early, and says why; or at the archive's end, before the file's.
            while self._digest and piece:
                piece = os.read(self.fd, PIECE)
                self._digest.update(piece)


def run_pipeline(
    verb: str,
    commands: "list[list[str] | None]",
    source: "Source | None" = None,
    target: "int | None" = None,
    create_from: "str | None" = None,
    extract_to: "str | None" = None,
    shown: "progress.Progress | None" = None,
    layers: "str | None" = None,
    pass_fds: "tuple[int, ...] | list[int]" = (),
) -> "list[str]":
    """Run commands as a pipeline, from a Source to the descriptor target.

    verb         what is tried, for errors
    commands     their argv; None for a step that is not needed
    target       None where the last command prints only complaints
    create_from  the directory that the first command, a tar, works in
    extract_to   that of the last command, a tar
    shown        a progress.Progress of the bytes read from source; None where none is to be seen
    layers       the working directory, if that has layers by number; in what the first command, a
                 tar, says, files have their names in the layers
    pass_fds     descriptors that the commands inherit

    Returns warnings on what was left out. Raises Error where a command fails.
    """
    lines = run(verb, commands, source, target, create_from, extract_to, shown, layers, pass_fds)
    return left_out(lines)[0]


def run(
    verb,
    commands,
    source=None,
    target=None,
    create_from=None,
    extract_to=None,
    shown=None,
    layers=None,
    pass_fds=(),
):
    """Run commands as run_pipeline(); returns the lines that they wrote to stderr.

    What the last one printed comes after them, if that is no target's.
    """
    commands = [list(argv) for argv in commands if argv]
    with contextlib.ExitStack() as cleanup:
        directories = []
        for argv, directory in (commands[0], create_from), (commands[-1], extract_to):
            if directory is not None:
                directories.append(os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
                cleanup.callback(os.close, directories[-1])
                # First, for it counts for what comes after it. tar takes backslashes in a path of
                # the user's for escapes, but there are none in this one.
                argv.insert(1, f"--directory=/proc/self/fd/{directories[-1]}")
        # A file for each command, lest the pieces of two lines mix.
        complaints = [
            cleanup.enter_context(open(os.memfd_create("stderr"), "w+b")) for _ in commands
        ]
        printed = cleanup.enter_context(open(os.memfd_create("stdout"), "w+b"))
        processes = []
        stdin = _stdin(source)
        try:
            for argv in commands:
                is_last = argv is commands[-1]
                output = printed if target is None else target
                try:
                    process = programs.start(
                        argv,
                        stdin=stdin,
                        stdout=output if is_last else subprocess.PIPE,
                        stderr=complaints[len(processes)],
                        cwd=layers or "/",
                        pass_fds=[*directories, *pass_fds],
                    )
                except FileNotFoundError as error:
                    raise Error(f"cannot {verb}: install {error.filename}") from None
                processes.append(process)
                if processes[1:]:
                    stdin.close()
                stdin = process.stdout
            if processes[0].stdin:
                source.feed(processes[0].stdin, shown)
            elif shown:
                # The processes share the file's offset.
                shown.watch(
                    processes[0], lambda: (os.lseek(source.fd, 0, os.SEEK_CUR), source.size)
                )
            for process in processes:
                process.wait()
        finally:
            for process in processes:
                process.kill()
                process.wait()
        lines = []
        for file in *complaints, printed:
            file.seek(0)
            lines += file.read().decode(errors="surrogateescape").splitlines()
        if layers:
            lines = [_in_layer(line) for line in lines]
    if target is not None and processes[-1].returncode == -signal.SIGPIPE:
        raise BrokenPipeError
    _raise_failure(verb, processes, lines)
    return lines


def _in_layer(line):
    """What tar says of the file NUMBER/./NAME, with its NAME alone."""
    number, slash, rest = line.removeprefix("tar: ").partition("/")
    return f"tar: {rest}" if slash and number.isdigit() else line


def _stdin(source):
    """Return what subprocess.Popen is to take as the stdin of a Source's reader."""
    if source is None:
        return subprocess.DEVNULL
    return subprocess.PIPE if source.size is None else source.fd


def left_out(lines):
    """Return warnings, one for each kind of COMPLAINTS, and the lines that are none of them."""
    found, rest = {}, []
    nodes = {_file(line.partition(": ")[2]) for line in lines if ": Cannot mknod: " in line}
    for line in lines:
        if _linked(line) in nodes:
            line = line.partition(": Cannot hard link")[0] + NO_NODE
        # Without the file's name, which may have any words in it, where more is said of it.
        said = ": ".join(line.split(": ")[-2:])
        for words, summary in COMPLAINTS:
            if words in said:
                if summary:
                    found.setdefault(summary, []).append(line.partition(": ")[2])
                break
        else:
            rest.append(line)
    # tar may say the same of one file twice, in other words.
    return [
        f"{len({_file(line) for line in lines})} {summary} (the first: {_file(lines[0])})"
        for summary, lines in found.items()
    ], rest


def _file(line):
    """Return the file that tar speaks of: in quotes, or before the first colon."""
    _, quote, rest = line.partition(" file '")
    return rest.rpartition("'")[0] if quote else line.partition(": ")[0]


def _linked(line):
    """Return the name of the file that tar can't find to link to; "" for another line."""
    return line.partition(": Cannot hard link to '")[2].rpartition("': No such file")[0]


def _raise_failure(verb, processes, lines):
    """Raise Error where a process failed, unless all that failed is in COMPLAINTS."""
    failed = [process for process in processes if process.returncode not in (0, -signal.SIGPIPE)]
    warnings, rest = left_out(lines)
    # tar's status is the same for what is left out as for a failure.
    tars = [process for process in failed if process.args[0] == "tar"]
    excused = warnings and not rest and all(each.returncode == 2 for each in tars)
    if not failed or excused and tars == failed:
        return
    if tars and not _tar_is_gnus():
        raise Error(f"cannot {verb}: this host's tar is not GNU tar; install that")
    # A decompressor's word comes first: tar only says that its input ended early.
    foreign = [line for line in rest if not line.startswith("tar: ")]
    why = (foreign or rest or [programs.ending(failed[0].args[0], failed[0].returncode)])[0]
    # tar's word for a disk that fills up in the middle of a file.
    file, full, _ = why.partition(": Wrote only ")
    why = file + ": No space left on device" if full else why
    why = "it is compressed twice" if "Archive is compressed" in why else why
    why = why.removeprefix("tar: ").removeprefix("-: ").removeprefix("Cannot write: ")
    raise Error(f"cannot {verb}: {why}")


def _tar_is_gnus():
    done = programs.run(["tar", "--version"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return done.stdout.startswith(b"tar (GNU tar)")
