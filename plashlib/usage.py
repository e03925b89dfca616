"""How much of the disk images take, and how long ago: measured, written and read."""

import os

from plashlib import Error, ids, progress, store

UNITS = (
    ("y", 365 * 86400),
    ("d", 86400),
    ("h", 3600),
    ("min", 60),
    ("s", 1),
)  # of ages, in seconds
MULTIPLES = ("", "k", "m", "g", "t")  # of bytes


def sizes(images: "list[store.Image]") -> "dict[str, int]":
    """The bytes on disk of each Image's own layer, by ids; du(1) adds them up.

    This process becomes root of a user namespace. Raises Error, OSError.
    """
    import subprocess  # here, since nothing else needs it: it takes longer to load than Python

    ids.become_root()
    found, rest = {}, b""
    with open(os.memfd_create("layers"), "w+b") as layers:
        layers.write(b"".join(os.fsencode(image.path) + b"/_data\0" for image in images))
        layers.seek(0)
        # Two statements: Python 3.9 does not document one for both, in parentheses.
        with progress.Progress("measuring images") as shown:
            with subprocess.Popen(
                ["du", "--block-size=1", "--summarize", "--null", "--files0-from=-"],
                env={**os.environ, "LC_ALL": "C"},
                stdin=layers,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            ) as du:
                assert du.stdout
                for piece in iter(lambda: os.read(du.stdout.fileno(), 1 << 16), b""):
                    *lines, rest = (rest + piece).split(b"\0")
                    for line in lines:
                        size, _, path = line.partition(b"\t")
                        found[path.split(b"/")[-2].decode()] = int(size)
                    shown.show(sum(found.values()))
    return found


def whole_size(image: store.Image, measured: "dict[str, int]") -> int:
    """The bytes of an Image's layer and of all that it stands on."""
    return sum(measured.get(each.id, 0) for each in image.ancestry())


def age(seconds: float) -> str:
    """A time in seconds as a person says it, in its largest unit."""
    for unit, length in UNITS:
        if seconds >= length:
            return f"{int(seconds / length)} {unit}"
    return "now"


def seconds(text: str) -> int:
    """The seconds of an age such as 30d or 12h. Raises Error."""
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyz").strip()
    lengths = {**dict(UNITS), "w": 7 * 86400}
    unit = text[len(digits) :].strip()
    if not (digits.isascii() and digits.isdigit()) or unit not in lengths:
        raise Error(f"not an age: {text!r} (a number and a unit: s, min, h, d, w, y)")
    return int(digits) * lengths[unit]


def size(text: str) -> int:
    """The bytes of a size such as 20G or 500MB; an i, as in GiB, makes it 1024. Raises Error."""
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ").strip()
    unit = text[len(digits) :].strip().lower().removesuffix("b")
    base = 1024 if unit.endswith("i") else 1000
    unit = unit.removesuffix("i")
    if not digits.isascii() or not digits.replace(".", "", 1).isdigit() or unit not in MULTIPLES:
        raise Error(f"not a size: {text!r} (bytes, or a number and a unit: kB, MB, GB, GiB)")
    try:
        return int(float(digits) * base ** MULTIPLES.index(unit))
    except OverflowError:
        raise Error(f"not a size: {text!r} (too large)") from None
