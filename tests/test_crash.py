"""Commands that are killed, that fail at each system call, that find a full disk, that run all at once."""

import os
import random
import re
import subprocess
import sys
import threading
import time

import pytest
from invariants import step
from store_changes import COMMANDS, STATUSES, new_directory, note_id
from world import LIBEXEC

pytestmark = pytest.mark.slow

# All that changes which files there are, or waits for it; a kill at one that changes attributes shows no more.
CALLS = (
    "mkdir,mkdirat,rename,renameat,renameat2,symlink,symlinkat,unlink,unlinkat,rmdir,link,linkat,mknod,mknodat,"
    "write,ftruncate,flock,fsync,syncfs,mount,umount2"
)
ATTRIBUTES = (
    "chmod,fchmod,fchmodat,chown,lchown,fchown,fchownat,setxattr,lsetxattr,fsetxattr,utimensat"
)
ALLOCATING = {
    "mkdir",
    "symlink",
    "rename",
    "link",
    "write",
    "fsync",
    "syncfs",
    "lsetxattr",
    "setxattr",
    "mknodat",
}
SECONDS = int(os.environ.get("PLASH_TEST_SECONDS", "30"))  # for how long the commands at once run
AT_ONCE = 64


# These take minutes. strace takes newuidmap's privilege away, so that all users are much the same under it: one
# kind of user each will do.
killed_user, failing_user = pytest.mark.only_for("subids"), pytest.mark.only_for("root")


def traced(store, words, *options):
    """Run a command under strace; returns its result and the lines of strace's output."""
    log = store.plash.place / "strace.log"
    result = store.plash.run(
        [
            "strace",
            "-f",
            "-qq",
            "-y",
            "-o",
            log,
            *options,
            LIBEXEC / f"plash-{words[0]}",
            *words[1:],
        ],
        env={"PLASH_NO_SYNC": "0"},
    )
    return result, log.read_text(errors="replace").splitlines()


def calls_of(store, words, names=CALLS):
    """The system calls names that the command makes: pairs of a name and N, for the Nth of that name in a process.

    Of many writes in a row, as those of an archive's content, the first and the last stand for all.
    """
    result, lines = traced(store, words, "-e", f"trace={names}")
    assert result.status == STATUSES.get(" ".join(words[:2]), 0), result.err
    processes = {}
    for pid, call in re.findall(r"^(\d+) +(\w+)\(", "\n".join(lines), re.MULTILINE):
        processes.setdefault(pid, []).append(call)
    calls = set()
    for made in processes.values():
        for index, call in enumerate(made):
            if made[max(index - 1, 0) : index + 2] != ["write"] * 3:
                calls.add((call, made[: index + 1].count(call)))
    return sorted(calls)


@killed_user
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_each_system_call(store, name):
    calls = calls_of(store, COMMANDS[name](store))
    store.clean()
    kills = 0
    for call, number in calls:
        words = COMMANDS[name](store)
        before = set(store.visible())
        result, lines = traced(
            store, words, "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"
        )
        kills += any("+++ killed by SIGKILL" in line for line in lines) or result.status != 0
        note_id(store, words, result)
        after = store.clean()
        if name == "stack":
            # The user's files are where they were, or an image: nowhere between.
            made = set(after) - before
            there = (
                sorted(os.listdir(words[2] + "/steps/" + os.path.basename(words[2])))
                if os.path.exists(words[2])
                else []
            )
            assert (len(made), there) in ((1, []), (0, ["d", "first", "last"])), (call, number)
        if not name.startswith(("rm", "shrink")):
            assert before <= set(after)
        store.plash.run(["rm", "-rf", "out.tar"])
    store.works()
    print(f"{kills} kills of {name}, at {len(calls)} points")
    assert kills >= len(calls) * 0.8  # a run makes a few calls less or more


@failing_user
@pytest.mark.parametrize("name", COMMANDS)
def test_each_system_call_fails(store, name):
    calls = calls_of(store, COMMANDS[name](store), f"{CALLS},{ATTRIBUTES}")
    store.clean()
    faults = 0
    for call, number in calls:
        error = "ENOSPC" if call in ALLOCATING else "EIO"
        words = COMMANDS[name](store)
        before = set(store.visible())
        result, lines = traced(
            store, words, "-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={number}"
        )
        injected = [line for line in lines if "(INJECTED)" in line]
        faults += len(injected)
        note_id(store, words, result)
        assert "Traceback" not in result.err and "internal error" not in result.err, (
            injected,
            result.err,
        )
        # What it can't write can't be asked for, and what a command in an image says is its own.
        if (
            result.status
            and name[:3] != "run"
            and not any(re.search(r"write\([12]<", line) for line in injected)
        ):
            # A build's command hits the fault too, and says so itself.
            own = [
                line
                for line in result.err.splitlines()
                if not line.startswith(("touch: ", "mkdir: "))
            ]
            assert own and own[0].startswith("plash"), (injected, result.err)
            # clean has a line for each thing that it leaves.
            assert len(own) == 1 or name == "clean", (injected, result.err)
        assert result.status in (0, 1) or name in ("run", "run:persist"), (
            injected,
            result.status,
            result.err,
        )
        after = store.clean()
        if name == "stack" and result.status:
            assert os.path.exists(words[2]) or set(after) > before, injected
        if not name.startswith(("rm", "shrink")):
            assert before <= set(after)
        store.plash.run(["rm", "-rf", "out.tar"])
    store.works()
    print(f"{faults} faults of {name}, at {len(calls)} points")
    assert faults >= len(calls) * 0.8


