"""What the instructions of a Containerfile do to files: RUN, WORKDIR, COPY and ADD.

Each function makes a new image on an Image, in a process that is root of its user namespace
already. It returns the new image's id, and lines for the user; it raises Error, OSError.
"""

import os
import posixpath
import subprocess

from plashlib import (
    Error,
    binds,
    build,
    container,
    copying,
    copysteps,
    imageconfig,
    namespaces,
    processes,
    programs,
    runmounts,
    sources,
    store,
    work,
)


def run(
    image: store.Image,
    command: "list[str]",
    mounts: "list[runmounts.Mount]",
    files: "dict[str, bytes]",
    config: dict,
    created_by: str,
    **options,
) -> "tuple[str, list[str]]":
    """Run command, as `plash build` does.

    files    more files that it sees: paths to contents
    options  as for build.run()
    """
    if image.id == store.EMPTY:
        raise Error("the image is empty, and has no command to run")
    with work.NewLayer() as layer, runmounts.Mounted(mounts, layer.path + "/mounts") as mounted:
        for number, (path, content) in enumerate(files.items()):
            source = f"{layer.path}/file{number}"
            with open(source, "xb") as file:
                file.write(content)
            os.chmod(source, 0o755)
            mounted.binds.append(binds.Bind(source, path, requested=True, read_only=True))
        options["variables"] = [*options["variables"], *mounted.variables]
        status, warnings = build.run(
            image, layer, command, keep_tmp=True, mounts=mounted.binds, **options
        )
        if status:
            raise Error(f"the command failed with exit status {status}")
        made = imageconfig.files(config, created_by, layer=True)
        return layer.stack_on(image, config=made).id, warnings


def workdir(
    image: store.Image, path: str, user: "str | None", config: dict, created_by: str
) -> "tuple[str, list[str]]":
    """Make the directory at path, if it is missing; it is the user's."""

    def make():
        there = os.path.isdir(path)
        if os.path.lexists(path) and not there and not os.path.islink(path):
            raise Error(f"{path} is not a directory")
        copier = copying.Copier(copying.find_owner(user))
        copier.make_directories(path)
        return not there, sorted(copier.lost)

    with work.NewLayer() as layer:
        changed, lost = copying.change_files(image, layer, make)
        warnings = _keep_lost(image, layer, lost)
        made = imageconfig.files(config, created_by, layer=changed)
        return layer.stack_on(image, config=made).id, warnings


def _keep_lost(image, layer, lost):
    """Have the layer's image know of the owners that were not kept; returns lines for the user."""
    if not lost:
        return []
    from plashlib import emulate

    known = (image.read("owners") or b"").decode().splitlines()
    layer.config["owners"] = "\n".join(sorted({*known, *lost})).encode()
    return emulate.warnings("\n".join(lost).encode())


def copy(
    image: store.Image, what: "copysteps.Copy", config: dict, created_by: str
) -> "tuple[str, list[str]]":
    """Carry out a Copy."""
    with work.NewLayer() as layer:
        # What is mounted goes with the process.
        warnings = _keep_lost(image, layer, processes.call(_copy, image, layer, what))
        made = imageconfig.files(config, created_by, layer=True)
        return layer.stack_on(image, config=made).id, warnings


def _copy(image, layer, what):
    point, inline = layer.path + "/source", layer.path + "/inline"
    from_image = next((part.image for part in what.parts if part.image is not None), None)
    if from_image is not None:
        namespaces.private_mounts()
        os.mkdir(point)
        container.mount(store.image(from_image, allow_empty=True), point)
    os.mkdir(inline)
    deep = bool(what.flags.get("parents"))
    jobs = [job for part in what.parts for job in _jobs(part, point, inline, deep)]
    lost = copying.change_files(image, layer, lambda: _copy_all(what, jobs))
    for _, source, unpacker in jobs:
        process = unpacker and unpacker[1]
        if process and process.wait():
            ending = programs.ending(process.args[0], process.returncode)
            raise Error(f"{source.name}: {ending}")
    return lost


def _jobs(part, point, inline, deep):
    """Pairs of a Part and a Source, with what unpacks it if it is an archive."""
    if part.content is not None:
        path = f"{inline}/{part.name}"
        with open(path, "xb") as file:
            file.write(part.content)
        os.chmod(path, 0o644)
        part.tree, part.pattern = sources.Tree(inline), part.name
    elif part.image is not None:
        part.tree = sources.Tree(point)
    jobs = []
    for source in part.tree.find(part.pattern, deep):
        unpacker = None
        if part.unpack and not source.is_directory():
            unpacker = _unpacker(part.tree, source)
        jobs.append((part, source, unpacker))
    return jobs


def _unpacker(tree, source):
    """The file that a plain tar comes from, if the Source is an archive, and what writes it."""

    def peek(argv):
        with tree.open(source.path) as file:
            process = programs.start(
                argv, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            head = process.stdout.read(512)
            process.kill()
            process.stdout.close()
            process.wait()
            return head

    with tree.open(source.path) as file:
        argv = copying.archive_program(file.read(1 << 12), peek)
    if argv is None:
        return None
    if not argv:
        return tree.open(source.path), None
    file = tree.open(source.path)
    process = programs.start(argv, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    file.close()
    return process.stdout, process


def _copy_all(what, jobs):
    flags = what.flags
    owner = copying.find_owner(flags.get("chown")) if flags.get("chown") else None
    exclude = sources.matcher(flags.get("exclude") or ())
    directory = what.into_directory() or len(jobs) > 1
    copiers = []
    for part, source, unpacker in jobs:
        of_image = part.image is not None
        copier = copying.Copier(
            owner or (None if of_image else (0, 0)),
            flags.get("chmod") or part.mode,
            xattrs=of_image,
        )
        copiers.append(copier)
        target = what.target
        if flags.get("parents"):
            target = posixpath.join(target, _parents(part.pattern, source))
            if not source.is_directory():
                copier.make_directories(posixpath.dirname(target))
        if unpacker:
            copier.extract(unpacker[0], target)
        elif source.is_directory():
            if not flags.get("parents") and directory and not what.target.endswith("/"):
                raise Error(f"{what.target} must end with /, because there are several sources")
            copier.copy(part.tree, source, target, exclude)
        else:
            name = part.name or os.path.basename(source.name)
            if exclude and exclude.matches(name):
                continue
            if not flags.get("parents") and (directory or os.path.isdir(target)):
                target = posixpath.join(target, name)
            copier.copy(part.tree, source, target)
    return sorted({line for copier in copiers for line in copier.lost})


def _parents(pattern, source):
    """The path of a Source that --parents keeps: behind /./ if the pattern has that."""
    before, pivot, _ = pattern.partition("/./")
    if not pivot:
        return source.name
    above = len([part for part in before.split("/") if part not in ("", ".")])
    return "/".join(source.name.split("/")[above:])
