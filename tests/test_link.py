"""link and push:squashfs: images that stay where they are, in a squashfs file, another store or a directory."""

import json
import os
import shutil
import signal
import subprocess

import pytest
from layouts import BASE, tree, write_layout
from requirements import need, need_program
from world import LIBEXEC, ROOT, wait_for


@pytest.fixture(scope="session", autouse=True)
def tools():
    need_program("squashfuse", "mksquashfs", "pgrep")
    need(os.access("/dev/fuse", os.R_OK | os.W_OK), "/dev/fuse for all")


def served(file):
    """The squashfuse processes that serve a file."""
    return subprocess.run(
        ["pgrep", "-f", f"squashfuse .*{file}"], capture_output=True, text=True
    ).stdout.split()


@pytest.mark.slow
def test_a_squashfs_file(plash, image):
    file = plash.place / "image.sqfs"
    child = plash(
        "build",
        image,
        "mkdir /d; echo x >/d/a; ln /d/a /d/b; ln -s a /d/c; chmod 1777 /d; rm /etc/passwd; chmod 711 /",
    ).id
    plash("push:squashfs", child, file).ok()
    first = file.read_bytes()
    plash("push:squashfs", child, file).ok()
    assert file.read_bytes() == first
    number = plash("link", file).id
    assert tree(plash, number) == tree(plash, child)
    assert "d 711 0:0  -> ;" in tree(plash, number)[0]
    assert (
        plash("run", number, "sh", "-c", "echo y >>/d/a; cat /d/b; cat; exit 3", input="in").out
        == "x\nin"
    )
    assert plash("run", "--as-me", number, "sh", "-c", "cat /d/a").ok().out == "x\n"
    # It is a base as any other, and a layer for a registry.
    top = plash("build", number, "rm -r /d; mkdir /d; echo z >/d/new").id
    assert plash("run", top, "sh", "-c", "ls /d; cat /d/new").ok().out == "new\nz\n"
    plash("push:tarfile", top, "top.tar").ok()
    assert tree(plash, plash("pull:tarfile", "top.tar").id) == tree(plash, top)
    plash("push:oci", top, f"oci:{plash.place}/layout").ok()
    assert tree(plash, plash("pull:oci", f"oci:{plash.place}/layout").id) == tree(plash, top)
    changes = plash.place / "changes"
    changes.mkdir()
    plash("run:persist", number, changes, "sh", "-c", "echo kept >/d/kept").ok()
    assert plash("run:persist", number, changes, "cat", "/d/kept").ok().out == "kept\n"
    wait_for(lambda: not served(file))


@pytest.mark.parametrize("kind", ["squashfs", "program"])
def test_the_configuration_goes_along(plash, image, kind):
    words = (
        "--env=A=b c",
        '--entrypoint=["echo"]',
        '--cmd=["$A", "x"]',
        "--workingdir=/usr",
        "--label=l=1",
    )
    made = plash("config", *words, image).id
    plash(f"push:{kind}", made, "file").ok()
    first = (plash.place / "file").read_bytes()
    linked = plash("link", "file").id
    assert json.loads(plash("config", linked).ok().out) == json.loads(plash("config", made).out)
    assert plash("run:image", linked).ok().out == "$A x\n"
    assert plash("run", linked, "sh", "-c", "echo $A").ok().out == "b c\n"
    # And along again, the same bytes.
    plash(f"push:{kind}", linked, "file2").ok()
    assert (plash.place / "file2").read_bytes() == first
    plash("push:oci", linked, f"oci:{plash.place}/layout").ok()
    back = plash("pull:oci", f"oci:{plash.place}/layout").id
    assert plash("run:image", back).ok().out == "$A x\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_serves_a_file_ends_with_the_command(plash, image, number):
    file = plash.place / "image.sqfs"
    plash("push:squashfs", image, file).ok()
    linked = plash("link", file).id
    running = plash.start("run", linked, "sh", "-c", "echo up; exec sleep 1000")
    assert running.stdout.readline() == b"up\n"
    if os.getuid():
        assert served(file)
    running.send_signal(number)
    assert running.wait() == -number
    wait_for(lambda: not served(file))


