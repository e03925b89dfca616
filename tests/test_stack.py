"""stack, and the ids of images: id, parent, nodepath."""

import os
import subprocess
from pathlib import Path

import pytest
from world import make_directory


def test_stack_moves_a_directory_in(plash, tmp_path):
    number = plash("stack", "0", make_directory(tmp_path / "a")).id
    assert number == "1" and not (tmp_path / "a").exists()
    child = plash("stack", number, make_directory(tmp_path / "b", "other")).id
    assert plash("parent", child).out == "1\n"
    assert plash("parent", number).out == "0\n"
    assert plash("id", child).out == "2\n"
    assert plash("nodepath", child).out == f"{plash.data}/layer/0/1/2\n"
    assert plash("mounted", child, "ls").out == "file\nother\n"


def test_stack_copies_across_filesystems(plash, tmp_path):
    other = Path(f"/dev/shm/plash-test-{os.getpid()}")
    try:
        make_directory(other)
        os.mknod(other / "gone", 0o20000)
        os.link(other / "file", other / "link")
        number = plash("stack", "0", other).id
    finally:
        subprocess.run(["rm", "-rf", other])
    root = plash.data / "layer/0/1/_data/root"
    assert number == "1" and (root / "file").stat().st_nlink == 2
    assert (root / "gone").lstat().st_rdev == 0 and not (root / "gone").is_file()


@pytest.mark.parametrize("what", ["{data}", "{data}/layer/0/1/_data/root", "{data}/layer", "/"])
def test_stack_does_not_move_images(plash, image, what):
    before = plash.snapshot()
    assert "holds images" in plash("stack", "0", what.format(data=plash.data)).error
    assert plash.snapshot() == before


def test_stack_gives_the_directory_back_if_it_fails(plash, image, tmp_path):
    make_directory(tmp_path / "a")
    in_the_way = plash.data / f"index/{int(image) + 1}"
    in_the_way.symlink_to("x")
    assert (
        plash("stack", image, tmp_path / "a").error
        == f"plash stack: ../layer/0/1/2 -> {in_the_way}: File exists"
    )
    assert (tmp_path / "a/file").read_text() == "x\n"
    in_the_way.unlink()


def test_ids_are_never_used_again(plash, image):
    assert plash("build", image, "true").id == "2"
    plash("rm", "2").ok()
    assert plash("build", image, "true").id == "3"
