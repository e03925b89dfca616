"""Root filesystems to and from tar archives, and copies of them.

GNU tar does the work, each compression program in a process of its own beside it. This decides
which programs run.
"""

import os
import stat

from plashlib import Error, ids, merged, namespaces, pipeline, programs, progress
from plashlib.pipeline import BLOCK as BLOCK
from plashlib.pipeline import Source, run_pipeline

# First bytes, the programs that decompress it (the first that is there is taken), the name.
COMPRESSIONS = (
    (b"\x1f\x8b", ("pigz -dc", "gzip -dc"), "gzip"),
    (b"\x1f\x9d", ("gzip -dc",), "compress"),
    (b"\xfd7zXZ\0", ("xz -T0 -dc",), "xz"),
    (b"\x28\xb5\x2f\xfd", ("zstd -dcq",), "zstd"),
    # pzstd begins with a skippable frame, which has one of 16 numbers.
    *((bytes([byte]) + b"\x2a\x4d\x18", ("zstd -dcq",), "zstd") for byte in range(0x50, 0x60)),
    (b"BZh", ("bzip2 -dc",), "bzip2"),
    (b"\x04\x22\x4d\x18", ("lz4 -dcq",), "lz4"),
    (b"LZIP", ("lzip -dc",), "lzip"),
)
# What is taken for an archive by mistake, by its first bytes.
OTHERS = (
    (b"PK\x03\x04", "a zip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a rar archive"),
    (b"<", "a web page or XML"),
    (b"\x7fELF", "a program"),
    (b"hsqs", "a squashfs filesystem"),
    (b"!<arch>", "a Debian package or ar archive"),
)
# Programs that compress for a file of that suffix; the output of each depends on its input alone.
SUFFIXES = {
    (".gz", ".tgz", ".taz"): ("pigz -n", "gzip -n"),
    (".xz", ".txz"): ("xz -T0",),
    (".zst", ".tzst"): ("zstd -qT0",),
    (".bz2", ".tbz2", ".tbz", ".tz2"): ("bzip2",),
    (".lz4",): ("lz4 -q",),
    (".lz",): ("lzip",),
}
# Suffixes of other formats: a plain tar of that name would deceive whoever reads it.
REFUSED = (
    *(".Z", ".taZ", ".lzma", ".tlz", ".lzo", ".br", ".lrz", ".rz", ".zz"),
    *(".zip", ".7z", ".rar", ".cpio", ".ar", ".deb", ".rpm", ".iso", ".img"),
    *(".squashfs", ".sqfs", ".sfs", ".sif"),
)

# Blocks of 512 bytes that tar reads and writes at once, for its own 20 take half as long again.
READ_AT_ONCE = "--blocking-factor=128"
# A multiple of its own: a reader may end at the archive's last block, and not at ours.
WRITTEN_AT_ONCE = "--blocking-factor=60"
PIPE_SIZE = 1 << 20  # in bytes: what an ordinary user may have (pipe(7))
F_SETPIPE_SZ = 1031  # fcntl(2); Python's module fcntl has it since 3.10
EXTRACT = [
    "tar",
    "--extract",
    "--file=-",
    READ_AT_ONCE,
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
    WRITTEN_AT_ONCE,
    "--format=pax",
    # Later versions write the process's id into the archive.
    "--sparse-version=0.0",
    "--numeric-owner",
    "--xattrs",
    "--xattrs-include=*",
    "--acls",
    "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime",
]
CREATE = [*PACK, "--sparse", "--sort=name", "."]
# overlayfs's xattrs would be orders to the kernel, not content.
NO_OVERLAY = ["--xattrs-exclude=user.overlay.*", "--xattrs-exclude=trusted.overlay.*"]


def extract(source: int, root: str) -> "list[str]":
    """Unpack the tar archive that the descriptor source reads into the new directory root.

    Returns warnings, such as of device nodes and owners that a user namespace can't have. Raises
    Error where the archive is not whole, not sound or not a root filesystem; root is then to be
    thrown away.
    """
    os.mkdir(root)
    archive = Source(source)
    if not archive.head:
        raise Error("the archive is empty")
    for magic, what in OTHERS:
        if archive.head.startswith(magic):
            raise Error(f"not a tar archive, but {what}")
    decompress = decompressor(archive.head)
    tar = [*extractor(), "--block-number"]
    with progress.Progress("unpacking", archive.size) as shown:
        lines = pipeline.run("unpack", [decompress, tar], archive, extract_to=root, shown=shown)
    # tar takes an archive that ends between two members for a whole one, and says so by this alone.
    if any(pipeline.NO_END in line for line in lines):
        raise Error("the archive has no end: it was cut off")
    names = set(os.listdir(root))
    if not names:
        raise Error("the archive holds no files")
    if names & {"oci-layout", "manifest.json"} and not names & {"bin", "etc", "usr"}:
        raise Error(
            "an archive of image layers (docker save, OCI), not of a root filesystem"
            " (docker export makes one)"
        )
    return [*ids.lost(), *pipeline.left_out(lines)[0], *_remove_whiteouts(root)]