def test_full_disk(tmp_path):
    """At each size of what is left of a disk, from nothing to enough."""
    root = [] if os.getuid() == 0 else ["--map-root-user"]
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            *root,
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rP",
            "--basetemp",
            tmp_path / "inside",
            "-p",
            "no:cacheprovider",
            os.path.dirname(__file__) + "/full_disk.py",
        ],
        env={**os.environ, "PLASH_TEST_USER": "root"},
        capture_output=True,
        text=True,
    )
    print(done.stdout[-4000:])
    assert done.returncode == 0


# What a command may say of a store in which others remove images at the same time.
EXPECTED = (
    r"no image: \d+",
    "is in use by process",
    "nothing was kept",
    "no image is named",
    "a command works in",
    "begin with one such as",
    "was removed; begin again",
)


class Crowd:
    """Threads that run commands of all kinds on one store, and what they saw."""

    def __init__(self, store):
        self.store, self.lock = store, threading.Lock()
        self.images, self.count, self.problems = ["1", "2"], 0, []
        self.end = time.monotonic() + SECONDS

    def run(self, *words, **options):
        result = self.store.plash(*words, **options)
        with self.lock:
            self.count += 1
            lines = result.err.splitlines()
            told = [line for line in lines if not re.search("|".join(EXPECTED), line)]
            if result.status not in (0, 1) or result.status and not lines or result.status and told:
                self.problems.append((words, result.status, result.err[-500:]))
        return result

    def made(self, result):
        if result.status == 0:
            with self.lock:
                self.images.append(str(self.store.took(result.out)))

    def work(self, seed):
        choice = random.Random(seed)
        for turn in range(1 << 30):
            if time.monotonic() > self.end or self.problems:
                return
            with self.lock:
                number = choice.choice(self.images[-12:])
            name = f"t{seed}x{turn}"
            kind = choice.choice(
                "pull build build build cache do check history diff stack run run map name rm rm clean push recall".split()
            )
            if choice.random() < 0.01:
                kind = "shrink"
            if kind == "pull":
                self.made(self.run("pull:tarfile", "base.tar"))
            elif kind == "build":
                self.made(self.run("build", number, step(name)))
            elif kind == "cache":
                # The id is printed many times: of what one has built, the others hear.
                self.run("cache", "build", "1", step(f"cached{choice.randrange(5)}"))
            elif kind == "do":
                self.run("do", "pull:tarfile", f"{'./' * choice.randrange(5)}base.tar")
            elif kind in ("history", "diff"):
                self.run(kind, number)
            elif kind == "check":
                self.run("check", number, "base.tar")
            elif kind == "stack":
                self.made(self.run("stack", number, new_directory(self.store)))
            elif kind == "run":
                self.run("run", number, "touch", "/x")
            elif kind == "map":
                self.run("map", f"{choice.randrange(9)}-{number}", choice.choice([number, ""]))
            elif kind == "name":
                self.run("map", f"{choice.randrange(9)}-{number}")
            elif kind == "rm":
                if number not in ("1", "2"):
                    self.run("rm", "--recursive", number)
            elif kind == "push":
                out = self.run("push:tarfile", number, f"{name}.tar")
                if out.status == 0:
                    os.unlink(self.store.plash.place / f"{name}.tar")
            elif kind == "recall":
                self.run("recall", "run", "true")
            else:
                self.run(kind)


def test_many_at_once(store):
    # 1 is never removed but by shrink, and not while there are so many others.
    with store.plash.start("run", "2", "cat"):
        crowd = Crowd(store)
        threads = [threading.Thread(target=crowd.work, args=[seed]) for seed in range(AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not crowd.problems, crowd.problems[:3]
    store.clean()
    for name in os.listdir(store.data + "/cache"):
        number = int(os.path.basename(os.readlink(f"{store.data}/cache/{name}")))
        assert number in store.steps
    store.works()
    print(
        f"{crowd.count} commands, {AT_ONCE} at once, in {SECONDS} s; {len(store.steps)} images were checked"
    )
    assert crowd.count > AT_ONCE
