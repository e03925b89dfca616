"""make install, make uninstall and pip install, each into a place of its own."""

import os
import shutil
import subprocess
import sys

import pytest
from requirements import need, need_program
from world import ROOT


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The tree as a clone has it, without what was made in it."""
    place = tmp_path_factory.mktemp("source") / "plash"
    shutil.copytree(
        ROOT,
        place,
        symlinks=True,
        ignore=shutil.ignore_patterns(".git", ".venv", "build", "__pycache__", "*.egg-info"),
    )
    return place


def run(words, **options):
    done = subprocess.run(words, capture_output=True, text=True, **options)
    need("No matching distribution" not in done.stderr, "PyPI")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check(plash, directory, host_tar):
    """All of plash works from directory, with nothing of it on PATH."""
    bare = {"PATH": "/usr/bin:/bin"}
    env = {"PATH": f"{directory}:/usr/bin:/bin"}
    assert plash.run([directory / "plash", "--version"], env=bare).ok().out.startswith("plash ")
    number = plash.run([directory / "plash-pull:tarfile", host_tar], env=bare).id
    assert plash.run(["plash", "run", number, "echo", "hi"], env=env).ok().out == "hi\n"
    assert plash.run(["plash-run", number, "echo", "hi"], env=env).ok().out == "hi\n"
    assert "run:persist" in plash.run(["plash", "help"], env=env).ok().out
    assert "\nPlugins" not in plash.run(["plash", "help"], env=env).out
    # Options are read by docopt, which has to be there.
    assert plash.run(["plash", "rm", "--force", number], env=env).ok()
    assert plash.run(["plash", "rm", "--nope", number], env=env).error.endswith(
        "(there is no option --nope)"
    )


@pytest.mark.slow
def test_make_install_and_uninstall(plash, source, tmp_path, host_tar):
    prefix = tmp_path / "prefix"
    run(["make", "install", f"PREFIX={prefix}"], cwd=source)
    check(plash, prefix / "bin", host_tar)
    first = (prefix / "libexec/plash/plash-run").read_text().splitlines()[0]
    assert first.startswith("#!/") and first.endswith(" -SE") and "env" not in first
    assert os.listdir(prefix / "libexec/plash/plashlib/__pycache__")
    need_program("man")
    man = ["man", "plash", "run"]
    assert (
        "plash run [-e VAR]"
        in plash.run(man, env={"MANPATH": str(prefix / "share/man"), "MANWIDTH": "200"}).ok().out
    )
    run(["make", "uninstall", f"PREFIX={prefix}"], cwd=source)
    assert [files for _, _, files in os.walk(prefix) if files] == []


def test_make_install_without_docutils_leaves_the_man_pages_out(source, tmp_path):
    # A python3 that finds no packages, as where pip could get none.
    (tmp_path / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} -IS "$@"\n')
    (tmp_path / "python3").chmod(0o755)
    told = run(
        [
            "make",
            "-s",
            "install",
            f"PREFIX={tmp_path}/prefix",
            "BUNDLE=",
            f"PYTHON={tmp_path}/python3",
        ],
        cwd=source,
    )
    assert (
        told
        == "make install: the man pages are left out: making them needs the Python package docutils\n"
    )
    assert (tmp_path / "prefix/bin/plash-run").exists() and not (
        tmp_path / "prefix/share/man"
    ).exists()


def test_make_install_for_a_package(source, tmp_path):
    run(["make", "install", f"DESTDIR={tmp_path}/root", "PREFIX=/usr", "BUNDLE="], cwd=source)
    assert (tmp_path / "root/usr/bin/plash-run").is_symlink()
    assert not (tmp_path / "root/usr/libexec/plash/docopt.py").exists()
    assert str(tmp_path) not in (tmp_path / "root/usr/libexec/plash/plash-run").read_text()


def test_an_apparmor_profile_only_when_asked(source, tmp_path):
    place = tmp_path / "root/etc/apparmor.d/plash"
    options = [f"DESTDIR={tmp_path}/root", "PREFIX=/opt/it", "BUNDLE="]
    run(["make", "install", *options], cwd=source)
    assert not place.parent.exists()
    assert f"installed {place}, for /opt/it/libexec/plash/plash-*" in run(
        ["make", "install-apparmor", *options], cwd=source
    )
    profile = place.read_text()
    # AppArmor goes by the path without symbolic links, which is where the commands are.
    assert (
        '\nprofile plash "/opt/it/libexec/plash/plash-*" flags=(unconfined) {\n  userns,\n'
        in profile
    )
    assert (
        tmp_path / "root/opt/it/libexec/plash/plash-run"
    ).is_file() and "@libexecdir@" not in profile
    run(["make", "uninstall", f"DESTDIR={tmp_path}/root", "PREFIX=/other"], cwd=source)
    assert place.exists()
    run(["make", "uninstall", *options], cwd=source)
    assert not place.exists()


@pytest.mark.slow
def test_pip_install(plash, source, tmp_path, host_tar):
    run([sys.executable, "-m", "venv", tmp_path / "venv"])
    run([tmp_path / "venv/bin/pip", "install", "--disable-pip-version-check", source])
    check(plash, tmp_path / "venv/bin", host_tar)
