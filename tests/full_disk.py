"""Commands on a full disk. Run by test_crash.py in a mount namespace of its own, where it can mount a small one."""
import os
import subprocess

import pytest
from conftest import STRICT
from test_crash import COMMANDS, note_id, store  # noqa: F401 (a fixture)

PAGE = 4096
ENOUGH = 64 << 20
WRITING = [name for name in COMMANDS if name not in ("run", "rm", "shrink", "clean", "map ''", "mkdtemp", "push:tarfile")]


def mount(data, size, *options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "none", data], check=True)


@pytest.fixture
def plash(plash):
    plash.data.mkdir()
    mount(plash.data, ENOUGH)
    yield plash
    subprocess.run(["umount", "--lazy", plash.data], check=True)
    plash.data.rmdir()


@pytest.mark.parametrize("name", WRITING)
def test_full_disk(store, name):  # noqa: F811
    data = store.plash.data
    free, failures, successes = 0, 0, 0
    while successes < 2:
        words = COMMANDS[name](store)
        before = set(store.visible())
        used = os.statvfs(data)
        mount(data, (used.f_blocks - used.f_bfree + free) * PAGE, "remount")
        result = store.plash(*words)
        mount(data, ENOUGH, "remount")
        note_id(store, words, result)
        if result.status:
            failures += 1
            assert result.status == 1 or name == "run:persist"
            assert result.err.count("\n") == 1 and result.err.startswith("plash"), result.err
        else:
            successes += 1
        after = store.clean()
        assert before <= set(after)
        if name == "stack" and result.status:
            assert os.path.exists(words[2])
        for number in set(after) - {1, 2}:
            store.plash("rm", str(number)).ok()
        free += 1 + free // 4
    store.works()
    print(f"{failures} failures of {name}, then enough")
    assert failures or not STRICT
