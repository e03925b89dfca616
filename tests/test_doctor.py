"""plash doctor on good hosts, and on hosts that lack things: made of PATH, binds, strace's and setpriv's doing."""

import os

import pytest
from requirements import as_user, need_program, need_system_python, subordinate_ids
from world import LIBEXEC, ROOT

DOCTOR = LIBEXEC / "plash-doctor"


class Report(dict):
    """What doctor said: a dict of what a line is on to its mark and its text."""

    def __init__(self, result):
        assert result.err == "", result.err
        super().__init__(
            (line[4:20].strip(), (line[:2], line[22:])) for line in result.out.splitlines()
        )
        assert all(line[:4] in ("ok  ", "no  ", "--  ") for line in result.out.splitlines())
        missing = any(mark == "no" for mark, _ in self.values())
        assert result.status == missing, result.out


def traced(inject, environment="true"):
    """Words that run doctor in `plash sudo`, where strace's fault injection has no setuid program to spoil."""
    need_program("strace")
    return [
        "sh",
        "-c",
        f"{environment} && exec strace -f -qq -o /dev/null -e trace={inject.split(':')[0]}"
        f" -e inject={inject} {DOCTOR}",
    ]


def without(place, *programs):
    """A PATH without these programs."""
    place.mkdir()
    for directory in "/usr/bin", "/bin", "/usr/sbin", "/sbin":
        for name in os.listdir(directory):
            if name not in programs and not (place / name).is_symlink():
                (place / name).symlink_to(f"{directory}/{name}")
    return {"PATH": f"{ROOT}/.venv/bin:{place}"}


def test_a_good_host(plash):
    report = Report(plash("doctor"))
    needed = (
        "kernel",
        "python",
        "docopt",
        "user namespaces",
        "mounts",
        "data directory",
        "overlay",
        "tar",
    )
    assert [report[what][0] for what in needed] == ["ok"] * len(needed)
    assert report["user namespaces"][1] == (
        "not needed: you are root" if os.getuid() == 0 else "can be made"
    )
    assert report["data directory"][1] == f"{plash.data} is not there yet, and can be made"


@as_user
def test_subordinate_ids(plash):
    need_program("newuidmap")
    mark, text = Report(plash("doctor"))["subordinate ids"]
    if subordinate_ids():
        assert (mark, text.split()[1]) == ("ok", "uids,")
    else:
        assert mark == "--"
        assert "none are yours; as root: usermod --add-subuids " in text


@as_user
def test_a_proposed_range_is_nobodys(plash, tmp_path):
    need_program("newuidmap")
    for kind in "subuid", "subgid":
        (tmp_path / kind).write_text("somebody:100000:65536\nanother:700000:1000\n")
    code = (
        f"mount --bind {tmp_path}/subuid /etc/subuid && mount --bind {tmp_path}/subgid /etc/subgid && "
        f"exec unshare --user --map-user=1000 --map-group=1000 {DOCTOR}"
    )
    text = Report(plash("sudo", "sh", "-c", code))["subordinate ids"][1]
    assert "--add-subuids 701000-766535 --add-subgids 701000-766535 " in text


def test_no_change_and_nothing_left(plash):
    before = sorted(plash.place.rglob("*"))
    Report(plash("doctor"))
    assert sorted(plash.place.rglob("*")) == before
    plash("init").ok()
    before = plash.snapshot()
    report = Report(plash("doctor"))
    assert report["data directory"] == ("ok", str(plash.data))
    assert plash.snapshot() == before


def test_programs_are_named_with_their_purpose(plash, tmp_path):
    absent = "curl", "zstd", "docker", "podman", "skopeo"
    report = Report(plash("doctor", env=without(tmp_path / "bin", *absent)))
    assert report["curl"] == ("--", "for pull:url, pull:lxc: install curl")
    assert report["zstd"] == ("--", "for archives in .zst: install zstd")
    assert report["docker"] == ("--", "for pull:docker: install docker.io or docker or podman")
    assert report["skopeo"][0] == "--"


def test_without_tar(plash, tmp_path):
    report = Report(plash("doctor", env=without(tmp_path / "bin", "tar")))
    assert report["tar"] == ("no", "No such file or directory: install GNU tar")


def test_a_tar_that_is_not_gnus(plash, tmp_path):
    need_program("busybox")
    env = without(tmp_path / "bin", "tar")
    (tmp_path / "bin/tar").symlink_to("/bin/busybox")
    assert Report(plash("doctor", env=env))["tar"][0] == "no"


@as_user
def test_without_newuidmap(plash, tmp_path):
    report = Report(plash("doctor", env=without(tmp_path / "bin", "newuidmap", "newgidmap")))
    assert report["subordinate ids"][0] == "--"
    assert report["subordinate ids"][1].startswith(
        "newuidmap and newgidmap missing: install uidmap or shadow-utils "
    )


