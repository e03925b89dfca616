"""What made an image: made.json beside its layer holds the argv of the plash command, and when.

{"argv": ["build", "-e", "NAME", "1", "CODE"], "created": seconds since the epoch}
"""

import os
import sys
import time

from plashlib import docs

FILE = "made.json"
KINDS = {"argv": list, "created": int, "created_by": str, "empty_layer": bool}  # what is in it


def made(argv: "list[str] | None" = None) -> bytes:
    """The content of FILE for an image that is made now, by argv; None for this process's own.

    argv[0] is the command's name without `plash-`. Values of variables and what may be secret
    in URLs are left out.
    """
    if argv is None:
        argv = [os.path.basename(sys.argv[0]).replace("plash-", "", 1), *sys.argv[1:]]
    listed = ", ".join(map(_json_string(), public(argv)))
    return f'{{"argv": [{listed}], "created": {int(time.time())}}}\n'.encode()


def _json_string():
    # The module json takes as long to import as a small build takes to mount.
    try:
        from _json import encode_basestring_ascii
    except ImportError:
        from json import dumps as encode_basestring_ascii
    return encode_basestring_ascii


def public(argv: "list[str]") -> "list[str]":
    """The argv of a plash command without what others should not read; argv[0] is its name."""
    shown = argv[:1]
    for argument in docs.header(docs.find(argv[0])).arguments(argv[1:]):
        value = argument.value
        if argument.name == "VAR":
            value = value.partition("=")[0]
        elif argument.name in ("URL", "REF") and "://" in value:
            value = _public_url(value)
        shown.append(argument.prefix + value)
    return shown


def _public_url(url):
    """A URL without user, password and query."""
    scheme, _, rest = url.partition("://")
    server, slash, path = rest.partition("/")
    return f"{scheme}://{server.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


def read(image) -> dict:
    """What FILE of a store.Image says: its argv, [] if unknown, and what else is sound of it."""
    import json

    try:
        found = json.loads(image.read(FILE) or "{}")
    except (ValueError, RecursionError):
        found = None
    found = found if isinstance(found, dict) else {}
    made = {name: found[name] for name in KINDS if isinstance(found.get(name), KINDS[name])}
    argv = made.get("argv", [])
    made["argv"] = argv if all(isinstance(each, str) for each in argv) else []
    return made


def created(image) -> float:
    """When a store.Image was made, in seconds since the epoch. Raises FileNotFoundError."""
    try:
        return os.stat(f"{image.path}/_data/{FILE}").st_mtime
    except FileNotFoundError:
        return os.stat(image.path + "/_data").st_mtime  # made by an older plash
