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


PARSER = "e2b-dockerfile-utils, for build:file,"
# Without a network, as far as pip knows.
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": "/dev/null"}


def make(source, *arguments, **env):
    return subprocess.run(
        ["make", "-s", *arguments],
        cwd=source,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )


def make_fails(source, *arguments, **env):
    """The line that says why make failed."""
    done = make(source, *arguments, **env)
    assert done.returncode == 2 and done.stdout == "", done
    line, make_line = done.stderr.splitlines()
    assert make_line.startswith("make: *** ")
    return line


def files(directory):
    """The paths of all files below a directory."""
    return sorted(
        os.path.relpath(os.path.join(place, name), directory)
        for place, _, names in os.walk(directory)
        for name in names
    )


def python(directory, without):
    """A Python that has nothing but the standard library, and of that not some modules."""
    run([sys.executable, "-m", "venv", "--without-pip", directory])
    [packages] = directory.glob("lib/python*/site-packages")
    # Not sitecustomize.py: Debian's Python has one, which comes first.
    (packages / "without.pth").write_text(
        f"import sys; sys.modules.update(dict.fromkeys({without!r}))\n"
    )
    return directory / "bin/python"


def test_make_install_and_uninstall(plash, source, tmp_path, host_tar):
    prefix = tmp_path / "a b" / "c"
    done = make(source, "install", f"PREFIX={prefix}", f"PYTHON={sys.executable}", **OFFLINE)
    assert done.returncode == 0 and done.stderr == "", done
    first, second, parser, third = done.stdout.splitlines()
    assert first.startswith("installed plash 0") and f" below {prefix}: " in first
    assert second == f"the interpreter is {sys.executable}; docopt is of the system"
    assert parser.startswith("e2b-dockerfile-utils, for build:file, is ")
    assert third.startswith(f"{prefix}/bin is not on PATH: ")
    check(plash, prefix / "bin", host_tar)
    first = (prefix / "libexec/plash/plash-run").read_text().splitlines()[0]
    assert first == f"#!{sys.executable} -SE"
    assert os.listdir(prefix / "libexec/plash/plashlib/__pycache__")
    (prefix / "bin/mine").touch()
    (prefix / "libexec/plash/mine").touch()
    run(["make", "uninstall", f"PREFIX={prefix}"], cwd=source)
    assert files(tmp_path / "a b") == ["c/bin/mine", "c/libexec/plash/mine"]
    assert (
        make_fails(source, "uninstall", f"PREFIX={prefix}")
        == f"make uninstall: no plash is installed below {prefix}"
    )


def test_make_install_says_nothing_of_path_where_bin_is_on_it(source, tmp_path):
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    done = make(source, "install", f"PREFIX={tmp_path}", "BUNDLE=", PATH=path)
    assert done.returncode == 0 and "PATH" not in done.stdout


@pytest.mark.slow
def test_make_install_bundles_docopt_and_keeps_it(plash, source, tmp_path, host_tar):
    prefix, interpreter = tmp_path / "prefix", python(tmp_path / "python", [])
    options = f"PREFIX={prefix}", f"PYTHON={interpreter}"
    parser = f"{PARSER} is bundled" if sys.version_info >= (3, 11) else f"{PARSER} is missing"
    done = run(["make", "install", *options], cwd=source)
    assert "docopt is bundled\n" in done and parser in done
    check(plash, prefix / "bin", host_tar)
    again = make(source, "install", *options, **OFFLINE)
    assert "docopt is bundled already\n" in again.stdout and parser in again.stdout, again
    check(plash, prefix / "bin", host_tar)
    if sys.version_info >= (3, 11):
        number = plash("pull:tarfile", host_tar).id
        plash("map", "base", number).ok()
        (plash.place / "Containerfile").write_text("FROM base\nRUN echo built >/out\n")
        made = plash.run([prefix / "bin/plash-build:file", "."]).ok().out.strip()
        assert plash("run", made, "cat", "/out").ok().out == "built\n"
    run(["make", "uninstall", *options], cwd=source)
    assert files(prefix) == []


def test_make_install_without_venv_says_what_to_install(source, tmp_path):
    interpreter = python(tmp_path / "python", ["ensurepip"])
    line = make_fails(source, "install", f"PREFIX={tmp_path}/prefix", f"PYTHON={interpreter}")
    assert line.startswith("make install: docopt is not installed, and Python's venv, ")
    assert line.endswith("apt install python3-docopt, or python3-venv)")
    assert not (tmp_path / "prefix").exists()


