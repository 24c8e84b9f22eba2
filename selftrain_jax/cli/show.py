"""What configs there are, and every setting of one: its value, what it means and where the value comes from."""

import argparse
import dataclasses
import inspect
import re
import shutil
import textwrap
from typing import Any, Iterator, Mapping, NamedTuple, Sequence

from selftrain_jax.cli.config import BUILT_IN, built_in, load_config, read_values, reference_of
from selftrain_jax.cli.options import make_parser
from selftrain_jax.core.errors import InputError, visible

_LEAST_WIDTH = 40
_WHOLE_WORDS = {"break_long_words": False, "break_on_hyphens": False}  # paths stay as they are


class Setting(NamedTuple):
    """One setting of a config: `name` is that of `--config.NAME=VALUE`, `meaning` the first words on it in the
    docstring of its group."""

    name: str
    value: Any
    meaning: str


def config(arguments: argparse.Namespace, overrides: Sequence[str], argv: Sequence[str]) -> int:
    """`selftrain config`: prints all settings of a config, or of what was done in a workdir."""
    if arguments.config is None and arguments.workdir is None:
        raise InputError("config needs --config=FILE.py, or --workdir=DIR with what was done there")
    reference = reference_of(arguments, "study.json")
    given, settings = read_values(reference, overrides), load_config(reference, overrides, study=None)
    typed = {override.removeprefix("--config.").partition("=")[0] for override in overrides}
    width = max(shutil.get_terminal_size().columns, _LEAST_WIDTH)
    for setting in walk(settings):
        if any(setting.name == name or setting.name.startswith(f"{name}.") for name in typed):
            origin = "command line"
        else:
            origin = reference if _names(given, setting.name) else "default"
        print(visible(f"{setting.name} = {setting.value!r}"))
        text = f"({origin}) {setting.meaning}".rstrip()
        wrapped = textwrap.fill(text, width, initial_indent=" " * 4, subsequent_indent=" " * 4, **_WHOLE_WORDS)
        print(visible(wrapped, keep="\n"))
    return 0


def configs(arguments: argparse.Namespace) -> int:
    """`selftrain configs`: the built-in ones, which go by name, each with the first paragraphs of its docstring."""
    for name, text in built_in().items():
        text = re.sub(r"\bconfigs/(\w+)\.py\b", r"\1", text)
        about, _, rest = text.partition("\n\n")
        print(f"{name}\n{textwrap.indent(about, '    ')}")
        print(textwrap.indent(rest.split("\n\n")[0], "    ") + "\n")
    return 0


def completion(arguments: argparse.Namespace) -> int:
    """`selftrain completion`: a shell's script, made by shtab."""
    try:
        import shtab
    except ImportError:
        raise InputError("completion needs shtab: pip install 'selftrain_jax[completion]'") from None
    parser = make_parser()
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for action in (action for command in commands.choices.values() for action in command._actions):
        for word, names in (("FILE", shtab.FILE), ("DIR", shtab.DIRECTORY)):
            if word in (action.metavar or ""):
                action.complete = names
    print(shtab.complete(parser, arguments.shell))
    return 0


def init(arguments: argparse.Namespace) -> int:
    """`selftrain init`: a copy of a built-in config."""
    if arguments.name not in built_in():
        raise InputError(f"there is no built-in config {arguments.name!r}; there are {', '.join(built_in())}")
    try:
        with open(arguments.out, "x", encoding="utf-8") as file:
            file.write((BUILT_IN / f"{arguments.name}.py").read_text("utf-8"))
    except FileExistsError:
        raise InputError(f"{arguments.out} is there already: name another file") from None
    print(f"config: {arguments.out}")
    return 0


def _names(values: Mapping[str, Any], name: str) -> bool:
    """Whether nested `values` hold the setting of a dotted name."""
    for part in name.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


def walk(settings: Any, prefix: str = "", meaning: str = "") -> Iterator[Setting]:
    """Every single setting below the dataclass, or mapping, `settings`, in order."""
    known = meanings(type(settings)) if dataclasses.is_dataclass(settings) else {}
    parts = settings.items() if isinstance(settings, Mapping) else vars(settings).items()
    for name, value in parts:
        if dataclasses.is_dataclass(value) or isinstance(value, Mapping) and value:
            yield from walk(value, f"{prefix}{name}.", known.get(name, meaning))
        else:
            yield Setting(f"{prefix}{name}", value, known.get(name, meaning))


def meanings(cls: type) -> dict[str, str]:
    """What the docstring of a dataclass, or of those it is made from, says about each of its attributes."""
    found = {}
    for parent in reversed(cls.__mro__[:-1]):
        _, _, text = (inspect.getdoc(parent) or "").partition("Attributes:\n")
        for names, words in re.findall(r"^  (\w+(?:, \w+)*): (.*(?:\n   +.*)*)", text, re.MULTILINE):
            found |= dict.fromkeys(names.split(", "), " ".join(words.split()))
    return found
