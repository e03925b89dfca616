"""The Debian package: built here, installed, used and removed in a Debian that plash runs."""

import subprocess

import pytest
from requirements import need_program
from world import ROOT

# This installs Python from Debian's servers: one kind of user will do.
pytestmark = [pytest.mark.only_for("subids"), pytest.mark.slow]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The path of the package."""
    need_program("dpkg-buildpackage", "dh", "dh_python3")
    build = tmp_path_factory.mktemp("deb") / "build"
    made = subprocess.run(
        ["make", "-C", ROOT, "deb", f"BUILD={build}"], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    [found] = build.glob("*.deb")
    return found


def field(package, name):
    return subprocess.run(
        ["dpkg-deb", "-f", package, name], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_what_is_in_it(plash, package):
    assert f"plash {field(package, 'Version')}\n" == plash("version").out
    assert "python3-docopt" in field(package, "Depends") and field(package, "Architecture") == "all"
    listed = subprocess.run(
        ["dpkg-deb", "-c", package], check=True, capture_output=True, text=True
    ).stdout
    for path in (
        "/usr/bin/plash-run -> ",
        "/usr/libexec/plash/plashlib/store.py\n",
        "/usr/share/man/man1/plash-pull:lxc.1.gz\n",
        "/usr/share/doc/plash/docs/tutorial.md\n",
    ):
        assert f" .{path}" in listed
    assert ".pyc" not in listed and "docopt.py" not in listed


def test_install_use_and_remove(plash, package, debian_tar, layers, tmp_path):
    debian = plash("pull:tarfile", debian_tar).id
    code = f"apt-get -qq update && apt-get install -qq -y --no-install-recommends /host{package}"
    installed = plash("build", debian, code).id
    assert [
        path
        for path in layers(installed)
        if path.startswith("usr/libexec/plash/plashlib/__pycache__/store.")
    ]
    # A plash of its own, in the image, with a store of its own; rm's option is read by docopt.
    code = (
        "plash --version; plash help run | head -n 1; n=$(plash pull:host); plash run $n echo hi from $n"
        " && plash rm --force $n && plash clean"
    )
    used = plash("run", "-e", f"PLASH_DATA={tmp_path}/inside", installed, "sh", "-ec", code).ok()
    assert used.out == f"plash {field(package, 'Version')}\nRun a command in an image.\nhi from 1\n"
    find = "find / -xdev ( -path /host -o -path /home -o -path /tmp -o -path /proc ) -prune -o -name *plash* -print".split()
    assert len(plash("run", installed, *find).ok().out.split()) > 60
    removed = plash("build", installed, "apt-get purge -qq -y plash").id
    assert plash("run", removed, *find).ok().out == ""
