"""OCI images: what skopeo(1) reads and writes, and the layouts in which it is handed over.

The words are those of the OCI image specification: a layer is a tar archive, its digest
that of the file, compressed or not, and its diff id that of the tar.
"""

import json
import subprocess
import sys

from plashlib import Error

ALGORITHM = (
    "sha256:"  # what every digest begins with, and the name of the directory of a layout's blobs
)
TRANSPORTS = {
    "containers-storage",
    "dir",
    "docker",
    "docker-archive",
    "docker-daemon",
    "oci",
    "oci-archive",
    "ostree",
    "sif",
    "tarball",
}


def reference(text):
    """What the user's REF is to skopeo: an image of a registry where it names no transport."""
    return text if text.partition(":")[0] in TRANSPORTS else "docker://" + text


def options(args, prefix=""):
    """The options of ours in docopt's args that are skopeo's; prefix is "src-" or "dest-" for `skopeo copy`."""
    given = ("authfile", f"--{prefix}authfile"), ("tls-verify", f"--{prefix}tls-verify")
    return [f"{option}={args['--' + name]}" for name, option in given if args["--" + name]]


def skopeo(*words, show=False):
    """Run skopeo; returns what it prints, or shows that on a terminal. Raises Error."""
    try:
        done = subprocess.run(
            ["skopeo", *words],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            stdout=2 if show and sys.stderr and sys.stderr.isatty() else subprocess.PIPE,
        )
    except FileNotFoundError:
        raise Error("install skopeo, which speaks with registries") from None
    if done.returncode:
        # Its last line tells, in a log format: time="..." level=fatal msg="..."
        why = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise Error("skopeo: " + (why.partition('msg="')[2].rstrip('"').replace('\\"', '"') or why))
    return done.stdout


def blob(layout, digest):
    """The path of the file of that digest in a layout. Raises Error for another kind of digest."""
    algorithm, _, number = digest.rpartition(ALGORITHM)
    if algorithm or len(number) != 64 or not number.isalnum():
        raise Error(f"not a digest that plash knows: {digest}")
    return f"{layout}/blobs/sha256/{number}"


def parse(content):
    """The value of a JSON object, from bytes. Raises Error where it is none."""
    try:
        value = json.loads(content)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Error("the image's configuration is no JSON object")
    return value


def diff_ids(config):
    """The diff ids of the layers that a configuration, as of parse(), is for: the lowest first. Raises Error."""
    rootfs = config.get("rootfs")
    found = isinstance(rootfs, dict) and (rootfs.get("diff_ids") or [])
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise Error(
            "the image's configuration lists no layers (rootfs.diff_ids): not an image of a root filesystem"
        )
    return found
