"""Images of many layers, up to the kernel's limit."""

import os

import pytest

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
