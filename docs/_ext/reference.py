"""The reference, made from the program: ```` ```{generated} NAME ```` stands for one of `PAGES`.

What has no description raises `Undescribed`, which ends the build.
"""

import argparse
import collections
import contextlib
import dataclasses
import importlib
import inspect
import math
import os
import re
import sys
import textwrap
import types
import typing
from typing import Any, Iterator, NamedTuple
from unittest import mock

from selftrain_jax.cli.options import make_parser
from selftrain_jax.cli.show import meanings
from selftrain_jax.core import settings as core_settings
from selftrain_jax.core.errors import InputError
from selftrain_jax.evaluation.items import Items
from selftrain_jax.report.metric import KINDS
from selftrain_jax.run.settings import RunConfig
from selftrain_jax.study.settings import StudyConfig

MODULES = {
    "Models": ("models.config", "models.decoder", "models.families", "models.hf"),
    "Training": ("training.step", "distributed.mesh", "distributed.settings"),
    "Sampling": ("sampling.sampler", "sampling.settings", "core.randomness"),
    "Corpora and results": ("data.corpus", "data.external", "evaluation.items"),
    "Measures": (
        *("evaluation.score", "evaluation.memorization", "evaluation.discoverable", "evaluation.exposure"),
        *("evaluation.membership", "evaluation.likelihood", "evaluation.statistics", "evaluation.roc"),
        "evaluation.harness",
    ),
    "Errors": ("core.errors",),
}
"""What other projects may import: these names stay where they are, or the changelog says otherwise."""


COLUMNS = 84
"""Of what stands in a block, so that it is not wider than the page."""


class Undescribed(Exception):
    """Something that users meet has no description."""


def text_of(words: str | None, what: str) -> str:
    """`words` on one line; raises `Undescribed` where there are none."""
    if not words or not words.strip():
        raise Undescribed(f"{what} has no description")
    return " ".join(words.split())


def _plain(words: str) -> str:
    """`words`, with what Markdown or HTML would take for its own left as characters."""
    parts = re.split(r"(`[^`]*`)", words)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<>\[\]$\\|])", r"\\\1", part) for part in parts)


def commands(parser: argparse.ArgumentParser) -> str:
    """Every command with its options."""
    (choices,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    helps = {action.dest: action.help for action in choices._choices_actions}
    hang = {"subsequent_indent": "    ", "break_on_hyphens": False, "break_long_words": False}
    lines = ["```text", *(textwrap.fill(line, COLUMNS, **hang) for line in parser.epilog.strip().splitlines()), "```"]
    lines = ["\n".join(lines)]
    for name, command in choices.choices.items():
        text_of(helps.get(name), f"command {name}")
        lines.append(f"## selftrain {name}\n\n{_plain(text_of(command.description, f'command {name}'))}")
        with mock.patch.dict(os.environ, COLUMNS=str(COLUMNS + 2)):
            usage = (line[len("usage: ") :] for line in command.format_usage().splitlines())
        lines.append("\n".join(["```text", *usage, "```"]))
        for action in command._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            names = ", ".join(action.option_strings) or action.metavar or action.dest
            value = f" {action.metavar}" if action.option_strings and action.metavar else ""
            words = text_of(action.help, f"{name} {names}") % {"default": action.default}
            needed = "Required: " if action.required and action.option_strings else ""
            words = f"{words} ({', '.join(action.choices)})" if action.choices else words
            lines.append(f"`{names}{value}`\n: {needed}{_plain(words)}")
    return "\n\n".join(lines)


class Setting(NamedTuple):
    """`limits` says which values are allowed, "" where the meaning says all there is to say."""

    name: str
    type: str
    default: str
    limits: str
    meaning: str


def settings(cls: type, prefix: str = "") -> Iterator[tuple[str, type, list[Setting]]]:
    """(prefix, dataclass, its settings) for the dataclass and all within it; a name to choose is written NAME."""
    hints, known, limits, own, within = typing.get_type_hints(cls), meanings(cls), _limits(cls), [], []
    for field in dataclasses.fields(cls):
        name, hint = f"{prefix}{field.name}", hints[field.name]
        nested = [part for part in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(part)]
        meaning = text_of(known.get(field.name), f"setting {name} ({cls.__name__})")
        if nested:
            chosen = "NAME." if typing.get_origin(hint) not in (None, types.UnionType) else ""
            within += [found for part in nested for found in settings(part, f"{name}.{chosen}")]
            continue
        own.append(Setting(name, _type(hint), _default(field), limits.get(field.name, ""), meaning))
    yield prefix, cls, own
    yield from within


def _type(hint: Any) -> str:
    """A type as users read it."""
    if hint in (str, int, float, bool):
        return {str: "text", int: "whole number", float: "number", bool: "True or False"}[hint]
    parts = [part for part in typing.get_args(hint) if part is not Ellipsis]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join("None" if part is type(None) else _type(part) for part in parts)
    if typing.get_origin(hint) is tuple:
        return f"list of {_type(parts[0]).replace(' or ', '/')}s"
    return f"NAME: {_type(parts[1])}"


def _default(field: dataclasses.Field) -> str:
    made = field.default_factory is not dataclasses.MISSING
    value = field.default_factory() if made else field.default
    return "required" if value is dataclasses.MISSING else "none" if value in ({}, ()) else repr(value)


def _limits(cls: type) -> dict[str, str]:
    """Setting -> allowed values, as the class itself checks them when one of it is made."""
    found: dict[str, str] = {}

    def ranges(section, settings, limits, *, excluded=()):
        for name, limit in limits.items():
            low, high = limit if isinstance(limit, tuple) else (limit, math.inf)
            at_least = f"above {low}" if low in excluded else f"at least {low}"
            below = f"below {high}" if high in excluded and high < math.inf else f"at most {high}"
            found[name] = at_least if high == math.inf else f"{at_least}, {below}"

    def choice(section, settings, name, options):
        found[name] = "one of " + ", ".join(f"`{option!r}`" for option in options)

    def seed(section, value, name="seed"):
        found[name] = "0 to 2^63 - 1"

    with contextlib.ExitStack() as stack:
        for module in {sys.modules[parent.__module__] for parent in cls.__mro__[:-1]} - {core_settings}:
            for name, recorder in (("check_ranges", ranges), ("check_choice", choice), ("check_seed", seed)):
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, recorder))
        with contextlib.suppress(InputError):  # some want a value, and say so after their ranges
            cls(**{f.name: None for f in dataclasses.fields(cls) if _default(f) == "required"})
    return found


