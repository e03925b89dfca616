"""docker(1), or podman(1) where there is no docker: called as the user, outside of user namespaces."""

import shutil
import subprocess
import sys

from plashlib import Error, store

CONTAINER = "container"  # the file in a store.Work that names the container that goes with it


def program():
    """The name of the program. Raises Error where neither is installed."""
    for name in "docker", "podman":
        if shutil.which(name):
            return name
    raise Error("install docker or podman (pull:lxc and pull:tarfile do without)")


def call(*words, show=False):
    """Run the program and wait for it. Raises Error with its reason in one line.

    With show, what it says is seen while it runs, if that is on a terminal.
    """
    show = show and sys.stderr and sys.stderr.isatty()
    done = subprocess.run(
        [program(), *words],
        stdin=subprocess.DEVNULL,
        stdout=2 if show else subprocess.DEVNULL,
        stderr=None if show else subprocess.PIPE,
    )
    if done.returncode:
        raise Error(f"{program()} {words[0]}: {reason(done.stderr, done.returncode)}")


def reason(stderr, status):
    """The line of the program's stderr that tells why it failed."""
    lines = [line for line in (stderr or b"").decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"exit status {status}"


def remove(name):
    """Remove a container, if there is one of that name."""
    subprocess.run(
        [program(), "rm", "--force", "--volumes", name],
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )


def remove_abandoned():
    """Remove the containers of commands that were killed before they could."""
    for entry in store.unowned():
        try:
            with open(f"{entry}/{CONTAINER}", encoding="utf-8") as file:
                remove(file.read())
        except OSError:
            continue
        store.delete(entry)
