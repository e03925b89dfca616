"""Hosts that forbid, lack or limit what plash needs; most are made by namespaces or by strace's fault injection."""

import os
import sys

import engines
import pytest
from requirements import as_user, kind_of_user, need_program, need_system_python, subordinate_ids
from world import LIBEXEC, ROOT


def strace(plash, inject, *words, **options):
    """Run a command of plash with strace's fault injection; a tracer's setuid programs gain nothing."""
    need_program("strace")
    return plash.run(
        [
            "strace",
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            f"trace={inject.split(':')[0]}",
            "-e",
            f"inject={inject}",
            LIBEXEC / f"plash-{words[0]}",
            *words[1:],
        ],
        **options,
    )


@pytest.mark.slow
@as_user
def test_without_newuidmap_the_callers_id_alone_is_mapped(plash, host_tar, debian_tar, tmp_path):
    bare = tmp_path / "bin"
    bare.mkdir()
    for directory in "/usr/bin", "/bin":
        for name in os.listdir(directory):
            if name not in ("newuidmap", "newgidmap") and not (bare / name).exists():
                (bare / name).symlink_to(f"{directory}/{name}")
    env = {"PATH": f"{ROOT}/.venv/bin:{bare}"}
    debian = plash("pull:tarfile", debian_tar, env=env).id
    assert plash("run", debian, "cat", "/proc/self/uid_map", env=env).out.split() == [
        "0",
        str(os.getuid()),
        "1",
    ]
    assert plash("run", debian, "cat", "/proc/self/setgroups", env=env).out == "deny\n"
    assert plash("run", debian, "dpkg", "-s", "libc6", env=env).ok()
    built = plash(
        "build", debian, "rm -rf /var/cache/apt; mkdir /var/cache/apt; touch /x", env=env
    ).id
    assert plash("run", built, "stat", "-c", "%u", "/x", "/etc/shadow", env=env).out == "0\n0\n"
    plash("rm", "--recursive", debian, env=env).ok()


@as_user
def test_with_subordinate_ids_all_are_mapped(plash, image):
    mapped = plash("run", image, "cat", "/proc/self/uid_map").ok().out.splitlines()
    assert mapped[0].split() == ["0", str(os.getuid()), "1"]
    assert len(mapped) == (2 if subordinate_ids() else 1)


@as_user
def test_a_newuidmap_that_may_not_is_done_without(plash, image):
    # no_new_privs takes setuid programs their power, as many job schedulers and containers do.
    need_program("setpriv")
    done = plash.run(["setpriv", "--no-new-privs", LIBEXEC / "plash-run", image, "id", "-u"]).ok()
    assert done.out == "0\n"


def test_user_namespaces_are_used_up(plash, image):
    """In a user namespace made for the purpose, whose max_user_namespaces is set to 0."""
    need_program("strace")
    code = (
        "echo 0 > /proc/sys/user/max_user_namespaces && exec strace -f -qq -o /dev/null"
        f" -e trace=geteuid -e inject=geteuid:retval=1000 {LIBEXEC}/plash-run {image} true"
    )
    done = plash.run(["unshare", "--map-root-user", "sh", "-c", code])
    assert done.error == (
        "plash run: cannot make a user namespace: user.max_user_namespaces=0 forbids it;"
        " as root: sysctl -w user.max_user_namespaces=15000"
    )


@as_user
@pytest.mark.parametrize(
    "setting, value, good, inject, what",
    [
        (
            "kernel.unprivileged_userns_clone",
            "0",
            "1",
            "unshare:error=EPERM",
            "make a user namespace",
        ),
        (
            "kernel.apparmor_restrict_unprivileged_userns",
            "1",
            "0",
            "unshare:error=EPERM",
            "make a user namespace",
        ),
        # strace lies about the user, whom the kernel then does not let write the map.
        (
            "kernel.apparmor_restrict_unprivileged_userns",
            "1",
            "0",
            "getppid:error=EPERM",
            "write uid_map",
        ),
    ],
)
def test_a_setting_that_forbids_user_namespaces_is_named(
    plash, image, tmp_path, setting, value, good, inject, what
):
    """This kernel lacks both, so a directory stands in for /proc/sys/kernel, and strace for the refusal."""
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel" / setting.split(".")[1]).write_text(value + "\n")
    need_program("strace")
    code = (
        f"mount --bind kernel /proc/sys/kernel && export PLASH_DATA={plash.data} && "
        f"exec strace -f -qq -o /dev/null -e trace=unshare,geteuid,getppid -e inject={inject}"
        f" -e inject=geteuid:retval=1000 {LIBEXEC}/plash-run {image} true"
    )
    done = plash("sudo", "sh", "-c", code)
    assert done.error == (
        f"plash run: cannot {what}: {setting}={value} forbids it;"
        f" as root: sysctl -w {setting}={good}"
    )


