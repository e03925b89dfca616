"""Root filesystems to and from tar archives, and copies of them.

GNU tar does the work, each compression program in a process of its own beside it. This
decides which programs run, and which of tar's complaints are failures.
"""

import contextlib
import os
import signal
import subprocess

from plashlib import Error, cli, namespaces, progress, store

BLOCK = 512  # of a tar archive, in bytes
END = 2 * BLOCK  # zeros that end an archive
PIECE = 1 << 20  # what is read at once, in bytes

# First bytes, the programs that expand it (the first that is there is taken), the name.
COMPRESSIONS = (
    (b"\x1f\x8b", ("pigz -dc", "gzip -dc"), "gzip"),
    (b"\xfd7zXZ\0", ("xz -T0 -dc",), "xz"),
    (b"\x28\xb5\x2f\xfd", ("zstd -dcq",), "zstd"),
    (b"BZh", ("bzip2 -dc",), "bzip2"),
    (b"\x04\x22\x4d\x18", ("lz4 -dcq",), "lz4"),
    (b"LZIP", ("lzip -dc",), "lzip"),
)
# What is taken for an archive by mistake, by its first bytes.
OTHERS = (
    (b"PK\x03\x04", "a zip archive"),
    (b"<", "a web page or XML"),
    (b"\x7fELF", "a program"),
    (b"hsqs", "a squashfs filesystem"),
    (b"!<arch>", "a Debian package or ar archive"),
)
# Programs that compress for a file of that suffix; the output of each depends on its input alone.
SUFFIXES = {
    (".gz", ".tgz"): ("pigz -n", "gzip -n"),
    (".xz", ".txz"): ("xz -T0",),
    (".zst", ".tzst"): ("zstd -qT0",),
    (".bz2", ".tbz2"): ("bzip2",),
    (".lz4",): ("lz4 -q",),
}

# Blocks that tar reads and writes at once: 64 KiB, since its own 10 take half as long again.
AT_ONCE = "--blocking-factor=128"
EXTRACT = [
    "tar",
    "--extract",
    "--file=-",
    AT_ONCE,
    "--preserve-permissions",
    "--numeric-owner",
    "--delay-directory-restore",
    "--xattrs",
    "--xattrs-include=*",
    "--acls",
]
PACK = [
    "tar",
    "--create",
    "--file=-",
    AT_ONCE,
    "--format=pax",
    "--numeric-owner",
    "--xattrs",
    "--xattrs-include=*",
    "--acls",
    "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime",
]
CREATE = [*PACK, "--sparse", "--sort=name", "."]


# What tar says of an archive that is as good as any.
HARMLESS = (
    "Exiting with failure status",
    "Removing leading",
    "time stamp",
    "socket ignored",
    "Ignoring unknown extended header",
    "A lone zero block",
)
# What tar can't do in a user namespace, by its words; plash says it once, with a count.
BORNE = {
    "Cannot mknod: Operation not permitted": "device nodes left out, which a user namespace can't make",
    "Cannot change ownership to uid": "files given to root, since their owners are not mapped here",
    "Cannot set '": "extended attributes left out, which can't be set here",
}


def extract(source, root):
    """Unpack the tar archive that the file descriptor source reads into the new directory root.

    Device nodes and owners that a user namespace can't have are left out, with a line on
    stderr. Raises Error where the archive is not whole, not sound or not a root
    filesystem; root is then to be thrown away.
    """
    os.mkdir(root)
    source = Source(source)
    if not source.head:
        raise Error("the archive is empty")
    for magic, what in OTHERS:
        if source.head.startswith(magic):
            raise Error(f"not a tar archive, but {what}")
    expand = decompressor(source.head)
    with progress.Progress("unpacking", source.size) as shown:
        told = run_pipeline(
            "unpack",
            [*([expand] if expand else []), extractor()],
            source,
            extract_to=root,
            shown=shown,
        )
    # tar takes an archive that ends between two members for a whole one.
    if not expand and source.end().strip(b"\0"):
        raise Error("the archive has no end: it was cut off")
    for line in told:
        cli.warn(line)
    names = set(os.listdir(root))
    if not names:
        raise Error("the archive holds no files")
    if names & {"oci-layout", "manifest.json"} and not names & {"bin", "etc", "usr"}:
        raise Error(
            "an archive of image layers (docker save, OCI), not of a root filesystem"
            " (docker export makes one)"
        )


def decompressor(head):
    """The words of the program that expands an archive of these first bytes; None for a plain tar. Raises Error."""
    for magic, programs, what in COMPRESSIONS:
        if head.startswith(magic):
            return _installed(programs, f"to read {what}")
    return None


def extractor():
    owners = (
        "--same-owner" if min(map(namespaces.mapped, ("uid", "gid"))) > 1 else "--no-same-owner"
    )
    # An archive's overlayfs xattrs would be orders to the kernel, not content.
    return [*EXTRACT, owners, "--xattrs-exclude=user.overlay.*"]


def create(root, target, compress=None):
    """Write the tree at root as a tar archive to the file descriptor target.

    One tree gives the same bytes each time. compress is a program's words, or None.
    Raises Error; BrokenPipeError where the reader has gone.
    """
    run_pipeline(
        "pack", [CREATE, compress] if compress else [CREATE], target=target, create_from=root
    )


