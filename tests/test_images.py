"""The store: stack, id, parent, nodepath, map, rm, purge, data, init, mkdtemp."""

import os
import subprocess
import time

import pytest
from conftest import LIBEXEC, need_program


def make(directory, name="file", text="x\n"):
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(text)
    return directory


def test_init_makes_the_store_as_documented(plash):
    assert plash("init").ok().out == ""
    assert sorted(os.listdir(plash.data)) == [
        "cache",
        "id_counter",
        "index",
        "layer",
        "map",
        "mnt",
        "recall",
        "tmp",
    ]
    assert (plash.data.stat().st_mode & 0o777) == 0o700
    assert os.readlink(plash.data / "index/0") == "../layer/0"
    assert plash("init").ok().out == ""


@pytest.mark.parametrize(
    "env, path",
    [
        ({"PLASH_DATA": "{0}/a"}, "{0}/a"),
        ({"PLASH_DATA": "", "XDG_DATA_HOME": "{0}/b"}, "{0}/b/plash"),
        ({"PLASH_DATA": "", "XDG_DATA_HOME": ""}, "{0}/home/.local/share/plash"),
        ({"PLASH_DATA": "rel"}, "{0}/rel"),
    ],
)
def test_where_the_store_is(plash, tmp_path, env, path):
    env = {name: value.format(tmp_path) for name, value in env.items()}
    assert plash("data", env=env).ok().out == path.format(tmp_path) + "\n"
    assert os.path.isdir(path.format(tmp_path) + "/layer/0/_data/root")


def test_data_runs_a_command_there(plash):
    assert plash("data", "pwd").ok().out == f"{plash.data}\n"
    assert plash("data", "sh", "-c", "exit 5").status == 5


def test_stack_moves_a_directory_in(plash, tmp_path):
    number = plash("stack", "0", make(tmp_path / "a")).id
    assert number == "1" and not (tmp_path / "a").exists()
    child = plash("stack", number, make(tmp_path / "b", "other")).id
    assert plash("parent", child).out == "1\n"
    assert plash("parent", number).out == "0\n"
    assert plash("id", child).out == "2\n"
    assert plash("nodepath", child).out == f"{plash.data}/layer/0/1/2\n"
    assert plash("mounted", child, "ls").out == "file\nother\n"


def test_stack_copies_across_filesystems(plash, tmp_path):
    from pathlib import Path

    other = Path(f"/dev/shm/plash-test-{os.getpid()}")
    try:
        make(other)
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
    make(tmp_path / "a")
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


def test_rm_takes_the_children_and_their_names_along(plash, image):
    child = plash("build", image, "touch /a").id
    other = plash("stack", "0", make(plash.place / "o")).id
    plash("map", "kept", other).ok()
    plash("map", "named", child).ok()
    plash("rm", image).ok()
    assert plash("nodepath", child).error == f"plash nodepath: no image: {child}"
    assert plash("map").out == f"kept {other}\n"
    assert sorted(os.listdir(plash.data / "index")) == ["0", other]


def test_rm_of_several_at_once(plash, image):
    child = plash("build", image, "true").id
    plash("rm", image, child).ok()
    assert os.listdir(plash.data / "index") == ["0"]


def test_rm_of_one_that_is_not_there_removes_none(plash, image):
    assert plash("rm", image, "77").error == "plash rm: no image: 77"
    assert plash("id", image).id == image


def test_rm_refuses_an_image_in_use(plash, image):
    child = plash("build", image, "true").id
    with plash.start("run", child, "sh", "-c", "echo up; exec cat") as run:
        run.stdout.readline()
        for number in image, child:
            assert plash("rm", number).error == (
                f"plash rm: image {number} is in use by process {run.pid} (--force removes it all the same)"
            )
        assert "in use" in plash("purge", "--yes").error
        run.stdin.close()
    plash("rm", image).ok()


def test_names(plash, image):
    child = plash("build", image, "true").id
    for name in "a", "b c", "ä":
        plash("map", name, image).ok()
        assert plash("map", name).id == image
    plash("map", "a", child).ok()
    assert plash("map").out == f"a {child}\nb c {image}\nä {image}\n"
    plash("map", "a", "").ok()
    assert plash("map", "a").error == "plash map: no image is named 'a'"
    plash("map", "a", "").ok()


def test_purge_removes_all(plash, image):
    plash("build", image, "mkdir -m 0 /closed").ok()
    plash("purge", "--yes").ok()
    assert not plash.data.exists()
    assert plash("id", image).error == "plash id: no image: 1"


def test_purge_asks_on_a_terminal(plash, image):
    need_program("script")
    words = ["script", "-qefc", f"{os.path.dirname(__file__)}/../libexec/plash-purge", "/dev/null"]
    assert plash.run(words, input="n\n").status == 1
    assert plash("id", image).id == image
    plash.run(words, input="y\n").ok()
    assert not plash.data.exists()


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


def test_clean_leaves_an_orphaned_builds_files_alone(plash, image, tmp_path):
    """plash build is killed; a process of the build lives on, and uses its directories."""
    build = plash.start(
        "build", image, f"while [ ! -e /host{tmp_path}/end ]; do sleep 0.05; done & echo up; wait"
    )
    build.stderr.readline()
    build.kill()
    build.wait()
    plash("clean").ok()
    (left,) = plash.leftovers()
    assert (plash.data / "tmp" / left / "root").exists()
    (tmp_path / "end").touch()
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
