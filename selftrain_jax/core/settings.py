"""Frozen dataclasses of settings, built from the plain dict that a config file gives."""

import ast
import dataclasses
import difflib
import math
import sys
import types
import typing
import unicodedata
from typing import Any, Iterator, Mapping, Sequence

from selftrain_jax.core.errors import InputError


def check_ranges(
    section: str, settings: Any, limits: Mapping[str, float | tuple[float, float]], *, excluded: Sequence[float] = ()
) -> None:
    """Raises `InputError` for the first attribute of `settings` outside its limits.

    Args:
      section: begins the message, for example "train".
      limits: attribute -> (lowest, highest) value, or the lowest alone.
      excluded: limits that are not allowed themselves.
    """
    for name, limit in limits.items():
        value = getattr(settings, name)
        low, high = limit if isinstance(limit, tuple) else (limit, math.inf)
        if not low <= value <= high or any(value == end and end in excluded for end in (low, high)):
            interval = f"{'(' if low in excluded else '['}{low}, {high}{')' if high in excluded else ']'}"
            allowed = f"lie in {interval}" if high < math.inf or excluded else f"be at least {low}"
            raise InputError(f"{section} {name}={value} must {allowed}")


def check_choice(section: str, settings: Any, name: str, options: Sequence[Any]) -> None:
    """Raises `InputError` unless attribute `name` of `settings` is one of `options`."""
    value = getattr(settings, name)
    if not any(value == option and type(value) is type(option) for option in options):
        raise InputError(f"{section} {name}={value!r} must be one of {', '.join(map(repr, options))}")


def look(name: str) -> str:
    """`name` as people read it: names of one look cannot be told apart in a table."""
    return " ".join(unicodedata.normalize("NFKC", name).split())


SEED_LIMIT = 2**63


def check_seed(section: str, value: Any, name: str = "seed") -> None:
    """Raises `InputError` unless `value` is a whole number from 0 to 2^63 - 1, as every seed is."""
    if type(value) is not int or not 0 <= value < SEED_LIMIT:
        raise InputError(f"{section} {name}={value!r} must be a whole number from 0 to {SEED_LIMIT - 1}")


COMPUTE_DTYPES = ("float32", "bfloat16")


class Typed(str):
    """A number as it was typed on a command line: of a setting that holds text (a revision, a title), the text."""


def build(cls: type, values: Mapping[str, Any], where: str = "") -> Any:
    """The dataclass `cls` with `values`; nested dataclasses and mappings of dataclasses are built from dicts.

    Raises:
      InputError: an unknown setting (with the nearest known one) or a value of the wrong type, named by its full path.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"setting {where or 'config'}={values!r} must be a group of settings")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.8) or list(_paths(cls, name))[:1]
            near = near or difflib.get_close_matches(name, known, 1)
            advice = f"did you mean {near[0]!r}?" if near else f"known settings: {', '.join(sorted(known))}"
            raise InputError(f"unknown setting {_join(where, name)}; {advice}")
    arguments = {name: _convert(hints[name], value, _join(where, name)) for name, value in values.items()}
    try:
        return cls(**arguments)
    except TypeError as e:
        raise InputError(f"settings of {where or 'config'}: {e}") from None


def _paths(cls: type, name: str) -> Iterator[str]:
    """Where the groups of settings within `cls` have a setting of that name."""
    for group, hint in typing.get_type_hints(cls).items():
        options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else [hint]
        for inner in filter(dataclasses.is_dataclass, options):
            if name in (f.name for f in dataclasses.fields(inner)):
                yield f"{group}.{name}"
            yield from (f"{group}.{path}" for path in _paths(inner, name))


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, Typed):
        types_ = {hint, *arguments}
        value = str(value) if str in types_ and not {int, float} & types_ else ast.literal_eval(value)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        options = [a for a in arguments if a is not type(None)]
        for option in options[:-1]:
            try:
                return _convert(option, value, where)
            except InputError:
                continue
        return _convert(options[-1], value, where)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, str) and hasattr(hint, "parse"):
            return hint.parse(value, where)
        return value if isinstance(value, hint) else build(hint, value, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise InputError(f"setting {where}={value!r} must be a group of settings")
        if len(set(map(str, value))) < len(value):
            raise InputError(f"setting {where} has two names that read the same, a text and a number: rename one")
        return {str(name): _convert(arguments[1], item, _join(where, name)) for name, item in value.items()}
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"setting {where}={value!r} must be a list")
        return tuple(_convert(arguments[0], item, where) for item in value)
    if hint is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    if isinstance(value, float) and not math.isfinite(value) or hint is float and type(value) is int:
        raise InputError(f"setting {where}={value!r:.80} must be a finite number")
    if type(value) is not hint:
        raise InputError(f"setting {where}={value!r} must be of type {getattr(hint, '__name__', hint)}")
    return value
