"""pull:dir, which copies a directory, and what stack says of one that it would have to copy."""

import os
import socket

import pytest
from archives import archive, info
from requirements import as_user, need, need_program, needs_subordinate_ids
from world import LIBEXEC, tree


def same(plash, first, second):
    """Whether two images have the same files, to the byte of their archives."""
    for number in first, second:
        plash("push:tarfile", number, f"{number}.tar").ok()
    assert tree(plash.place / f"{first}.tar") == tree(plash.place / f"{second}.tar")
    one, other = ((plash.place / f"{number}.tar").read_bytes() for number in (first, second))
    return one == other


@pytest.mark.slow
def test_what_push_dir_wrote_becomes_the_same_image(plash, debian_tar):
    number = plash("pull:tarfile", debian_tar).id
    plash("push:dir", number, "out").ok()
    copied = plash("pull:dir", "out").ok()
    assert copied.err == ""
    assert same(plash, number, copied.id)
    assert (plash.place / "out/etc/debian_version").exists()


@needs_subordinate_ids
def test_owners_are_kept(plash):
    tar = archive(info("a", uid=33, gid=1000), info("nobody", uid=65534, gid=65534))
    number = plash("pull:tarfile", input=tar).id
    plash("push:dir", number, "out").ok()
    copied = plash("pull:dir", "out").ok()
    shown = plash("mounted", copied.id, "stat", "-c", "%u:%g", "a", "nobody").out
    assert shown == "33:1000\n65534:65534\n" and copied.err == ""


@needs_subordinate_ids
@as_user
def test_owners_that_are_not_mapped_are_counted(plash):
    done = plash("pull:dir", "/usr/share/doc/tar").ok()
    assert "files given to nobody, since their owners are not mapped here (the first: " in done.err
    assert done.err.count("\n") == 1


def test_the_working_directory(plash):
    (plash.place / "d").mkdir(0o750)
    (plash.place / "d/file").write_text("x")
    done = plash("pull:dir", ".", cwd=plash.place / "d").ok()
    assert plash("mounted", done.id, "cat", "file").out == "x"
    assert plash("mounted", done.id, "stat", "-c", "%a", ".").out == "750\n"
    assert (plash.place / "d/file").exists()


def test_a_name_with_backslashes(plash):
    (plash.place / "a\\nb\\").mkdir()
    (plash.place / "a\\nb\\/file").touch()
    assert plash("mounted", plash("pull:dir", "a\\nb\\").id, "ls").out == "file\n"


def test_overlay_xattrs_are_no_orders(plash):
    (plash.place / "d/e").mkdir(parents=True)
    os.setxattr(plash.place / "d/e", "user.overlay.opaque", b"y")
    os.setxattr(plash.place / "d/e", "user.kept", b"1")
    number = plash("pull:dir", "d").id
    assert os.listxattr(plash.data / f"layer/0/{number}/_data/root/e") == ["user.kept"]


@pytest.mark.parametrize("command", [["pull:dir"], ["stack", "0"]])
@pytest.mark.parametrize("what", ["none", "file", "data", "."])
def test_what_is_no_directory_or_holds_the_store(plash, image, command, what):
    (plash.place / "file").touch()
    before = plash.snapshot()
    why = {"none": "No such file", "file": "Not a directory"}.get(what, "holds images")
    assert why in plash(*command, what).error
    assert plash.snapshot() == before


def inside(plash, code):
    """Run shell code as root of a user namespace, with mounts of its own."""
    code = f"export PLASH_NO_UNSHARE=1 PATH={LIBEXEC}:$PATH; {code}"
    return plash("sudo", "unshare", "-m", "sh", "-c", code)


def test_mounts_in_a_directory(plash):
    """stack would move what others mounted; pull:dir leaves that out and says so."""
    need_program("newuidmap", "find")
    plash("init").ok()
    code = "mkdir -p 'd/a b'; :>d/f; mount -t tmpfs none 'd/a b'; :>'d/a b/x'; plash-"
    done = inside(plash, code + "stack 0 d")
    assert (
        done.error == f"plash stack: d has a mount at {plash.place}/d/a b"
        " (unmount it, or use plash pull:dir)"
    )
    done = inside(plash, code + "pull:dir d").ok()
    assert "1 mounted filesystems left out (the first: " in done.err
    found = plash("mounted", done.id, "find", ".").out.splitlines()
    assert sorted(found) == [".", "./a b", "./f"]
    done = inside(plash, "mkdir e; mount -t tmpfs none e; plash-stack 0 e")
    assert "e has a mount at " in done.error


@pytest.mark.parametrize("what", ["socket", "xattr"])
def test_what_stack_can_not_copy_stays(plash, what):
    """DIR is on another filesystem, which holds what the store's can't."""
    need_program("newuidmap")
    plash("init").ok()
    made = "t/d/s"
    if what == "socket":
        make = f"python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"{made}\")'"
    else:
        # ext4 holds 4 kB in all; a tmpfs has no such limit.
        kind = plash.run(["stat", "-f", "-c", "%T", "."]).out.strip()
        need(kind != "tmpfs", "a store that is on no tmpfs")
        make = f'python3 -c \'import os; open("{made}", "w"); os.setxattr("{made}", "user.a", b"x" * 60000)\''
    code = f"mkdir t; mount -t tmpfs none t; mkdir t/d; :>t/d/f; {make} || exit 9; plash-stack 0 t/d; echo $?; ls t/d"
    done = inside(plash, code)
    if done.status == 9:
        pytest.skip("needs a tmpfs with user xattrs")
    assert done.out == "1\nf\ns\n"
    assert done.err.count("\n") == 1 and "not all of it can be copied; it stays: 1 " in done.err
    assert os.listdir(plash.data / "index") == ["0"]


def test_stack_copies_from_another_filesystem(plash):
    plash("init").ok()
    code = "mkdir t; mount -t tmpfs none t; mkdir t/d; echo x >t/d/f; plash-stack 0 t/d; ls t"
    done = inside(plash, code)
    number, *left = done.ok().out.split()
    assert left == [] and plash("mounted", number, "cat", "f").out == "x\n"


def test_stack_says_in_its_first_line_that_it_moves(plash):
    assert plash("stack", "--help").out.startswith("Move a directory")


def test_a_socket_in_an_image_is_counted(plash):
    (plash.place / "d").mkdir()
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(os.path.relpath(plash.place / "d/s")))
    number = plash("stack", "0", "d").id
    done = plash("push:tarfile", number, "a.tar").ok()
    assert "1 sockets left out, which no archive holds (the first: ./s" in done.err
