"""pull:lxc, from a server on loopback with an index like linuxcontainers.org's."""

import hashlib
import os
import subprocess

import pytest
from archives import archive, compressed, info
from requirements import need_program
from servers import Files

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
DIRECTORY = "/images/alpine/edge/{}/default/{}/"


@pytest.fixture
def server():
    need_program("curl")
    files = Files()
    index = ""
    for distro, release, variant, build in (
        ("alpine", "edge", "default", "20260102_13:00"),
        ("alpine", "edge", "default", "20260103_13:00"),
        ("alpine", "edge", "cloud", "20260103_13:00"),
        ("alpine", "3.20", "default", "20260101_13:00"),
        ("debian", "bookworm", "default", "20260101_05:24"),
    ):
        for architecture in ARCHITECTURE, "armhf", "ppc64el", "vax":
            path = f"/images/{distro}/{release}/{architecture}/{variant}/{build}/"
            index += f"{distro};{release};{architecture};{variant};{build};{path}\n"
            data = compressed("xz", archive((info("etc-release"), f"{path}\n".encode())))
            files.files[path + "rootfs.tar.xz"] = data
            files.files[path + "SHA256SUMS"] = (
                f"{'0' * 64}  meta.tar.xz\n{hashlib.sha256(data).hexdigest()}  rootfs.tar.xz\n"
            ).encode()
    files.files["/meta/1.0/index-user"] = index.encode()
    yield files
    files.stop()


@pytest.fixture
def lxc(plash, server):
    return lambda *words: plash("pull:lxc", *words, env={"PLASH_LXC_SERVER": server.url})


def newest(variant="default"):
    return f"/images/alpine/edge/{ARCHITECTURE}/{variant}/20260103_13:00/"


@pytest.mark.parametrize(
    "image, variant",
    [
        ("alpine:edge", "default"),
        ("alpine:edge:default", "default"),
        ("alpine:edge:cloud", "cloud"),
    ],
)
def test_the_newest_build_is_imported(plash, lxc, server, image, variant):
    assert lxc("--dry-run", image).ok().out == f"{server.url}{newest(variant)}rootfs.tar.xz\n"
    number = lxc(image).ok()
    assert number.err == ""
    assert plash("mounted", number.id, "cat", "etc-release").out == newest(variant) + "\n"


@pytest.mark.slow
def test_a_real_debian(plash, server, lxc, debian_tar):
    path = f"/images/debian/bookworm/{ARCHITECTURE}/default/20260101_05:24/"
    with open(debian_tar, "rb") as file:
        data = subprocess.run(
            ["xz", "-0", "-T0", "-c"], stdin=file, stdout=subprocess.PIPE, check=True
        ).stdout
    server.files[path + "rootfs.tar.xz"] = data
    server.files[path + "SHA256SUMS"] = (
        f"{hashlib.sha256(data).hexdigest()} *rootfs.tar.xz\n".encode()
    )
    assert plash("run", lxc("debian:bookworm").id, "cat", "/etc/debian_version").out.startswith(
        "12"
    )


def test_a_wrong_checksum(plash, lxc, server):
    server.files[newest() + "rootfs.tar.xz"] += b"more"
    done = lxc("alpine:edge")
    assert "its sha256 is" in done.error and "nothing was imported" in done.error
    assert os.listdir(plash.data / "index") == ["0"] and plash.leftovers() == []


def test_checksums_that_leave_the_archive_out(lxc, server):
    server.files[newest() + "SHA256SUMS"] = b"00  other\n"
    assert "does not name rootfs.tar.xz; nothing was imported" in lxc("alpine:edge").error


def test_without_checksums(lxc, server):
    del server.files[newest() + "SHA256SUMS"]
    assert lxc("alpine:edge").id


@pytest.mark.parametrize(
    "image, why",
    [
        ("alpine", "which release of alpine? There are 3.20, edge"),
        ("alpine:", "which release of alpine? There are 3.20, edge"),
        ("alpine:9.99", "alpine has no release '9.99'; there are 3.20, edge"),
        ("alpine:edge:x", "alpine:edge has no variant 'x'; there are cloud, default"),
        ("apline:edge", "no distribution 'apline'; the nearest: alpine"),
        ("", "no distribution ''; the nearest: alpine, debian"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(lxc, image, why):
    assert lxc(image).error == f"plash pull:lxc: {why}"


def test_list(lxc):
    assert lxc("--list").out == "alpine:3.20\nalpine:edge:cloud\nalpine:edge\ndebian:bookworm\n"
    assert lxc("--list", "debian").out == "debian:bookworm\n"


def test_no_server(plash):
    need_program("curl")
    done = plash("pull:lxc", "alpine:edge", env={"PLASH_LXC_SERVER": "http://127.0.0.1:1"})
    assert "http://127.0.0.1:1/meta/1.0/index-user: Failed to connect" in done.error


def test_a_server_of_something_else(plash, server):
    server.files["/meta/1.0/index-user"] = b"<html>welcome</html>"
    done = plash("pull:lxc", "alpine:edge", env={"PLASH_LXC_SERVER": server.url + "/"})
    assert done.error == f"plash pull:lxc: {server.url} has no images for {os.uname().machine}"


@pytest.mark.parametrize(
    "given, name",
    [("armv7l", "armhf"), ("armhf", "armhf"), ("ppc64le", "ppc64el"), ("vax", "vax")],
)
def test_another_architecture_has_unames_name_or_debians(lxc, server, given, name):
    directory = DIRECTORY.format(name, "20260103_13:00")
    url = f"{server.url}{directory}rootfs.tar.xz\n"
    assert lxc("--arch", given, "--dry-run", "alpine:edge").ok().out == url
    assert "alpine:edge" in lxc("--arch=" + given, "--list", "alpine").ok().out


def test_an_architecture_that_the_server_lacks_is_named(lxc):
    assert lxc("--arch=s390x", "alpine:edge").error.endswith("has no images for s390x")
