"""Random stacks of layers: plash's tree is that of the image specification's model, and umoci's.

PLASH_TEST_DIFFERENTIAL=FIRST-LAST runs these seeds in place of a few:

    PLASH_TEST_DIFFERENTIAL=0-299 make test ARGS="tests/test_differential.py -q"

On purpose, the stacks hold nothing that tools read in two ways:

- Entries below what only the layer below has as a symbolic link or a file.
- Hard links to files of the layer below: on overlayfs, podman refuses them.
- Hard links with another mode or owner than the file, which podman changes then.

umoci gives directories without an entry, and those that it removes something from, another time.

One stack in four has what umoci, which applies a layer's entries in turn to the tree of the layers
below, has on purpose in another way. These are compared with the model alone:

- A whiteout after what it hides in the same layer. umoci and podman let it hide that, and the
  specification does not.
- A file and then a directory, of one name in one layer, where the layer below has a directory. The
  specification forbids two entries of a name, and podman refuses them. plash unpacks a layer by
  itself: the last entry counts, and the directory is merged with the one below. umoci removes that
  with all that is in it when it comes to the file.
- An opaque directory that the layer below has as a link. The directory's entry comes later, so umoci
  follows the link, and refuses a layer where it leads to itself.
"""

import json
import os
import sys

import engines
import pytest
import stacks
from layouts import write_layout
from requirements import kind_of_user, need_program

FIRST, LAST = map(int, os.environ.get("PLASH_TEST_DIFFERENTIAL", "0-3").split("-"))
SEEDS = range(FIRST, LAST + 1)
LISTER = sys.executable, stacks.__file__
OWNERS = kind_of_user() != "plain"  # else all files are root's


def plash_tree(plash, number, env=None):
    return json.loads(plash("mounted", number, *LISTER, env=env).ok().out)


def model_tree(tree):
    """The model's tree, as far as this user can have it."""
    found = stacks.described(tree)
    for entry in found.values():
        if not OWNERS:
            entry[2:4] = [0, 0]
            # An ACL for somebody else can't be set.
            entry[5].pop("system.posix_acl_access", None)
    return found


def differences(one, other, ignored=()):
    def reduced(entry):
        return [value for number, value in enumerate(entry) if number not in ignored]

    found = []
    for path in sorted({*one, *other}):
        if path not in one or path not in other:
            found.append((path, one.get(path), other.get(path)))
        else:
            pair = reduced(one[path]), reduced(other[path])
            timeless = one[path][6] is None or other[path][6] is None
            if timeless and 6 not in ignored:
                pair = tuple(
                    [v for n, v in enumerate(each[path]) if n not in (*ignored, 6)]
                    for each in (one, other)
                )
            if pair[0] != pair[1]:
                found.append((path, *pair))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_stack_of_layers(plash, oci_tools, seed):
    """Pulled, pushed and pulled into another store, with a layer of plash's own."""
    tars, tree = stacks.random_stack(seed)
    ref = write_layout(plash.place / "layout", tars)
    number = plash("pull:oci", ref).id
    right = model_tree(tree)
    seen = plash_tree(plash, number)
    assert differences(right, seen) == []

    rootless = [] if os.getuid() == 0 else ["--rootless"]
    plash.run(["umoci", "unpack", *rootless, "--image", ref[4:], "bundle"]).ok()
    if os.getuid() == 0 and stacks.whiteouts_first(seed):
        theirs = stacks.listed(str(plash.place / "bundle/rootfs"))
        ignored = (6,)
        assert (
            differences(
                {p: e for p, e in theirs.items() if e[0] != "d"},
                {p: e for p, e in seen.items() if e[0] != "d"},
            )
            == []
        )
        assert differences(theirs, seen, ignored) == []

    own = plash.place / "own"
    own.mkdir()
    plash("sudo", sys.executable, "-c", SCRIPT, own, str(seed)).ok()
    child = plash("stack", number, own).id
    plash("push:oci", child, f"oci:{plash.place}/pushed:x").ok()
    env = {"PLASH_DATA": str(plash.place / "other")}
    again = plash("pull:oci", f"oci:{plash.place}/pushed:x", env=env).id
    assert differences(plash_tree(plash, child), plash_tree(plash, again, env)) == []


# What makes a layer as a build would: files, a directory, a sparse one.
SCRIPT = """
import os, sys
root, seed = sys.argv[1], int(sys.argv[2])
os.mkdir(root + "/own", 0o711)
with open(root + "/own/sparse", "wb") as file:
    file.seek(1 << 20)
    file.write(b"end")
os.link(root + "/own/sparse", root + "/own/link")
os.symlink("../own", root + "/own/self")
os.utime(root + "/own", (10**9 + seed, 10**9 + seed))
"""


@pytest.mark.slow
@pytest.mark.only_for("root")
def test_podman_sees_the_same(plash, oci_tools, tmp_path_factory):
    """Of stacks as they are, and after plash pulled, changed and pushed them."""
    need_program("podman")
    with engines.podman(tmp_path_factory.mktemp("podman")) as podman:
        refused = []
        for seed in filter(stacks.whiteouts_first, SEEDS):
            tars, _ = stacks.random_stack(seed, duplicates=False)
            ref = write_layout(plash.place / f"layout{seed}", tars)
            number = plash("pull:oci", ref).id
            (plash.place / f"own{seed}").mkdir()
            child = plash("stack", number, plash.place / f"own{seed}").id
            pushed = f"oci:{plash.place}/pushed{seed}:x"
            plash("push:oci", child, pushed).ok()
            for each, mine in (ref, number), (pushed, child):
                try:
                    name = podman("pull", "--quiet", each).splitlines()[-1]
                except AssertionError as error:
                    # Its driver vfs fails to make some directories that have no entry.
                    assert each is ref and "ApplyLayer" in str(error), seed
                    refused.append(seed)
                    break
                theirs = stacks.listed(podman("image", "mount", name))
                podman("image", "unmount", name)
                mine = plash_tree(plash, mine)
                for tree in theirs, mine:
                    # podman gives 0755, and root 0555, to directories without an entry.
                    for entry in tree.values():
                        # Its driver vfs copies the layers below, without ACLs.
                        entry[5].pop("system.posix_acl_access", None)
                        entry[:] = entry[:1] if entry[0] == "d" else entry
                assert theirs == mine, (seed, each)
        assert len(refused) <= len(SEEDS) // 10, refused
        print("refused by podman:", refused)