@pytest.mark.slow
def test_make_install_without_a_network_says_what_to_install(source, tmp_path):
    interpreter = python(tmp_path / "python", [])
    line = make_fails(
        source, "install", f"PREFIX={tmp_path}/prefix", f"PYTHON={interpreter}", **OFFLINE
    )
    assert line.startswith("make install: cannot download docopt: No matching distribution")
    assert line.endswith("apt install python3-docopt)")
    assert not (tmp_path / "prefix").exists()


def test_make_install_needs_a_python_that_is_new_enough(source, tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    options = [f"PREFIX={tmp_path}/prefix", f"PYTHON={tmp_path}/python"]
    assert "is not Python 3.9 or newer" in make_fails(source, "install", *options)
    options[1] = "PYTHON=python99"
    assert "python99 is not installed" in make_fails(source, "install", *options)
    interpreter = python(tmp_path / "a b", [])
    options[1] = f"PYTHON={interpreter}"
    assert "has a space in it" in make_fails(source, "install", *options)
    assert not (tmp_path / "prefix").exists()


def test_make_install_where_it_may_not_write(source, tmp_path):
    (tmp_path / "file").touch()
    line = make_fails(source, "install", f"PREFIX={tmp_path}/file/prefix", "BUNDLE=")
    assert line.startswith(f"make install: cannot write to {tmp_path}/file (")


def test_make_install_that_fails_changes_nothing(source, tmp_path):
    prefix = tmp_path / "prefix"
    options = f"PREFIX={prefix}", "BUNDLE="
    broken = python(tmp_path / "python", ["compileall"])
    assert make(source, "install", *options, f"PYTHON={broken}").returncode == 2
    assert not prefix.exists()
    run(["make", "install", *options], cwd=source)
    before = files(prefix)
    assert make(source, "install", *options, f"PYTHON={broken}").returncode == 2
    assert files(prefix) == before
    assert str(broken) not in (prefix / "libexec/plash/plash-run").read_text()


def test_make_install_takes_what_is_new_and_removes_what_is_gone(source, tmp_path):
    tree, prefix = tmp_path / "tree", tmp_path / "prefix"
    shutil.copytree(source, tree, symlinks=True)
    added = [tree / "libexec/plash-new", tree / "plashlib/new.py", tree / "plashlib/table.txt"]
    options = f"PREFIX={prefix}", "BUNDLE="
    run(["make", "install", *options], cwd=tree)
    before = files(prefix)
    shutil.copy(tree / "libexec/plash-id", added[0])
    added[1].touch(), added[2].touch()
    run(["make", "install", *options], cwd=tree)
    after = files(prefix)
    for path in "bin/plash-new", "libexec/plash/plash-new", "libexec/plash/plashlib/table.txt":
        assert path in after and path not in before
    for path in added:
        path.unlink()
    run(["make", "install", *options], cwd=tree)
    assert files(prefix) == before


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "zsh", "fish"])
def test_make_install_into_the_home_directory_from_each_shell(source, tmp_path, shell):
    need_program(shell)
    env = {**os.environ, "HOME": str(tmp_path)}
    code = "make install PREFIX=~/.local BUNDLE="
    run([shell, "-c", code], cwd=source, env=env)
    assert (tmp_path / ".local/bin/plash-run").exists() and not (source / "~").exists()
    run([shell, "-c", "make uninstall PREFIX=~/.local"], cwd=source, env=env)
    assert files(tmp_path / ".local") == []


def test_make_install_is_for_all_users_whatever_the_umask_and_the_clone_s_modes(source, tmp_path):
    tree, prefix = tmp_path / "tree", tmp_path / "prefix"
    shutil.copytree(source, tree, symlinks=True)
    run(["chmod", "-R", "go-rwx", tree])
    run(["sh", "-c", f"umask 077; make install PREFIX={prefix} BUNDLE="], cwd=tree)
    for path in files(prefix):
        mode = (prefix / path).stat().st_mode
        assert mode & 0o444 == 0o444 and not mode & 0o022, path
        assert (prefix / path).parent.stat().st_mode & 0o777 == 0o755, path


def test_the_installed_man_pages_are_found(plash, source, tmp_path):
    prefix = tmp_path / "prefix"
    need_program("man")
    run(["make", "install", f"PREFIX={prefix}", f"PYTHON={sys.executable}"], cwd=source)
    man = ["man", "plash", "run"]
    env = {"MANPATH": str(prefix / "share/man"), "MANWIDTH": "200"}
    assert "plash run [-e VAR]" in plash.run(man, env=env).ok().out


