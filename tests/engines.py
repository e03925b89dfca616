"""docker, with a dockerd of its own, and podman, with a store of its own."""

import contextlib
import os
import shutil
import subprocess
import tempfile

from servers import running


class Engine:
    """docker or podman, as a test calls it: words come before all others."""

    def __init__(self, *words, env=()):
        self.words, self.env = words, {**os.environ, **dict(env)}

    def __call__(self, *words, **more):
        done = subprocess.run([*self.words, *words], env=self.env, capture_output=True, **more)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def containers(self):
        return self("ps", "--all", "--quiet")


@contextlib.contextmanager
def docker(place):
    """docker with a dockerd that has all that is its own in the directory place."""
    socket = f"unix://{place}/sock"
    engine = Engine("docker", env={"DOCKER_HOST": socket})

    def ready():
        return (
            subprocess.run(["docker", "version"], env=engine.env, capture_output=True).returncode
            == 0
        )

    words = [
        "dockerd",
        "--bridge=none",
        "--iptables=false",
        "--ip6tables=false",
        "--storage-driver=overlay2",
        "-H",
        socket,
        "--data-root",
        place / "data",
        "--exec-root",
        place / "exec",
        "--pidfile",
        place / "pid",
    ]
    with running(words, ready, place / "log"):
        yield engine
    # dockerd leaves the namespace of --network=none mounted.
    subprocess.run(["umount", place / "exec/netns/default"], capture_output=True)


@contextlib.contextmanager
def podman(place):
    """podman with its images in the new directory place."""
    runroot = tempfile.mkdtemp()  # podman refuses one of more than 50 characters
    engine = Engine(
        "/usr/bin/podman",
        "--root",
        place,
        "--runroot",
        runroot,
        "--storage-driver",
        "vfs",
        "--runtime",
        "runc",
        "--cgroup-manager=cgroupfs",
    )
    try:
        yield engine
    finally:
        engine("rmi", "--all", "--force")
        shutil.rmtree(runroot)