@pytest.mark.only_for("subids")
def test_a_newuidmap_that_may_not(plash):
    need_program("setpriv")
    mark, text = Report(plash.run(["setpriv", "--no-new-privs", DOCTOR]))["subordinate ids"]
    assert mark == "--" and "no_new_privs" in text


def test_an_old_kernel(plash):
    need_program("setarch")
    mark, text = Report(plash.run(["setarch", "--uname-2.6", DOCTOR]))["kernel"]
    assert mark == "no" and text.startswith("Linux 2.6.") and "5.11 or newer" in text


def test_without_docopt(plash, tmp_path):
    (tmp_path / "docopt.py").write_text("raise ImportError\n")
    report = Report(plash("doctor", env={"PYTHONPATH": str(tmp_path)}))
    assert report["docopt"][0] == "no"


@as_user
def test_no_user_namespaces(plash):
    need_program("strace")
    code = [
        "unshare",
        "--map-root-user",
        "sh",
        "-c",
        "echo 0 > /proc/sys/user/max_user_namespaces && "
        f"exec strace -f -qq -o /dev/null -e trace=geteuid -e inject=geteuid:retval=1000 {DOCTOR}",
    ]
    report = Report(plash.run(code))
    assert report["user namespaces"] == (
        "no",
        "cannot make a user namespace: user.max_user_namespaces=0 forbids it;"
        " as root: sysctl -w user.max_user_namespaces=15000",
    )
    assert "mounts" not in report and "overlay" not in report


@as_user
@pytest.mark.parametrize(
    "setting, value, more",
    [
        ("unprivileged_userns_clone", "0", ""),
        (
            "apparmor_restrict_unprivileged_userns",
            "1",
            "; or for plash alone, from its source: make install-apparmor",
        ),
        ("none", "", ""),
    ],
)
def test_user_namespaces_are_refused(plash, tmp_path, setting, value, more):
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel" / setting).write_text(value + "\n")
    words = traced("unshare:error=EPERM", f"mount --bind {tmp_path}/kernel /proc/sys/kernel")
    words[-1] = words[-1].replace(
        "trace=unshare", "trace=unshare,geteuid -e inject=geteuid:retval=1000"
    )
    mark, text = Report(plash("sudo", *words))["user namespaces"]
    assert mark == "no"
    if setting == "none":
        assert text.startswith("cannot make a user namespace: Operation not permitted; ")
    else:
        good = {"0": "1", "1": "0"}[value]
        assert text == (
            f"cannot make a user namespace: kernel.{setting}={value} forbids it;"
            f" as root: sysctl -w kernel.{setting}={good}{more}"
        )


def test_no_right_to_mount(plash):
    """As root of a container without CAP_SYS_ADMIN."""
    need_program("setpriv")
    code = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", DOCTOR]
    mark, text = Report(plash("sudo", *code))["user namespaces"]
    assert mark == "ok" and text == "can be made"


def test_a_kernel_without_filesystems(plash):
    """Of each process's mounts the first makes them private, and the second is of the filesystem that is tried."""
    report = Report(plash("sudo", *traced("mount:error=ENODEV:when=2")))
    assert report["overlay"] == (
        "no",
        "cannot be mounted: No such device; as root: modprobe overlay",
    )
    assert report["tmpfs"] == ("no", "cannot be mounted: No such device")


def test_a_tmpfs_without_user_xattrs(plash):
    report = Report(plash("sudo", *traced("setxattr:error=EOPNOTSUPP")))
    assert report["overlay"][0] == "ok"
    assert report["tmpfs"] == (
        "--",
        "holds no user xattrs before Linux 6.6: plash run writes to the data directory",
    )


def test_a_filesystem_that_holds_no_changes(plash, tmp_path):
    """A directory on an overlay is refused as the upper one of another."""
    for name in "lower", "upper", "work", "mnt":
        (tmp_path / name).mkdir()
    code = (
        "mount -t overlay -o userxattr,lowerdir=lower,upperdir=upper,workdir=work none mnt && "
        f"PLASH_DATA={tmp_path}/mnt/data exec {DOCTOR}"
    )
    report = Report(plash("sudo", "sh", "-c", code))
    assert report["overlay"][0] == "--" and "build keeps them in memory" in report["overlay"][1]
    assert report["tmpfs"][0] == "ok"
    assert os.listdir(tmp_path / "upper") == []


def test_little_room(plash, tmp_path):
    code = "mount -t tmpfs -o {} none {} && PLASH_DATA={} exec {}"
    for options, said in (
        ("size=64m", "0.1 GiB free: remove"),
        ("size=2g,nr_inodes=500", "2.0 GiB free, but only "),
    ):
        done = plash("sudo", "sh", "-c", code.format(options, tmp_path, tmp_path, DOCTOR))
        mark, text = Report(done)["disk space"]
        assert mark == "--" and text.startswith(said)


