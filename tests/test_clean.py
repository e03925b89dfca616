"""mkdtemp and clean: leftovers are removed, work in progress is not."""

import os
import time

from world import LIBEXEC


def test_mkdtemp(plash, image):
    made = plash("mkdtemp").ok().out.strip()
    assert os.path.dirname(made) == f"{plash.data}/tmp" and os.listdir(made) == []
    open(made + "/file", "w").close()
    assert plash("stack", image, made).id == "2"


def test_a_temporary_directory_is_cleaned_when_its_process_has_ended(plash, image):
    code = "d=$(plash-mkdtemp); plash-clean; test -d $d && echo $d"
    made = (
        plash("data", "sh", "-c", code, env={"PATH": f"{LIBEXEC}:{os.environ['PATH']}"})
        .ok()
        .out.strip()
    )
    assert os.path.isdir(made)
    plash.clean()
    assert not os.path.exists(made)


def test_clean_leaves_work_in_progress_alone(plash, image):
    with plash.start("build", image, "echo up; cat; touch /x") as build:
        build.stderr.readline()
        assert len(plash.leftovers()) == 1
        plash("clean").ok()
        assert plash.leftovers()
        number = build.communicate(b"")[0].decode().strip()
    assert plash("run", number, "ls", "/x").ok()


def test_a_killed_build_leaves_no_process(plash, image, tmp_path):
    """What it left in tmp/ is garbage as soon as plash build is killed."""
    build = plash.start("build", image, "setsid sleep 100 & echo up; wait")
    build.stderr.readline()
    build.kill()
    build.wait()
    end = time.monotonic() + 20
    while plash.leftovers() and time.monotonic() < end:
        plash("clean").ok()
        time.sleep(0.05)
    assert plash.leftovers() == []


def test_clean_removes_dangling_entries(plash, image):
    plash("map", "name", image).ok()
    os.symlink("../layer/0/77", plash.data / "index/77")
    os.symlink("../index/77", plash.data / "map/gone")
    plash("clean").ok()
    assert sorted(os.listdir(plash.data / "index")) == ["0", image]
    assert os.listdir(plash.data / "map") == ["name"]
