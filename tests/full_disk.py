"""Commands on a full disk. Run by test_crash.py in a mount namespace of its own, where it can mount a small one."""

import os
import subprocess

import pytest
from invariants import step
from store_changes import COMMANDS, note_id

PAGE = 4096
ENOUGH = 64 << 20
# A tmpfs counts pages and inodes; directories and links are inodes alone.
CASES = {("pages", name): COMMANDS[name] for name in ("pull:tarfile", "pull:url", "do")}
CASES["pages", "build"] = lambda checker: [
    "build",
    "1",
    "cat /bin/busybox >/copy; " + step(f"b{checker.counter}"),
]
CASES.update(
    {
        ("inodes", name): make
        for name, make in COMMANDS.items()
        if name not in ("run", "rm", "history", "diff", "clean", "run:persist", "map ''", "mkdtemp")
        and name not in ("push:tarfile", "build --keep-failed")
        and not name.startswith("shrink")
    }
)


def mount(data, size=ENOUGH, inodes=1 << 20, remount=True):
    options = f"size={size},nr_inodes={inodes}" + (",remount" if remount else "")
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", data], check=True)


@pytest.fixture
def plash(plash):
    plash.data.mkdir()
    mount(plash.data, remount=False)
    yield plash
    subprocess.run(["umount", "--lazy", plash.data], check=True)
    plash.data.rmdir()


@pytest.mark.parametrize("what, name", CASES)
def test_full_disk(store, what, name):
    data = store.plash.data
    free, failures, successes = 0, 0, 0
    while successes < 2:
        words = CASES[what, name](store)
        before = set(store.visible())
        used = os.statvfs(data)
        if what == "pages":
            mount(data, size=(used.f_blocks - used.f_bfree + free) * PAGE)
        else:
            mount(data, inodes=used.f_files - used.f_ffree + free)
        result = store.plash(*words)
        mount(data)
        note_id(store, words, result)
        if result.status:
            failures += 1
            *others, last = result.err.splitlines()
            assert result.status == 1 and last.startswith("plash "), result.err
            assert not others or name in ("build", "build:file", "cache", "cache --refresh"), (
                result.err
            )  # what the command itself says
        else:
            successes += 1
        after = store.clean()
        assert before <= set(after)
        if name == "stack" and result.status:
            assert os.path.exists(words[2])
        for number in sorted(set(after) - {1, 2}):
            if number in store.visible():  # not one that was built on another
                store.plash("rm", "--recursive", str(number)).ok()
        free += 1 + free // 4
    store.works()
    print(f"{failures} failures of {name}, then enough {what}")
    assert failures


def test_images_can_be_removed_from_a_full_disk(store):
    data = store.plash.data
    child = store.plash("build", "1", step("x")).id
    number = store.plash("build", "1", step("y")).id
    for words in ["rm", child], ["shrink", "--unused-for=0s"]:
        used = os.statvfs(data)
        mount(data, inodes=used.f_files - used.f_ffree)
        store.plash(*words).ok()
        mount(data)
        store.clean()
    assert int(number) not in store.visible()
