"""The options of run, run:persist and build: variables, binds, and the caller's own ids."""

import os
import pwd

import pytest
from requirements import as_user, kind_of_user, needs_subordinate_ids

BIN = os.path.realpath("/bin")


def test_a_variable_with_its_value(plash, image):
    assert (
        plash("run", "-e", "A=1=2", "-e", "B=", image, "sh", "-c", 'echo "$A,${B-unset}"').ok().out
        == "1=2,\n"
    )


def test_a_variable_of_the_caller(plash, image):
    done = plash(
        "run",
        "-e",
        "A",
        "-e",
        "NONE",
        image,
        "sh",
        "-c",
        'echo "$A ${NONE-unset}"',
        env={"A": "here"},
    )
    assert done.ok().out == "here unset\n"


def test_a_variable_overrides_what_plash_sets(plash, image):
    assert (
        plash("run", "-e", "PATH=/nowhere:/bin:/usr/bin", image, "sh", "-c", "echo $PATH").ok().out
        == "/nowhere:/bin:/usr/bin\n"
    )
    assert "home=/x" in plash("build", "-e", "HOME=/x", image, "echo home=$HOME").ok().err


def test_no_variable(plash, image):
    assert (
        plash("run", "-e", "=x", image, "true").error
        == "plash run: not a variable: '=x' (NAME or NAME=VALUE)"
    )


@pytest.fixture
def shared(plash):
    directory = plash.place / "shared: a"
    directory.mkdir()
    (directory / "file").write_text("content\n")
    return plash.place / "shared: a"


def test_a_bind_at_a_place_that_the_image_lacks(plash, image, shared, layers):
    link = plash.place / "shared"
    link.symlink_to(shared)
    code = "cat /opt/new/here/file && touch /opt/new/here/made && touch /opt/new/kept"
    child = plash("build", "-b", f"{link}:/opt/new/here", image, code)
    assert child.ok().err == "content\n" and (shared / "made").exists()
    assert layers(child.id) == ["opt", "opt/new", "opt/new/kept"]


def test_a_bind_covers_what_the_image_has(plash, image):
    (plash.place / "plain").mkdir()
    (plash.place / "plain/only").touch()
    assert plash("run", "-b", "plain:/var", image, "ls", "/var").ok().out == "only\n"
    assert (
        plash("run", "-b", "plain/only:/var/lib/only", image, "ls", "/var/lib").ok().out == "only\n"
    )


def test_a_bind_at_its_own_path(plash, image):
    assert plash("run", "-b", "/usr/lib", image, "ls", "/usr/lib").ok().out.split() == sorted(
        os.listdir("/usr/lib")
    )


def test_binds_nest(plash, image):
    for name in "a/b", "c":
        (plash.place / name).mkdir(parents=True)
    (plash.place / "c/file").touch()
    assert plash("run", "-b", "a:/x", "-b", "c:/x/b", image, "ls", "/x/b").ok().out == "file\n"


@pytest.mark.parametrize(
    "bind, error",
    [
        ("/nonexistent", "/nonexistent: No such file or directory"),
        (
            "/etc:relative",
            "cannot bind /etc on 'relative': TARGET must be an absolute path other than /, and outside /host",
        ),
        (
            "/etc:/",
            "cannot bind /etc on '/': TARGET must be an absolute path other than /, and outside /host",
        ),
        (
            "/etc:",
            "cannot bind /etc on '': TARGET must be an absolute path other than /, and outside /host",
        ),
        (
            "/etc:/host/x",
            "cannot bind /etc on '/host/x': TARGET must be an absolute path other than /, and outside /host",
        ),
        (
            "/etc:/bin/cat/x",
            f"cannot bind /etc on {BIN}/cat/x: {BIN}/cat is not a directory in the image",
        ),
        (
            "/etc:/tmp/plash-nonexistent",
            "cannot bind /etc on /tmp/plash-nonexistent: /tmp is the host's, and lacks it",
        ),
        ("/etc/passwd:/tmp", "cannot bind /etc/passwd on /tmp: Is a directory"),
    ],
)
def test_a_bind_that_cannot_be(plash, image, bind, error):
    assert plash("run", "-b", bind, image, "true").error == "plash run: " + error


def test_as_me_is_who_the_caller_is(plash, image):
    code = "id -u; id -g; grep -c ':x:'$(id -u):$(id -g): /etc/passwd; touch /new ~/new; ls -n /new ~/new"
    lines = plash("run", "--as-me", image, "sh", "-c", code).ok().out.splitlines()
    uid, gid = str(os.getuid()), str(os.getgid())
    assert lines[:3] == [uid, gid, "1"]
    assert [line.split()[2:4] for line in lines[3:]] == [[uid, gid]] * 2
    assert (plash.home / "new").stat().st_uid == os.getuid()


