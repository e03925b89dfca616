"""A store that can't be fooled: what is no store, mounts in it, names of others, strange files."""

import os
import subprocess

import pytest
from requirements import as_user, need_program
from world import LIBEXEC


@pytest.mark.parametrize("name", ["tmp", "mnt", "cache", "notes.txt"])
def test_a_directory_of_other_use_is_no_store(plash, name):
    mine = plash.place / "mine"
    (mine / name).mkdir(parents=True)
    (mine / name / "file").touch()
    env = {"PLASH_DATA": str(mine)}
    for command in ["clean"], ["init"], ["purge", "--yes"], ["pull:host"]:
        error = plash(*command, env=env).error
        assert f"{mine} is not a plash data directory, and is not empty" in error
    assert (mine / name / "file").exists() and os.listdir(mine) == [name]


def test_an_older_store_is_taken_over(plash, image):
    (plash.data / "format").unlink()
    (plash.data / "layer").chmod(0o755)
    assert plash("run", image, "echo", "hi").out == "hi\n"
    assert (plash.data / "format").read_text().splitlines()[0] == "1"
    assert (plash.data / "layer").stat().st_mode & 0o777 == 0o700


def test_a_store_of_a_newer_format_is_refused(plash, image):
    (plash.data / "format").write_text("2\n")
    assert "is a store of another version of plash" in plash("tree").error


def test_a_lost_counter_gives_no_id_again(plash, image):
    child = plash("build", image, "touch /x").id
    (plash.data / "id_counter").unlink()
    assert int(plash("build", image, "touch /y").id) > int(child)


def test_nobody_else_gets_at_layers(plash):
    plash.data.mkdir(mode=0o755)
    plash("init").ok()
    for name in "layer", "tmp":
        assert (plash.data / name).stat().st_mode & 0o777 == 0o700


def test_a_lost_index_is_made_again(plash, image):
    child = plash("build", image, "touch /x").id
    for link in (plash.data / "index").iterdir():
        link.unlink()
    (plash.data / "index").rmdir()
    assert plash("run", child, "ls", "/x").out == "/x\n"
    assert plash("tree", "--quiet").out.split() == [image, child]


def test_strange_files_hinder_nothing(plash, image):
    (plash.data / "index/x").touch()
    (plash.data / "index/12345678").mkdir()
    (plash.data / "map/file").touch()
    os.mkfifo(plash.data / "tmp/fifo")
    os.mkdir(os.fsencode(plash.data) + b"/tmp/\xff")
    assert plash("tree", "--quiet").out == f"{image}\n"
    plash("map").ok()
    plash("clean").ok()
    assert plash.leftovers() == []
    plash("rm", image).ok()
    assert (plash.data / "index/x").exists()


def test_deletion_never_crosses_a_mount(plash, image):
    """A host directory that is bound in garbage, by root of a user namespace too."""
    home = plash.place / "precious"
    home.mkdir()
    (home / "file").touch()
    code = f"""
        d=$PLASH_DATA/tmp/garbage; mkdir -p "$d/home" && mount --bind {home} "$d/home" || exit 9
        plash clean; echo "clean $?" """
    done = plash("sudo", "sh", "-c", code, env={"PATH": f"{LIBEXEC}/../bin:{plash.env['PATH']}"})
    assert (home / "file").exists(), done.err
    assert "clean 1" in done.out and "is mounted (unmount it, and run plash clean)" in done.err
    plash.clean()


def test_an_image_with_a_mount_is_not_removed(plash, image):
    home = plash.place / "precious"
    home.mkdir()
    (home / "file").touch()
    code = f"""
        node=$(plash nodepath {image})/_data/root; mkdir "$node/p"; mount --bind {home} "$node/p"
        plash rm {image}; echo "rm $?"; umount "$node/p"; rmdir "$node/p" """
    done = plash("sudo", "sh", "-c", code, env={"PATH": f"{LIBEXEC}/../bin:{plash.env['PATH']}"})
    assert done.out == "rm 1\n" and "has a mount at" in done.err
    assert (home / "file").exists() and plash("id", image).id == image


def test_an_image_is_an_id_or_a_name(plash, image):
    plash("map", "tools", image).ok()
    assert plash("run", "tools", "echo", "hi").out == "hi\n"
    child = plash("build", "tools", "touch /x").id
    assert plash("parent", child).out == f"{image}\n"
    assert plash("id", "none").error == "plash id: no image: 'none' is neither an id nor a name"
    plash("rm", "--recursive", "tools").ok()
    assert plash("run", "tools", "true").status == 1


