"""The checker of the other tests finds what it is there for."""

import os
import shutil

import pytest


def link(target, name):
    os.symlink(target, name)


DAMAGE = {
    "a step that is half done": lambda data: os.unlink(
        f"{data}/layer/0/1/2/_data/root/steps/two/last"
    ),
    "a layer that is gone": lambda data: shutil.rmtree(f"{data}/layer/0/1/_data/root"),
    "an image that is not listed": lambda data: os.unlink(f"{data}/index/2"),
    "an entry of another image": lambda data: os.rename(f"{data}/index/2", f"{data}/index/3"),
    "a counter that went back": lambda data: os.truncate(f"{data}/id_counter", 1),
    "a name of another image": lambda data: (
        os.unlink(f"{data}/map/name-2"),
        link("../index/1", f"{data}/map/name-2"),
    ),
    "a remembered image that never was": lambda data: link("../index/99", f"{data}/cache/x"),
    "an image inside of another's files": lambda data: os.mkdir(f"{data}/layer/0/1/7"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_found(store, what):
    store.clean()
    store.steps.clear()  # as if it had not seen them whole
    DAMAGE[what](store.data)
    with pytest.raises(AssertionError):
        store.check()
        store.clean()
