"""docker(1), or podman(1) without a docker daemon: run as the user, outside of user namespaces."""

import json
import os
import subprocess
import sys

from plashlib import Error, programs, work

CONTAINER = "container"  # the file in a work.Work that names the container that goes with it
NAMES = "docker", "podman"
# What of docker's settings an OCI configuration can have, and docker's own three.
SETTINGS = {
    *("User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels"),
    *("StopSignal", "Healthcheck", "Shell", "OnBuild"),
}
# What is in an OCI configuration beside `config`, by the names of `docker image inspect`.
FIELDS = ("Architecture", "Variant", "Os", "Created", "Author")


def program() -> str:
    """Return the name of the program to use: docker, or podman if docker has no daemon here.

    A daemon that the user names, in DOCKER_HOST or DOCKER_CONTEXT, is never passed over.
    Raises Error if neither is installed.
    """
    installed = [name for name in NAMES if programs.find(name)]
    if not installed:
        raise Error("install docker or podman (pull:lxc and pull:tarfile do without)")
    named = os.environ.get("DOCKER_HOST") or os.environ.get("DOCKER_CONTEXT")
    if len(installed) > 1 and not named and _run("docker", "version").returncode:
        return "podman"
    return installed[0]


def call(name: str, *arguments: str, show: bool = False) -> bytes:
    """Run docker or podman and wait for it; returns what it prints.

    show  have the user see what it says instead, if that is on a terminal

    Raises Error with the program's reason in one line.
    """
    show = bool(show and sys.stderr and sys.stderr.isatty())
    streams = {"stdout": 2, "stderr": None} if show else {}
    done = _run(name, *arguments, **streams)
    if done.returncode:
        raise Error(f"{name} {arguments[0]}: {reason(done.stderr, done.returncode)}")
    return done.stdout


def _run(name, *arguments, **streams):
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return programs.run([name, *arguments], as_caller=True, **streams)


def reason(stderr: "bytes | None", status: int) -> str:
    """Return the line of the program's stderr that says why it failed."""
    lines = [line for line in (stderr or b"").decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"exit status {status}"


def configuration(name: str, image: str) -> "dict[str, bytes]":
    """Return what an image's configuration is in the store, as store.INHERITED names it."""
    try:
        found = json.loads(call(name, "image", "inspect", image))[0]
        settings = found.get("Config") or {}
        variables = settings.get("Env") or []
        fields = {field.lower(): found[field] for field in FIELDS if found.get(field)}
    except (ValueError, LookupError, AttributeError, RecursionError):
        raise Error(f"{name} image inspect: not the description of an image") from None
    config = {
        "architecture": "",
        "os": "linux",
        **fields,
        "config": {key: settings[key] for key in SETTINGS & settings.keys() if settings[key]},
        # The layers that the image has there are one here.
        "rootfs": {"type": "layers", "diff_ids": []},
    }
    kept = [each for each in variables if isinstance(each, str) and "=" in each[1:]]
    kept = [each for each in kept if "\0" not in each]
    return {
        "config.json": json.dumps(config, sort_keys=True).encode(),
        "env": "\0".join(kept).encode(errors="replace"),
    }


def own(owner: work.Work, name: str) -> str:
    """Return a name for a container of the program `name`, which goes when owner does.

    Raises OSError.
    """
    container = _container(owner.path)
    with open(f"{owner.path}/{CONTAINER}", "w", encoding="utf-8") as file:
        file.write(f"{name} {container}")
    return container


def _container(directory):
    return "plash-" + os.path.basename(directory)


def remove(name: str, container: str) -> None:
    """Remove a container, if there is one of that name."""
    _run(name, "rm", "--force", "--volumes", container)


def remove_abandoned() -> None:
    """Remove the containers of commands that were killed before they could."""
    for entry in work.garbage():
        for name in NAMES:
            if _has_container(entry, name) and programs.find(name):
                remove(name, _container(entry))
                work.delete(entry)


def _has_container(entry, name):
    """Return whether own() wrote that an entry of tmp/ has a container, and nobody else."""
    try:
        opened = os.open(f"{entry}/{CONTAINER}", os.O_RDONLY | os.O_NONBLOCK)  # maybe a fifo
        with open(opened, "rb") as file:
            return file.read(1000) == os.fsencode(f"{name} {_container(entry)}")
    except OSError:
        return False
