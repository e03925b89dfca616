"""Instructions of a Containerfile that change the configuration of the image, and nothing else."""

import json

from plashlib import Error, containerfile, imageconfig, is_number


class SettingSteps:
    """The part of a steps.Build for these instructions: a method for each, of its name.

    Each is called with the steps.State and the containerfile.Instruction, and raises Error.
    """

    def _change(self, state, instruction, *changes):
        for option, value in changes:
            imageconfig.change(state.config, option, value)
        argv = ["config", *(f"--{option}={value}" for option, value in changes), state.id]
        self.remember(state, instruction, argv, self._configured(state, instruction.text))

    def _set(self, state, instruction, name, value):
        """Change what `plash config` has no option for."""
        target = state.config if name == "author" else state.settings
        if value is None:
            target.pop(name, None)
        else:
            target[name] = value
        argv = ["build:file", instruction.name, json.dumps([name, value]), state.id]
        self.remember(state, instruction, argv, self._configured(state, instruction.text))

    def _pairs(self, state, instruction):
        variables, args = state.variables(), instruction.args
        pairs = [
            (self.words.one(name, variables), self.words.one(value, variables))
            for name, value in zip(args[::3], args[1::3])
        ]
        if not all(name for name, _ in pairs):
            raise Error("a name is empty")
        return pairs

    def _env(self, state, instruction):
        pairs = self._pairs(state, instruction)
        self._change(state, instruction, *(("env", f"{name}={value}") for name, value in pairs))

    def _label(self, state, instruction):
        pairs = self._pairs(state, instruction)
        self._change(state, instruction, *(("label", f"{name}={value}") for name, value in pairs))

    def _expose(self, state, instruction):
        variables = state.variables()
        found = [
            port
            for each in instruction.args
            for word in self.words.many(each, variables)
            for port in containerfile.ports(word)
        ]
        self._change(state, instruction, *(("port", each) for each in found))

    def _volume(self, state, instruction):
        variables = state.variables()
        paths = [self.words.one(each, variables) for each in instruction.args]
        if not all(each.strip() for each in paths):
            raise Error("the path of a volume is empty")
        if any(each.endswith("-") for each in paths):
            known = {**(state.settings.get("Volumes") or {}), **{each: {} for each in paths}}
            self._set(state, instruction, "Volumes", known)
        else:
            self._change(state, instruction, *(("volume", each) for each in paths))

    def _user(self, state, instruction):
        self._change(state, instruction, ("user", self._word(state, instruction)))

    def _stopsignal(self, state, instruction):
        self._change(state, instruction, ("stop-signal", self._word(state, instruction)))

    def _word(self, state, instruction):
        word = self.words.one(instruction.args[0], state.variables())
        if not word:
            raise Error("the argument is empty")
        return word

    def _maintainer(self, state, instruction):
        self._set(state, instruction, "author", instruction.args[0])

    def _onbuild(self, state, instruction):
        text = instruction.rest()
        inner = text.partition(" ")[0].upper()
        if inner in ("ONBUILD", "FROM", "MAINTAINER"):
            raise Error(f"ONBUILD {inner} is not allowed")
        containerfile.parse(text, instruction.file)
        self._set(state, instruction, "OnBuild", [*(state.settings.get("OnBuild") or []), text])

    def _shell(self, state, instruction):
        if not instruction.is_json or not instruction.args:
            raise Error("SHELL needs a JSON array")
        self._change(state, instruction, ("shell", json.dumps(instruction.args)))

    def _cmd(self, state, instruction):
        state.cmd_is_set = True
        self._change(state, instruction, ("cmd", self._argv(state, instruction)))

    def _entrypoint(self, state, instruction):
        changes = [("entrypoint", self._argv(state, instruction))]
        if not state.cmd_is_set and state.settings.get("Cmd"):
            changes.append(("cmd", ""))  # the base image's is not for this entrypoint
        self._change(state, instruction, *changes)

    def _argv(self, state, instruction):
        args = instruction.args
        if not instruction.is_json:
            args = [*state.shell(), " ".join(args)] if args else []
        return json.dumps(args, ensure_ascii=False) if args else ""

    def _healthcheck(self, state, instruction):
        kind, *command = instruction.args or [""]
        flags = instruction.flags
        if kind.upper() == "NONE":
            if command or flags:
                raise Error("HEALTHCHECK NONE takes no arguments")
            self._set(state, instruction, "Healthcheck", {"Test": ["NONE"]})
            return
        if kind.upper() != "CMD" or not command:
            raise Error("neither HEALTHCHECK CMD COMMAND nor HEALTHCHECK NONE")
        check = {"Test": ["CMD" if instruction.is_json else "CMD-SHELL", *command]}
        for flag, name in (
            ("interval", "Interval"),
            ("timeout", "Timeout"),
            ("start-period", "StartPeriod"),
            ("start-interval", "StartInterval"),
        ):
            if flag in flags:
                check[name] = containerfile.duration(flags[flag])
        if "retries" in flags:
            if not is_number(flags["retries"]) or len(flags["retries"]) > 9:
                raise Error(f"not a number: {flags['retries']!r}")
            check["Retries"] = int(flags["retries"])
        self._set(state, instruction, "Healthcheck", check)

    def _arg(self, state, instruction):
        self.show(instruction, True)
        # What one ARG declares is known to the next one only; to an ARG before FROM, at once.
        self._declare(instruction, state.arguments, state.variables(), self.globals)

    def _declare(self, instruction, arguments, variables, defaults):
        for text in instruction.args:
            name, equals, value = text.partition("=")
            name = self.words.one(name, variables)
            self.used.add(name)
            if name in self.arguments:
                value = self.arguments[name]
            elif equals:
                value = self.words.one(value, variables)
            else:
                value = defaults.get(name, arguments.get(name))
            arguments[name] = value
