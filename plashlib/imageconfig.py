"""Configurations of images: what the OCI image specification's config.md has, read and changed.

The changes are those of buildah-config(1), under its names. An image has the whole of its
configuration in _data/config.json, and its variables once more in _data/env, which `run` reads.
"""

import json
import os
import time

from plashlib import Error, caller, history, store

# A change that replaces a value: the option's name to the setting's.
SINGLE = {"workingdir": "WorkingDir", "user": "User", "stop-signal": "StopSignal"}
# Changes that add to a setting or remove from it: NAME- removes one, - all.
KEYED = {"label": "Labels", "port": "ExposedPorts", "volume": "Volumes"}
# The shell first: an entrypoint that is a line is for the new one.
ARGV = {"shell": "Shell", "entrypoint": "Entrypoint", "cmd": "Cmd"}
TYPES: "dict[str, type]" = {
    **dict.fromkeys(("User", "WorkingDir", "StopSignal"), str),
    **dict.fromkeys(("Entrypoint", "Cmd", "Shell", "OnBuild"), list),
    **dict.fromkeys(("Labels", "Volumes", "ExposedPorts"), dict),
}
OPTIONS = ("env", *SINGLE, *ARGV, *KEYED, "arch")
SHELL = ["/bin/sh", "-c"]


def read(image: store.Image) -> dict:
    """The configuration of an Image; one with a PATH and nothing else if it has none.

    Raises Error if it is not one.
    """
    raw = image.read("config.json")
    if not raw:
        system, architecture, variant = platform(None)
        return {
            "architecture": architecture,
            **({"variant": variant} if variant else {}),
            "os": system,
            "config": {"Env": ["PATH=" + caller.PATH]},
            "rootfs": {"type": "layers", "diff_ids": []},
        }
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict) or not isinstance(config.get("config") or {}, dict):
        raise Error(f"the configuration of image {image.id} is not a JSON object")
    config["config"] = config.get("config") or {}
    for name, value in config["config"].items():
        if name in TYPES and value is not None and not _is_sound(value, TYPES[name]):
            raise Error(f"image {image.id} has an unsound {name}: {json.dumps(value)[:60]}")
    return config


def _is_sound(value, kind):
    """Whether a setting is of the type that the OCI image specification's config.md says."""
    texts = value if isinstance(value, list) else [value] if isinstance(value, str) else []
    return isinstance(value, kind) and all(map(_is_text, texts))


def _is_text(value):
    """Whether a value is a string that a file, an argument or a variable can hold."""
    return isinstance(value, str) and not any(
        character == "\0" or "\ud800" <= character <= "\udfff" for character in value
    )


def platform(text: "str | None") -> "tuple[str, str, str]":
    """The operating system, architecture, and variant or "", of OS/ARCH[/VARIANT].

    This machine's for None. Raises Error.
    """
    if text is None:
        from plashlib import foreign

        text = "linux/" + foreign.oci_name(os.uname().machine).replace(" ", "/")
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise Error(f"not a platform: {text!r} (OS/ARCH[/VARIANT], such as linux/arm64)")
    return parts[0], parts[1], "".join(parts[2:])


def variables(config: dict) -> "dict[str, str]":
    """The environment that a configuration sets."""
    entries = config["config"].get("Env")
    return dict(
        entry.split("=", 1)
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, str) and "=" in entry[1:]
    )


def files(
    config: dict, created_by: str, layer: bool, argv: "list[str] | None" = None
) -> "dict[str, bytes]":
    """The files beside the layer of an image with this configuration: for store.stack().

    created_by  what made the image, for its history
    layer       whether it has a layer of its own, rather than a configuration alone
    argv        the plash command that made it; without it, an instruction of a Containerfile did
    """
    made = {
        "argv": argv or ["build:file", created_by],
        "created": int(time.time()),
        "created_by": created_by,
        **({} if layer else {"empty_layer": True}),
    }
    found = {
        "config.json": json.dumps(config, sort_keys=True).encode(errors="surrogateescape"),
        "env": "\0".join("=".join(each) for each in variables(config).items()).encode(
            errors="surrogateescape"
        ),
        history.FILE: json.dumps(made).encode(),
    }
    if not layer:
        found[store.DESCRIPTOR] = b"{}"
    return found


def change(config: dict, option: str, value: str) -> None:
    """Make one change of `plash config` in a configuration. Raises Error."""
    settings = config["config"]
    if option == "env":
        _change_variable(config, value)
    elif option == "arch":
        architecture, _, variant = value.partition("/")
        if not architecture:
            raise Error("an image cannot be without an architecture")
        config.pop("variant", None)
        config["architecture"] = architecture
        if variant:
            config["variant"] = variant
    elif option in SINGLE:
        _set(settings, SINGLE[option], value)
    elif option in ARGV:
        _set(settings, ARGV[option], _argv(option, value, settings))
    else:
        _change_keyed(settings, option, value)


def _set(settings, name, value):
    if value:
        settings[name] = value
    else:
        settings.pop(name, None)


def _change_variable(config, text):
    known = variables(config)
    name, equals, value = text.partition("=")
    if text == "-":
        known = {}
    elif not name:
        raise Error(f"not a variable: {text!r} (NAME=VALUE, NAME, or NAME- to remove it)")
    elif equals:
        known[name] = value
    elif name.endswith("-"):
        known.pop(name[:-1], None)
    elif name in os.environ:
        known[name] = os.environ[name]
    _set(config["config"], "Env", [f"{name}={value}" for name, value in known.items()])


def _change_keyed(settings, option, text):
    name = KEYED[option]
    known = dict(settings.get(name) or {})
    key, equals, value = text.partition("=") if option == "label" else (text, "", "")
    if text == "-":
        known = {}
    elif key.endswith("-") and not equals:
        key = port(key[:-1]) if option == "port" else key[:-1]
        known.pop(key, None)
    elif not key:
        raise Error(f"not a {option}: {text!r}")
    elif option == "port":
        known[port(key)] = {}
    else:
        known[key] = value if option == "label" else {}
    _set(settings, name, known)


def port(text: str) -> str:
    """A port as configurations have it: 80 is 80/tcp. Raises Error."""
    number, _, protocol = text.partition("/")
    protocol = protocol.lower() or "tcp"
    if (
        not (number.isascii() and number.isdigit() and int(number) < 65536)
        or not protocol.isalpha()
    ):
        raise Error(f"not a port: {text!r} (NUMBER, NUMBER/tcp or NUMBER/udp)")
    return f"{int(number)}/{protocol}"


def _argv(option, text, settings):
    if not text:
        return []
    if text.lstrip()[:1] == "[":
        try:
            argv = json.loads(text)
        except (ValueError, RecursionError):
            argv = None
        if isinstance(argv, list) and all(isinstance(each, str) for each in argv):
            return argv
    if option == "entrypoint":
        return [*(settings.get("Shell") or SHELL), text]
    import shlex

    try:
        return shlex.split(text)
    except ValueError as error:
        raise Error(f"not a command: {text!r}: {error}") from None


def stack(
    image: store.Image, config: dict, created_by: str, argv: "list[str] | None" = None
) -> store.Image:
    """Make an image with another configuration and an empty layer. Raises Error, OSError.

    This process is root of its user namespace already.
    """
    from plashlib import container, work

    with work.NewLayer() as layer:
        container.make_layer(image, layer.root)
        beside = files(config, created_by, layer=False, argv=argv)
        return layer.stack_on(image, config=beside)
