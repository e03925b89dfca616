"""run:persist: changes stay in a directory."""

import os
import signal

import pytest
from requirements import need, need_program
from world import LIBEXEC, wait_for


def test_persist_keeps_changes(plash, image, tmp_path):
    kept = tmp_path / "kept"
    plash("run:persist", image, kept, "sh", "-c", "echo 1 > /one; rm /etc/group").ok()
    assert plash("run:persist", image, kept, "sh", "-c", "cat /one; ls /etc/group").out == "1\n"
    assert plash("run", image, "ls", "/one").status == 2
    assert sorted(os.listdir(kept)) == ["data", "image", "work"]
    assert plash("stack", image, kept).error == (
        f"plash stack: {kept} holds the changes of run:persist (stack {kept}/data)"
    )
    number = plash("stack", image, kept / "data").id
    assert plash("run", number, "cat", "/one").out == "1\n"


def test_persist_keeps_the_mode_of_the_root(plash, image, tmp_path):
    plash("run:persist", image, tmp_path / "kept", "chmod", "711", "/").ok()
    assert plash("run:persist", image, tmp_path / "kept", "stat", "-c", "%a", "/").out == "711\n"


def test_persist_refuses_a_directory_in_use(plash, image, tmp_path):
    with plash.start("run:persist", image, tmp_path / "kept", "sh", "-c", "echo up; cat") as run:
        run.stdout.readline()
        assert plash("run:persist", image, tmp_path / "kept", "true").error == (
            f"plash run:persist: {tmp_path}/kept is in use by another process"
        )
        run.stdin.close()
    plash("run:persist", image, tmp_path / "kept", "true").ok()


def test_no_descriptor_of_ours_frees_a_directory_in_use(plash, image, tmp_path):
    """The command sees none, and its background processes use the directory too."""
    code = "ls /proc/$$/fd; sleep 99 >/dev/null 2>&1 & echo $!"
    first = plash("run:persist", image, tmp_path / "kept", "sh", "-c", code).ok().out.split()
    assert first[:-1] == ["0", "1", "2"]
    refused = f"plash run:persist: {tmp_path}/kept is in use by another process"
    try:
        assert plash("run:persist", image, tmp_path / "kept", "true").error == refused
        refused = f"plash mount: {tmp_path}/kept is in use by another process"
        code = f"mkdir m; exec {LIBEXEC}/plash-mount {image} m {tmp_path}/kept"
        assert plash("sudo", "sh", "-c", code).error == refused
        done = plash("stack", image, tmp_path / "kept/data")
        assert done.error == (
            f"plash stack: a process writes to {tmp_path}/kept/data as to a container's root"
            " (end it, or use plash pull:dir)"
        )
    finally:
        os.kill(int(first[-1]), signal.SIGKILL)
    wait_for(lambda: plash("run:persist", image, tmp_path / "kept", "true").status == 0)
    assert plash("stack", image, tmp_path / "kept/data").ok()


def test_one_of_many_at_once_gets_a_directory(plash, image, tmp_path):
    words = "run:persist", image, tmp_path / "kept", "sh", "-c", "echo x >>/count; sleep 3"
    running = [plash.start(*words) for _ in range(8)]
    assert sorted(each.wait() for each in running) == [0] + [1] * 7
    assert plash("run:persist", image, tmp_path / "kept", "cat", "/count").ok().out == "x\n"


def test_persist_again_after_a_kill(plash, image, tmp_path):
    run = plash.start(
        "run:persist", image, tmp_path / "kept", "sh", "-c", "echo 1 > /one; echo up; exec sleep 99"
    )
    run.stdout.readline()
    run.kill()
    run.wait()
    assert plash("run:persist", image, tmp_path / "kept", "cat", "/one").out == "1\n"


def test_a_filesystem_that_can_not_hold_changes(plash, image):
    """A directory on an overlay is refused as the upper one of another."""
    for name in "lower", "upper", "work", "mnt", "at":
        (plash.place / name).mkdir()
    for command in f"run:persist {image} mnt/new true", f"mount {image} at mnt/new":
        code = (
            "mount -t overlay -o userxattr,lowerdir=lower,upperdir=upper,workdir=work none mnt &&"
            f" exec {LIBEXEC}/plash-{command}"
        )
        assert plash("sudo", "sh", "-c", code).error == (
            f"plash {command.split()[0]}: {plash.place}/mnt/new cannot keep changes:"
            " its filesystem takes no overlay (ext4, xfs, btrfs and tmpfs do)"
        )


@pytest.mark.only_for("subids", "plain")
def test_a_fuse_filesystem_is_no_place_for_changes(plash, image):
    """The kernel mounts read-only what it cannot write to, and says nothing."""
    need_program("fuse-overlayfs", "fusermount3")
    need(os.access("/dev/fuse", os.R_OK | os.W_OK), "/dev/fuse for all")
    for name in "lower", "upper", "work", "mnt":
        (plash.place / name).mkdir()
    options = "lowerdir=lower,upperdir=upper,workdir=work"
    plash.run(["fuse-overlayfs", "-o", options, "mnt"]).ok()
    try:
        assert plash("run:persist", image, "mnt/new", "touch", "/x").error == (
            f"plash run:persist: {plash.place}/mnt/new cannot keep changes:"
            " its filesystem takes no overlay (ext4, xfs, btrfs and tmpfs do)"
        )
    finally:
        plash.run(["fusermount3", "-u", "-z", "mnt"]).ok()


def test_a_directory_of_something_else_is_refused(plash, image):
    child = plash("build", image, "true").id
    for name in "data", "work/work":
        (plash.place / "mine" / name).mkdir(parents=True)
        (plash.place / "mine" / name / "file").write_text("x")
    assert "holds no changes" in plash("run:persist", image, "mine", "true").error
    assert (plash.place / "mine/work/work/file").exists()
    plash("run:persist", image, "dir", "touch", "/x").ok()
    assert "holds changes of image 1" in plash("run:persist", child, "dir", "true").error
    (plash.place / "dir/image").unlink()
    plash("run:persist", image, "dir", "ls", "/x").ok()
