"""What each instruction of a Containerfile makes: an image, remembered by an argv.

The argv is that of the command that makes the same: `plash build`, `plash config`, `plash
pull:oci`; where there is none, one of build:file's own. So Containerfiles, scripts and commands
find each other's images. Where all are remembered, nothing is loaded that only making them needs.
"""

import json
import os
import posixpath

from plashlib import (
    Error,
    cache,
    containerfile,
    imageconfig,
    inputs,
    names,
    settingsteps,
    sources,
    store,
)

PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
PIPES = "/dev/pipes/"  # where RUN finds a heredoc that is a script with #!
ALWAYS = {*PROXIES, *map(str.upper, PROXIES)}  # build arguments that need no ARG


class State:
    """Where the stage with that index is: the id of its image, its configuration, its ARGs."""

    def __init__(self, index: int, image_id: str, config: dict, arguments: dict) -> None:
        self.index, self.id, self.config, self.arguments = index, image_id, config, arguments
        self.cmd_is_set = False

    @property
    def settings(self) -> dict:
        return self.config["config"]

    def variables(self) -> "dict[str, str]":
        """What words of instructions can use: ENV wins over ARG."""
        given = {name: value for name, value in self.arguments.items() if value is not None}
        return {**given, **imageconfig.variables(self.config)}

    def path(self, text: str) -> str:
        """The absolute path in the image: below WORKDIR if it is relative."""
        joined = posixpath.join("/", self.settings.get("WorkingDir") or "/", text)
        return "/" + posixpath.normpath(joined).lstrip("/")

    def shell(self) -> "list[str]":
        return self.settings.get("Shell") or imageconfig.SHELL