def test_a_data_directory_that_is_a_file(plash):
    plash.data.touch()
    try:
        mark, text = Report(plash("doctor"))["data directory"]
    finally:
        plash.data.unlink()
    assert (mark, text) == (
        "no",
        f"cannot write to {plash.data}: Not a directory;"
        " let PLASH_DATA name a directory of your own",
    )


@as_user
def test_a_data_directory_of_another_user(plash):
    mark, text = Report(plash("doctor", env={"PLASH_DATA": "/usr/plash"}))["data directory"]
    assert (mark, text) == (
        "no",
        "cannot write to /usr: it belongs to another user;"
        " let PLASH_DATA name a directory of your own",
    )


@pytest.mark.only_for("root")
def test_root_with_the_data_directory_of_a_user(plash):
    plash("init").ok()
    os.chown(plash.data, 1000, 1000)
    mark, text = Report(plash("doctor"))["data directory"]
    assert mark == "--" and text.startswith(f"{plash.data} belongs to another user")


@pytest.mark.only_for("root")
def test_images_that_root_made_for_a_user_are_named(plash, image):
    os.chown(plash.data, 1000, 1000)
    os.chown(plash.data / "index/0", 1000, 1000, follow_symlinks=False)
    mark, text = Report(plash("doctor"))["foreign images"]
    assert mark == "--" and text.startswith(f"{image} is another user's: made as by sudo")


def test_damage_to_a_store_is_named_with_its_remedy(plash, image):
    child = plash("build", image, "touch /x").id
    (plash.place / "linked").mkdir()
    linked = plash("link", plash.place / "linked").id
    plash("map", "mine", child).ok()
    data = plash.data
    assert not {"links", "images", "ids", "linked images", "copy"} & Report(plash("doctor")).keys()
    for change, undo, what, mark, text in (
        ("ln -s ../index/99 map/x", "plash clean", "links", "--", "1 lead to no image"),
        ("ln -s ../layer/0/99 index/99", "plash clean", "links", "--", "1 lead to no image"),
        (f"rm index/{child}", "rm index/0", "images", "no", f"{child} is not in {data}/index"),
        ("echo >id_counter", "rm id_counter", "ids", "no", f"at 1, below image {linked}"),
        ("mv ../linked ../off", "mv ../off ../linked", "linked images", "no", "which is missing"),
    ):
        plash.run(["sh", "-c", f"cd data && {change}"]).ok()
        done = plash("doctor")
        assert Report(done)[what][0] == mark and text in Report(done)[what][1]
        env = {"PATH": f"{ROOT}/bin:{plash.env['PATH']}"}
        plash.run(["sh", "-c", f"cd data && {undo}"], env=env).ok()
        plash("id", "mine").ok()
        assert what not in Report(plash("doctor")).keys(), change
    assert plash("run", "mine", "ls", "/x").ok().out == "/x\n"


def test_a_copied_store_is_known(plash, image):
    plash("sudo", "cp", "-a", "data", "copy").ok()
    assert Report(plash("doctor", env={"PLASH_DATA": f"{plash.place}/copy"}))["copy"][0] == "--"
    os.rename(plash.data, plash.place / "moved")
    assert "copy" not in Report(plash("doctor", env={"PLASH_DATA": f"{plash.place}/moved"}))
    os.rename(plash.place / "moved", plash.data)
    plash("sudo", "rm", "-rf", "copy").ok()


def test_a_read_only_data_directory(plash, tmp_path):
    code = f"mount --bind {tmp_path} {tmp_path} && mount -o remount,bind,ro {tmp_path} && PLASH_DATA={tmp_path} exec {DOCTOR}"
    mark, text = Report(plash("sudo", "sh", "-c", code))["data directory"]
    assert mark == "no" and "Read-only file system" in text


def test_a_store_to_read_only(plash, image):
    code = f"mount --bind data data && mount -o remount,bind,ro data && exec {DOCTOR}"
    mark, text = Report(plash("sudo", "sh", "-c", code))["data directory"]
    assert mark == "--" and "its images run, and none can be made" in text


@pytest.mark.parametrize("answer", ["exit 1", "sleep 60", "echo 1"])
def test_a_docker_daemon_that_does_not_answer(plash, tmp_path, answer):
    docker = tmp_path / "bin/docker"
    docker.parent.mkdir()
    docker.write_text(f"#!/bin/sh\n{answer.replace('sleep', 'exec sleep')}\n")
    docker.chmod(0o755)
    env = {"PATH": f"{docker.parent}:{plash.env['PATH']}"}
    report = Report(plash("doctor", env=env))
    assert report["docker"][0] == "ok"
    found = report.get("docker daemon", ("", ""))[1].partition(":")[0]
    assert found == {"exit 1": "there is none", "sleep 60": "no answer in 5 s"}.get(answer, "")


