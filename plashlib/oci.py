"""OCI images: what skopeo(1) reads and writes, and the layouts in which it is handed over.

The words are those of the OCI image specification: a layer is a tar archive, its digest
that of the file, compressed or not, and its diff id that of the tar.
"""

import json
import os
import subprocess
import sys

from plashlib import Error, programs

# What every digest begins with, and the name of the directory of a layout's blobs.
ALGORITHM = "sha256:"
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


CONFIGS = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)


def reference(text: str) -> str:
    """Return a user's REF as skopeo takes it: of a registry where it names no transport."""
    if text.partition(":")[0] in TRANSPORTS - {"docker"}:
        return text
    name, at, digest = text.removeprefix("docker://").partition("@")
    if at and ":" in name.rpartition("/")[2]:
        # skopeo takes no tag beside a digest, which says it all.
        name = name.rpartition(":")[0]
    return f"docker://{name}{at}{digest}"


def pinned(ref: str, digest: str) -> str:
    """Return the reference of a manifest of the same name, where the transport has such."""
    if not ref.startswith("docker://"):
        return ref
    name = ref.removeprefix("docker://").partition("@")[0]
    directory, slash, last = name.rpartition("/")
    return f"docker://{directory}{slash}{last.partition(':')[0]}@{digest}"


def options(args: dict, prefix: str = "") -> "list[str]":
    """Return the options in docopt's args that are skopeo's too.

    prefix  "src-" or "dest-" for `skopeo copy`
    """
    given = ("authfile", f"--{prefix}authfile"), ("tls-verify", f"--{prefix}tls-verify")
    return [f"{option}={args['--' + name]}" for name, option in given if args["--" + name]]


def skopeo(*arguments: str, show: bool = False) -> bytes:
    """Run skopeo; returns what it prints, or shows that on a terminal. Raises Error."""
    _avoid_others_credentials()
    try:
        done = programs.run(
            ["skopeo", *arguments],
            as_caller=True,
            cwd=os.getcwd(),
            stderr=subprocess.PIPE,
            stdout=2 if show and sys.stderr and sys.stderr.isatty() else subprocess.PIPE,
        )
    except FileNotFoundError:
        raise Error("skopeo is not installed (needed for registries)") from None
    if done.returncode:
        # Its last line tells, in a log format: time="..." level=fatal msg="..."
        why = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        message = why.partition('msg="')[2].removesuffix('"').replace('\\"', '"')
        raise Error("skopeo: " + (message or why))
    return done.stdout


def _avoid_others_credentials():
    """Have skopeo look for credentials elsewhere if the default directory is root's alone.

    containers-auth.json(5): without XDG_RUNTIME_DIR it is /run/containers/UID, which nobody else
    can look into once root ran `skopeo login`.
    """
    if not os.environ.get("XDG_RUNTIME_DIR"):
        try:
            os.stat(f"/run/containers/{os.getuid()}/auth.json")
        except PermissionError:
            os.environ["XDG_RUNTIME_DIR"] = "/nonexistent"
        except OSError:
            pass


def blob(layout: str, digest: str) -> str:
    """Return the path of the file of that digest in a layout.

    Raises Error for another kind of digest.
    """
    algorithm, _, number = digest.rpartition(ALGORITHM)
    if algorithm or len(number) != 64 or not number.isalnum():
        raise Error(f"not a digest that plash knows: {digest}")
    return f"{layout}/blobs/sha256/{number}"


def parse(content: bytes, what: str = "configuration") -> dict:
    """Return the value of a JSON object. Raises Error if it is none that can be written again."""
    try:
        value = json.loads(content, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Error(f"the image's {what} is no JSON object")
    return value


def _refuse(text):
    raise ValueError(text)


def _finite(text):
    value = float(text)
    return value if abs(value) != float("inf") else _refuse(text)


def diff_ids(config: dict) -> "list[str]":
    """Return the diff ids of a configuration's layers, the lowest first. Raises Error."""
    rootfs = config.get("rootfs")
    found = isinstance(rootfs, dict) and (rootfs.get("diff_ids") or [])
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise Error(
            "the image's configuration lists no layers (rootfs.diff_ids):"
            " not an image of a root filesystem"
        )
    return found


def layers(manifest: dict) -> "list[dict]":
    """Return the descriptors of a manifest's layers, the lowest first.

    Raises Error if it is not that of an image that can be fetched.
    """
    if manifest.get("schemaVersion") == 1:
        raise Error("the image's manifest is of schema 1, which is obsolete (push the image again)")
    config, found = manifest.get("config"), manifest.get("layers") or []
    kind = config.get("mediaType") if isinstance(config, dict) else None
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise Error("the image's manifest lists no layers")
    if kind not in CONFIGS:
        kind = manifest.get("artifactType") or kind
        raise Error(f"not an image, but an artifact of the type {kind}")
    for each in found:
        if not isinstance(each.get("digest"), str):
            raise Error("the image's manifest has a layer without a digest")
        kind = str(each.get("mediaType"))
        # skopeo copies nothing that has urls.
        if each.get("urls") or "foreign" in kind or "nondistributable" in kind:
            raise Error(f"a layer is not in the registry, but elsewhere (urls): {each['digest']}")
    return found


def choose(index: dict, platform: "tuple[str, str, str]") -> dict:
    """Return the descriptor, in an index of images, of the one for a platform. Raises Error.

    platform  the operating system, architecture, and the variant or ""
    """
    entries = [each for each in index.get("manifests") or [] if isinstance(each, dict)]
    found: dict = {}
    for each in entries:
        described = each.get("platform") if isinstance(each.get("platform"), dict) else {}
        key = tuple(str(described.get(name) or "") for name in ("os", "architecture", "variant"))
        if isinstance(each.get("digest"), str):
            found.setdefault(key, each)
    for key in platform, (*platform[:2], ""):
        if key in found:
            return found[key]
    same = [key for key in found if key[:2] == platform[:2] and not platform[2]]
    if same:
        return found[max(same)]
    if ("", "", "") in found:
        return found["", "", ""]  # that may be for any, as the specification has it
    known = ", ".join("/".join(filter(None, key)) for key in found if key[0] != "unknown")
    raise Error(f"no image for {'/'.join(filter(None, platform))} (there are: {known or 'none'})")
