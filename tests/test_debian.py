"""The main job on a real Debian, as the README and the issue of it have it."""

import os

import pytest
from requirements import needs_subordinate_ids, subordinate_ids
from world import tree

pytestmark = pytest.mark.slow


@pytest.fixture
def debian(plash, debian_tar):
    done = plash("pull:tarfile", debian_tar)
    assert done.err.count("\n") == (0 if os.getuid() == 0 else 1)
    return done.id


def test_import_build_run_export_import(plash, debian, layers, tmp_path):
    assert plash("run", debian, "cat", "/etc/debian_version").ok().out.startswith("12")
    code = "rm -rf /var/cache/apt && mkdir /var/cache/apt && echo hi > /etc/motd"
    second = plash("build", debian, code).id
    assert plash("run", second, "cat", "/etc/motd").out == "hi\n"
    assert layers(second) == ["etc", "etc/motd", "var", "var/cache", "var/cache/apt"]
    assert plash("run", second, "ls", "-A", "/var/cache/apt").out == ""
    plash("push:tarfile", second, "out.tar.zst").ok()
    third = plash("pull:tarfile", "out.tar.zst").id
    for number, name in (second, "a.tar"), (third, "b.tar"):
        plash("push:tarfile", number, name).ok()
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert plash.leftovers() == []


@needs_subordinate_ids
def test_apt_in_a_build(plash, debian, layers):
    code = (
        "apt-get -qq update && apt-get install -qq -y --no-install-recommends tree && tree --version"
        " && apt-get purge -qq -y tree"
    )
    number = plash("build", debian, code).id
    captured = layers(number)
    assert "var/lib/dpkg/status" in captured
    traces = ("etc/resolv.conf", "etc/hosts", "host", "dev", "proc", "sys", "home", "tmp")
    assert [path for path in captured if path.split("/")[0] in traces or path in traces] == []
    assert plash("run", number, "dpkg", "-s", "tree").status != 0


def test_export_gives_back_what_was_imported(plash, debian, debian_tar, tmp_path):
    plash("push:tarfile", debian, tmp_path / "again.tar").ok()
    given, got = tree(debian_tar), tree(tmp_path / "again.tar")
    if os.getuid() != 0:
        given = {name: entry for name, entry in given.items() if entry["type"] not in (b"3", b"4")}
    if not subordinate_ids():
        for entry in given.values():
            entry["owner"] = (0, 0)
    assert len(got) > 5000 and given.keys() == got.keys()
    assert [(name, given[name], got[name]) for name in given if given[name] != got[name]] == []
