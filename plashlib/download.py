"""Downloads, which are curl(1)'s job; here they are verified, and resumed if interrupted."""

import hashlib
import os
import subprocess

from plashlib import Error, archive, ids, programs, progress, store, work

STALLED = 60  # seconds without a byte, after which a transfer is given up
CURL = [
    "curl",
    "--silent",
    "--show-error",
    "--fail",
    "--location",
    "--globoff",
    "--proto",
    "=http,https,file",
    "--proto-redir",
    "=http,https",
    "--connect-timeout",
    str(STALLED),
    "--speed-limit",
    "1",
    "--speed-time",
    str(STALLED),
    "--write-out",
    "%{http_code}",
]
# Exit statuses of curl(1): of a transfer that broke off, and others.
BROKE_OFF = (18, 28, 52, 55, 56, 92)
HTTP_ERROR, CANNOT_RESUME, NO_FILE = 22, 33, 37


def text(url: str, missing_ok: bool = False) -> "str | None":
    """Return what is at url.

    missing_ok  return None if there is no such file

    Raises Error with curl's reason.
    """
    with work.Work() as directory:
        status, code, why = _curl(url, "--output", directory.path + "/text")
        if missing_ok and (status == HTTP_ERROR and code == "404" or status == NO_FILE):
            return None
        if status:
            raise Error(f"{_public(url)}: {why}")
        if not os.path.exists(directory.path + "/text"):
            return ""
        with open(directory.path + "/text", encoding="utf-8", errors="surrogateescape") as file:
            return file.read()


class File(work.Work):
    """The file at url, fetched by fetch() to the path `file`, while a `with` statement runs.

    An interrupted transfer stays in tmp/, and the next one of that url resumes it if the server
    says that its file is still the same; `plash clean` removes it too.
    """

    def __init__(self, url):
        super().__init__("download-" + hashlib.sha256(os.fsencode(url)).hexdigest()[:32])
        self.url, self.file = url, self.path + "/data"

    def fetch(self, sha256: "str | None" = None) -> None:
        """Download the file, or resume that. sha256 is the file's, in hexadecimal. Raises Error."""
        start, validator = self._size(), self._header("etag", "last-modified")
        resume = []
        if start and validator:
            resume = ["--continue-at", "-", "--header", f"If-Range: {validator}"]
        elif os.path.exists(self.file):
            os.unlink(self.file)
        with progress.Progress("downloading") as shown:
            status, code, why = _curl(
                self.url,
                "--output",
                self.file,
                "--dump-header",
                self.path + "/headers",
                *resume,
                shown=shown,
                position=self._position,
            )
        if resume and (status == CANNOT_RESUME or code == "416"):
            # The file there is another one by now, or the server knows no ranges: from the start.
            os.unlink(self.file)
            return self.fetch(sha256)
        if status:
            self.keep = (
                status in BROKE_OFF
                and self._size() > 0
                and bool(self._header("etag", "last-modified"))
            )
            raise Error(
                f"{_public(self.url)}: {why}" + (" (run again to resume)" if self.keep else "")
            )
        if not os.path.exists(self.file):
            raise Error(f"{_public(self.url)}: the file is empty")
        if sha256:
            self._verify(sha256)

    def _verify(self, sha256):
        digest = hashlib.sha256()
        with open(self.file, "rb") as file, progress.Progress("verifying", self._size()) as shown:
            while True:
                piece = file.read(1 << 20)
                if not piece:
                    break
                digest.update(piece)
                shown.show(file.tell())
        if digest.hexdigest() != sha256.lower():
            raise Error(
                f"{_public(self.url)}: its sha256 is {digest.hexdigest()}, not {sha256};"
                " nothing was imported"
            )

    def _size(self):
        try:
            return os.path.getsize(self.file)
        except FileNotFoundError:
            return 0

    def _position(self):
        """How many bytes are there, and of how many, or None."""
        size = self._header("content-range").rpartition("/")[2] or self._header("content-length")
        return self._size(), int(size) if size.isascii() and size.isdigit() else None

    def _header(self, *names):
        """The first of these headers in the server's last answer; "" where there is none."""
        try:
            with open(self.path + "/headers", encoding="latin-1") as file:
                answer = file.read().rstrip().replace("\r", "").split("\n\n")[-1]
        except FileNotFoundError:
            return ""
        headers = {}
        for line in answer.splitlines()[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        # A weak ETag tells of the meaning, not of the bytes.
        return next(
            (
                headers[name]
                for name in names
                if headers.get(name) and not headers[name].startswith("W/")
            ),
            "",
        )


def _curl(url, *options, shown=None, position=None):
    """Run curl(1); returns its exit status, the HTTP status, and its reason in one line."""
    try:
        process = programs.start(
            [*CURL, *options, "--", url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError:
        raise Error("downloads need curl, which is not installed") from None
    with process:
        try:
            if shown:
                shown.watch(process, position)
            code, why = process.communicate()
        except BaseException:
            process.kill()
            raise
    lines = [line for line in why.decode(errors="replace").splitlines() if line.startswith("curl:")]
    reason = lines[0].partition(") ")[2] if lines else programs.ending("curl", process.returncode)
    return process.returncode, code.decode(), reason


def _public(url):
    """Return a URL without its user and password, for errors, which logs keep."""
    scheme, separator, rest = url.partition("://")
    server, slash, path = rest.partition("/")
    return f"{scheme}{separator}{server.rpartition('@')[2]}{slash}{path}"


def pull(url: str, sha256: "str | None" = None) -> "tuple[str, list[str]]":
    """Import the tar archive at url, whose sha256 may be given in hexadecimal.

    Returns the new image's id, and warnings. Raises Error, OSError.
    """
    ids.become_root()
    with File(url) as download, work.NewLayer() as layer:
        download.fetch(sha256)
        with open(download.file, "rb") as source:
            try:
                warnings = archive.extract(source.fileno(), layer.root)
            except Error as error:
                raise Error(f"{_public(url)}: {error}") from None
        return layer.stack_on(store.empty()).id, warnings
