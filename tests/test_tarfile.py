"""pull:tarfile, push:tarfile and push:dir."""

import fcntl
import io
import os
import shutil
import subprocess
import tarfile

import pytest
from archives import archive, compressed, info
from requirements import PROGRAMS, as_user, need_program, needs_subordinate_ids, subordinate_ids
from world import LIBEXEC, tree, wait_for

F_SETPIPE_SZ = 1031  # which fcntl has since Python 3.10


@pytest.mark.parametrize("suffix", ["", *PROGRAMS])
@pytest.mark.parametrize("way", ["file", "pipe", "redirect"])
def test_compressions(plash, tmp_path, suffix, way):
    tar = tmp_path / "a.tar"
    tar.write_bytes(archive((info("a/file"), b"hello\n")))
    if suffix:
        need_program(PROGRAMS[suffix])
        subprocess.run(
            [PROGRAMS[suffix], "-q", tar] if suffix != "lz4" else ["lz4", "-q", tar, f"{tar}.lz4"],
            check=True,
        )
        tar = tmp_path / f"a.tar.{suffix}"
    if way == "file":
        number = plash("pull:tarfile", tar.rename(tmp_path / "name says nothing")).id
    elif way == "pipe":
        number = plash("pull:tarfile", input=tar.read_bytes()).id
    else:
        with open(tar, "rb") as opened:
            number = plash("pull:tarfile", "-", stdin=opened).id
    assert plash("mounted", number, "cat", "a/file").out == "hello\n"


@pytest.mark.parametrize(
    "suffix",
    [
        "tar",
        "tar.gz",
        "tgz",
        pytest.param("tar.xz", marks=pytest.mark.slow),
        "tar.zst",
        "tar.bz2",
        "tar.lz4",
    ],
)
def test_push_compresses_by_the_suffix_and_twice_alike(plash, image, tmp_path, suffix):
    need_program(PROGRAMS.get(suffix.rpartition(".")[2], "tar"))
    first, second = tmp_path / f"1.{suffix}", tmp_path / f"2.{suffix}"
    assert plash("push:tarfile", image, first).ok().out == ""
    plash("push:tarfile", image, second).ok()
    assert first.read_bytes() == second.read_bytes()
    again = plash("pull:tarfile", first).id
    plash("push:tarfile", again, tmp_path / "again.tar").ok()
    plash("push:tarfile", image, tmp_path / "plain.tar").ok()
    assert (tmp_path / "again.tar").read_bytes() == (tmp_path / "plain.tar").read_bytes()


def test_push_to_stdout(plash, image, tmp_path):
    plash("push:tarfile", image, tmp_path / "a.tar").ok()
    # Only the last record of a pipe is a shorter one.
    assert (
        plash("push:tarfile", image).raw.rstrip(b"\0")
        == plash("push:tarfile", image, "-").raw.rstrip(b"\0")
        == (tmp_path / "a.tar").read_bytes().rstrip(b"\0")
    )


def test_push_to_a_reader_that_stops(plash, image):
    done = plash.run(
        [
            "sh",
            "-c",
            f"{os.path.dirname(__file__)}/../bin/plash push:tarfile {image} | head -c 1000 | wc -c",
        ]
    )
    assert (done.out, done.err) == ("1000\n", "")


def test_push_replaces_a_file_whole_or_not_at_all(plash, image, tmp_path):
    (tmp_path / "a.tar").write_text("old")
    full = plash("push:tarfile", image, "/dev/full")
    assert full.status == 1 and "No space left on device" in full.error
    assert plash("push:tarfile", "99", tmp_path / "a.tar").status == 1
    assert (tmp_path / "a.tar").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "data", "home"]


def test_names_of_any_bytes(plash, tmp_path):
    root = os.fsencode(tmp_path / "root")
    os.mkdir(root)
    names = [
        b"a b",
        b"new\nline",
        b"\xff\xfe",
        "ä€".encode(),
        b"back\\slash",
        b"x" * 255,
        b"-dash",
        b"*?[a]",
    ]
    for name in names:
        open(os.path.join(root, name), "w").close()
    number = plash("stack", "0", os.fsdecode(root)).id
    plash("push:tarfile", number, tmp_path / "a.tar").ok()
    again = plash("pull:tarfile", tmp_path / "a.tar").id
    listed = plash("mounted", again, "find", ".", "-mindepth", "1", "-print0").raw
    assert sorted(listed.split(b"\0")[:-1]) == sorted(b"./" + name for name in names)


