"""Squashfs files of images, which mksquashfs(1) writes: the same bytes each time."""

import json
import subprocess

from plashlib import Error, container, ids, imageconfig, namespaces, programs, squashfs, store

# Of zstd's levels, 6 takes a tenth of the time of the default, 15, for files 6 % larger.
OPTIONS = [
    *("-noappend", "-quiet", "-no-progress", "-exit-on-error", "-mkfs-time", "0"),
    *("-comp", "zstd", "-Xcompression-level", "6"),
]
ACL = "Unrecognised xattr prefix system.posix_acl"  # mksquashfs says it of each file with one


def write(image: store.Image, target: int, offset: int = 0) -> "list[str]":
    """Write an Image to the descriptor of a file, from offset (bytes) on.

    What was in the file before is lost. This process is root of a user namespace, with a mount
    namespace of its own, afterwards. Returns warnings. Raises Error, if content cannot be read
    too.
    """
    ids.become_root()
    namespaces.private_mounts()
    mounted = container.mount(image, store.path() + "/mnt")
    try:
        done = programs.run(
            ["mksquashfs", mounted, f"/proc/self/fd/{target}", *OPTIONS, "-offset", str(offset)],
            pass_fds=[target],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError:
        raise Error("mksquashfs is not installed (package squashfs-tools)") from None
    lines = done.stderr.decode(errors="surrogateescape").strip().splitlines()
    acls = [line for line in lines if line.startswith(ACL)]
    lines = [line.replace(mounted + "/", "", 1) for line in lines if line not in acls]
    if done.returncode:
        raise Error(f"mksquashfs: {lines[0] if lines else done.returncode}")
    settings = _settings(image)
    if settings:
        squashfs.write_settings(f"/proc/self/fd/{target}", offset, settings)
    return [f"{len(acls)} ACLs left out, which squashfs does not hold"] if acls else []


def _settings(image):
    """What store.INHERITED names of an Image; its configuration without the layers, now one."""
    found = {name: image.read(name) for name in store.INHERITED}
    if found["config.json"]:
        config = imageconfig.read(image)
        config.pop("history", None)
        config["rootfs"] = {"type": "layers", "diff_ids": []}
        found["config.json"] = json.dumps(config, sort_keys=True).encode(errors="surrogateescape")
    return {name: content for name, content in found.items() if content}
