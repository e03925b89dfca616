"""Do what `plash run 1 true` does, step by step, and print how long each took, as NAME MILLISECONDS.

The first step, until Python runs this, is what a caller measures.
"""

import time

begun = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
steps = []


def step(name):
    steps.append((name, time.clock_gettime_ns(time.CLOCK_MONOTONIC)))


import plashlib.cli  # noqa: F401 (all commands import it)
from plashlib import container, namespaces, store

step("imports")
image = store.image("1")
place, binds, passed = (
    container.working_directory(),
    container.host_binds(),
    container.environment(),
)
step("the image, the environment")
namespaces._call("getppid")
step("libc (_ctypes)")
namespaces.become_root()
step("user namespace, ids mapped")
container.mount_root(image, None, binds)
step("mounts: tmpfs, mount points, overlay")
container.enter(binds, place)
step("mounts: the host's, pivot_root")
for name, at in steps:
    print(f"{(at - begun) / 1e6:.3f} {name}")
    begun = at
