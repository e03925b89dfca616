"""A small world for each test: a data directory and a home of its own, and plash in it."""

import contextlib
import fcntl
import hashlib
import locale
import os
import signal
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIBEXEC = ROOT / "libexec"
COMMANDS = sorted(
    name[len("plash-") :] for name in os.listdir(LIBEXEC) if name.startswith("plash-")
)

# Of the caller's environment, commands in tests get what finds programs and reaches the network.
KEPT = {
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    *("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE"),
    *(
        "PIP_CERT",
        "PIP_CONFIG_FILE",
        "PIP_DEFAULT_TIMEOUT",
        "PIP_EXTRA_INDEX_URL",
        "PIP_FIND_LINKS",
        "PIP_INDEX_URL",
    ),
    *("PIP_NO_INDEX", "PIP_PROXY", "PIP_TRUSTED_HOST", "APT_CONFIG"),
}
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name in KEPT},
    "LANG": "C.UTF-8",
    "TERM": "xterm",
}


# Python itself ignores these, and subprocess gives them their default action.
OF_PYTHON = signal.SIGPIPE, signal.SIGXFSZ
# With a handler, what these interrupt would begin again for ever.
OF_TERMINALS = signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU


def isolate():
    """Make this process, which all commands in tests inherit from, independent of its caller."""
    tempfile.gettempdir()  # TMPDIR chooses where the tests work, and nothing else
    settings = {name: os.environ[name] for name in os.environ if name.startswith("PLASH_TEST_")}
    os.environ.clear()
    os.environ.update(ENVIRONMENT, **settings)
    with contextlib.suppress(locale.Error):
        locale.setlocale(locale.LC_ALL, "C.UTF-8")
    os.umask(0o022)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in signal.valid_signals():
        # A signal with a handler has its default action after exec(2); this process goes on ignoring it.
        if signal.getsignal(number) == signal.SIG_IGN and number not in OF_PYTHON:
            signal.signal(number, signal.SIG_DFL if number in OF_TERMINALS else lambda *_: None)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


class Result:
    """What a command printed and how it ended."""

    def __init__(self, process):
        self.status, self.raw = process.returncode, process.stdout
        self.out = os.fsdecode(process.stdout or b"")
        self.err = os.fsdecode(process.stderr or b"")

    def ok(self):
        assert self.status == 0, self.err
        return self

    @property
    def id(self):
        """The id that is all of stdout."""
        self.ok()
        assert self.out.strip().isdigit() and self.out.count("\n") == 1, self.out
        return self.out.strip()

    @property
    def error(self):
        """The one line on stderr of a command that failed and printed nothing."""
        assert self.status != 0 and self.out == "", self.out
        assert self.err.count("\n") == 1 and "Traceback" not in self.err, self.err
        return self.err.rstrip("\n")


class Plash:
    """Runs plash in the test's world; call it with a command's words."""

    def __init__(self, place):
        self.place = place
        self.data = place / "data"
        self.home = place / "home"
        self.home.mkdir()
        self.env = {
            **ENVIRONMENT,
            "PLASH_DATA": str(self.data),
            "HOME": str(self.home),
            "PLASH_NO_SYNC": "1",
        }

    def __call__(self, *words, **options):
        return self.run([ROOT / "bin/plash", *words], **options)

    def run(self, words, input=b"", cwd=None, env=None, stdin=None, **options):
        """Run any program in the test's world; input is str or bytes."""
        if isinstance(input, str):
            input = input.encode()
        feed = {"stdin": stdin} if stdin else {"input": input}
        return Result(
            subprocess.run(
                words,
                cwd=cwd or self.place,
                env={**self.env, **(env or {})},
                capture_output=True,
                timeout=300,
                **feed,
                **options,
            )
        )

    def start(self, *words, **options):
        """Start a command and return its subprocess.Popen, with pipes."""
        pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            [LIBEXEC / f"plash-{words[0]}", *words[1:]],
            **{"cwd": self.place, "env": self.env, **pipe, **options},
        )

    def snapshot(self):
        """All that is in the store, to tell whether a failure changed it."""
        self.leftovers()
        listed = self("sudo", "find", self.data, "-printf", "%P %y %s %l\n").ok().out
        grow = "id_counter", "pidns"
        return sorted(line for line in listed.splitlines() if not line.startswith(grow))

    def leftovers(self):
        """What is in tmp/ once the files of removed images, which go in the background, are gone."""
        for entry in self.data.glob("tmp/removed.*"):
            try:
                opened = os.open(entry, os.O_DIRECTORY)
                fcntl.flock(opened, fcntl.LOCK_EX)
                os.close(opened)
            except FileNotFoundError:
                pass
        return os.listdir(self.data / "tmp")

    def clean(self):
        """Have `plash clean` remove what a test's killed command left; there has to be something."""
        assert self.leftovers()
        self("clean").ok()
        assert self.leftovers() == []


def tree(tar):
    """What is in a tar archive, as a dict of paths to all that is to survive import and export."""
    entries, links = {}, {}
    with tarfile.open(tar, errors="surrogateescape") as opened:
        for member in opened:
            name = os.path.normpath(member.name)
            if member.islnk():
                links.setdefault(os.path.normpath(member.linkname), {name}).add(name)
                continue
            content = opened.extractfile(member) if member.isreg() else None
            entries[name] = {
                "type": member.type.replace(tarfile.GNUTYPE_SPARSE, tarfile.REGTYPE),
                "mode": member.mode & 0o7777,
                "owner": (member.uid, member.gid),
                "mtime": int(member.mtime),
                "target": member.linkname,
                "device": (member.devmajor, member.devminor)
                if member.isdev() and not member.isfifo()
                else None,
                "content": hashlib.sha256(content.read()).hexdigest()
                if content and member.size
                else "",
                "xattrs": {
                    key: value
                    for key, value in member.pax_headers.items()
                    if key.startswith("SCHILY.xattr")
                },
            }
    for first, names in links.items():
        names.add(first)
        for name in names:
            entries[name] = {**entries[first], "links": sorted(names)}
    return entries


def make_directory(directory, name="file", text="x\n"):
    """The directory, with a file of that name and text in it."""
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(text)
    return directory
