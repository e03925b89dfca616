"""What is mounted where, as /proc/self/mountinfo says; see proc(5)."""

import os


def below(directory: str) -> "list[str]":
    """Return the mount points at or below a directory, given by its real path. Raises OSError."""
    return [point for point, _ in mounts_below(directory)]


def mounts_below(directory: str) -> "list[tuple[str, str]]":
    """As below(), but pairs of mount point and filesystem type, in the order of mounting."""
    found, inside = [], os.fsencode(directory).rstrip(b"/") + b"/"
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            # Blanks, newlines and backslashes are written as \040 and so on.
            point = line.split()[4].decode("unicode_escape").encode("latin-1")
            if (point + b"/").startswith(inside):
                kind = line.partition(b" - ")[2].split()[0]
                found.append((os.fsdecode(point), os.fsdecode(kind)))
    return found
