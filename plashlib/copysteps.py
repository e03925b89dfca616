"""COPY and ADD of a Containerfile: what they copy, and the argv by which that is remembered.

Of files of the context, content, mode and name decide, and not times. An image, or a stage, is
known by its id, and a URL's file by its digest.
"""

import contextlib
import json
import os
import re

from plashlib import Error, inputs, sources

URL = re.compile(r"https?://", re.IGNORECASE)
GIT = re.compile(r"(git@|git://|ssh://)|https?://.*\.git(#.*)?$", re.IGNORECASE)
CHECKSUM = re.compile(r"sha256:([0-9a-f]{64})")


class Copy:
    """What COPY or ADD is to do.

    parts    what to copy, in order: Part
    target   an absolute path; a directory if it ends with /
    """

    def __init__(self, target: str, flags: dict) -> None:
        self.target, self.flags = target, flags
        self.parts: list[Part] = []

    def into_directory(self) -> bool:
        return self.target.endswith("/") or len(self.parts) > 1


class Part:
    """One thing to copy.

    tree     the sources.Tree that it is in; None for the image `image`
    pattern  of what is copied from there
    name     its name in the target directory; None for its own
    unpack   whether an archive is unpacked
    mode     its mode, if not its own
    content  the content of a file that is in no tree
    """

    def __init__(self, tree=None, image=None, pattern="", **options) -> None:
        self.tree, self.image, self.pattern = tree, image, pattern
        self.name: "str | None" = options.get("name")
        self.unpack: bool = options.get("unpack", False)
        self.mode: "str | None" = options.get("mode")
        self.content: "bytes | None" = options.get("content")


def copy(build, state, instruction) -> None:
    """Carry out a COPY or ADD for a steps.Build. Raises Error, OSError."""
    variables = state.variables()
    flags = dict(instruction.flags)
    for name in "chown", "chmod", "checksum":
        if name in flags:
            flags[name] = build.words.one(flags[name], variables)
    *given, target = [build.words.one(each, variables) for each in instruction.args]
    slash = "/" if target.endswith(("/", "/.")) or target == "." else ""
    where = state.path(target).rstrip("/") + slash or "/"
    what = Copy(where, flags)
    keys, heredocs = [], {f"<<{each.name}": each for each in instruction.heredocs}
    exclude = sources.matcher(flags["exclude"])
    if "checksum" in flags and (len(given) > 1 or not URL.match(given[0])):
        raise Error("--checksum is for one URL")
    image = (
        build.image_of(state, build.words.one(flags["from"], variables))
        if flags.get("from")
        else None
    )
    with contextlib.ExitStack() as opened:
        for text, word in zip(given, instruction.args):
            heredoc = _heredoc(word, heredocs)
            if heredoc:
                content = build.words.heredoc(heredoc, variables).encode(errors="surrogateescape")
                part, key = (
                    Part(name=heredoc.name, content=content),
                    content.decode("latin-1"),
                )
            elif instruction.name == "ADD" and GIT.match(text):
                raise Error("ADD of a Git repository is not supported (RUN git clone does it)")
            elif instruction.name == "ADD" and URL.match(text):
                part, key = _download(opened, text, flags)
            elif image is not None:
                part, key = Part(image=image, pattern=text), image
            else:
                part, key = _from_context(build, text, exclude, instruction)
            what.parts.append(part)
            keys.append([text, key])
        if len(what.parts) > 1 and not slash:
            raise Error(f"with several sources, {target} has to end with /")
        described = json.dumps([where, flags, keys], sort_keys=True)
        argv = ["build:file", instruction.name, described, state.id]
        config = state.config

        def make(below):
            from plashlib import making

            return making.copy(below, what, config, instruction.text)

        build.remember(state, instruction, argv, make)


def _heredoc(word, heredocs):
    if not word.startswith("<<"):
        return None
    return heredocs.get("<<" + word[2:].lstrip("-").strip("\"'"))


def _from_context(build, text, exclude, instruction):
    tree = build.context_tree()
    found = tree.find(text, deep=bool(instruction.flags.get("parents")))
    if not found:
        build.warn(f"{instruction.file}:{instruction.line}: no file matches {text}")
    unpack = instruction.name == "ADD" and instruction.flags.get("unpack", True)
    return Part(tree=tree, pattern=text, unpack=unpack), tree.digest(found, exclude)


def _download(opened, url, flags):
    """The Part of a URL's file, which is downloaded, and its digest."""
    from plashlib import download

    match = CHECKSUM.fullmatch(flags.get("checksum", ""))
    if "checksum" in flags and not match:
        raise Error(f"not a checksum: {flags['checksum']!r} (sha256: and 64 hexadecimal digits)")
    name = os.path.basename(url.partition("?")[0].partition("#")[0])
    if not name:
        raise Error(f"{url} names no file")
    file = opened.enter_context(download.File(url))
    file.fetch(match and match[1])
    digest = inputs.sha256()
    with open(file.file, "rb") as content:
        while True:
            piece = content.read(1 << 20)
            if not piece:
                break
            digest.update(piece)
    tree = sources.Tree(file.path)
    part = Part(
        tree=tree,
        pattern=os.path.basename(file.file),
        name=name,
        mode="0600",
        unpack=bool(flags.get("unpack")),
    )
    return part, digest.hexdigest()
