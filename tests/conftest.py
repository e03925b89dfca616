"""Fixtures, and which tests run. Helpers are in world.py, requirements.py and the other modules here."""

import os
import subprocess

import pytest

pytest.register_assert_rewrite("world", "invariants")
from invariants import Checker, step, write_tar
from requirements import (  # noqa: F401 (some for tests that import them from here)
    STRICT,
    as_user,
    kind_of_user,
    need,
    need_program,
    needs_subordinate_ids,
    subordinate_ids,
)
from world import LIBEXEC, ROOT, Plash, Result, isolate, tree, wait_for  # noqa: F401


def pytest_configure(config):
    for marker in (
        "only_for(kind, ...): a test that has no meaning for other kinds of user",
        "slow: a test of more than some three seconds, which `make test` leaves out",
    ):
        config.addinivalue_line("markers", marker)
    isolate()
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


@pytest.fixture
def plash(tmp_path):
    world = Plash(tmp_path)
    yield world
    assert not world.data.exists() or world.leftovers() == []
    if os.listdir(tmp_path) != ["home"]:
        # The store, and whatever else a test made with subordinate ids.
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


@pytest.fixture
def store(plash):
    """A Checker of a store with two images, the second named and on the first, and what the commands need."""
    need_program("strace", "busybox")
    write_tar(plash.place / "base.tar")
    checker = Checker(plash)
    checker.took(plash("pull:tarfile", "base.tar").id)
    checker.took(plash("build", "1", step("two")).id)
    plash("map", "name-2", "2").ok()
    return checker