def test_make_man(source, tmp_path):
    run(["make", "man", f"PYTHON={sys.executable}", f"BUILD={tmp_path}"], cwd=source)
    assert (tmp_path / "man/man1/plash-run.1").exists()


def test_make_install_without_docutils_leaves_the_man_pages_out(source, tmp_path):
    interpreter = python(tmp_path / "python", [])
    done = make(source, "install", f"PREFIX={tmp_path}/prefix", "BUNDLE=", f"PYTHON={interpreter}")
    assert "without man pages (docutils, which makes them, is missing" in done.stdout, done
    assert (tmp_path / "prefix/bin/plash-run").exists()
    assert not (tmp_path / "prefix/share/man").exists()


def test_make_install_for_a_package(source, tmp_path):
    root = tmp_path / "a root"
    run(["make", "install", f"DESTDIR={root}", "PREFIX=/usr", "BUNDLE="], cwd=source)
    assert (root / "usr/bin/plash-run").is_symlink()
    assert not (root / "usr/libexec/plash/docopt.py").exists()
    assert str(tmp_path) not in (root / "usr/libexec/plash/plash-run").read_text()
    for path in (root / "usr").rglob("*.pyc"):
        assert os.fsencode(tmp_path) not in path.read_bytes()
    run(["make", "uninstall", f"DESTDIR={root}", "PREFIX=/usr"], cwd=source)
    assert files(root) == []


def test_an_apparmor_profile_only_when_asked(source, tmp_path):
    place = tmp_path / "a root/etc/apparmor.d/plash"
    options = [f"DESTDIR={tmp_path}/a root", "PREFIX=/opt/an & it", "BUNDLE="]
    run(["make", "install", *options], cwd=source)
    assert not place.parent.exists()
    assert f"installed {place}, for /opt/an & it/libexec/plash/plash-*" in run(
        ["make", "install-apparmor", *options], cwd=source
    )
    profile = place.read_text()
    # AppArmor goes by the path without symbolic links, which is where the commands are.
    assert (
        '\nprofile plash "/opt/an & it/libexec/plash/plash-*" flags=(unconfined) {\n  userns,\n'
        in profile
    )
    assert (
        tmp_path / "a root/opt/an & it/libexec/plash/plash-run"
    ).is_file() and "@libexecdir@" not in profile
    make_fails(source, "uninstall", f"DESTDIR={tmp_path}/a root", "PREFIX=/other")
    assert place.exists()
    run(["make", "uninstall", *options], cwd=source)
    assert not place.exists()


@pytest.mark.slow
def test_pip_install(plash, source, tmp_path, host_tar):
    venv = tmp_path / "venv"
    run([sys.executable, "-m", "venv", venv])
    run([venv / "bin/pip", "install", "--disable-pip-version-check", source])
    check(plash, venv / "bin", host_tar)
    for path in (
        "man/man1/plash.1",
        "man/man1/plash-run.1",
        "bash-completion/completions/plash.bash",
        "zsh/site-functions/_plash",
        "fish/vendor_completions.d/plash.fish",
    ):
        assert (venv / "share" / path).exists(), path


@pytest.mark.slow
def test_pip_install_without_build_isolation_and_docutils(plash, source, tmp_path):
    venv = tmp_path / "venv"
    run([sys.executable, "-m", "venv", venv])
    pip = [venv / "bin/pip", "install", "--disable-pip-version-check"]
    run([*pip, "--use-pep517", "--upgrade", "setuptools", "wheel", "docopt"])
    run([*pip, "--no-build-isolation", source])
    assert plash.run([venv / "bin/plash", "version"]).ok().out.startswith("plash ")
    assert not (venv / "share/man").exists() and (venv / "share/zsh").exists()


def test_the_installed_commands_use_no_package_of_the_source_tree(plash, source, tmp_path):
    run(["make", "install", f"PREFIX={tmp_path}/prefix", "BUNDLE="], cwd=source)
    where = "import plashlib; print(plashlib.__file__)"
    command = tmp_path / "prefix/libexec/plash/plash-where"
    command.write_text(f"#!{sys.executable} -SE\n{where}\n")
    command.chmod(0o755)
    env = {"PYTHONPATH": str(source)}
    found = plash.run([command], cwd=source, env=env).ok().out.strip()
    assert found == f"{tmp_path}/prefix/libexec/plash/plashlib/__init__.py"
