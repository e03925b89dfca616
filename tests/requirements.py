"""What a test needs of this machine: programs, and a kind of user."""

import os
import pwd
import shutil
import subprocess
from pathlib import Path

import pytest

# What compresses, by the suffix of its files.
PROGRAMS = {"gz": "gzip", "xz": "xz", "zst": "zstd", "bz2": "bzip2", "lz4": "lz4"}
STRICT = os.environ.get("PLASH_TEST_STRICT") == "1"


def need(condition, what):
    """Skip where this machine lacks what a test needs; with PLASH_TEST_STRICT=1 that fails."""
    if not condition:
        (pytest.fail if STRICT else pytest.skip)(f"needs {what}")


def need_program(*programs):
    for program in programs:
        need(shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin"), program)


def subordinate_ids():
    """Whether more than the user's own ids can be mapped: for root always."""
    user = pwd.getpwuid(os.getuid()).pw_name
    entries = Path("/etc/subuid").read_text() if os.path.exists("/etc/subuid") else ""
    return os.getuid() == 0 or shutil.which("newuidmap") and f"{user}:" in entries


needs_subordinate_ids = pytest.mark.only_for("root", "subids")
as_user = pytest.mark.only_for("subids", "plain")


def kind_of_user():
    """root, subids (an ordinary user with subordinate ids) or plain (one without)."""
    return "root" if os.getuid() == 0 else "subids" if subordinate_ids() else "plain"


def need_system_python():
    """What plash in an image that has the host's /usr, and nothing else of it, needs."""
    argv = ["python3", "-c", "import sys; print(sys.executable)"]
    python = subprocess.run(argv, capture_output=True, text=True).stdout.strip()
    need(os.path.realpath(python).startswith("/usr/"), "a Python below /usr")
    need(os.path.islink("/lib"), "all libraries below /usr")
