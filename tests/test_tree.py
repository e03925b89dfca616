"""tree: the images, drawn for people and as JSON."""

import json
import os
import time


def stack(plash, parent, *files):
    """An image with some files of one block each; returns its id."""
    directory = plash.place / f"layer{time.monotonic_ns()}"
    directory.mkdir()
    for name in files:
        (directory / name).write_bytes(b"x" * 4096)
    return plash("stack", parent, directory).id


def drawing(plash, *words):
    """What is drawn, without the ages."""
    return [line[9:] for line in plash("tree", *words).ok().out.splitlines()]


def test_no_images(plash):
    plash("init").ok()
    assert plash("tree").ok().out == ""
    assert json.loads(plash("tree", "--json").ok().out) == []


def test_the_tree(plash):
    for parent in "0", "1", "1", "2", "3", "4", "0":
        stack(plash, parent)
    plash("map", "a name", "4").ok()
    plash("map", "base", "1").ok()
    plash("map", "again", "1").ok()
    assert drawing(plash) == ["1 again base", "├ 2", "│ └ 4 a name", "│   └ 6", "└ 3", "  └ 5", "7"]
    assert drawing(plash, "2") == ["2", "└ 4 a name", "  └ 6"]
    assert plash("tree", "-q").ok().out.split() == ["1", "2", "4", "6", "3", "5", "7"]
    assert plash("tree", "--quiet", "3").ok().out.split() == ["3", "5"]


def test_the_drawing_is_ascii_where_the_terminal_is(plash):
    for parent in "0", "1", "1":
        stack(plash, parent)
    lines = plash("tree", env={"PYTHONIOENCODING": "ascii"}).ok().out.splitlines()
    assert [line[9:] for line in lines] == ["1", "| 2", "` 3"]


def test_the_age_is_of_the_image_not_of_what_was_built_on_it(plash):
    stack(plash, "0")
    os.utime(plash.data / "layer/0/1/_data/made.json", (0, time.time() - 3 * 86400 - 5))
    stack(plash, "1")
    ages = [line[:7].strip() for line in plash("tree").ok().out.splitlines()]
    assert ages[0] == "3 d" and ages[1] in ("now", *(f"{number} s" for number in range(1, 60)))


def test_json(plash):
    begun = int(time.time())
    stack(plash, "0", "file")
    stack(plash, "1")
    plash("map", "ä name", "2").ok()
    first, second = json.loads(plash("tree", "--json").ok().out)
    assert begun <= first.pop("created") <= time.time() and second.pop("created")
    assert first == {"id": "1", "parent": "0", "size": None, "whole": None, "names": [], "pids": []}
    assert second == {**first, "id": "2", "parent": "1", "names": ["ä name"]}


def test_sizes_are_of_the_own_layer(plash):
    stack(plash, "0", *(f"file{number}" for number in range(100)))
    stack(plash, "1", *(f"file{number}" for number in range(10)))
    first, second = json.loads(plash("tree", "--size", "--json").ok().out)
    assert 409600 <= first["size"] < 500000 and 40960 <= second["size"] < 90000
    assert first["whole"] == first["size"] and second["whole"] == first["size"] + second["size"]
    assert json.loads(plash("tree", "--size", "--json", "2").ok().out) == [second]
    lines = [line[7:26].split() for line in plash("tree", "-s").ok().out.splitlines()]
    assert [line[1::2] for line in lines] == [["kB", "kB"]] * 2


def test_processes(plash, image):
    running = plash.start("run", image, "sh", "-c", "echo ready; exec sleep 100")
    try:
        running.stdout.readline()
        assert drawing(plash) == [f"{image} used by {running.pid}"]
        assert json.loads(plash("tree", "--json").ok().out)[0]["pids"] == [running.pid]
    finally:
        running.kill()
        running.wait()


def test_a_deep_tree(plash):
    parent = "0"
    for _ in range(30):
        parent = stack(plash, parent)
    assert drawing(plash)[-1] == "  " * 28 + "└ 30"