def test_as_me_has_the_callers_name_beside_the_images(plash, image):
    name = pwd.getpwuid(os.getuid()).pw_name
    base = plash(
        "build",
        image,
        f"echo other:x:77:77::/:/bin/sh >/etc/passwd; printf {name}:x:78:78::/:/bin/sh >>/etc/passwd",
    ).id
    passwd = plash("run", "--as-me", base, "cat", "/etc/passwd").ok().out.splitlines()
    assert passwd[0] == "other:x:77:77::/:/bin/sh" and len(passwd) == 2
    assert (
        len(
            plash(
                "run",
                "--as-me",
                plash("build", image, "printf last:x:1:1::/: >/etc/passwd").id,
                "cat",
                "/etc/passwd",
            ).out.splitlines()
        )
        == 2
    )
    assert (
        passwd[1].startswith(f"{name}:x:{os.getuid()}:{os.getgid()}:")
        and f":{plash.home}:" in passwd[1]
    )
    # The image itself is as it was.
    assert (
        plash("mounted", base, "cat", "etc/passwd").ok().out.splitlines()[1]
        == f"{name}:x:78:78::/:/bin/sh"
    )


@as_user
def test_as_me_has_no_privileges(plash, image):
    caps = plash("run", "--as-me", image, "grep", "CapEff", "/proc/self/status").ok().out.split()[1]
    assert int(caps, 16) == 0


@pytest.mark.only_for("subids")
def test_as_me_keeps_the_images_other_owners(plash, image):
    base = plash("build", image, "touch /daemon /mine; chown 33:34 /daemon").id
    listed = plash("run", "--as-me", base, "ls", "-n", "/daemon", "/mine").ok().out.splitlines()
    assert [line.split()[2:4] for line in listed] == [
        ["33", "34"],
        [str(os.getuid()), str(os.getgid())],
    ]


def test_persist_takes_the_options_too(plash, image):
    code = 'echo "$A" >/var/kept; id -u'
    done = plash(
        "run:persist", "--as-me", "-e", "A=1", "-b", "/etc:/x", image, "changes", "sh", "-c", code
    )
    assert done.ok().out == f"{os.getuid()}\n"
    assert (plash.place / "changes/data/var/kept").read_text() == "1\n"
    assert (
        not (plash.place / "changes/data/x").exists()
        and not (plash.place / "changes/data/etc").exists()
    )


def test_do_puts_the_image_after_the_options(plash, image, host_tar):
    plash("do", "pull:tarfile", host_tar).ok()
    plash("do", "build", "-e", "WORD=hello", "echo $WORD >/word").ok()
    assert (
        plash("do", "run", "-e", "A=1", "-eB=2", "sh", "-c", "cat /word; echo $A$B").ok().out
        == "hello\n12\n"
    )


@pytest.mark.parametrize("command", ["run", "run:persist", "build"])
def test_a_working_directory_inside(plash, image, command):
    there = ["changes"] if command == "run:persist" else []
    done = plash(command, "-w", "/usr/bin", image, *there, "sh", "-c", "pwd >&2").ok()
    assert done.err == "/usr/bin\n"
    assert plash(command, "-w", "/none", image, *there, "true").error == (
        f"plash {command}: cannot change to /none: No such file or directory"
    )


@pytest.fixture
def users(plash):
    """An image with users and groups of its own."""
    tools = plash("pull:host", "sh", "id", "touch", "ls", "mkdir", "chown", "chmod", "stat", "cat")
    code = (
        "echo app:x:5:6::/srv/app:/bin/sh >>/etc/passwd; mkdir -p /srv/app; chmod 777 /srv/app;"
        " printf 'six:x:6:\\nseven:x:7:other,app\\n' >>/etc/group"
    )
    return plash("build", tools.id, code).id


@pytest.mark.parametrize(
    "command, user, expected",
    [
        ("run", "app", "5 6 /srv/app app"),
        ("run", "app:seven", "5 7 /srv/app app"),
        ("run", "0:7", "0 7 /root root"),
        ("run", "77", "77 0 /"),
        ("run:persist", "5", "5 6 /srv/app app"),
        ("build", "app", "5 6 /srv/app app"),
        ("build", "77:88", "77 88 /"),
    ],
)
def test_a_user_of_the_image(plash, users, command, user, expected):
    there = ["changes"] if command == "run:persist" else []
    code = "echo $(id -u) $(id -g) $HOME $USER >&2; echo x >/srv/app/made; ls -n /srv/app/made >&2"
    lines = plash(command, "-u", user, users, *there, "sh", "-c", code).ok().err.splitlines()
    assert lines[0] == expected
    assert lines[1].split()[2:4] == expected.split()[:2]


