"""purge: the whole store goes."""

import os

from requirements import need_program


def test_purge_removes_all(plash, image):
    plash("build", image, "mkdir -m 0 /closed").ok()
    plash("purge", "--yes").ok()
    assert not plash.data.exists()
    assert plash("id", image).error == "plash id: no image: 1"


def test_purge_asks_on_a_terminal(plash, image):
    need_program("script")
    words = ["script", "-qefc", f"{os.path.dirname(__file__)}/../libexec/plash-purge", "/dev/null"]
    assert plash.run(words, input="n\n").status == 1
    assert plash("id", image).id == image
    plash.run(words, input="y\n").ok()
    assert not plash.data.exists()
