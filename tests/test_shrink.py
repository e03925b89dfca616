"""shrink: which images go, and in what order."""

import os
import shutil
import time

import pytest
from world import wait_for

DAY = 86400


def images(plash):
    return sorted(set(os.listdir(plash.data / "index")) - {"0"}, key=int)


@pytest.fixture
def family(plash, image):
    """1 with the children 2, 3, 4; 5 and 6 on 4."""
    for parent in "1", "1", "1", "4", "5":
        plash("build", parent, "head -c 100000 /dev/zero >/file").ok()
    assert plash("parent", "6").out == "5\n"
    plash("rm", "6").ok()
    assert plash("build", "4", "true").id == "7"


def unused_for(plash, days):
    for image_id, number in days.items():
        then = time.time() - number * DAY - 60
        os.utime(plash.data / f"index/{image_id}", (then, then), follow_symlinks=False)


def test_it_removes_the_older_half(plash, family):
    plash("map", "three", "3").ok()
    result = plash("shrink").ok()
    assert (result.out, result.err) == ("", "")
    assert images(plash) == ["1", "3", "4"]
    with plash.start("run", "4", "cat") as run:
        run.stdin.write(b"x\n")
        run.stdin.flush()
        run.stdout.readline()
        plash("shrink").ok()
        assert images(plash) == ["1", "3", "4"]
        run.stdin.close()
    for _ in range(3):
        plash("shrink").ok()
    assert images(plash) == ["1", "3"]


def test_by_last_use(plash, family):
    unused_for(plash, {"1": 100, "2": 9, "3": 3, "4": 50, "5": 20, "7": 30})
    assert plash("shrink", "--dry-run", "--unused-for=10d").ok().out == "7 30 d\n5 20 d\n4 20 d\n"
    assert images(plash) == ["1", "2", "3", "4", "5", "7"]
    assert plash("shrink", "--unused-for", "25d").ok().out == "7 30 d\n"
    assert images(plash) == ["1", "2", "3", "4", "5"]
    assert plash("shrink", "--unused-for=5d").ok().out == "5 20 d\n4 20 d\n2 9 d\n"
    assert plash("shrink", "--unused-for=5d").ok().out == ""
    assert plash("shrink", "--dry-run", "--unused-for=0s").ok().out == "3 3 d\n1 3 d\n"


@pytest.mark.parametrize(
    "words",
    [
        ["run", "5", "true"],
        ["push:tarfile", "5", "out.tar"],
        ["build", "5", "true"],
        ["cache", "build", "4", "head -c 5 /dev/zero"],
        ["mounted", "5", "true"],
    ],
    ids=lambda words: words[0],
)
def test_what_is_use(plash, family, words):
    if words[0] == "cache":
        used = plash(*words).id
    unused_for(plash, dict.fromkeys(images(plash), 5))
    plash(*words).ok()
    stay = {"1", "4", used if words[0] == "cache" else "5", *map(str, range(8, 20))}
    plash("tree").ok()
    plash("tree", "--size").ok()
    plash("map").ok()
    plash("clean").ok()
    plash("shrink", "--unused-for=1d").ok()
    assert {"1", "4"} < set(images(plash)) <= stay


def test_to_a_size(plash, family):
    unused_for(plash, {"1": 9, "2": 1, "3": 4, "4": 3, "5": 2, "7": 3})
    result = plash("shrink", "--dry-run", "--to=0")
    ids = [line.split()[0] for line in result.ok().out.splitlines()]
    assert ids == ["3", "7", "5", "4", "2", "1"]
    assert result.out.splitlines()[0].startswith("3 4 d 1") and result.out.split()[4:5] != []
    import json

    sizes = {each["id"]: each["size"] for each in json.loads(plash("tree", "-s", "--json").out)}
    limit = sum(sizes.values()) - sizes["3"] - 1
    plash("shrink", f"--to={limit}").ok()
    assert images(plash) == ["1", "2", "4", "5"]
    assert plash("shrink", "--to=1TB").ok().out == ""
    plash("map", "five", "5").ok()
    result = plash("shrink", "--to=0").ok()
    assert images(plash) == ["1", "4", "5"]
    assert result.err.startswith("plash shrink: the images that stay take 1")


def test_both(plash, family):
    unused_for(plash, {"1": 9, "2": 1, "3": 4, "4": 3, "5": 2, "7": 3})
    out = plash("shrink", "--to=0", "--unused-for=3d").ok().out
    assert [line.split()[0] for line in out.splitlines()] == ["3", "7"]


@pytest.mark.parametrize(
    "option, what",
    [
        ("--unused-for=30", "age"),
        ("--unused-for=d", "age"),
        ("--unused-for=", "age"),
        ("--unused-for=-1d", "age"),
        ("--unused-for=3 months", "age"),
        ("--to=", "size"),
        ("--to=-1", "size"),
        ("--to=5X", "size"),
        ("--to=.", "size"),
        ("--to=" + "9" * 400, "size"),
    ],
)
def test_what_is_no_age_and_no_size(plash, image, option, what):
    error = plash("shrink", option).error
    assert error.startswith(f"plash shrink: not a{'n' * (what == 'age')} {what}: ")
    assert images(plash) == [image]


def test_what_is_named_or_built_on_meanwhile_stays(plash, family):
    """As they are measured, which may take minutes."""
    slow = plash.place / "slow"
    slow.mkdir()
    go = plash.place / "go"
    (slow / "du").write_text(
        f'#!/bin/sh\n: >{go}.du\nwhile [ ! -e {go} ]; do sleep 0.05; done\nexec {shutil.which("du")} "$@"\n'
    )
    (slow / "du").chmod(0o755)
    env = {**plash.env, "PATH": f"{slow}:{plash.env['PATH']}"}
    shrink = plash.start("shrink", "--to=0", env=env)
    wait_for((plash.place / "go.du").exists)
    plash("map", "precious", "7").ok()
    new = plash("build", "2", "touch /new").id
    go.touch()
    assert shrink.wait() == 0
    assert {"1", "2", "4", "7", new} <= set(images(plash))
    assert not {"3", "5"} & set(images(plash))
