"""An image's layers, mounted while a command writes out what they show."""

import os

from plashlib import container, ids, namespaces, store

# Where libc finds names; an empty nsswitch.conf(5) stands for these files alone.
NAMES = "/etc/passwd", "/etc/group", "/etc/nsswitch.conf"


def mount_layers(image: store.Image) -> str:
    """Mount an image's layers side by side, as root of a user namespace.

    Returns the directory in which the topmost one is 0, the next one 1, and so on. The image
    counts as in use until this process ends. Raises Error, OSError.
    """
    ids.become_root()
    namespaces.private_mounts()
    mounted = store.path() + "/mnt"
    namespaces.mount("plash", mounted, "tmpfs", options="mode=0755")
    # Its overlay shows other processes that the image is in use.
    os.mkdir(mounted + "/image")
    container.mount(image, mounted + "/image")
    layers = mounted + "/layers"
    os.mkdir(layers)
    for number, layer in enumerate(container.open_layers(image, mounted)):
        os.mkdir(f"{layers}/{number}")
        namespaces.mount(f"/proc/self/fd/{layer}", f"{layers}/{number}", flags=namespaces.MS_BIND)
        os.close(layer)
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
