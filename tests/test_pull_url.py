"""pull:url: what is downloaded, verified, resumed, and what is left of a failure."""

import hashlib
import os
import re
import signal
import time

import pytest
from archives import archive, compressed, info
from requirements import need_program
from servers import Files
from world import wait_for


@pytest.fixture
def server():
    need_program("curl")
    files = Files()
    yield files
    files.stop()


@pytest.fixture
def tar():
    return archive((info("file"), b"hello\n"), (info("big"), os.urandom(2_000_000)))


def kept(plash):
    """The partial downloads in tmp/, which are taken away."""
    names = plash.leftovers()
    plash("clean").ok()
    return names


@pytest.mark.parametrize("how", ["plain", "xz", "redirect", "file", "checked"])
def test_import(plash, server, tar, tmp_path, how):
    server.files["/a.tar"] = compressed("xz", tar) if how == "xz" else tar
    server.redirects["/r"] = "/a.tar"
    (tmp_path / "a.tar").write_bytes(tar)
    url = {"redirect": server.url + "/r", "file": f"file://{tmp_path}/a.tar"}.get(
        how, server.url + "/a.tar"
    )
    check = [f"--sha256={hashlib.sha256(tar).hexdigest().upper()}"] if how == "checked" else []
    number = plash("pull:url", *check, url).ok()
    assert number.err == ""
    assert plash("mounted", number.id, "cat", "file").out == "hello\n"


def test_a_wrong_checksum(plash, server, tar):
    server.files["/a.tar"] = tar
    done = plash("pull:url", "--sha256", "0" * 64, server.url + "/a.tar")
    digest = hashlib.sha256(tar).hexdigest()
    assert done.error == (
        f"plash pull:url: {server.url}/a.tar: its sha256 is {digest}, not {'0' * 64};"
        " nothing was imported"
    )
    assert os.listdir(plash.data / "index") == ["0"] and plash.leftovers() == []


def test_a_broken_download_is_gone_on_with(plash, server, tar):
    server.files["/a.tar"] = tar
    server.breaks["/a.tar"] = 1_500_000
    failed = plash("pull:url", server.url + "/a.tar")
    assert failed.error.endswith("(run again to resume)")
    assert len(plash.leftovers()) == 1 and os.listdir(plash.data / "index") == ["0"]
    number = plash("pull:url", server.url + "/a.tar").id
    assert server.requests[-1] == ("/a.tar", "bytes=1500000-")
    assert plash("mounted", number, "cat", "file").out == "hello\n"


@pytest.mark.parametrize("change", ["another file", "no ranges", "shorter"])
def test_it_starts_again_where_it_can_not_go_on(plash, server, tar, change):
    server.files["/a.tar"] = tar
    server.breaks["/a.tar"] = 1_500_000
    assert plash("pull:url", server.url + "/a.tar").status == 1
    if change == "no ranges":
        server.ranges = False
    else:
        server.files["/a.tar"] = archive(
            (info("other"), bytes(3_000_000 if change == "another file" else 10))
        )
    number = plash("pull:url", server.url + "/a.tar").id
    assert plash("mounted", number, "ls").out == (
        "big\nfile\n" if change == "no ranges" else "other\n"
    )


def test_without_a_validator_it_starts_again(plash, server, tar):
    server.files["/a.tar"], server.etags = tar, False
    server.breaks["/a.tar"] = 1_500_000
    assert plash("pull:url", server.url + "/a.tar").status == 1
    assert plash.leftovers() == []
    assert plash("pull:url", server.url + "/a.tar").id
    assert [asked for _, asked in server.requests] == [None, None]


@pytest.mark.parametrize(
    "url, why",
    [
        ("{0}/none", "The requested URL returned error: 404"),
        ("http://no-such-host.invalid/x", "Could not resolve host"),
        ("http://127.0.0.1:1/x", "Failed to connect"),
        ("ftp://x/y", "not a URL of http, https or file"),
        ("file:///no/such.tar", "Couldn't open file"),
        ("{1}/a.tar", ""),
        ("{0}/page", "not a tar archive, but a web page"),
        ("{0}/lie", "transfer closed with"),
        ("{0}/empty", "the archive is empty"),
        ("{0}/cut", "cannot unpack: "),
    ],
)
def test_what_fails_leaves_the_store_as_it_was(plash, server, tar, url, why, image):
    server.files.update(
        {"/page": b"<html>", "/lie": tar, "/empty": b"", "/cut": tar[:1_000_000], "/a.tar": tar}
    )
    server.lies["/lie"] = 1000
    before = plash.snapshot()
    done = plash(
        "pull:url",
        url.format(server.url, server.url.replace("http:", "https:")),
        env={"http_proxy": "", "https_proxy": "", "no_proxy": "*"},
    )
    assert done.status == 1 and why in done.error
    assert kept(plash) == [] or url.endswith("lie")
    assert plash.snapshot() == before


@pytest.mark.slow
@pytest.mark.only_for("plain")
def test_a_server_that_stalls(plash, server, tar):
    """Takes the whole minute that such a server is given."""
    server.files["/a.tar"] = tar
    server.breaks["/a.tar"] = 1_000_000
    server.stalls.add("/a.tar")
    start = time.monotonic()
    done = plash("pull:url", server.url + "/a.tar")
    assert "Operation too slow" in done.error and 50 < time.monotonic() - start < 120
    assert len(kept(plash)) == 1


def test_a_proxy_of_the_environment(plash, server, tar):
    server.files["/a.tar"] = tar
    assert plash(
        "pull:url", "http://made-up.invalid/a.tar", env={"http_proxy": server.url, "no_proxy": ""}
    ).id


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_download(plash, server, tar, number):
    server.files["/a.tar"] = tar
    server.breaks["/a.tar"] = 1_000_000
    server.stalls.add("/a.tar")
    plash("init").ok()
    pull = plash.start("pull:url", server.url + "/a.tar", start_new_session=True)
    wait_for(lambda: any((plash.data / "tmp").glob("download-*/data")))
    time.sleep(0.3)
    os.killpg(pull.pid, number)
    assert pull.wait() in (-number, 128 + number)
    assert os.listdir(plash.data / "index") == ["0"]
    if number == signal.SIGKILL:
        plash.clean()
    else:
        assert pull.stderr.read() == b"" and plash.leftovers() == []
        assert plash("pull:url", server.url + "/a.tar").id


def test_two_at_once_of_one_url(plash, server, tar):
    server.files["/a.tar"] = tar
    pulls = [plash.start("pull:url", server.url + "/a.tar") for _ in range(3)]
    ids = {pull.communicate()[0].decode().strip() for pull in pulls}
    assert len(ids) == 3 and all(each.isdigit() for each in ids)


@pytest.mark.slow
def test_a_bar_on_a_terminal_and_none_elsewhere(plash, server, tar):
    server.files["/a.tar"] = tar
    server.breaks["/a.tar"] = 1_000_000
    server.stalls.add("/a.tar")
    words = [
        "timeout",
        "3",
        "script",
        "-qefc",
        f"stty cols 90; {os.path.dirname(__file__)}/../libexec/plash-pull:url {server.url}/a.tar",
        "/dev/null",
    ]
    shown = plash.run(words).out
    assert re.search(
        r"downloading: \[###########\.+\] (999|1000) kB of 2\.0 MB, \d:\d\d left, .*/s", shown
    )
    kept(plash)


def test_no_password_in_an_error(plash, server):
    url = server.url.replace("://", "://me:secret@") + "/none.tar"
    error = plash("pull:url", url).error
    assert "secret" not in error and f"{server.url}/none.tar: " in error
