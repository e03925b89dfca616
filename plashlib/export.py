"""An image's layers, held open while a command writes out what they show."""

import os

from plashlib import container, ids, namespaces, store

# Where libc finds names; an empty nsswitch.conf(5) stands for these files alone.
NAMES = "/etc/passwd", "/etc/group", "/etc/nsswitch.conf"


def open_layers(image: store.Image) -> "list[int]":
    """Open an image's layers, the topmost first, as root of a user namespace; returns descriptors.

    The image counts as in use until this process ends. Raises Error, OSError.
    """
    ids.become_root()
    namespaces.private_mounts()
    mounted = store.path() + "/mnt"
    namespaces.mount("plash", mounted, "tmpfs", options="mode=0755")
    # Its overlay shows other processes that the image is in use.
    os.mkdir(mounted + "/image")
    container.mount(image, mounted + "/image")
    layers = container.open_layers(image, mounted)
    hide_names()
    return layers


def hide_names() -> None:
    """Hide this host's names of users and groups from programs in this private mount namespace.

    tar writes ACLs with the names that it finds, whatever --numeric-owner says; another host
    gives these names to other ids. Raises OSError.
    """
    for file in NAMES:
        if os.path.exists(file):
            namespaces.mount(os.devnull, file, flags=namespaces.MS_BIND)
