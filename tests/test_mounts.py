"""Deletion never crosses a mount: a bind of the same filesystem has the same device, too."""

import os
import shutil
import subprocess

import pytest
from requirements import need_program
from world import ROOT, make_directory


def as_root(plash, code):
    """Run shell code as root of a mount namespace of its own."""
    env = {"PATH": f"{ROOT}/bin:{os.environ['PATH']}"}
    return plash("sudo", "unshare", "-m", "sh", "-c", code, env=env)


def test_clean_leaves_what_is_mounted_in_garbage(plash, image):
    home = make_directory(plash.place / "files")
    done = as_root(
        plash,
        "d=$(sh -c 'plash mkdtemp; :') && mkdir $d/home && touch $d/x &&"
        f" mount --bind {home} $d/home && mkdir {plash.data}/tmp/other && plash clean",
    )
    assert (home / "file").read_text() == "x\n"
    assert "/home is mounted" in done.error
    (left,) = plash.leftovers()
    assert left != "other"
    plash.clean()
    assert (home / "file").exists()


def test_rm_and_shrink_leave_what_is_mounted_in_a_layer(plash, image):
    home = make_directory(plash.place / "files")
    child = plash("build", image, "mkdir /there").id
    at = f"{plash.data}/layer/0/{image}/{child}/_data/root/there"
    for command in (
        f"rm --recursive {image}",
        f"rm --force {child}",
        "purge --yes",
        "purge --yes --force",
    ):
        done = as_root(plash, f"mount --bind {home} {at} && plash {command}")
        assert at in done.error and "mount" in done.error
        assert (home / "file").read_text() == "x\n"
        assert plash("run", child, "ls", "-d", "/there").ok()
    plash("rm", "--recursive", image).ok()


@pytest.mark.only_for("root")
def test_clean_unmounts_what_a_killed_mount_left(plash, image):
    """mount(8) is done, and its parent is killed before it mounts the overlay."""
    need_program("mksquashfs")
    plash("push:squashfs", image, "file").ok()
    number = plash("link", "file").id
    killer = make_directory(plash.place / "bin") / "mount"
    killer.write_text(f'#!/bin/sh\n{shutil.which("mount")} "$@"; kill -9 $PPID\n')
    killer.chmod(0o755)
    (plash.place / "at").mkdir()
    env = {"PATH": f"{killer.parent}:{os.environ['PATH']}"}
    assert plash("mount", number, "at", env=env).status == -9
    (left,) = plash.data.glob("tmp/*/*")
    assert os.path.ismount(left)
    try:
        plash.clean()
    finally:
        subprocess.run(["umount", left], stderr=subprocess.DEVNULL)
