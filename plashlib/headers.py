"""What the header text of a command says: usage, options and more.

The header is the docstring, or the first block of comments, at the top of a command's file. It is
all of the command's documentation: --help, `plash help`, completion and the man page are made of
it.

    Run a command in an image and make a new image of the result.

    Usage: plash build [-e VAR]... ID [CMD ...]
    Prints: new ID
    Group: Run and build

    Prose, in paragraphs.

    Options:
      -e VAR  set a variable

The lines from Usage on, up to a blank line, are fields that programs read.

Usage     The name of an operand says what it takes: ID an image, KEY the name of one, FILE and DIR
          paths, CMD a program, COMMAND a plash command. If there is a CMD or COMMAND, option
          parsing stops at the first operand.
Prints    What is on stdout. "new ID" is the id of an image that the command makes.
Group     The command's group in `plash help`.
Supplies  "ID" if the command gives COMMAND its ID.
"""

# The roles of arguments on a command line.
OPTION, VALUE, END, OPERAND = "option", "value", "--", "operand"


class Option:
    """An option, as the section Options describes it: names, the name of its value or None."""

    def __init__(self, names: "list[str]", value: "str | None", description: str = ""):
        self.names, self.value, self.description = names, value, description
        self.key = next((name for name in names if name.startswith("--")), names[0])


class Element:
    """An option or an operand in a usage; option is None for an operand."""

    def __init__(self, name: str, option: "Option | None", optional: bool):
        self.name, self.option, self.optional, self.repeated = name, option, optional, False
        self.key = option.key if option else name

    def absent(self) -> "list | int | None":
        """What it is read as where it is not given: what docopt gives then."""
        has_value = not self.option or self.option.value
        if self.repeated:
            return [] if has_value else 0
        return None if has_value else False


class Usage:
    """One pattern of arguments: its line, and its Elements in order.

    has_alternatives says that operands exclude each other, in (parentheses) or by a bar.
    """

    def __init__(self, line: str, options: "list[Option]"):
        self.line = line
        self.elements: list[Element] = []
        self.has_alternatives = False
        opened: list[tuple[str, int]] = []  # brackets, and where their elements begin
        last = 0  # where those begin that `...` repeats
        for mark in "[", "]", "(", ")", "|", "...":
            line = line.replace(mark, f" {mark} ")
        tokens = line.split()
        tokens = tokens[2:] if tokens[:1] == ["plash"] else tokens[1:]
        while tokens:
            token = tokens.pop(0)
            if token in ("[", "("):
                opened.append((token, len(self.elements)))
                self.has_alternatives |= token == "("
            elif token in ("]", ")"):
                last = opened.pop()[1] if opened else last
            elif token == "...":
                for element in self.elements[last:]:
                    element.repeated = True
            elif token == "|":
                beside = self.elements[-1:]
                self.has_alternatives |= any(not each.option for each in beside)
                self.has_alternatives |= not "".join(tokens[:1]).startswith("-")
            else:
                last = len(self.elements)
                option = None
                if token.startswith("-"):
                    token, equals, value = token.partition("=")
                    option = next((each for each in options if token in each.names), None)
                    option = option or Option([token], value or None)
                    if option.value and not equals:
                        del tokens[:1]
                optional = any(bracket == "[" for bracket, _ in opened)
                self.elements.append(Element(token, option, optional))

    def operands(self) -> "list[Element]":
        return [element for element in self.elements if not element.option]


class Argument:
    """An argument of a command line, by what the usage calls it.

    role    OPTION, VALUE, END or OPERAND
    name    the name of the operand, or of the option's value; "" if it has none
    prefix  what stands before the value in the same argument: `--sha256=`, `-e`
    value
    """

    def __init__(self, role: str, name: str, prefix: str, value: str):
        self.role, self.name, self.prefix, self.value = role, name, prefix, value


