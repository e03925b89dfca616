"""A small world for each test: a data directory and a home of its own, and plash in it."""

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBEXEC = ROOT / "libexec"
STRICT = os.environ.get("PLASH_TEST_STRICT") == "1"


def need(condition, what):
    """Skip where this machine lacks what a test needs; with PLASH_TEST_STRICT=1 that fails."""
    if not condition:
        (pytest.fail if STRICT else pytest.skip)(f"needs {what}")


def need_program(*programs):
    for program in programs:
        need(shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin"), program)


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def subordinate_ids():
    """Whether more than the user's own ids can be mapped: for root always."""
    import pwd

    user = pwd.getpwuid(os.getuid()).pw_name
    entries = Path("/etc/subuid").read_text() if os.path.exists("/etc/subuid") else ""
    return os.getuid() == 0 or shutil.which("newuidmap") and f"{user}:" in entries


needs_subordinate_ids = pytest.mark.only_for("root", "subids")
as_user = pytest.mark.only_for("subids", "plain")


def kind_of_user():
    """root, subids (an ordinary user with subordinate ids) or plain (one without)."""
    return "root" if os.getuid() == 0 else "subids" if subordinate_ids() else "plain"


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "only_for(kind, ...): a test that has no meaning for other kinds of user"
    )
    # A shell that starts the tests in the background has them, and all that they start, ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    expected = os.environ.get("PLASH_TEST_USER", kind_of_user())
    assert expected == kind_of_user(), f"this user is of kind {kind_of_user()}, not {expected}"


def pytest_collection_modifyitems(config, items):
    """Leave out what has no meaning for this kind of user; that is not a skip, which strictness forbids."""
    other = [
        item
        for item in items
        if any(kind_of_user() not in mark.args for mark in item.iter_markers("only_for"))
    ]
    if other:
        config.hook.pytest_deselected(items=other)
        items[:] = [item for item in items if item not in other]


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
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PLASH")}
        self.env = {
            **kept,
            "PLASH_DATA": str(self.data),
            "HOME": str(self.home),
            "PLASH_NO_SYNC": "1",
        }
        self.env.pop("XDG_DATA_HOME", None)

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
        return sorted(line for line in listed.splitlines() if not line.startswith("id_counter"))

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


@pytest.fixture
def plash(tmp_path):
    world = Plash(tmp_path)
    yield world
    assert not world.data.exists() or world.leftovers() == []
    world("sudo", "rm", "-rf", world.data)
    # Whatever else a test made with subordinate ids.
    world.run(
        [LIBEXEC / "plash-sudo", "find", tmp_path, "-mindepth", "1", "-delete"],
        env={"PLASH_DATA": "/nonexistent"},
    )


@pytest.fixture(scope="session")
def host_tar(tmp_path_factory):
    """An archive of an image that pull:host made."""
    world = Plash(tmp_path_factory.mktemp("host"))
    number = world("pull:host").id
    tar = world.place / "host.tar"
    world("push:tarfile", number, tar).ok()
    world("purge", "--yes").ok()
    return tar


@pytest.fixture
def image(plash, host_tar):
    """The id of an image with a shell and the everyday tools."""
    return plash("pull:tarfile", host_tar).id


@pytest.fixture
def layers(plash):
    """A function that lists what is in an image's own layer, as sorted paths."""

    def listed(number):
        root = plash("nodepath", number).ok().out.strip() + "/_data/root"
        return sorted(
            plash("sudo", "find", root, "-mindepth", "1", "-printf", "%P\n").ok().out.split()
        )

    return listed


@pytest.fixture(scope="session")
def debian_tar(tmp_path_factory):
    """A minimal Debian: PLASH_TEST_DEBIAN names an archive of one, else mmdebstrap makes it."""
    given = os.environ.get("PLASH_TEST_DEBIAN")
    if given:
        return given
    need_program("mmdebstrap")
    need(subordinate_ids(), "subordinate ids for mmdebstrap, or PLASH_TEST_DEBIAN")
    tar = tmp_path_factory.mktemp("debian") / "debian.tar"
    made = subprocess.run(["mmdebstrap", "--variant=minbase", "bookworm", tar], capture_output=True)
    need(made.returncode == 0, "Debian's packages: " + made.stderr.decode()[-300:])
    return tar


@pytest.fixture(scope="session")
def oci_tools():
    need_program("skopeo", "umoci")


@pytest.fixture(scope="session")
def registry(tmp_path_factory, oci_tools):
    """A registry of its own, a layouts.Registry."""
    import layouts

    need_program("docker-registry")
    with layouts.registry(tmp_path_factory.mktemp("registry")) as opened:
        yield opened