def _remove_whiteouts(root):
    """Remove overlayfs's whiteouts, which hide nothing in a lowest layer; returns warnings.

    The kernel lists their names, and says of each that it is not there.
    """
    removed = merged.whiteouts(root)
    for path in removed:
        path = os.path.join(os.fsencode(root), path)
        times = os.stat(os.path.dirname(path))
        os.unlink(path)
        os.utime(os.path.dirname(path), ns=(times.st_atime_ns, times.st_mtime_ns))
    if not removed:
        return []
    first = os.fsdecode(removed[0]).removeprefix("./")
    return [
        f"{len(removed)} whiteouts of overlayfs left out, which hide nothing (the first: {first})"
    ]


def decompressor(head: bytes) -> "list[str] | None":
    """Return the argv that decompresses an archive of these first bytes; None for a plain tar.

    Raises Error where no such program is installed.
    """
    for magic, candidates, what in COMPRESSIONS:
        if head.startswith(magic):
            return _installed(candidates, f"to read {what}")
    return None


def extractor() -> "list[str]":
    """Return the argv of tar that unpacks a root filesystem with the owners that it can have."""
    owners = (
        "--same-owner" if min(map(namespaces.mapped, ("uid", "gid"))) > 1 else "--no-same-owner"
    )
    return [*EXTRACT, owners, *NO_OVERLAY]


def create(layers: str, target: int, compress: "list[str] | None" = None) -> "list[str]":
    """Write what layers show together as a tar archive to the descriptor target.

    layers    the directory that has them, as of export.mount_layers()
    compress  a program's argv

    The same files give the same bytes. Returns warnings. Raises Error; BrokenPipeError where the
    reader has gone.
    """
    pack = list(PACK)
    if not compress and stat.S_ISFIFO(os.fstat(target).st_mode) and not _enlarge(target):
        pack.remove(WRITTEN_AT_ONCE)
    with _list_of(layers) as names:
        return run_pipeline(
            "pack",
            [[*pack, "--sparse", *names.options], compress],
            target=target,
            layers=layers,
            pass_fds=[names.fd],
        )


def _enlarge(pipe):
    """Make a pipe hold more; returns whether it can.

    tar, as the reader, ends with the record that holds the archive's last block. If what follows
    that in the writer's longer one still waits for room then, the writer gets SIGPIPE.
    """
    import fcntl

    try:
        fcntl.fcntl(pipe, F_SETPIPE_SZ, PIPE_SIZE)
    except OSError:
        return False  # the user has many pipes
    return True


def copy(source: str, target: str) -> "list[str]":
    """Copy what is in the directory source into the empty directory target: all that tar keeps.

    Returns a line each on what could not be made, such as device nodes. Raises Error.
    """
    return run_pipeline(
        "copy", [CREATE, [*EXTRACT, "--same-owner"]], create_from=source, extract_to=target
    )


def copy_root(source: str, target: str) -> "list[str]":
    """Copy the root filesystem in the directory source into the new directory target.

    What is mounted below source is left out. Returns warnings, as extract(). Raises Error.
    """
    os.mkdir(target)
    pack = [*CREATE[:-1], "--one-file-system", CREATE[-1]]
    lines = run_pipeline("copy", [pack, extractor()], create_from=source, extract_to=target)
    return [*ids.lost(), *lines, *_remove_whiteouts(target)]


def copy_layers(layers: str, target: str) -> "list[str]":
    """Copy what layers show together, as create(), into the empty directory target; as copy()."""
    with _list_of(layers) as names:
        return run_pipeline(
            "copy",
            [[*PACK, "--sparse", *names.options], [*EXTRACT, "--same-owner"]],
            extract_to=target,
            layers=layers,
            pass_fds=[names.fd],
        )


class _list_of:
    """The names that layers show together, written for tar by a thread while it reads them."""

    def __init__(self, layers):
        import threading

        self.fd, self._writer = os.pipe()
        self._layers, self._failure = layers, None
        self.options = [
            *NO_OVERLAY,
            "--no-recursion",
            # Both without the layer's number, with which a name begins here.
            "--transform=flags=rh;s,^[0-9]*/,,",
            "--pax-option=exthdr.name=./PaxHeaders/%f",
            f"--files-from=/proc/self/fd/{self.fd}",
        ]
        self._thread = threading.Thread(target=self._write)

    def _write(self):
        roots = []
        try:
            for number in range(len(os.listdir(self._layers))):
                roots.append(os.open(f"{self._layers}/{number}", merged.ROOT))
            with open(self._writer, "wb") as file:
                merged.write_list(roots, file)
        except BrokenPipeError:
            pass  # tar ended early, and says why
        except OSError as error:
            self._failure = error
        finally:
            for root in roots:
                os.close(root)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, kind, *_):
        os.close(self.fd)
        self._thread.join()
        if self._failure and not kind:
            raise self._failure


def compression(file: str) -> "list[str] | None":
    """Return the argv that compresses as the name of file asks for; None for a plain tar.

    Raises Error where that program is not installed, or where the suffix is of another format.
    """
    for suffixes, candidates in SUFFIXES.items():
        if file.endswith(suffixes):
            return _installed(candidates, f"to write {file}")
    if file.endswith(REFUSED):
        known = ", ".join(suffixes[0] for suffixes in SUFFIXES)
        raise Error(f"cannot write {file}: no such format (tar archives, plain or {known})")
    return None


def _installed(candidates, purpose):
    """Return the argv of the first of candidates that is installed. Raises Error."""
    for candidate in candidates:
        name, *options = candidate.split()
        path = programs.find(name)
        if path:
            return [path, *options]
    raise Error(f"{purpose}, install {candidates[-1].split()[0]}")