@contextlib.contextmanager
def whole_file(file):
    """Open a file to write to that is there whole, or not at all, when the `with` statement ends.

    What is no regular file, such as a device or a pipe, is written to as it is.
    """
    if os.path.exists(file) and not os.path.isfile(file):
        with open(file, "wb") as opened:
            yield opened
        return
    place = os.path.realpath(file)
    temporary = f"{os.path.dirname(place)}/.plash-{os.urandom(8).hex()}"
    try:
        opened = open(temporary, "xb")
    except OSError as error:
        raise OSError(error.errno, error.strerror, file) from None
    try:
        with opened:
            yield opened
            if store.durable():
                os.fsync(opened.fileno())
        os.rename(temporary, place)
    except BaseException:
        os.unlink(temporary)
        raise


def compression(file):
    """The words of the program that the name of file asks for; None for a plain tar. Raises Error."""
    for suffixes, programs in SUFFIXES.items():
        if file.endswith(suffixes):
            return _installed(programs, f"to write {file}")
    return None


def copy(source, target):
    """Copy what is in the directory source into the empty directory target: all that tar keeps.

    Returns a line each on what could not be made, such as device nodes. Raises Error.
    """
    return run_pipeline(
        "copy", [CREATE, [*EXTRACT, "--same-owner"]], create_from=source, extract_to=target
    )


def _installed(programs, purpose):
    """The words of the first of programs that is installed. Raises Error."""
    # Not by shutil, which imports re and more: 7 ms for each import and export.
    places = os.environ.get("PATH", os.defpath).split(":")
    for program in programs:
        words = program.split()
        if any(os.access(f"{place}/{words[0]}", os.X_OK) for place in places):
            return words
    raise Error(f"{purpose}, install {programs[-1].split()[0]}")


class Source:
    """What an archive is read from: a file, which its reader is given, or a pipe, which is pumped."""

    def __init__(self, fd, digest=None):
        """Read the first block from the descriptor fd, as `head`; digest is a hash of all that a pipe gives."""
        self.fd, self.size, self._end, self._digest = fd, None, b"", digest
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

    def feed(self, target, shown):
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
                    self._end = (self._end + piece)[-END:]
                    piece = os.read(self.fd, PIECE)
        except BrokenPipeError:
            # Its reader ended early, and says why; or at the archive's end, which is not that of the file.
            while self._digest and piece:
                piece = os.read(self.fd, PIECE)
                self._digest.update(piece)

    def end(self):
        """The last bytes, once all is read."""
        return self._end if self.size is None else os.pread(self.fd, END, max(0, self.size - END))


def run_pipeline(
    verb, commands, source=None, target=None, create_from=None, extract_to=None, shown=None
):
    """Run commands as a pipeline, from a Source (None: nothing) to the descriptor target (None: stderr).

    verb         what is tried, for errors
    create_from  the first command's working directory: tar's own option for it takes
    extract_to   the last command's                     backslashes for escapes
    shown        a progress.Progress of the bytes read from source; None where none is to be seen

    Returns the lines of _judge(). Raises Error where a command fails.
    """
    processes = []
    stdin = (
        subprocess.DEVNULL
        if source is None
        else subprocess.PIPE
        if source.size is None
        else source.fd
    )
    with open(os.memfd_create("stderr"), "w+b") as complaints:
        try:
            for words in commands:
                first, last = words is commands[0], words is commands[-1]
                stdout = subprocess.PIPE if not last else 2 if target is None else target
                try:
                    processes.append(
                        subprocess.Popen(
                            words,
                            stdin=stdin,
                            stdout=stdout,
                            stderr=complaints,
                            env={**os.environ, "LC_ALL": "C"},
                            cwd=first and create_from or last and extract_to or None,
                        )
                    )
                except FileNotFoundError as error:
                    if error.filename != "tar":
                        raise
                    raise Error(f"cannot {verb}: install GNU tar") from None
                if processes[1:]:
                    stdin.close()
                stdin = processes[-1].stdout
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
        complaints.seek(0)
        lines = complaints.read().decode(errors="surrogateescape").splitlines()
    if target is not None and processes[-1].returncode == -signal.SIGPIPE:
        raise BrokenPipeError
    return _judge(verb, processes, lines)


def _judge(verb, processes, lines):
    """Raise Error where a process failed, but for what has to be borne; returns a line on each of that."""
    told = []
    lines = [line for line in lines if not any(words in line for words in HARMLESS)]
    for words, summary in BORNE.items():
        borne = [line for line in lines if words in line]
        if borne:
            lines = [line for line in lines if words not in line]
            told.append(f"{len(borne)} {summary} (the first: {borne[0].partition(': ')[2]})")
    failed = [process for process in processes if process.returncode not in (0, -signal.SIGPIPE)]
    # tar's status is the same for what is borne as for what is not.
    excused = (
        told and not lines and all((each.args[0], each.returncode) == ("tar", 2) for each in failed)
    )
    if failed and not excused:
        if any(each.args[0] == "tar" for each in failed) and not _tar_is_gnus():
            raise Error(f"cannot {verb}: this host's tar is not GNU tar; install that")
        foreign = [line for line in lines if not line.startswith("tar: ")]
        why = (
            foreign or lines or [f"{failed[0].args[0]} ended with status {failed[0].returncode}"]
        )[0]
        # tar's word for a disk that fills up in the middle of a file.
        why = (
            why.partition(": Wrote only ")[0] + ": No space left on device"
            if ": Wrote only " in why
            else why
        )
        raise Error(f"cannot {verb}: {why.removeprefix('tar: ').removeprefix('-: Cannot write: ')}")
    return told


def _tar_is_gnus():
    done = subprocess.run(["tar", "--version"], stdin=subprocess.DEVNULL, capture_output=True)
    return done.stdout.startswith(b"tar (GNU tar)")