def test_nested_in_plash(plash):
    need_system_python()
    image = plash("pull:host", "sh", "mount", "tar", "rm").id
    code = f"mount --rbind /host/usr /usr && PLASH_DATA=/store PATH={ROOT}/.venv/bin:$PATH exec {ROOT}/bin/plash doctor"
    code = code.replace(f"{ROOT}/", f"/host{ROOT}/")
    report = Report(plash("run", image, "sh", "-c", code))
    assert report["container"] == ("--", "this is inside plash: what follows holds in there")
    assert report["mounts"][0] == "ok" and report["overlay"][0] == "--"
    plash("rm", "--recursive", image).ok()


def test_output_is_plain(plash):
    done = plash("doctor").ok()
    assert "\033" not in done.out and max(map(len, done.out.splitlines())) < 200


# The lines that a new user meets elsewhere.


def test_commands_without_tar_or_ldd(plash, image, tmp_path):
    env = without(tmp_path / "bin", "tar", "ldd")
    (tmp_path / "x.tar").write_bytes(b"x" * 512)
    assert (
        plash("pull:tarfile", "x.tar", env=env).error
        == "plash pull:tarfile: x.tar: cannot unpack: install tar"
    )
    assert (
        plash("push:dir", image, "out", env=env).error == "plash push:dir: cannot copy: install tar"
    )
    assert not (plash.place / "out").exists()
    assert plash("pull:host", env=env).error == (
        "plash pull:host: ldd is not installed (needed to find a program's libraries;"
        " see plash doctor)"
    )


def test_commands_with_another_tar(plash, image, tmp_path):
    need_program("busybox")
    env = without(tmp_path / "bin", "tar")
    (tmp_path / "bin/tar").symlink_to("/bin/busybox")
    done = plash("push:tarfile", image, "x.tar", env=env)
    assert (
        done.error
        == "plash push:tarfile: cannot pack: this host's tar is not GNU tar; install that"
    )


def test_a_data_directory_that_can_not_be_used(plash):
    file = plash.place / "file"
    file.touch()
    assert plash("run", "1", env={"PLASH_DATA": str(file)}).error == (
        f"plash run: cannot use the data directory {file}: Not a directory (PLASH_DATA can name another)"
    )
    assert plash("run", "1", env={"PLASH_DATA": "", "HOME": "/proc/nobody"}).error == (
        "plash run: cannot use the data directory /proc/nobody/.local/share/plash: No such file or directory"
        " (PLASH_DATA can name another)"
    )


@as_user
def test_a_data_directory_of_another_user_can_not_be_used(plash):
    for place in "/usr/plash", "/root/plash":
        assert plash("pull:host", env={"PLASH_DATA": place}).error == (
            f"plash pull:host: cannot use the data directory {place}: Permission denied (PLASH_DATA can name another)"
        )


def test_a_kernel_without_overlay_is_told_by_run(plash, image):
    """Its first mount makes all private, the second is its tmpfs."""
    words = traced("mount:error=ENODEV:when=3")
    words[-1] = words[-1].replace(str(DOCTOR), f"{LIBEXEC}/plash-run {image} true")
    assert (
        plash("sudo", *words).error
        == "plash run: cannot mount the image: No such device (see plash doctor)"
    )


def test_root_without_the_capability_to_mount_makes_a_user_namespace(plash, image):
    """As root of a container of podman or docker."""
    need_program("setpriv")
    without = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]
    done = plash("sudo", *without, LIBEXEC / "plash-run", image, "echo", "in")
    assert done.ok().out == "in\n"


def test_a_full_disk_under_an_export_is_named(plash, image, tmp_path):
    code = f"mount -t tmpfs -o size=1m none {tmp_path}/small && exec {LIBEXEC}/plash-push:tarfile {image} {tmp_path}/small/x.tar"
    (tmp_path / "small").mkdir()
    assert (
        plash("sudo", "sh", "-c", code).error
        == "plash push:tarfile: cannot pack: No space left on device"
    )


def test_a_data_directory_that_holds_something_else(plash, tmp_path):
    plash.data.mkdir()
    (plash.data / "mine").touch()
    done = plash("doctor")
    line = next(line for line in done.out.splitlines() if "data directory" in line)
    assert done.status == 1 and line.startswith("no ") and "holds something other" in line
    assert os.listdir(plash.data) == ["mine"]
    (plash.data / "mine").unlink()
    plash.data.rmdir()