@pytest.mark.parametrize("name", ["1", "007", "a\nb", "a\033[31m", "a/b", ".."])
def test_not_a_name(plash, image, name):
    assert "not a name" in plash("map", name, image).error


def test_rm_does_not_take_what_was_not_named(plash, image):
    child = plash("build", image, "touch /x").id
    assert plash("rm", image).error == (
        f"plash rm: image {image} has images that were built on it: {child}"
        " (use --recursive to remove them too)"
    )
    assert plash("id", child).id == child
    plash("rm", image, child).ok()


def test_a_store_by_another_path_is_the_same(plash, image):
    other = plash.place / "other"
    other.symlink_to(plash.data)
    moved = plash.place / "moved"
    with plash.start("run", image, "sh", "-c", "echo up; exec cat") as run:
        run.stdout.readline()
        for env in {"PLASH_DATA": str(other)}, None:
            assert f"in use by process {run.pid}" in plash("rm", image, env=env).error
        plash.data.rename(moved)
        try:
            env = {"PLASH_DATA": str(moved)}
            assert f"in use by process {run.pid}" in plash("rm", image, env=env).error
        finally:
            moved.rename(plash.data)
        run.stdin.close()


@as_user
def test_hidden_processes_use_images_too(plash, image):
    """/proc with hidepid=2, as a mount namespace of its own can have it."""
    need_program("unshare")
    with plash.start("run", image, "sh", "-c", "echo up; exec cat") as run:
        run.stdout.readline()
        code = f"mount -o remount,hidepid=2 /proc 2>/dev/null; {LIBEXEC}/plash-rm {image}"
        done = subprocess.run(["sh", "-c", code], env=plash.env, capture_output=True, text=True)
        assert done.returncode == 1 and f"in use by process {run.pid}" in done.stderr
        run.stdin.close()


def test_without_a_home_there_is_one_rule(plash):
    need_program("setpriv")
    env = {name: plash.env[name] for name in ("PATH",)}
    for command in "data", "tree":
        argv = ["setpriv", "--reuid", "12345", "--clear-groups", LIBEXEC / f"plash-{command}"]
        if os.getuid():
            return
        done = subprocess.run(argv, env=env, cwd="/", capture_output=True, text=True)
        assert done.returncode == 1
        assert "uid 12345 has no home directory (set HOME" in done.stderr
    assert not os.path.exists("/~")


@pytest.mark.parametrize("part", ["tmp", "layer"])
def test_a_part_that_is_a_link_is_refused(plash, image, part):
    other = plash.place / "other"
    (other / "precious").mkdir(parents=True)
    (plash.data / part).rename(plash.data / "kept")
    (plash.data / part).symlink_to(other)
    assert "is a symbolic link" in plash("clean").error
    assert other.stat().st_mode & 0o777 == 0o755 and os.listdir(other) == ["precious"]
    (plash.data / part).unlink()
    (plash.data / "kept").rename(plash.data / part)


def test_a_directory_of_other_use_keeps_its_acls(plash):
    need_program("setfacl", "getfacl")
    mine = plash.place / "mine"
    (mine / "notes").mkdir(parents=True)
    subprocess.run(["setfacl", "-d", "-m", "u:1004:rwx", mine], check=True)
    assert "is not a plash data directory" in plash("init", env={"PLASH_DATA": str(mine)}).error
    assert "default:user:1004:rwx" in plash.run(["getfacl", "-n", "mine"]).ok().out


def test_default_acls_of_the_place_are_not_the_images(plash):
    need_program("setfacl", "getfacl")
    subprocess.run(["setfacl", "-d", "-m", "u:1004:rwx", plash.place], check=True)
    image = plash("pull:host", "sh", "mkdir", "touch").id
    plash("build", image, "mkdir /n; touch /n/f").ok()
    found = plash("mounted", "2", "getfacl", "-R", ".").ok().out
    assert "1004" not in found and "mask" not in found


def test_strange_names_and_links_hinder_no_command(plash, image):
    (plash.data / "map" / "a\tb").symlink_to(f"../index/{image}")
    (plash.data / "map" / "12").symlink_to(f"../index/{image}")
    (plash.data / "index" / "\u00b2").touch()
    (plash.data / "index" / "88").symlink_to("88")
    (plash.data / "recall" / "y").mkdir()
    for words in ["tree"], ["map"], ["shrink", "--dry-run"], ["history", image], ["clean"]:
        plash(*words).ok()
