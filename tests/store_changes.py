"""Commands that change a store, for tests that kill them and let them fail.

COMMANDS has for each a function of an invariants.Checker that prepares its store, and returns the argv.
"""

import os
import random

from invariants import step


def new_image(store):
    return plash_id(store, "build", "1", step(f"s{store.counter}"))


def plash_id(store, *words):
    number = store.took(store.plash(*words).id)
    store.check()
    return str(number)


def new_name():
    return f"dir{random.getrandbits(64):x}"


def new_directory(store):
    made = store.plash.place / new_name()
    for name in "first", "last", "d":
        (made / f"steps/{made.name}").mkdir(parents=True, exist_ok=True)
        (made / f"steps/{made.name}/{name}").touch()
    return str(made)


def whole_directory(store):
    made = store.plash.place / new_name()
    made.mkdir()
    store.plash.run(["tar", "-xf", "base.tar", "-C", made]).ok()
    return made.name


def name_an_image(store):
    number = new_image(store)
    return ["map", f"name-{number}", number]


def rename_an_image(store):
    store.plash("map", "name-1", "1").ok()
    return ["map", "name-1", "1"]


def forget_a_name(store):
    store.plash("map", "name-1", "1").ok()
    return ["map", "name-1", ""]


def remove_a_tree(store):
    number = new_image(store)
    child = plash_id(store, "build", number, step("child"))
    store.plash("map", f"name-{child}", child).ok()
    return ["rm", "--recursive", number]


def shrink(store):
    for _ in range(3):
        new_image(store)
    return ["shrink"]


def shrink_unused(store):
    os.utime(f"{store.data}/index/{new_image(store)}", (1, 1), follow_symlinks=False)
    return ["shrink", "--unused-for=30d"]


def containerfile(store):
    store.plash("map", "name-1", "1").ok()
    context = new_directory(store)
    with open(context + "/Containerfile", "w", encoding="utf-8") as file:
        run = step(f"f{random.getrandbits(64):x}")
        file.write(f"FROM name-1\nCOPY steps /steps/\nRUN {run}\nLABEL a=b\n")
    return ["build:file", context]


def clean(store):
    """There is garbage of all kinds."""
    data = store.plash.data
    gone = f"../index/{new_image(store)}"
    store.plash("rm", "--recursive", os.path.basename(gone)).ok()
    (data / "tmp/garbage/root/d").mkdir(parents=True)
    (data / "tmp/garbage/root/file").touch()
    for link, target in (
        ("tmp/link", "../index/1"),
        (f"map/gone-{os.path.basename(gone)}", gone),
        ("cache/x", gone),
        ("recall/1.1.1.1", "../index/1"),
    ):
        if not os.path.lexists(data / link):
            os.symlink(target, data / link)
    return ["clean"]


COMMANDS = {
    "pull:tarfile": lambda store: ["pull:tarfile", "base.tar"],
    "pull:url": lambda store: ["pull:url", f"file://{store.plash.place}/base.tar"],
    "build": lambda store: ["build", "1", step(f"b{store.counter}")],
    "stack": lambda store: ["stack", "1", new_directory(store)],
    "pull:dir": lambda store: ["pull:dir", whole_directory(store)],
    "link": lambda store: ["link", whole_directory(store)],
    "config": lambda store: ["config", "--env=A=1", "1"],
    "cache": lambda store: ["cache", "build", "1", step(f"c{store.counter}")],
    "cache --refresh": lambda store: ["cache", "--refresh", "build", "1", step("refreshed")],
    "build --keep-failed": lambda store: ["build", "--keep-failed", "1", "touch /kept; false"],
    "build:file": containerfile,
    "shrink --unused-for": shrink_unused,
    "history": lambda store: ["history", new_image(store)],
    "diff": lambda store: ["diff", new_image(store)],
    "check": lambda store: ["check", "1", new_directory(store)],
    "do": lambda store: ["do", "pull:tarfile", f"{'./' * store.counter}base.tar"],
    "map": name_an_image,
    "map again": rename_an_image,
    "map ''": forget_a_name,
    "rm": remove_a_tree,
    "shrink": shrink,
    "clean": clean,
    "run": lambda store: ["run", "2", "touch", "/x"],
    "run:persist": lambda store: ["run:persist", "2", new_name(), "touch", "/x"],
    "mkdtemp": lambda store: ["mkdtemp"],
    "push:tarfile": lambda store: ["push:tarfile", "2", "out.tar"],
}


STATUSES = {"build --keep-failed": 1}  # of commands that don't succeed
MAKERS = (
    "build:file",
    "pull:tarfile",
    "pull:url",
    "pull:dir",
    "link",
    "config",
    "build",
    "stack",
    "check",
)


def note_id(store, words, result):
    if words[0] in MAKERS and result.out.strip():
        store.took(result.out)
