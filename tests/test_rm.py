"""rm: an image goes with its children and names, unless it is in use."""

import os
import subprocess

import pytest
from requirements import need_program
from world import LIBEXEC, make_directory


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


def test_a_process_in_a_user_namespace_of_its_own_uses_images(plash, image):
    """With a pid namespace and /proc of its own, too."""
    need_program("unshare")
    words = ["unshare", "-Urpf", "--mount-proc", "--kill-child", LIBEXEC / "plash-run", image]
    with subprocess.Popen(
        [*words, "sh", "-c", "echo up; exec cat"],
        env=plash.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as run:
        run.stdout.readline()
        assert "in use by process" in plash("rm", image).error
        run.stdin.close()
    plash("rm", image).ok()


def test_rm_refuses_in_a_pid_namespace_what_may_be_used_outside_of_it(plash, image):
    need_program("unshare")

    def inside(code):
        words = ["unshare", "-Urpf", "--mount-proc", "--kill-child", "sh", "-euc", code]
        return plash.run(words, env={"PATH": f"{LIBEXEC}:{os.environ['PATH']}"})

    used = "images were used outside of this pid namespace, where processes can't be seen"
    with plash.start("run", image, "sh", "-c", "echo up; exec cat") as run:
        run.stdout.readline()
        for command in f"rm {image}", "purge --yes", "shrink":
            remedy = "" if command == "shrink" else ", or use --force"
            error = f"plash {command.split()[0]}: {used} (remove them there{remedy})"
            assert inside(f"plash-{command}").error == error
        run.stdin.close()
    assert plash("id", image).id == image
    inside(f"plash-rm --force {image}").ok()
    plash("clean").ok()  # the namespace ended, and with it what deleted the files


def test_rm_in_a_pid_namespace_in_which_all_users_of_the_store_are(plash, host_tar):
    need_program("unshare")
    code = f'id=$(plash-pull:tarfile {host_tar}) && plash-run "$id" true && plash-rm "$id"'
    words = ["unshare", "-Urpf", "--mount-proc", "--kill-child", "sh", "-euc", code]
    plash.run(words, env={"PATH": f"{LIBEXEC}:{os.environ['PATH']}"}).ok()
    assert os.listdir(plash.data / "index") == ["0"]
    (plash.data / "pidns/4026532000.another-boot").touch()
    plash("clean").ok()
    assert len(os.listdir(plash.data / "pidns")) == (0 if os.getuid() == 0 else 1)


@pytest.mark.only_for("root")
def test_root_sees_who_uses_the_images_of_a_user(plash, image):
    """What uses them is the user's user namespace. In root's own store, that has no effect."""
    need_program("unshare", "setpriv")
    user = 12345
    source = f"{plash('nodepath', image).out.strip()}@1:1"
    code = (
        "mount -t tmpfs t /mnt; mkdir /mnt/a /mnt/b; "
        f"mount -t overlay '{source}' /mnt -o lowerdir=/mnt/a:/mnt/b; echo up; exec cat"
    )
    words = ["setpriv", f"--reuid={user}", "--clear-groups", "unshare", "-Urm", "sh", "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, env=plash.env, cwd="/", stdin=pipe, stdout=pipe) as run:
        run.stdout.readline()
        os.chown(plash.data, user, 0)
        assert f"in use by process {run.pid}" in plash("rm", image).error
        os.chown(plash.data, 0, 0)
        plash("rm", image).ok()
        run.stdin.close()