def test_a_file_that_has_gone_or_is_another(plash, image):
    file = plash.place / "image.sqfs"
    plash("push:squashfs", image, file).ok()
    number = plash("link", file).id
    child = plash("build", number, "touch /x").id
    file.rename(plash.place / "away")
    assert (
        plash("run", child, "true").error
        == f"plash run: image {number} is a link to {file}, which is missing"
    )
    plash("clean").ok()
    plash("tree").ok()
    (plash.place / "away").rename(file)
    plash("run", child, "true").ok()
    os.utime(file, (1, 1))
    assert "has changed since it was linked" in plash("run", child, "true").error
    file.unlink()
    plash("rm", "--recursive", number).ok()


def test_an_image_of_another_store(plash, image):
    other = {"PLASH_DATA": str(plash.place / "other")}
    base = plash(
        "pull:oci", write_layout(plash.place / "layout", BASE, {"Env": ["A=b"]}), env=other
    ).id
    plash("push:tarfile", image, "i.tar").ok()
    shell = plash("pull:tarfile", "i.tar", env=other).id
    child = plash("build", shell, "rm /etc/passwd; mkdir /d; touch /d/x", env=other).id
    plash("map", "tools", child, env=other).ok()
    number = plash("link", f"{other['PLASH_DATA']}/map/tools").id
    assert plash("run", number, "sh", "-c", "ls /d; ls /etc/passwd || echo none").out == "x\nnone\n"
    mine = plash("build", number, "rm /d/x; echo mine >/d/y").id
    assert (
        plash("run", mine, "ls", "/d").ok().out == "y\n"
        and plash("run", child, "ls", "/d", env=other).ok().out == "x\n"
    )
    env = plash("link", plash("nodepath", base, env=other).out.strip()).id
    assert plash("mounted", env, "cat", "etc/name", "etc/two").ok().out == "base2"
    assert (
        plash.data / os.path.relpath(plash("nodepath", env).out.strip(), plash.data) / "_data/env"
    ).read_text() == "A=b"
    plash("rm", "--recursive", number).ok()
    plash("run", child, "true", env=other).ok()
    # Of two links, the one that leads nowhere is told.
    twice = plash("link", f"{other['PLASH_DATA']}/map/tools").id
    plash("rm", "--recursive", child, env=other).ok()
    assert plash("run", twice, "true").error.startswith(f"plash run: image {twice} is a link to ")
    plash("sudo", "rm", "-rf", other["PLASH_DATA"]).ok()


def test_a_directory(plash, image):
    plash("push:dir", image, "root").ok()
    number = plash("link", "root").id
    assert tree(plash, number) == tree(plash, image)
    assert (
        plash("run", plash("build", number, "echo x >/etc/new").id, "cat", "/etc/new").ok().out
        == "x\n"
    )
    assert not (plash.place / "root/etc/new").exists()


def test_a_store_that_is_read_only(plash, image):
    """It is run from as it is, and as a base."""
    code = (
        f"mount --bind {plash.data} {plash.data} && mount -o remount,bind,ro {plash.data} || exit 9; export PLASH_NO_UNSHARE=1;"
        f" plash run {image} echo ran; plash nodepath {image}; plash build {image} true; echo $?;"
        f" export PLASH_DATA={plash.place}/own; i=$(plash link {plash.data}/index/{image}) && plash run $(plash build $i 'touch /x') ls /x"
    )
    done = plash(
        "sudo", "unshare", "-m", "sh", "-c", code, env={"PATH": f"{ROOT}/bin:{os.environ['PATH']}"}
    )
    assert done.out == f"ran\n{plash.data}/layer/0/{image}\n1\n/x\n", done.err
    assert done.err.count("\n") == 1 and "Read-only file system" in done.err
    plash("sudo", "rm", "-rf", plash.place / "own").ok()


@pytest.mark.only_for("root")
def test_another_users_store(plash, image):
    """Whatever mode the data directory has, no other user reaches setuid programs in layers."""
    for parent in [plash.place, *plash.place.parents]:
        if parent.stat().st_uid == 0 and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    plash.data.chmod(0o755)
    other = plash.place / "other"
    other.mkdir()
    os.chown(other, 65534, 65534)
    words = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    link = [*words, LIBEXEC / "plash-link", plash.data / "index" / image]
    assert "Permission denied" in plash.run(link, env={"PLASH_DATA": str(other)}).error
    root = plash.data / "layer/0" / image / "_data/root"
    assert plash.run([*words, "ls", root]).status != 0


