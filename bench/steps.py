"""Do what `plash run 1 true` does, step by step, and print how long each took, as NAME MILLISECONDS.

The first step, until Python runs this, is what a caller measures.
"""

import time

begun = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
steps = []


def step(name):
    steps.append((name, time.clock_gettime_ns(time.CLOCK_MONOTONIC)))


import plashlib.cli  # noqa: F401 (all commands import it)
from plashlib import container, ids, namespaces, store

step("imports")
image = store.image("1")
view = container.View(image)
step("the image, the environment")
namespaces.call("getppid")
step("libc (_ctypes)")
ids.become_root()
step("user namespace, ids mapped")
container.mount_root(image, view)
step("mounts: tmpfs, mount points, overlay")
container.enter(view)
step("mounts: the host's, pivot_root")
for name, at in steps:
    print(f"{(at - begun) / 1e6:.3f} {name}")
    begun = at