class Build(settingsteps.SettingSteps):
    """One run of build:file.

    file       the containerfile.File
    context    the directory that COPY copies from
    arguments  the --build-arg: names to values
    secrets    the --secret: ids to paths of files
    platform   what is pulled, as OS/ARCHITECTURE[/VARIANT]; None for this machine's
    pull       more options of pull:oci
    fresh      make all images anew
    host       whether RUN can read the host below /host
    show       called with an Instruction and whether its image was remembered
    warn       called with a line for the user
    """

    def __init__(self, file: "containerfile.File", context: str, **options) -> None:
        self.file, self.context = file, context
        self.arguments: dict[str, str] = options["arguments"]
        self.secrets: dict[str, str] = options["secrets"]
        self.platform, self.pull = options["platform"], options["pull"]
        self.fresh, self.host = options["fresh"], options["host"]
        self.show, self.warn = options["show"], options["warn"]
        self.words = containerfile.Words(file.escape)
        self.used: set[str] = set()  # the build arguments that an ARG asks for
        self._trees: dict[str, sources.Tree] = {}
        self._stages: dict[int, State] = {}
        self.globals = self._platform_variables()
        for each in file.arguments:
            self._declare(each, self.globals, self.globals, {})

    def _platform_variables(self):
        found = {}
        for prefix, text in ("BUILD", None), ("TARGET", self.platform):
            parts = imageconfig.platform(text)
            found[prefix + "PLATFORM"] = "/".join(filter(None, parts))
            found.update(zip((prefix + "OS", prefix + "ARCH", prefix + "VARIANT"), parts))
        return found

    def needed(self, stage: "containerfile.Stage") -> "list[containerfile.Stage]":
        """The stages that a stage is made of, and itself."""
        found: dict[int, containerfile.Stage] = {}
        left = [stage]
        while left:
            each = left.pop()
            if each.index in found:
                continue
            found[each.index] = each
            texts = [self.words.one(each.start.args[0], self.globals)]
            texts += [line.flags["from"] for line in each.instructions if "from" in line.flags]
            for line in each.instructions:
                for text in line.flags.get("mount", ()):
                    texts += [part[5:] for part in text.split(",") if part.startswith("from=")]
            left += [
                other for text in texts for other in [self.file.find(text, each.index)] if other
            ]
        return [found[index] for index in sorted(found)]

    def stage(self, stage: "containerfile.Stage") -> State:
        """The State at the end of a stage; its images are made if missing. Raises Error."""
        if stage.index not in self._stages:
            self._stages[stage.index] = self._build_stage(stage)
        return self._stages[stage.index]

    def _build_stage(self, stage):
        start = stage.start
        try:
            base = self.words.one(start.args[0], self.globals)
            if not base:
                raise Error("the name of the image is empty")
            platform = self.words.one(start.flags.get("platform", ""), self.globals) or None
            imageconfig.platform(platform)
            earlier = self.file.find(base, stage.index) if not base.isdigit() else None
            if earlier:
                before = self.stage(earlier)
                state = State(
                    stage.index,
                    before.id,
                    json.loads(json.dumps(before.config)),
                    dict(before.arguments),
                )
                self.show(start, True)
            else:
                state = self._from(stage, base, platform or self.platform)
        except Error as error:
            raise self._located(start, error) from None
        except OSError as error:
            raise start.error(_reason(error)) from None
        for each in [*self._triggers(state, start), *stage.instructions]:
            self.step(state, each)
        return state

    def _from(self, stage, base, platform):
        if base == "scratch":
            self.show(stage.start, True)
            return State(stage.index, store.EMPTY, imageconfig.read(store.empty()), {})
        image_id = self.image(base, platform, stage.start)
        return State(stage.index, image_id, imageconfig.read(store.image(image_id)), {})

    def image(self, text: str, platform: "str | None" = None, start=None) -> str:
        """The id of an image that a name of map/ or a reference of pull:oci names. Raises Error."""
        found = names.lookup(text) if "/" not in text and ":" not in text else None
        made = []
        if found and platform:
            config = imageconfig.read(store.image(found))
            has = f"{config.get('os')}/{config.get('architecture')}"
            asked = "/".join(imageconfig.platform(platform)[:2])
            if has != asked:
                self.warn(f"image {text} is for {has}, not for {asked}")
        if not found:
            options = [*self.pull, *([f"--platform={platform}"] if platform else [])]
            argv = ["pull:oci", *options, text]

            def pull():
                made.append(1)
                return _printed(argv, self.warn)

            found = cache.cached(inputs.Inputs(argv).key, pull)
        if start:
            self.show(start, not made)
        return found

    def _triggers(self, state, start):
        """The instructions of an image's ONBUILD, which its configuration then lacks."""
        texts = state.settings.get("OnBuild")
        if not texts:
            return []
        del state.settings["OnBuild"]
        argv = ["build:file", "ONBUILD", "[]", state.id]
        self.remember(state, start, argv, self._configured(state, "ONBUILD"), show=False)
        found = []
        for text in texts:
            found += containerfile.parse(text, f"{start.file}:{start.line}: ONBUILD")[1]
        return found

    def step(self, state: State, instruction: "containerfile.Instruction") -> None:
        """Carry out one instruction. Raises Error that says where it stands."""
        handler = getattr(self, "_" + instruction.name.lower(), None)
        try:
            if not handler:
                raise Error("unknown instruction")
            handler(state, instruction)
        except Error as error:
            raise self._located(instruction, error) from None
        except OSError as error:
            raise instruction.error(_reason(error)) from None

    def _located(self, instruction, error):
        return error if isinstance(error, containerfile.Located) else instruction.error(error)

    def remember(self, state, instruction, argv, make, show=True):
        """Let the state's image be the one that is remembered for argv, which ends with its id."""
        made = []

        def run():
            from plashlib import processes

            made.append(1)
            if show:
                self.show(instruction, False)
            store.require_room(store.image(state.id, allow_empty=True))
            image_id, warnings = processes.call(_as_root, make, state.id)
            for line in warnings:
                self.warn(line)
            return image_id

        key = argv if argv[0] == "build:file" else inputs.Inputs(argv).key
        state.id = cache.cached(key, run, self.fresh)
        if show and not made:
            self.show(instruction, True)

    def _configured(self, state, created_by):
        """A function that makes the image with the state's configuration."""
        config = state.config
        return lambda image: (imageconfig.stack(image, config, created_by).id, [])

    # Instructions that change files.

    def _workdir(self, state, instruction):
        path = state.path(self._word(state, instruction))
        imageconfig.change(state.config, "workingdir", path)
        config, user = state.config, state.settings.get("User")

        def make(image):
            from plashlib import making

            return making.workdir(image, path, user, config, instruction.text)

        self.remember(state, instruction, ["build:file", "WORKDIR", path, state.id], make)

    def _run(self, state, instruction):
        args = instruction.args
        if not any(args):
            raise Error("there is no command")
        if not instruction.is_json:
            args = [*state.shell(), self._script(instruction)]
        known = imageconfig.variables(state.config)
        variables = [
            f"{name}={value}"
            for name, value in state.arguments.items()
            if value is not None and name not in known
        ]
        more = [f"{name}={self.arguments[name]}" for name in sorted(ALWAYS & set(self.arguments))]
        user, directory = state.settings.get("User"), state.settings.get("WorkingDir") or "/"
        options = [word for each in variables for word in ("-e", each)]
        options += ["-w", directory, "--keep-tmp"]
        options += ["-u", user] if user else []
        options += [] if self.host else ["--no-host"]
        mounts = [self._mount(state, text) for text in instruction.flags["mount"]]
        argv = ["build", *options, state.id, *args]
        files = files_of(instruction.heredocs) if args[-1].startswith(PIPES) else {}
        if mounts or files or len(args) == 1:
            keys = [json.dumps(each.key, sort_keys=True) for each in mounts]
            keys += [content.decode(errors="surrogateescape") for content in files.values()]
            argv = ["build:file", "RUN", *keys, *argv]
        config = state.config

        def make(image):
            from plashlib import making

            return making.run(
                image,
                args,
                mounts,
                files={PIPES + name: content for name, content in files.items()},
                config=config,
                created_by=" ".join(["RUN", *args]),
                variables=[*variables, *more],
                directory=directory,
                user=user,
                host=self.host,
            )

        self.remember(state, instruction, argv, make)

    def _script(self, instruction):
        """The shell code of RUN in shell form."""
        text, heredocs = instruction.args[0], instruction.heredocs
        if not heredocs:
            return text
        if containerfile.library().syntax.parse_heredoc(text.strip()):
            content = containerfile.content_of(heredocs[0])
            return PIPES + heredocs[0].name if content.startswith("#!") else content
        return "\n".join([text, *(each.content + each.name for each in heredocs)])

    def _mount(self, state, text):
        from plashlib import runmounts

        mount = runmounts.parse(text, lambda word: self.words.one(word, state.variables()))
        mount.target = state.path(mount.target) if mount.target else mount.target
        if mount.type == "secret":
            mount.source = self.secrets.get(mount.id)
            if mount.source is None and mount.required:
                raise Error(f"there is no --secret id={mount.id}")
        elif mount.type in ("bind", "cache") and mount.from_image:
            mount.image = self.image_of(state, mount.from_image)
            mount.key["image"] = mount.image
        elif mount.type == "bind":
            tree = self.context_tree()
            found = tree.find(mount.source or ".")
            mount.key["digest"] = tree.digest(found)
            mount.tree = tree, found[0]
        return mount

    def image_of(self, state: State, text: str) -> str:
        """The id of the image that --from names: a stage, a number, or an image."""
        if text == "scratch":
            raise Error("scratch has no files")
        earlier = self.file.find(text, state.index)
        if earlier:
            found = self.stage(earlier).id
            if found == store.EMPTY:
                raise Error(f"stage {text} has no files")
            return found
        return self.image(text, self.platform)

    def context_tree(self) -> "sources.Tree":
        """The context, without what the ignore file excludes. Raises Error."""
        if "" not in self._trees:
            if not self.context:
                raise Error("there is no context to copy from")
            file = self.file.file if os.path.isfile(self.file.file) else ""
            patterns = sources.ignore_patterns(file, self.context)
            self._trees[""] = sources.Tree(self.context, patterns)
        return self._trees[""]

    def _copy(self, state, instruction):
        from plashlib import copysteps

        copysteps.copy(self, state, instruction)

    _add = _copy


def files_of(heredocs) -> "dict[str, bytes]":
    """The content of heredocs by their names, as RUN's scripts have it."""
    return {
        each.name: containerfile.content_of(each).encode(errors="surrogateescape")
        for each in heredocs
    }


def _as_root(make, image_id):
    from plashlib import ids

    image = store.image(image_id, allow_empty=True)
    ids.become_root()
    return make(image)


def _printed(argv, warn):
    """The id that a plash command prints; its warnings and its error become this one's."""
    import subprocess
    import sys

    from plashlib import docs

    if sys.stderr and sys.stderr.isatty():
        return cache.printed(argv)
    done = subprocess.run(
        [docs.find(argv[0]), *argv[1:]], stdin=subprocess.DEVNULL, capture_output=True
    )
    lines = done.stderr.decode(errors="replace").splitlines()
    lines = [line.removeprefix(f"plash {argv[0]}: ") for line in lines]
    if done.returncode:
        raise Error((lines or ["failed"])[-1])
    for line in lines:
        warn(line)
    return store.image(done.stdout.decode().rstrip("\n")).id


def _reason(error):
    if error.filename:
        return Error(f"{os.fsdecode(error.filename)}: {error.strerror}")
    return Error(error.strerror or str(error))