class Header:
    """What the text at the top of a command says.

    text        all of it
    summary     its first line, without the full stop
    usage       a Usage for each pattern of arguments
    options     its Options
    prose       its other paragraphs
    prints      its fields of these names; "" where there is none
    group
    supplies
    """

    def __init__(self, text: str):
        self.text = text
        self.summary = text.partition("\n")[0].rstrip(".")
        fields: dict[str, list[str]] = {}
        self.options: list[Option] = []
        self.prose: list[str] = []
        for paragraph in text.replace("\nUsage:", "\n\nUsage:").split("\n\n")[1:]:
            paragraph = paragraph.strip("\n")
            if paragraph.startswith("Usage:") and not fields:
                fields = _fields(paragraph)
            elif paragraph.startswith("Options:"):
                self.options += _options(paragraph)
            elif paragraph:
                self.prose.append(paragraph)
        self.prints, self.group, self.supplies = (
            " ".join(fields.get(name, [])) for name in ("Prints", "Group", "Supplies")
        )
        self.usage = [Usage(line, self.options) for line in _patterns(fields.get("Usage", []))]

    def operands(self) -> "list[Element]":
        """The operands of the first usage, in order."""
        return self.usage[0].operands() if self.usage else []

    def takes_image(self) -> bool:
        """Whether the command cannot do without an ID, which is its first operand."""
        required = [element.name for element in self.operands() if not element.optional]
        return required[:1] == ["ID"]

    def prints_new_image(self) -> bool:
        """Whether the command makes an image and prints its id: `Prints:` is `new ID` exactly."""
        return self.prints == "new ID"

    def may_print_id(self) -> bool:
        """Whether the command may print an image's id, judging by its header."""
        return not self.prints or "ID" in self.prints or "what" in self.prints

    def stops_at_operand(self) -> bool:
        """Whether all that follows the first operand is an operand too, as in `run ID ls -l`."""
        return any(element.name in ("CMD", "COMMAND") for element in self.operands())

    def option(self, argument: str) -> "Option | None":
        """The option that an argument gives, abbreviated perhaps, or with its value behind `=`."""
        name = argument.partition("=")[0] if argument.startswith("--") else argument[:2]
        known = {each: option for option in self.options for each in option.names}
        for usage in self.usage:
            known.update({e.name: e.option for e in usage.elements if e.option})
        if name in known or not name.startswith("--"):
            return known.get(name)
        return next((option for each, option in known.items() if each.startswith(name)), None)

    def awaited_value(self, argument: str) -> "str | None":
        """The name of the value that an option takes from the next argument; else None.

        As docopt reads it, so `-e` and `--name` take one; `-eVALUE` and `--name=VALUE` have it.
        """
        option, before = self._split(argument)
        awaits = option and before == argument and "=" not in argument
        return option.value if option and awaits else None

    def _split(self, argument: str) -> "tuple[Option | None, str]":
        """The option that has a value in an argument, and the part of it before that value."""
        if argument.startswith("--"):
            option = self.option(argument)
            name, equals, _ = argument.partition("=")
            return option if option and option.value else None, name + equals
        for position, letter in enumerate(argument[1:], 2):
            option = self.option("-" + letter)
            if option and option.value:
                return option, argument[:position]
        return None, argument

    def roles(self, arguments: "list[str]") -> "list[str]":
        """The role of each argument: OPTION, its VALUE, the END of options, or OPERAND."""
        roles: list[str] = []
        only_operands, awaited = False, False
        for argument in arguments:
            if awaited:
                role, awaited = VALUE, False
            elif only_operands or argument[:1] != "-" or argument == "-":
                role = OPERAND
                only_operands = only_operands or self.stops_at_operand()
            elif argument == "--":
                role, only_operands = END, True
            else:
                role, awaited = OPTION, self.awaited_value(argument) is not None
            roles.append(role)
        return roles

    def arguments(self, arguments: "list[str]") -> "list[Argument]":
        """What each argument is by the command's first usage, in order."""
        found: list[Argument] = []
        operands = [element.name for element in self.operands()]
        awaited = ""
        for argument, role in zip(arguments, self.roles(arguments)):
            name, before = "", ""
            if role == OPERAND and operands:
                name = operands[0]
                del operands[: len(operands) > 1]
            elif role == VALUE:
                name = awaited
            elif role == OPTION:
                awaited = self.awaited_value(argument) or ""
                option, before = self._split(argument)
                if option and not awaited:
                    name = option.value or ""
            found.append(Argument(role, name, before, argument[len(before) :]))
        return found


def _fields(paragraph: str) -> "dict[str, list[str]]":
    """The lines of each field in a paragraph of `Name: value`; indented lines continue it."""
    fields: dict[str, list[str]] = {}
    name = ""
    for line in paragraph.splitlines():
        if not line[:1].isspace():
            name, _, line = line.partition(":")
        fields.setdefault(name, []).append(line.strip())
    return fields


def _patterns(lines: "list[str]") -> "list[str]":
    """The patterns of a usage: a line that does not begin with the program continues the last."""
    patterns: list[str] = []
    for line in filter(None, lines):
        if not patterns or line.split()[0] == patterns[0].split()[0]:
            patterns.append(line)
        else:
            patterns[-1] += " " + line
    return patterns


def _options(paragraph: str) -> "list[Option]":
    """The options that a section describes, each with two spaces before its description."""
    options: list[Option] = []
    for line in paragraph.splitlines()[1:]:
        line = line.strip()
        if line.startswith("-"):
            syntax, _, description = line.partition("  ")
            words = syntax.replace(",", " ").replace("=", " ").split()
            value = next((word for word in words if not word.startswith("-")), None)
            names = [word for word in words if word.startswith("-")]
            options.append(Option(names, value, description.strip()))
        elif options:
            options[-1].description += " " + line
    return options
