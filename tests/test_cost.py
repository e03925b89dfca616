"""What the commands cost, in counts: of processes, system calls and imported modules. Times are for `make bench`."""

import os
import re
import sys
import time

import pytest
from requirements import kind_of_user, need_program, subordinate_ids
from world import LIBEXEC, wait_for

# What newuidmap and newgidmap take: a shell that starts both.
MAPPERS = 3 if os.getuid() and subordinate_ids() else 0


def imported(plash, *words):
    """The modules that a program imports besides those that Python itself begins with."""

    def listed(*program):
        err = plash.run([sys.executable, "-E", "-X", "importtime", *program]).ok().err
        return set(re.findall(r"^import time:[^|]*\|[^|]*\| +(\S+)$", err, re.M))

    return listed(*words) - listed("-c", "pass")


def test_run_imports_what_it_uses_and_no_more(plash, image):
    modules = {
        "plashlib",
        "plashlib.cli",
        "plashlib.binds",
        "plashlib.caller",
        "plashlib.container",
        "plashlib.datadir",
        "plashlib.execution",
        "plashlib.headers",
        "plashlib.ids",
        "plashlib.namespaces",
        "plashlib.store",
        "errno",
        "pwd",
        "_ctypes",
        *(["plashlib.emulate"] if kind_of_user() == "plain" else []),
    }
    assert imported(plash, LIBEXEC / "plash-run", image, "true") <= modules


@pytest.mark.parametrize(
    "words", [["nodepath", "1"], ["map"], ["id", "1"], ["parent", "1"]], ids=" ".join
)
def test_a_lookup_imports_what_it_uses_and_no_more(plash, image, words):
    modules = {
        "plashlib",
        "plashlib.cli",
        "plashlib.datadir",
        "plashlib.headers",
        "plashlib.store",
    }
    modules |= {"errno", *(["plashlib.names"] if words[0] == "map" else [])}
    assert imported(plash, LIBEXEC / f"plash-{words[0]}", *words[1:]) <= modules


def traced(plash, *words):
    """The system calls of a command, as strace writes them."""
    need_program("strace")
    plash.run(["strace", "-f", "-qq", "-o", "strace.log", *words]).ok()
    return (plash.place / "strace.log").read_text(errors="replace").splitlines()


def test_run_is_one_process(plash, image):
    calls = traced(plash, LIBEXEC / "plash-run", image, "true")
    assert len({line.split()[0] for line in calls}) <= 1 + MAPPERS


def test_a_build_is_three_processes(plash, image):
    """plash, process 1 of its pid namespace, and the command."""
    calls = traced(plash, LIBEXEC / "plash-build", image, "exec true")
    assert len({line.split()[0] for line in calls}) <= 3 + MAPPERS


def calls_of_run(plash, image):
    """Those of the process itself, without the ones that map its ids."""
    calls = traced(plash, LIBEXEC / "plash-run", image, "/bin/true")
    # A call that another process's interrupts is in two lines.
    return [
        line for line in calls if line.split()[0] == calls[0].split()[0] and " resumed>" not in line
    ]


def test_run_makes_few_system_calls(plash, image):
    main = calls_of_run(plash, image)
    begin = next(number for number, line in enumerate(main) if " unshare(" in line)
    end = next(number for number, line in enumerate(main) if 'execve("/bin/true"' in line)
    # Users' ids are mapped meanwhile, or the filter of emulate is installed.
    assert end - begin < (130 if kind_of_user() == "root" else 200)


def test_a_layer_more_costs_four_system_calls(plash, image):
    deep = image
    for _ in range(10):
        os.makedirs(plash.place / "layer")
        deep = plash("stack", deep, plash.place / "layer").id
    assert len(calls_of_run(plash, deep)) - len(calls_of_run(plash, image)) < 10 * 6


def test_runs_leave_nothing(plash, image):
    def seen():
        # Other users mount and unmount meanwhile.
        with open("/proc/self/mountinfo", errors="replace") as file:
            mounts = [line for line in file if str(plash.place) in line]
        return (
            mounts,
            plash.snapshot(),
            [pid for pid in os.listdir("/proc") if pid.isdigit() and in_store(pid)],
        )

    def in_store(pid):
        try:
            with open(f"/proc/{pid}/mountinfo", errors="replace") as file:
                return str(plash.data) in file.read()
        except OSError:
            return False

    before = seen()
    for _ in range(50):
        plash("run", image, "true").ok()
    wait_for(lambda: seen() == before)


def test_rm_returns_before_the_files_are_deleted(plash, image):
    """Their files go in the background; `clean` waits for that."""
    programs = plash.place / "programs"
    programs.mkdir()
    os.mkfifo(plash.place / "go")
    (programs / "rm").write_text(
        f'#!/bin/sh\nread line <{plash.place}/go\nPATH=/bin:/usr/bin exec rm "$@"\n'
    )
    (programs / "rm").chmod(0o755)
    plash("rm", "--recursive", image, env={"PATH": f"{programs}:{plash.env['PATH']}"}).ok()
    assert plash("nodepath", image).status == 1
    assert len(os.listdir(plash.data / "tmp")) == 1
    cleaning = plash.start("clean")
    time.sleep(0.5)
    assert cleaning.poll() is None
    (plash.place / "go").write_text("\n")
    assert cleaning.wait() == 0
    wait_for(lambda: os.listdir(plash.data / "tmp") == [])