def test_a_tmpfs_without_user_xattrs(plash, image):
    """Before Linux 6.6 the changes of a run go to the disk, and the next clean removes them."""
    code = "rm -rf /var; mkdir /var; ls /var; echo x > /file; cat /file"
    done = strace(plash, "setxattr:error=EOPNOTSUPP:when=1", "run", image, "sh", "-c", code)
    assert done.ok().out == "x\n"
    left = plash.leftovers()
    assert len(left) == 1
    plash.clean()


def test_where_the_root_is_no_mount_point(plash, image):
    """In a chroot pivot_root(2) does not work; a recursive bind does."""
    code = f"exec strace -f -qq -o /dev/null -e inject=pivot_root:error=EINVAL {LIBEXEC}/plash-run {image} ls -d /host/etc"
    need_program("strace")
    assert plash("sudo", "sh", "-c", code).ok().out == "/host/etc\n"


def test_nested(plash):
    """plash in a plash container, with its store on that container's own overlay, which holds no upper layer."""
    need_system_python()
    venv = os.path.dirname(sys.executable)  # with docopt
    image = plash("pull:host", "sh", "mount", "mkdir").id
    code = f"""set -e
        mount --rbind /host/usr /usr
        mkdir -p /store; export PLASH_DATA=/store PATH={ROOT}/bin:/host{ROOT}/bin:{venv}:/host{venv}:$PATH PLASH_NO_SYNC=1
        id=$(plash pull:host)
        plash run $id sh -c 'echo in $(id -u)'
        a=$(plash build $id 'mkdir /d /e /f; touch /d/old /e/kept; echo a > /a')
        b=$(plash build $a 'rm -rf /d /a; mkdir /d; touch /d/new; rmdir /f')
        plash run $b sh -c 'ls -d /d /d/* /e/* /a /f 2>/dev/null; :'
        plash push:tarfile $b - | tar -tf - | grep -cE '^./(a|f|d/old)'  || true
        ls /store/tmp
        plash rm --recursive $id; plash purge --yes"""
    done = plash("run", image, "sh", "-c", code)
    assert (done.status, done.out) == (0, "in 0\n/d\n/d/new\n/e/kept\n0\n"), done.err
    unknown = "plash push:tarfile: owners may not have been kept: "
    lines = done.err.splitlines()
    if kind_of_user() == "plain":
        assert lines.pop(0).startswith(unknown)
    assert lines == []


@pytest.mark.parametrize("kind, command", [("mnt", "run"), ("user", "run"), ("pid", "build")])
def test_a_limit_of_namespaces_is_no_full_disk(plash, image, kind, command):
    code = (
        f"echo 0 >/proc/sys/user/max_{kind}_namespaces; exec {LIBEXEC}/plash-{command} {image} true"
    )
    if kind == "user":
        code = code.replace("exec ", "PLASH_NO_UNSHARE=0 exec setpriv --bounding-set=-sys_admin ")
    done = plash.run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", code])
    name = {"mnt": "mount"}.get(kind, kind)
    assert done.error.startswith(f"plash {command}: cannot make a {name} namespace: ")
    assert "No space" not in done.error and f"user.max_{kind}_namespaces" in done.error


def test_without_proc(plash, image):
    for command in f"run {image} true", f"build {image} true", "tree", "doctor":
        name, _, rest = command.partition(" ")
        code = f"mount -t tmpfs none /proc; exec {LIBEXEC}/plash-{name} {rest}"
        done = plash.run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", code])
        assert done.err == f"plash {name}: /proc is not mounted here, and plash needs it\n"
        assert done.status == 1
    plash("clean").ok()


