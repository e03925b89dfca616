"""Images of many layers, up to the kernel's limit."""

import os

import pytest
from world import make_directory

pytestmark = pytest.mark.slow


@pytest.fixture
def tower(plash, image):
    """A function that puts layers on the image until it has as many as asked for; returns the id.

    They are put into the store by hand, as docs say that it looks, for speed.
    """

    def build(depth):
        node, last = plash.data / f"layer/0/{image}", int(image)
        relative = f"../layer/0/{image}"
        for number in range(last + 1, last + depth):
            node, relative = node / str(number), f"{relative}/{number}"
            (node / "_data/root").mkdir(parents=True)
            (node / f"_data/root/from-{number}").touch()
            os.symlink(relative, plash.data / f"index/{number}")
        with open(plash.data / "id_counter", "ab") as counter:
            counter.write(b"." * (depth - 1))
        return str(last + depth - 1)

    return build


def test_an_image_of_490_layers_runs_and_is_built_on(plash, tower):
    top = tower(490)
    child = plash("build", top, "rm /from-2; echo built > /built").id
    assert plash("run", child, "sh", "-c", "cat /built; ls / | grep -c from").out == "built\n488\n"
    assert plash("parent", child).id == top
    assert plash("mounted", child, "cat", "built").out == "built\n"
    with plash.start("run", child, "sh", "-c", "echo up; exec cat") as run:
        run.stdout.readline()
        assert f"in use by process {run.pid} " in plash("rm", "--recursive", "1").error
        run.stdin.close()


def test_the_last_layer_that_the_kernel_takes(plash, tower, tmp_path):
    top = tower(498)
    last = plash("build", top, "echo last > /last").id
    assert plash("run", last, "cat", "/last").out == "last\n"
    assert plash("mounted", last, "cat", "last").out == "last\n"
    why = f"image {last} has 499 layers, the most that the kernel mounts (push and pull it to make them one)"
    before = plash.snapshot()
    assert plash("build", last, "touch /ran").error == f"plash build: {why}"
    (tmp_path / "dir").mkdir()
    assert plash("stack", last, tmp_path / "dir").error == f"plash stack: {why}"
    assert (tmp_path / "dir").exists() and plash.snapshot() == before
    plash("push:tarfile", last, "flat.tar").ok()
    flat = plash("pull:tarfile", "flat.tar").id
    assert plash("run", flat, "cat", "/last").out == "last\n"


def test_ids_so_long_that_a_path_can_not_name_one_more_layer(plash, image):
    """Ids of eight digits: some 440 layers."""
    number, node, relative = 12345678, plash.data / f"layer/0/{image}", f"../layer/0/{image}"
    os.truncate(plash.data / "id_counter", number)
    while len(f"{node}/{number}/_data/descriptor.json") < 4096 - 3 * len("/12345678"):
        node, relative = node / str(number), f"{relative}/{number}"
        (node / "_data/root").mkdir(parents=True)
        os.symlink(relative, plash.data / f"index/{number}")
        number += 1
    os.truncate(plash.data / "id_counter", number - 1)
    top = str(number - 1)
    for turn in range(9):
        made = plash("stack", top, make_directory(plash.place / f"d{turn}"))
        if made.status:
            break
        top = made.id
    assert turn in (2, 3)
    assert f"image {top} has " in made.error and "longer than a path can be" in made.error
    assert os.path.exists(plash.place / f"d{turn}/file")
    assert plash("run", top, "cat", "/file").out == "x\n"
    assert plash("clean").ok().err == ""
    assert plash("history", top).ok().out.startswith(top)
    plash("rm", top).ok()
    plash("shrink").ok()
    plash("rm", "--recursive", image).ok()
    assert plash("clean").ok().err == ""
    assert os.listdir(plash.data / "index") == ["0"]