@pytest.mark.parametrize(
    "what, error",
    [
        ("none", "none: No such file or directory"),
        ("text", "not a directory, nor a squashfs file: "),
        ("fifo", "not a directory, nor a squashfs file: "),
        ("program", "not a directory, nor a squashfs file: "),
        ("appimage", "not a directory, nor a squashfs file: "),
        ("sif", "not a directory, nor a squashfs file: "),
        ("/", "or holds it"),
        ("data/layer/0/1", "is in this store already"),
        ("", ": No such file"),
    ],
)
def test_what_can_not_be_linked(plash, image, what, error):
    (plash.place / "text").write_text("x")
    os.mkfifo(plash.place / "fifo")
    # Offsets that are none, or beyond what lseek(2) takes.
    program = b"#!/bin/sh\n# plash program: a squashfs file begins at byte abc\n"
    (plash.place / "program").write_bytes(program)
    head = b"\x7fELF\2\1\1\0AI\2".ljust(40, b"\0")
    (plash.place / "appimage").write_bytes(head + b"\xff" * 100)
    (plash.place / "sif").write_bytes(bytes(32) + b"SIF_MAGIC\0".ljust(48, b"\0") + b"\xff" * 100)
    before = plash.snapshot()
    assert error in plash("link", what).error
    assert plash.snapshot() == before


def test_a_file_that_is_broken(plash, image):
    (plash.place / "broken").write_bytes(b"hsqs" + b"\0" * 5000)
    number = plash("link", "broken").id
    assert "squashfuse ended with" in plash("run", number, "true").error
    assert plash("push:squashfs", number, "out").status == 1 and not (plash.place / "out").exists()
    assert plash("push:squashfs", image, "/dev/null").error.endswith(
        "not a regular file: /dev/null"
    )
    assert plash("push:squashfs", image, "none/out").error.endswith(
        "none/out: No such file or directory"
    )


def test_without_the_programs(plash, image):
    plash("push:squashfs", image, "file").ok()
    number = plash("link", "file").id
    bare = plash.place / "bare"
    bare.mkdir()
    for name in "env", "python3", "sh", "rm", "newuidmap", "newgidmap":
        if shutil.which(name):
            (bare / name).symlink_to(shutil.which(name))
    assert plash.run(
        [LIBEXEC / "plash-run", number, "true"], env={"PATH": str(bare)}
    ).error.endswith("squashfuse is not installed")
    done = plash.run([LIBEXEC / "plash-push:squashfs", image, "out"], env={"PATH": str(bare)})
    assert (
        done.error == "plash push:squashfs: mksquashfs is not installed (package squashfs-tools)"
        and not (plash.place / "out").exists()
    )


def test_a_squashfs_file_that_was_cut_off(plash, image):
    need_program("mksquashfs")
    file = plash.place / "cut.squashfs"
    plash("push:squashfs", image, file).ok()
    os.truncate(file, os.path.getsize(file) // 2)
    error = plash("link", file).error
    assert error.startswith(f"plash link: {file} was cut off: ") and error.endswith(" are missing")
    assert sorted(os.listdir(plash.data / "index")) == ["0", image]


def test_what_a_file_says_of_itself_leads_nowhere_else(plash, image):
    file = plash.place / "image.sqfs"
    configured = plash("config", "--env=X=y", image).id
    plash("push:squashfs", configured, file).ok()
    content = file.read_bytes()
    marker = content.rindex(b"plash image\n") + len("plash image\n")
    said = {"../../../../../EVIL": "evil", "made.json": "[]", "env": "A=b"}
    file.write_bytes(content[:marker] + json.dumps(said).encode())
    number = plash("link", file).id
    assert not list(plash.place.rglob("EVIL")) and plash("history", number).ok()
    assert plash("run", number, "sh", "-c", "echo $A").ok().out == "b\n"
