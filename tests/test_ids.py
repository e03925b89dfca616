"""Subordinate ids: where they come from, and what is said where they cannot be used."""

import os

import pytest
from requirements import need_program
from world import LIBEXEC

# plash as uid 12345, named `someone`, on a host with other subordinate ids.
HOST = r"""
set -e
(grep -v ^someone /etc/passwd; echo someone:x:12345:12345::/:/bin/sh) >passwd
mount --bind passwd /etc/passwd; mount --bind subids /etc/subuid; mount --bind subids /etc/subgid
mkdir -p store; chown 12345:12345 store; export PLASH_DATA=$PWD/store/data
as() { setpriv --reuid 12345 --regid 12345 --clear-groups --inh-caps=-all env HOME=/ "$@"; }
"""


@pytest.fixture
def someone(plash, host_tar):
    """A function that runs shell code on a host with these lines in subuid(5) and subgid(5)."""
    need_program("setpriv")
    for directory in plash.place, *list(plash.place.parents)[:2], host_tar.parent:
        directory.chmod(0o755)
    os.chmod(host_tar, 0o644)

    def run(lines, code):
        (plash.place / "subids").write_text(lines)
        return plash.run(["unshare", "--mount", "sh", "-c", HOST + code])

    return run


@pytest.mark.only_for("root")
@pytest.mark.parametrize(
    "lines, mapped",
    [
        ("someone:700000:100\n", ["0 12345 1", "1 700000 100"]),
        ("12345:700000:100\n", ["0 12345 1", "1 700000 100"]),
        ("someone:700000:100\n12345:700000:100\n", ["0 12345 1", "1 700000 100"]),
        ("someone:700000:100\nsomeone:800000:50\n", ["0 12345 1", "1 700000 100", "101 800000 50"]),
        ("someone:700000:100\nsomeone:700050:100\n", ["0 12345 1", "1 700000 150"]),
        ("other:700000:100\n", ["0 12345 1"]),
        ("someone:x:100\n#\n\nsomeone:700000:100", ["0 12345 1", "1 700000 100"]),
    ],
)
def test_ranges_of_subordinate_ids(someone, lines, mapped):
    done = someone(lines, f"as {LIBEXEC}/plash-sudo cat /proc/self/uid_map").ok()
    listed = [line.split() for line in done.out.splitlines()]
    # Ranges that follow each other may be one line or two.
    joined = []
    for inside, outside, count in (map(int, line) for line in listed):
        if joined and [inside, outside] == [sum(joined[-1][::2]), sum(joined[-1][1:])]:
            joined[-1][2] += count
        else:
            joined.append([inside, outside, count])
    assert [" ".join(map(str, each)) for each in joined] == mapped


@pytest.mark.only_for("root")
def test_ids_that_getsubids_knows(someone, plash):
    """Of a directory service, say; newuidmap, which asks the same one, is a stand-in here."""
    programs = plash.place / "programs"
    programs.mkdir()
    for name, code in (
        ("getsubids", 'echo "0: someone 700000 100"'),
        ("newuidmap", f'echo "$@" >>{plash.place}/store/asked; exit 1'),
        ("newgidmap", "exit 1"),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{code}\n")
        (programs / name).chmod(0o755)
    (plash.place / "nsswitch.conf").write_text("passwd: files\nsubid: service\n")
    code = (
        "mount --bind nsswitch.conf /etc/nsswitch.conf;"
        f" as PATH={programs}:$PATH {LIBEXEC}/plash-sudo true; cut -d' ' -f2- store/asked"
    )
    assert someone("other:1:1\n", code).ok().out == "0 12345 1 1 700000 100\n"


@pytest.mark.only_for("subids")
def test_what_is_said_of_ids_that_cannot_be_used(plash, host_tar):
    need_program("setpriv")

    def without(*words):
        command = [LIBEXEC / f"plash-{words[0]}", *words[1:]]
        return plash.run(["setpriv", "--no-new-privs", *command]).ok()

    warning = (
        "only your own id is mapped, so root owns all files:"
        " no_new_privs forbids newuidmap (see plash doctor)\n"
    )
    pulled = without("pull:tarfile", host_tar)
    assert pulled.err == f"plash pull:tarfile: {warning}"
    assert without("build", pulled.id, "true").err == f"plash build: {warning}"
    plash("push:dir", pulled.id, plash.place / "root").ok()
    assert without("pull:dir", plash.place / "root").err == f"plash pull:dir: {warning}"
    assert without("run", pulled.id, "true").err == ""
    assert "no_new_privs" in without("doctor").out


@pytest.mark.only_for("plain")
def test_nothing_is_said_where_none_are_configured(plash, host_tar):
    pulled = plash("pull:tarfile", host_tar).ok()
    assert pulled.err == "" and plash("build", pulled.id, "true").ok().err == ""


@pytest.mark.only_for("root")
def test_root_without_cap_sys_admin(plash, image):
    need_program("setpriv")
    words = ["setpriv", "--bounding-set", "-sys_admin", LIBEXEC / "plash-build", image]
    built = plash.run([*words, "id -u; touch /x; chown 5 /x"]).ok()
    assert built.err == "0\n"
    assert plash("run", built.id, "stat", "-c", "%u", "/x").out == "5\n"