def _settings_page(cls: type, known: set[type]) -> str:
    """The groups of settings of `cls`; those in `known` are described elsewhere on the page."""
    groups = collections.defaultdict(list)
    for prefix, part, found in settings(cls):
        groups[part].append((prefix, found))
    lines, seen = [], set()
    for places in groups.values():
        places.sort(key=lambda place: place[0].count("."))  # `train.` stands for `lab.base.train.`, too
    for part, places in sorted(groups.items(), key=lambda group: group[1][0][0].count(".")):
        prefixes = [prefix.rstrip(".") for prefix, _ in places]
        title = ", ".join(f"`{prefix}`" for prefix in prefixes) if prefixes[0] else "The whole"
        lines.append(f"### {title}")
        if part in known:
            lines.append(f"As of a run; the class is `{part.__name__}`.")
            continue
        seen.add(part)
        lines.append(_plain(text_of((part.__doc__ or "").partition("\n\n")[0], part.__name__)))
        for s in places[0][1]:
            default = s.default if s.default in ("none", "required") else f"default `{s.default}`"
            lines.append(f"`{s.name}`\n: {_plain(s.meaning)}\n: {'; '.join(filter(None, (s.type, default, s.limits)))}")
    known |= seen
    return "\n\n".join(lines)


def all_settings() -> str:
    """Every setting of runs, then those of studies."""
    known: set[type] = set()
    return "\n\n".join(
        f"## Of a {name}\n\n{_settings_page(cls, known)}" for name, cls in (("run", RunConfig), ("study", StudyConfig))
    )


def metrics() -> str:
    """Every kind of figure: its name in files, what it is, its unit."""
    lines = []
    for name, kind in KINDS.items():
        words = kind.words or name.replace("_", " ")
        lines.append(f"`{name}`\n: {_plain(words)}, {_plain(kind.unit)}. {_plain(kind.explanation)}".rstrip())
    return "\n\n".join(lines)


def columns() -> str:
    """What `items.npz` holds, by the fields of `Items`."""
    known = meanings(Items)
    names = [field.name for field in dataclasses.fields(Items)]
    return "\n\n".join(f"`{name}`\n: {_plain(text_of(known.get(name), f'Items.{name}'))}" for name in names)


def public(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
    """(name, function, class, method or property) that a module defines for others."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            yield name, value
        if inspect.isclass(value):
            for part, member in vars(value).items():
                function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                if not part.startswith("_") and inspect.isfunction(function):
                    yield f"{name}.{part}", getattr(value, part)


def api() -> str:
    """The modules that are for others, by autodoc."""
    lines = []
    for title, names in MODULES.items():
        lines.append(f"## {title}")
        for name in names:
            module = importlib.import_module(f"selftrain_jax.{name}")
            for part, value in public(module):
                text_of(value.__doc__, f"{module.__name__}.{part}")  # its own, whatever is installed to inherit from
            lines.append(f"### {name}\n\n```{{eval-rst}}\n.. automodule:: {module.__name__}\n   :members:\n```")
    return "\n\n".join(lines)


PAGES = {
    "commands": lambda: commands(make_parser()),
    "settings": all_settings,
    "metrics": metrics,
    "columns": columns,
    "api": api,
}


def setup(app):
    from sphinx.ext.autodoc.mock import mock as stand_ins

    def read(app, docname, content):
        with stand_ins(app.config.autodoc_mock_imports):
            content[0] = re.sub(r"```\{generated\} (\w+)\n```", lambda match: PAGES[match[1]](), content[0])

    app.connect("source-read", read)
    return {"parallel_read_safe": True}
