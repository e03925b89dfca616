"""push:tarfile and push:dir read layers without an overlay: the overlay shows the same."""

import os
import random

import pytest
from world import tree

SEEDS = int(os.environ.get("PLASH_TEST_SEEDS", "3"))
NAMES = ["a", "b", "c d", "é", "-x", "back\\slash", "new\nline", "#h"]
# What tar is to keep, as push:tarfile has it.
TAR = ["tar", "-c", "--sort=name", "--format=pax", "--numeric-owner", "--xattrs", "--sparse"]
TAR += ["--sparse-version=0.0"]
TAR += ["--xattrs-include=user.*", "--xattrs-exclude=user.overlay.*", "--acls", "."]


def layer(choice, directory, depth=0):
    """Fill a directory with what overlayfs makes of changes, and with what it never makes."""
    if depth and choice.random() < 0.2:
        os.setxattr(directory, "user.overlay.opaque", b"y")
    for name in choice.sample(NAMES, choice.randrange(1, 5)):
        path = f"{directory}/{name}"
        kind = choice.choice(["dir", "dir", "file", "link", "hard", "white", "fifo", "sparse"])
        if kind == "dir" and depth < 4:
            os.mkdir(path, choice.choice([0o755, 0o700, 0o1777]))
            layer(choice, path, depth + 1)
        elif kind == "link":
            os.symlink(choice.choice(["a", "../b", "/c d"]), path)
        elif kind == "hard" and os.path.isfile(f"{directory}/a"):
            if not os.path.islink(f"{directory}/a"):
                os.link(f"{directory}/a", path)
        elif kind == "white":
            os.mknod(path, 0o20000, 0)
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "sparse":
            with open(path, "wb") as file:
                file.truncate(100_000)
                file.seek(70_000)
                file.write(b"x")
        elif not os.path.lexists(path):
            with open(path, "w") as file:
                file.write(str(choice.random()))
            os.setxattr(path, "user.kept", b"1")
    os.utime(directory, (1_000_000_000, choice.randrange(1_000_000_000)))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_layers_show_what_their_overlay_shows(plash, image, seed):
    choice = random.Random(seed)
    # Its child makes whiteouts, which only root of a user namespace may.
    code = (
        "import random, sys; sys.path[:0] = sys.argv[1:2]; import test_merged, os;"
        " os.mkdir('l'); test_merged.layer(random.Random(int(sys.argv[2])), 'l')"
    )
    number = image
    for turn in range(choice.randrange(2, 6)):
        words = ["python3", "-c", code, os.path.dirname(__file__), str(seed * 100 + turn)]
        plash("sudo", *words).ok()
        number = plash("stack", "0" if turn == 0 and seed % 2 else number, "l").id
    # Names that the overlay lists and can't show are tar's failure, not a difference.
    (plash.place / "shown.tar").write_bytes(plash("mounted", number, *TAR).raw)
    plash("push:tarfile", number, "pushed.tar").ok()
    shown, pushed = tree(plash.place / "shown.tar"), tree(plash.place / "pushed.tar")
    assert pushed == shown
    plash("push:tarfile", plash("pull:tarfile", "pushed.tar").id, "again.tar").ok()
    assert (plash.place / "again.tar").read_bytes() == (plash.place / "pushed.tar").read_bytes()
    plash("push:dir", number, "out").ok()
    plash("push:tarfile", plash("pull:dir", "out").id, "copied.tar").ok()
    assert (plash.place / "copied.tar").read_bytes() == (plash.place / "pushed.tar").read_bytes()


def test_many_layers(plash, image):
    number = image
    for each in range(30):
        os.makedirs(plash.place / "l/d")
        (plash.place / f"l/d/{each}").touch()
        (plash.place / "l/e").mkdir()
        (plash.place / f"l/e/{each}").touch()
        number = plash("stack", number, "l").id
    number = plash("build", number, "rm /d/7; rm -r /e; mkdir /e; echo x >/e/only").id
    plash("push:tarfile", number, "a.tar").ok()
    names = tree(plash.place / "a.tar")
    assert {f"d/{each}" for each in range(30) if each != 7} == {n for n in names if n[:2] == "d/"}
    assert [name for name in names if name[:2] == "e/"] == ["e/only"]
