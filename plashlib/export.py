"""An image's layers, held open while a command writes out what they show."""

import os

from plashlib import container, ids, namespaces, store


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
    return container.open_layers(image, mounted)