def test_what_is_kept(plash, tmp_path):
    """Modes, times, links, holes, xattrs: the same after import and export, told by tar itself."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_text("x")
    os.link(root / "file", root / "hard")
    (root / "soft").symlink_to("file")
    os.mkfifo(root / "fifo")
    (root / "setuid").write_text("s")
    (root / "setuid").chmod(0o6755)
    with open(root / "sparse", "wb") as file:
        file.truncate(10_000_000)
        file.seek(5_000_000)
        file.write(b"data")
    os.setxattr(root / "file", "user.test", b"\0binary\xff")
    os.utime(root / "file", ns=(1, 1_234_567_890_123_456_789))
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o1777)
    number = plash("stack", "0", root).id
    plash("push:tarfile", number, tmp_path / "a.tar").ok()
    assert (tmp_path / "a.tar").stat().st_size < 1_000_000
    again = plash("pull:tarfile", tmp_path / "a.tar").id
    plash("push:dir", again, tmp_path / "dir").ok()
    made = tmp_path / "dir"
    assert os.getxattr(made / "file", "user.test") == b"\0binary\xff"
    assert (made / "file").stat().st_mtime_ns == 1_234_567_890_123_456_789
    assert (made / "file").stat().st_ino == (made / "hard").stat().st_ino
    assert (made / "sparse").stat().st_blocks * 512 < 1_000_000
    assert (made / "setuid").stat().st_mode & 0o7777 == 0o6755
    assert (made / "sticky").stat().st_mode & 0o7777 == 0o1777
    assert (made / "fifo").is_fifo() and os.readlink(made / "soft") == "file"
    assert sorted(os.listxattr(made / "file")) == ["user.test"]


@needs_subordinate_ids
def test_owners_and_capabilities_are_kept(plash, tmp_path):
    need_program("setcap", "getcap")
    tar = archive(info("a", uid=33, gid=1000), info("d", tarfile.DIRTYPE, uid=5, gid=6))
    number = plash("pull:tarfile", input=tar).id
    assert plash("mounted", number, "stat", "-c", "%u:%g", "a", "d").out == "33:1000\n5:6\n"
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    code = "mkdir l; touch l/p; setcap cap_net_raw+ep l/p && plash-stack 1 l"
    capable = plash("sudo", "sh", "-c", code, env={"PATH": path}).id
    plash("push:tarfile", capable, tmp_path / "c.tar").ok()
    again = plash("pull:tarfile", tmp_path / "c.tar").id
    assert plash("mounted", again, "getcap", "p", env={"PATH": path}).out == "p cap_net_raw=ep\n"


@as_user
def test_device_nodes_are_left_out_and_counted(plash):
    done = plash(
        "pull:tarfile",
        input=archive(
            info("dev", tarfile.DIRTYPE),
            info("dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3),
            info("dev/sda", tarfile.BLKTYPE, devmajor=8),
            info("file"),
        ),
    )
    assert (
        done.err.startswith("plash pull:tarfile: 2 device nodes left out")
        and done.err.count("\n") == 1
    )
    assert plash("mounted", done.id, "sh", "-c", "find . | sort").out.split() == [
        ".",
        "./dev",
        "./file",
    ]


@pytest.mark.parametrize(
    "what, why",
    [
        ("nothing", "the archive is empty"),
        ("zeros", "the archive holds no files"),
        ("zip", "not a tar archive, but a zip archive"),
        ("html", "not a tar archive, but a web page or XML"),
        ("text", "cannot unpack: This does not look like a tar archive"),
        ("cut", "cannot unpack: Unexpected EOF in archive"),
        ("cut gz", "cannot unpack: "),
        ("cut xz", "cannot unpack: xz: "),
        ("cut zst", "cannot unpack: "),
        ("empty gz", "cannot unpack: This does not look like a tar archive"),
        ("docker save", "an archive of image layers"),
        ("oci", "an archive of image layers"),
        ("outside", "cannot unpack: "),
        ("through a link", "cannot unpack: "),
    ],
)
@pytest.mark.parametrize("way", ["file", "pipe"])
def test_what_is_no_root_filesystem(plash, image, tmp_path, what, why, way):
    good = archive((info("file"), os.urandom(100_000)))
    data = {
        "nothing": lambda: b"",
        "zeros": lambda: bytes(10240),
        "zip": lambda: b"PK\x03\x04" + bytes(1000),
        "html": lambda: b"<html>not found</html>",
        "text": lambda: b"hello\n" * 1000,
        "cut": lambda: good[:50_000],
        "cut gz": lambda: compressed("gzip", good)[:50_000],
        "cut xz": lambda: compressed("xz", good)[:50_000],
        "cut zst": lambda: compressed("zstd", good)[:50_000],
        "empty gz": lambda: compressed("gzip", b""),
        "docker save": lambda: archive(info("manifest.json"), info("abc/layer.tar")),
        "oci": lambda: archive(info("oci-layout"), info("index.json")),
        "outside": lambda: archive(info("../outside"), info("fine")),
        "through a link": lambda: archive(
            info("l", tarfile.SYMTYPE, linkname=str(tmp_path)), info("l/outside")
        ),
    }[what]()
    before = plash.snapshot()
    if way == "file":
        (tmp_path / "a.tar").write_bytes(data)
        done = plash("pull:tarfile", tmp_path / "a.tar")
    else:
        done = plash("pull:tarfile", input=data)
    if what == "through a link" and done.status == 0:
        plash("rm", done.id).ok()
    else:
        file = f"{tmp_path}/a.tar: " if way == "file" else ""
        assert done.error.startswith(f"plash pull:tarfile: {file}{why}"), done.error
        assert plash.snapshot() == before
    assert not (tmp_path / "outside").exists() and not (plash.data / "tmp/outside").exists()


def test_a_full_disk(plash, image, tmp_path):
    """The store on a tmpfs of 2 MB, in plash's own mount namespace."""
    (tmp_path / "big.tar").write_bytes(archive((info("big"), os.urandom(4_000_000))))
    (tmp_path / "small").mkdir()
    code = (
        "mount -t tmpfs -o size=2m none small; export PLASH_DATA=$PWD/small/d PATH=$PATH:/usr/sbin:/sbin;"
        " plash-pull:tarfile big.tar; plash-pull:tarfile < big.tar; ls small/d/index small/d/tmp"
    )
    done = plash("sudo", "sh", "-c", code)
    assert done.err.count("No space left on device") == done.err.count("\n") == 2
    assert done.out == "small/d/index:\n0\n\nsmall/d/tmp:\n"


