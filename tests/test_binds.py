"""Binds: where -b puts files and directories of the host, and what it refuses."""

import pytest


@pytest.fixture
def files(plash):
    """F, a file, and E, a directory with a file `f` and one `other`."""
    (plash.place / "F").write_text("bound\n")
    (plash.place / "E").mkdir()
    for name in "f", "other":
        (plash.place / "E" / name).write_text("of E\n")
    return plash


@pytest.fixture
def linked(files, image):
    """An image with links: /short to /far/away, /up to ../../etc, /loop to itself."""
    code = (
        "mkdir -p /far/away; ln -s far/away /short; ln -s ../../../far /up; ln -s loop /loop;"
        " ln -s /nowhere/yet /dangling; ln -s /far/away/real /far/link"
    )
    return files("build", image, code).id


@pytest.mark.parametrize(
    "target, seen",
    [
        ("/short/f", "/far/away/f"),
        ("/short/new/deep/f", "/far/away/new/deep/f"),
        ("/up/away/f", "/far/away/f"),
        ("/short/../f", "/far/f"),
        ("/dangling", "/nowhere/yet"),
        ("/dangling/f", "/nowhere/yet/f"),
        ("/far/link", "/far/away/real"),
    ],
)
def test_links_of_the_image_are_followed_inside_it(files, linked, target, seen):
    assert files("run", "-b", f"F:{target}", linked, "cat", seen).ok().out == "bound\n"


def test_a_loop_of_links_is_an_error(files, linked):
    assert files("run", "-b", "F:/loop/f", linked, "true").error == (
        f"plash run: cannot bind {files.place}/F on /loop/f: Too many levels of symbolic links"
    )


def test_binds_are_made_in_their_order(files, image):
    assert files("run", "-b", "F:/d/f", "-b", "E:/d", image, "cat", "/d/f").ok().out == "of E\n"
    assert files("run", "-b", "E:/d", "-b", "F:/d/f", image, "cat", "/d/f").ok().out == "bound\n"
    assert (files.place / "E/f").read_text() == "of E\n"


def test_a_bind_of_etc_covers_what_plash_puts_there(files, image):
    (files.place / "E/hosts").write_text("mine\n")
    assert files("run", "-b", "E:/etc", image, "cat", "/etc/hosts").ok().out == "mine\n"


def test_a_home_below_a_bind(files, image):
    home = files.place / "people/u"
    home.mkdir(parents=True)
    (home / "file").touch()
    done = files(
        *("run", "-b", f"{files.place}/people:/srv/people", "-b", f"{files.place}:/srv/all"),
        *(image, "ls", "/srv/people/u", "/srv/all/people/u"),
        env={"HOME": str(home)},
    )
    assert done.ok().out.split().count("file") == 2


def test_links_below_a_bind_mean_what_they_mean_inside(files, image):
    (files.place / "E/link").symlink_to("/var/lib")
    done = files("run", "-b", "E:/w", "-b", "F:/w/link/f", image, "cat", "/var/lib/f", "/w/link/f")
    assert done.ok().out == "bound\n" * 2


def test_a_read_only_bind(files, image):
    code = "cat /x/f; (echo x >/x/f) 2>/dev/null || echo refused"
    assert files("run", "-b", "E:/x:ro", image, "sh", "-c", code).ok().out == "of E\nrefused\n"
    code = "cat /x; (echo x >/x) 2>/dev/null || echo refused"
    assert files("run", "-b", "F:/x:ro", image, "sh", "-c", code).ok().out == "bound\nrefused\n"
    assert files("run", "-b", "F:/x:rw", image, "sh", "-c", "echo y >/x").ok().out == ""
    assert (files.place / "F").read_text() == "y\n"


def test_a_colon_in_a_path(files, image):
    (files.place / "a:b").write_text("colon\n")
    assert files("run", "-b", r"a\:b:/x\:y", image, "cat", "/x:y").ok().out == "colon\n"


@pytest.mark.parametrize(
    "bind, error",
    [
        (":/x", "no SOURCE in the bind ':/x'"),
        ("E:/x:rx", r"not a bind: 'E:/x:rx' (SOURCE[:TARGET[:ro]]; \: is a colon in a path)"),
        ("E:/x:ro:", r"not a bind: 'E:/x:ro:' (SOURCE[:TARGET[:ro]]; \: is a colon in a path)"),
        ("F:/tmp", "cannot bind {}/F on /tmp: Is a directory"),
        ("E:/etc/passwd", "cannot bind {}/E on /etc/passwd: Not a directory"),
        (
            "F:/short/../..",
            "cannot bind {}/F on '/short/../..': TARGET must be an absolute path other than /, and outside /host",
        ),
    ],
)
def test_what_is_no_bind(files, image, bind, error):
    done = files("run", "-b", bind, image, "true")
    assert done.error == "plash run: " + error.format(files.place)


def test_a_build_captures_no_mount_point(files, image, layers):
    built = files("build", "-b", "F:/opt/new/f", "-b", "E:/etc/e", image, "cat /opt/new/f /etc/e/f")
    assert built.ok().err == "bound\nof E\n"
    assert layers(built.id) == []


def test_the_images_users_stay_with_a_bind_beside_them(plash, image):
    """The files of lower layers are looked for while those of upper ones are."""
    plash("run", image, "true").ok()
    upper = plash("build", image, "echo x >/etc/foo").id
    (plash.place / "d").mkdir()
    code = "echo nobody:x:65534:65534::/:/bin/sh >>/etc/passwd"
    base = plash("build", image, code).id
    upper = plash("build", base, "echo x >/etc/foo").id
    done = plash(
        "run", "-b", "d:/data", "-b", "d:/etc/d", upper, "grep", "-c", "nobody", "/etc/passwd"
    )
    assert int(done.ok().out) >= 1
    env = {"HOME": f"{plash.place}/elsewhere"}
    done = plash(
        "run", "--as-me", "-b", "d:/data", upper, "grep", "-c", "nobody", "/etc/passwd", env=env
    )
    assert int(done.ok().out) >= 1


def test_links_to_host_take_no_bind(plash, image):
    linked = plash("build", image, "ln -s /host/var/tmp /l; mkdir /q; ln -s ../host /q/h").id
    (plash.place / "d").mkdir()
    for target in "/l", "/l/below", "/q/h":
        error = plash("run", "-b", f"d:{target}", linked, "true").error
        assert "cannot bind" in error and "/host" in error