@needs_subordinate_ids
def test_a_user_has_the_groups_of_the_image(plash, users):
    assert sorted(plash("run", "-u", "app", users, "id", "-G").ok().out.split()) == ["6", "7"]
    assert plash("run", "-u", "app:6", users, "id", "-G").ok().out == "6\n"
    built = plash("build", "-u", "app", users, "echo x >/srv/app/file").id
    assert plash("run", built, "stat", "-c", "%u:%g", "/srv/app/file").out == "5:6\n"


@pytest.mark.parametrize("command", ["run", "build"])
def test_a_user_has_no_privileges(plash, users, command):
    done = plash(command, "-u", "app", users, "sh", "-c", "cat /proc/self/status >&2").ok()
    caps = next(line for line in done.err.splitlines() if line.startswith("CapEff"))
    assert int(caps.split()[1], 16) == 0


def test_users_that_the_image_lacks(plash, users):
    assert plash("run", "-u", "none", users, "true").error == (
        "plash run: the image has no user 'none' in /etc/passwd"
    )
    assert plash("build", "-u", "app:none", users, "true").error == (
        "plash build: the image has no group 'none' in /etc/group"
    )
    for user in "4294967295", "99999999999999999999", "0:4294967295":
        done = plash("run", "-u", user, users, "true")
        assert done.error == f"plash run: not a uid or gid: {user.split(':')[-1]}"


@pytest.mark.only_for("subids")
def test_a_user_whose_id_is_not_mapped(plash, users):
    assert plash("run", "-u", "999999", users, "true").error == (
        "plash run: cannot become 999999:0: Invalid argument"
    )


@needs_subordinate_ids
def test_a_group_that_is_not_mapped(plash, users):
    built = plash("build", users, "echo far:x:4294967294:app >>/etc/group").id
    done = plash("run", "-u", "app", built, "id", "-G")
    if kind_of_user() == "root":
        assert "4294967294" in done.ok().out
    else:
        groups = "a member of the groups 7, 4294967294"
        assert done.error == f"plash run: cannot become {groups}: Invalid argument"


def test_programs_that_another_user_cannot_execute(plash, users):
    code = "echo true >/script; chmod 755 /script; mkdir -m 700 /closed; touch /closed/program"
    built = plash("build", users, code).id
    done = plash("run", "-u", "app", built, "/script")
    assert done.status == 126 and "not permitted" not in done.error
    done = plash("run", "-e", "PATH=/closed:/bin:/usr/bin", "-u", "app", built, "no-program")
    assert (done.status, done.error) == (127, "plash run: command not found: no-program")


def test_what_can_be_left_out(plash, image):
    built = plash("build", image, "mkdir -p /home/node/app; echo own >/home/node/app/f").id
    code = 'cat /home/node/app/f; echo "$HOME"; ls -A /tmp /host'
    done = plash("run", "--no-home", "--no-tmp", "--no-host", built, "sh", "-c", code).ok()
    assert done.out == "own\n/root\n/host:\n\n/tmp:\n"
    done = plash("run:persist", "--no-home", "--no-tmp", built, "changes", "sh", "-c", code).ok()
    assert done.out.startswith("own\n/root\n") and "etc\n" in done.out
    assert plash("run", "--no-host", built, "pwd", cwd="/usr/lib").ok().out == "/\n"


def test_files_are_those_of_one_filesystem(plash, image):
    """du -x, find -xdev and the detection of hard links, for which inode numbers have to agree."""
    code = "du -s /usr | cut -f1; du -sx /usr | cut -f1; find /usr | wc -l; find /usr -xdev | wc -l"
    tools = plash("pull:host", "sh", "du", "find", "wc", "cut", "ln", "stat").id
    linked = plash("build", tools, "echo x >/usr/one; ln /usr/one /usr/two").id
    all_of_it, without_mounts, found, of_one = (
        plash("run", linked, "sh", "-c", code).ok().out.split()
    )
    assert (all_of_it, found) == (without_mounts, of_one) and int(found) > 10
    assert (
        len(set(plash("run", linked, "stat", "-c", "%d:%i", "/usr/one", "/usr/two").out.split()))
        == 1
    )