def test_push_dir_into_an_empty_directory(plash, image, tmp_path):
    (tmp_path / "out").mkdir()
    plash("push:dir", image, tmp_path / "out").ok()
    assert (tmp_path / "out/etc/passwd").read_text().startswith("root:")


def test_pull_host_of_one_program(plash):
    assert shutil.which("ls")
    number = plash("pull:host", "ls").id
    assert "usr" in plash("run", number, "ls", "/").ok().out.split()
    assert plash("run", number, "cat").status == 127


def test_pull_host_takes_a_scripts_interpreter_along(plash, tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho ran $1\n")
    script.chmod(0o755)
    number = plash("pull:host", script).id
    assert plash("run", number, "sh", "-c", f"ls /host{script}").status == 127
    assert plash("run", number, script, "x", env={"HOME": "/nonexistent"}).out == "ran x\n"


@pytest.mark.parametrize("way", ["file", "pipe"])
def test_an_archive_cut_between_two_members(plash, tmp_path, way):
    cut = archive((info("one"), bytes(512)), (info("two"), bytes(range(256)) * 2))[:2048]
    (tmp_path / "a.tar").write_bytes(cut)
    done = plash("pull:tarfile", "a.tar") if way == "file" else plash("pull:tarfile", input=cut)
    file = "a.tar: " if way == "file" else ""
    assert done.error == f"plash pull:tarfile: {file}the archive has no end: it was cut off"
    assert os.listdir(plash.data / "index") == ["0"]


def test_push_to_a_name_that_can_be_no_file(plash, image):
    for name, why in ("", "'': No such file"), ("new/", "new/: Is a directory"):
        assert plash("push:tarfile", image, name).error.startswith(f"plash push:tarfile: {why}")
    assert not (plash.place / "new").exists()


def outside(tmp_path):
    """All that is around the store, to see that an import writes nothing there."""
    return sorted(
        (str(path), path.lstat().st_mtime_ns)
        for path in tmp_path.rglob("*")
        if "data" not in path.parts
    )


@pytest.mark.parametrize(
    "members",
    [
        [info("../up")],
        [info("a/../../up")],
        [info("l", tarfile.SYMTYPE, linkname="."), info("l/../../up")],
        [info("l", tarfile.SYMTYPE, linkname="/"), info("l/{0}/up")],
        [info("l", tarfile.SYMTYPE, linkname="../../../../.."), info("l/up")],
        [info("l", tarfile.SYMTYPE, linkname="{0}"), info("l/up")],
        [info("h", tarfile.LNKTYPE, linkname="{0}/victim")],
        [info("h", tarfile.LNKTYPE, linkname="../../../../../victim")],
        [
            info("l", tarfile.SYMTYPE, linkname="{0}"),
            info("h", tarfile.LNKTYPE, linkname="l/victim"),
            (info("h"), b"changed"),
        ],
        [(info("{0}/victim"), b"changed")],
        [info("{0}", tarfile.SYMTYPE, linkname="/")],
        [info("l", tarfile.SYMTYPE, linkname="{0}/victim"), (info("l"), b"changed")],
    ],
)
def test_nothing_is_written_outside_of_the_layer(plash, image, tmp_path, members):
    (tmp_path / "victim").write_text("as it was")
    for member in members:
        member = member[0] if isinstance(member, tuple) else member
        member.name, member.linkname = (
            member.name.format(tmp_path),
            member.linkname.format(tmp_path),
        )
    before, store = outside(tmp_path), plash.snapshot()
    done = plash("pull:tarfile", input=archive(*members))
    assert (tmp_path / "victim").read_text() == "as it was" and (
        tmp_path / "victim"
    ).stat().st_nlink == 1
    assert outside(tmp_path) == before
    if done.status:
        assert done.error.startswith("plash pull:tarfile: cannot unpack: ")
    else:  # it may be harmless, below the new root
        plash("rm", done.id).ok()
    assert plash.snapshot() == store


@as_user
def test_owners_that_are_not_mapped(plash):
    done = plash(
        "pull:tarfile", input=archive(info("a", uid=4_000_000_000, gid=4_000_000_000), info("b"))
    )
    assert plash("mounted", done.id, "stat", "-c", "%u:%g", "a").out == "0:0\n"
    if subordinate_ids():
        assert done.err.startswith(
            "plash pull:tarfile: 1 files given to root, since their owners are not mapped here"
            " (the first: a)"
        )


def test_long_names(plash, tmp_path):
    path = "/".join(["d" * 250] * 15) + "/file"
    number = plash("pull:tarfile", input=archive(info(path))).id
    assert plash("mounted", number, "find", ".", "-name", "file").out == f"./{path}\n"
    plash("push:tarfile", number, "a.tar").ok()
    with tarfile.open(tmp_path / "a.tar") as opened:
        assert f"./{path}" in opened.getnames()
    gnu = io.BytesIO()
    with tarfile.open(fileobj=gnu, mode="w", format=tarfile.GNU_FORMAT) as opened:
        opened.addfile(info("x" * 200 + "/" + "y" * 200))
    assert (
        plash("mounted", plash("pull:tarfile", input=gnu.getvalue()).id, "ls", "x" * 200).out
        == "y" * 200 + "\n"
    )


def test_an_archives_overlay_xattrs_are_no_orders(plash):
    hidden = info("d", tarfile.DIRTYPE)
    hidden.pax_headers = {"SCHILY.xattr.user.overlay.opaque": "y", "SCHILY.xattr.user.kept": "1"}
    number = plash("pull:tarfile", input=archive(hidden)).id
    root = plash.data / f"layer/0/{number}/_data/root"
    assert os.listxattr(root / "d") == ["user.kept"]


@pytest.mark.parametrize("number", [2, 9, 15])
def test_an_interrupted_import(plash, image, tmp_path, number):
    before = plash.snapshot()
    pull = plash.start("pull:tarfile", start_new_session=True)
    pull.stdin.write(archive((info("big"), os.urandom(5_000_000)))[:3_000_000])
    pull.stdin.flush()
    wait_for(lambda: any(plash.data.glob("tmp/*/root/big")))
    os.killpg(pull.pid, number)
    assert pull.wait() in (-number, 128 + number)
    assert pull.stderr.read() == b""
    if number == 9:
        plash.clean()
    assert plash.snapshot() == before


@needs_subordinate_ids
def test_acls_are_kept(plash, tmp_path):
    need_program("getfacl")
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("file")
        info.pax_headers = {
            "SCHILY.acl.access": "user::rw-,user:5:r--,group::r--,mask::r--,other::---"
        }
        tar.addfile(info)
    number = plash("pull:tarfile", "a.tar").id
    plash("push:tarfile", number, "b.tar").ok()
    for image in number, plash("pull:tarfile", "b.tar").id:
        assert "user:5:r--" in plash("mounted", image, "getfacl", "-nc", "file").ok().out
    # In numbers, for names mean other users elsewhere: 5 is games on Debian.
    assert b"user:5:r--" in (tmp_path / "b.tar").read_bytes()


@pytest.mark.parametrize("suffix", ["Z", "zip", "7z", "lzma", "tar.br", "squashfs"])
def test_a_format_that_is_not_written_is_refused(plash, image, tmp_path, suffix):
    done = plash("push:tarfile", image, f"a.{suffix}")
    assert done.error.startswith(f"plash push:tarfile: cannot write a.{suffix}: no such format")
    assert not (tmp_path / f"a.{suffix}").exists()


def test_archives_of_pzstd_begin_with_a_skippable_frame(plash):
    need_program("zstd")
    data = compressed("zstd", archive((info("file"), b"x")))
    frame = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + len(data).to_bytes(4, "little")
    number = plash("pull:tarfile", input=frame + data).id
    assert plash("mounted", number, "cat", "file").out == "x"


@pytest.mark.parametrize("program", ["gzip", "xz", "zstd"])
@pytest.mark.parametrize("way", ["file", "pipe"])
def test_a_compressed_archive_cut_between_two_members(plash, tmp_path, program, way):
    """The compressed file is whole: only the tar in it is not."""
    cut = archive((info("one"), bytes(512)), (info("two"), bytes(range(256)) * 2))[:2048]
    (tmp_path / "a").write_bytes(compressed(program, cut))
    if way == "file":
        done = plash("pull:tarfile", "a")
    else:
        done = plash("pull:tarfile", input=(tmp_path / "a").read_bytes())
    file = "a: " if way == "file" else ""
    assert done.error == f"plash pull:tarfile: {file}the archive has no end: it was cut off"
    assert os.listdir(plash.data / "index") == ["0"]


def test_whiteouts_in_an_archive_hide_nothing(plash, tmp_path):
    tar = archive(
        info("d", tarfile.DIRTYPE),
        info("d/gone", tarfile.CHRTYPE),
        info("gone", tarfile.CHRTYPE),
        info("d/file"),
    )
    done = plash("pull:tarfile", input=tar).ok()
    assert "2 whiteouts of overlayfs left out, which hide nothing (the first: d/gone)" in done.err
    assert plash("mounted", done.id, "ls", "-A", ".", "d").ok().out == ".:\nd\n\nd:\nfile\n"
    assert plash("mounted", done.id, "stat", "-c", "%Y", "d").out == "1000000000\n"
    plash("push:tarfile", done.id, "a.tar").ok()
    plash("push:dir", done.id, "out").ok()
    assert sorted(os.listdir(tmp_path / "out")) == ["d"]


def test_an_archive_of_whiteouts_that_are_there_already(plash, tmp_path):
    """Exports work on layers that an earlier version imported, and on what `stack` takes."""
    plash("sudo", "sh", "-c", "mkdir -p l/d; mknod l/gone c 0 0; mknod l/d/gone c 0 0; :>l/f").ok()
    number = plash("stack", "0", "l").id
    plash("push:tarfile", number, "a.tar").ok()
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames() == [".", "./d", "./f"]
    plash("push:dir", number, "out").ok()
    assert sorted(os.listdir(tmp_path / "out")) == ["d", "f"]


def test_a_store_without_xattrs_and_acls(plash, tmp_path):
    """A ramfs has neither; what can't be kept is counted, and the rest is there."""
    acl = info("acl")
    acl.pax_headers = {"SCHILY.acl.access": "user::rw-,user:0:r--,group::r--,mask::r--,other::---"}
    xattr = info("xattr")
    xattr.pax_headers = {"SCHILY.xattr.user.a": "b"}
    (tmp_path / "a.tar").write_bytes(archive(acl, xattr, (info("file"), b"kept")))
    code = (
        "mkdir r; mount -t ramfs none r; export PLASH_DATA=$PWD/r/d PLASH_NO_UNSHARE=1;"
        f" PATH={LIBEXEC}:$PATH; i=$(plash-pull:tarfile a.tar) && plash-mounted $i cat file"
    )
    done = plash("sudo", "unshare", "-m", "sh", "-c", code).ok()
    assert done.out == "kept"
    lines = done.err.splitlines()
    assert any("1 extended attributes left out, which can't be set here" in each for each in lines)
    assert any("ACLs left out, which can't be set here" in each for each in lines)
    assert len(lines) == 2 and all(each.startswith("plash pull:tarfile: ") for each in lines)


def test_overlay_xattrs_do_not_leave_the_store(plash, image, tmp_path):
    need_program("getfattr")
    base = plash("build", image, "mkdir /d; :>/d/old").id
    number = plash("build", base, "rm -r /d; mkdir /d; :>/d/f; chmod 700 /usr").id
    plash("push:tarfile", number, "a.tar").ok()
    headers = [str(entry["xattrs"]) for entry in tree(tmp_path / "a.tar").values()]
    assert not any("overlay" in each for each in headers)
    plash("push:dir", number, "out").ok()
    names = plash("sudo", "getfattr", "-Rhm", "-", "out").ok().out
    assert "overlay" not in names


def test_sparse_files_give_the_same_bytes_each_time(plash, tmp_path):
    (tmp_path / "l").mkdir()
    with open(tmp_path / "l/sparse", "wb") as file:
        file.truncate(3 << 30)
        file.seek(1 << 30)
        file.write(b"data")
    number = plash("stack", "0", "l").id
    plash("push:tarfile", number, "1.tar").ok()
    plash("push:tarfile", number, "2.tar").ok()
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()
    assert (tmp_path / "1.tar").stat().st_size < 100_000
    again = plash("pull:tarfile", "1.tar").id
    seen = plash("mounted", again, "stat", "-c", "%s %b", "sparse").out.split()
    assert seen[0] == str(3 << 30) and int(seen[1]) < 100
    with tarfile.open(tmp_path / "1.tar") as tar:
        assert tar.getmember("./sparse").size == 3 << 30


@as_user
def test_what_can_not_be_read_is_not_left_out(plash, tmp_path):
    """A link to a directory with files of another user."""
    need_program("mksquashfs")
    number = plash("link", "/etc").id  # /etc/shadow
    for command, file in ("push:tarfile", "a.tar"), ("push:squashfs", "a.sqfs"), ("push:dir", "d"):
        done = plash(command, number, file)
        assert done.status == 1 and "Permission denied" in done.error or "open" in done.error
        assert not (tmp_path / file).exists()


def test_a_reader_that_stops_at_the_end_of_an_archive(plash):
    """As some versions of tar do: what fills the last record is not read, which is no failure."""
    for size in range(200_000, 260_000, 10_000):
        (plash.place / "layer").mkdir()
        (plash.place / "layer/file").write_bytes(b"x" * size)
        image = plash("stack", "0", "layer").id
        reader, writer = os.pipe()
        fcntl.fcntl(writer, F_SETPIPE_SZ, 4096)  # else it may take all of that
        argv = [LIBEXEC / "plash-push:tarfile", image, "-"]
        with subprocess.Popen(argv, stdout=writer, env=plash.env, cwd=plash.place) as process:
            os.close(writer)
            with open(reader, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
                assert len(list(tar)) == 2
        assert process.returncode == 0
