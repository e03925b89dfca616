"""rm: an image goes with its children and names, unless it is in use."""

import os

from world import make_directory


def test_rm_takes_the_children_and_their_names_along(plash, image):
    child = plash("build", image, "touch /a").id
    other = plash("stack", "0", make_directory(plash.place / "o")).id
    plash("map", "kept", other).ok()
    plash("map", "named", child).ok()
    plash("rm", "--recursive", image).ok()
    assert plash("nodepath", child).error == f"plash nodepath: no image: {child}"
    assert plash("map").out == f"kept {other}\n"
    assert sorted(os.listdir(plash.data / "index")) == ["0", other]


def test_rm_of_several_at_once(plash, image):
    child = plash("build", image, "true").id
    plash("rm", "--recursive", image, child).ok()
    assert os.listdir(plash.data / "index") == ["0"]


def test_rm_of_one_that_is_not_there_removes_none(plash, image):
    assert plash("rm", "--recursive", image, "77").error == "plash rm: no image: 77"
    assert plash("id", image).id == image


def test_rm_refuses_an_image_in_use(plash, image):
    child = plash("build", image, "true").id
    with plash.start("run", child, "sh", "-c", "echo up; exec cat") as run:
        run.stdout.readline()
        for number in image, child:
            assert plash("rm", "--recursive", number).error == (
                f"plash rm: image {number} is in use by process {run.pid} (use --force to remove it anyway)"
            )
        assert "in use" in plash("purge", "--yes").error
        run.stdin.close()
    plash("rm", "--recursive", image).ok()