def test_few_open_files(plash, image):
    """Each layer is one: the soft limit is raised, and the command has it as it was."""
    for number in range(30):
        (plash.place / f"d/{number}").mkdir(parents=True)
        image = plash("stack", image, "d").id
    limited = ["sh", "-c", 'ulimit -Sn 30; exec "$0" "$@"']
    done = plash.run([*limited, LIBEXEC / "plash-run", image, "sh", "-c", "ulimit -n; ls -d /29"])
    assert done.ok().out == "30\n/29\n"
    plash.run([*limited, LIBEXEC / "plash-build", image, "touch /x"]).ok()
    plash.run([*limited, LIBEXEC / "plash-push:tarfile", image, "x.tar"]).ok()
    plash.run([*limited, LIBEXEC / "plash-diff", image]).ok()
    limited[-1] = limited[-1].replace("-Sn 30", "-n 24")
    for command in ["run", "true"], ["build", "true"], ["push:tarfile"], ["diff"]:
        done = plash.run([*limited, LIBEXEC / f"plash-{command[0]}", image, *command[1:]])
        assert (
            done.error
            == f"plash {command[0]}: Too many open files (the limit is 24, see `ulimit -n`)"
        )
    plash("clean").ok()


@pytest.mark.only_for("root", "plain")  # strace keeps newuidmap from mapping more ids
@pytest.mark.parametrize(
    "inject, why",
    [
        ("?mkdir,mkdirat:error=ENOSPC", "the data directory {}: No space left on device"),
        ("?mkdir,mkdirat:error=EDQUOT", "the data directory {}: Disk quota exceeded"),
        ("?rename,renameat,renameat2:error=EIO", "the data directory {}: Input/output error"),
        (
            "flock:error=ENOLCK",
            "No locks available (let PLASH_DATA name a directory on another filesystem)",
        ),
        (
            "?fork,?vfork,clone,clone3:error=EAGAIN",
            "rm: Resource temporarily unavailable (too many processes: see `ulimit -u`)",
        ),
        (
            "pivot_root:error=EPERM",
            "cannot change the root filesystem: Operation not permitted (see plash doctor)",
        ),
    ],
)
def test_an_error_names_nothing_of_plashs_own(plash, image, inject, why):
    # Root of one id: mapping more takes processes, of which there are none in one case.
    done = strace(plash, inject, "build", image, "touch /x", env={"PATH": "/usr/bin:/bin"})
    assert done.error == "plash build: " + why.format(plash.data)
    plash("clean").ok()


def test_a_limit_of_file_sizes_is_named(plash, image):
    words = ["sh", "-c", 'ulimit -f 1; exec "$0" "$@"', LIBEXEC / "plash-push:tarfile"]
    assert "File size limit exceeded" in plash.run([*words, image, "x.tar"]).error
    assert not (plash.place / "x.tar").exists()


@pytest.mark.slow
@pytest.mark.only_for("root")
def test_in_podman(plash, host_tar):
    """In podman's own seccomp filter and below its masked /proc, as root, as a user, privileged."""
    need_program("podman", "runc")
    code = """set -e
        mkdir /tmp/store; export PLASH_DATA=/tmp/store PLASH_NO_SYNC=1 PATH=/plash/bin:$PATH
        id=$(plash pull:host sh ls touch)
        id=$(plash build $id 'touch /pid-$$; ls -d /host/etc')
        plash run $id sh -c 'ls /pid-*'"""
    with engines.podman(plash.place / "podman") as podman:
        podman("import", host_tar, "plash-test")
        options = [
            "--rm",
            "--network=host",
            "--ulimit=nofile=1024:1024",
            "--ulimit=nproc=1024:1024",
        ]
        options += ["-v=/usr:/usr:ro", f"-v={ROOT}:/plash:ro", "-e=PYTHONDONTWRITEBYTECODE=1"]
        for more in [], ["--user=1000"], ["--privileged"]:
            pid = podman("run", *options, *more, "plash-test", "sh", "-c", code)
            # A build can mount a /proc of its own in the last alone.
            assert (pid == "/pid-2") == (more == ["--privileged"]) and "/pid-" in pid
