"""From a config file and `--config.a.b=value` to the settings of a run or a study."""

import argparse
import ast
import pathlib
import re
import runpy
import shlex
import sys
import traceback
import warnings
from typing import Any, Sequence

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.files import as_path, at_home, read_json
from selftrain_jax.core.imports import fresh_imports
from selftrain_jax.core.settings import Typed, build
from selftrain_jax.run.settings import RunConfig
from selftrain_jax.study.settings import StudyConfig

BUILT_IN = pathlib.Path(__file__).resolve().parents[1] / "configs"
"""The configs that come with the package; `quickstart` stands for `quickstart.py` in there."""
KEPT = {"run": "config.json", "study": "study.json"}
"""What a run and a study leave of their settings in their folder."""


def reference_of(arguments: argparse.Namespace, *more: str) -> str:
    """The config that a command is about: the one it was given, else the settings that its workdir keeps.

    Args:
      more: other files of a workdir that will do where the first is missing.

    Raises:
      InputError: neither is there.
    """
    if arguments.config is not None:
        return arguments.config
    kept = KEPT["study" if arguments.command == "study" else "run"]
    for name in (kept, *more):
        path = as_path(arguments.workdir) / name
        if path.is_file():
            return str(path)
    raise InputError(
        f"workdir {arguments.workdir} keeps no settings yet (no {kept} in it): name a config with --config=FILE.py"
    )


def load_config(reference: str, overrides: Sequence[str] = (), study: bool | None = False) -> RunConfig | StudyConfig:
    """The `RunConfig` (or, of a study, `StudyConfig`) of a config file with `--config.a.b=value` overrides.

    Args:
      reference: `FILE.py`, `FILE.py:ARGUMENT`, the same with the name of a built-in config for the file, or the
        `config.json` or `study.json` of a workdir. `~/` at the beginning of a value is the home folder.
      study: which of them it must be; None takes either.

    Raises:
      InputError: the file is missing or broken, or a setting is unknown, of the wrong type or out of range.

    Warns:
      InputWarning: a group of settings is given as a whole, and leaves out some that the file has.
    """
    values = read_values(reference, overrides)
    for override in overrides:
        _override(values, override)
    is_study = "students" in values
    if study not in (None, is_study):
        command = "study" if is_study else "run"
        raise InputError(
            f"config {reference} describes a {command}: use `selftrain {command} --config={reference} ...`"
        )
    return build(StudyConfig if is_study else RunConfig, at_home(values))


def read_values(reference: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The settings that a config file gives, as `load_config` takes it, groups within groups.

    Args:
      overrides: are not applied; but what a ConfigDict makes from a setting that they change (`get_ref`) follows it.
    """
    if reference.endswith(".json"):
        values = read_json(reference, "settings")
        if not isinstance(values, dict):
            raise InputError(f"settings {reference} are no object of settings")
        return values
    name, _, argument = reference.partition(":")
    path = pathlib.Path(name)
    if not path.is_file() and name in built_in():
        path = BUILT_IN / f"{name}.py"
    if not path.is_file():
        advice = f"--config={path.stem} is built in" if path.stem in built_in() else "see `selftrain configs`"
        raise InputError(f"config file not found: {path} (built in are {', '.join(built_in())}; {advice})")
    folders, usual = [str(path.parent.absolute()), str(BUILT_IN)], list(sys.path)
    sys.path[:0] = folders  # a config may build on its neighbour, or on a built-in one
    try:
        # One that silences the warnings of its libraries would silence ours, too.
        with warnings.catch_warnings(), fresh_imports(*folders):
            values = runpy.run_path(str(path))["get_config"](*([argument] if argument else []))
        for override in overrides:
            _refer(values, override)
        values = _plain(values)
    except InputError:
        raise
    except (Exception, SystemExit) as e:  # whatever the file does wrong is bad input
        where = [f"line {f.lineno}: " for f in traceback.extract_tb(e.__traceback__) if f.filename == str(path)]
        what = f"{''.join(where[-1:])}{type(e).__name__}: {' '.join(str(e).split())}"
        raise InputError(f"config {reference}: {what}") from None
    finally:
        sys.path[:] = usual
    if not isinstance(values, dict):
        raise InputError(f"config {reference}: get_config() must return a dict or a ConfigDict, not {values!r:.80}")
    return values


def built_in() -> dict[str, str]:
    """Name -> docstring of the configs that come with the package."""
    paths = sorted(BUILT_IN.glob("*.py"))
    return {path.stem: ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "" for path in paths}


def _plain(values: Any) -> Any:
    """A copy of `values` in which every group of settings, a ConfigDict or a dict, is a dict."""
    if hasattr(values, "to_dict"):
        values = values.to_dict()
    return {name: _plain(value) for name, value in values.items()} if isinstance(values, dict) else values


def _refer(values: Any, override: str) -> None:
    """Changes a setting of a ConfigDict on which others depend by reference."""
    name, text = _parts(override)
    *groups, last = name.split(".")
    for group in groups:
        values = values.get(group) if hasattr(values, "get_ref") else None
    fields = dict(values.items(preserve_field_references=True)) if hasattr(values, "get_ref") else {}
    if hasattr(fields.get(last), "set"):  # a reference
        fields[last].set(_literal(text), type_safe=False)


def _parts(override: str) -> tuple[str, str]:
    """(name, value) of `--config.NAME=VALUE`."""
    name, equals, text = override.removeprefix("--config.").partition("=")
    if not override.startswith("--config.") or not equals:
        raise InputError(f"argument {override!r} is not understood; settings are changed with --config.NAME=VALUE")
    return name, text


def _literal(text: str) -> Any:
    """The Python literal that `text` is, or else `text` itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that `literal_eval` names
        return text


def _override(values: dict[str, Any], override: str) -> None:
    """Applies one `--config.a.b=value`; the value is read as a Python literal, or else as a string."""
    name, text = _parts(override)
    value = _literal(text)
    if value is text and (escape := re.search(r"\\[nrt]", text)):
        quoted = repr(text).replace("\\\\", "\\")
        raise InputError(
            f"setting {name}: {escape[0]} is two characters in a shell; for the one that Python means by it write "
            f"--config.{name}={shlex.quote(quoted)}, and for the two {shlex.quote('r' + quoted)}"
        )
    if type(value) in (int, float):
        value = Typed(text.strip())
    *groups, last = name.split(".")
    for group in groups:
        if values.get(group) is None:  # a group that is off
            values[group] = {}
        values = values[group]
        if not isinstance(values, dict):
            raise InputError(f"argument {override!r}: {group} is a single value, not a group of settings")
    old = values.get(last)
    if value and isinstance(value, dict) and isinstance(old, dict) and (gone := sorted(map(str, old.keys() - value))):
        text = f"setting {name} is another group now, without what the config says of {', '.join(gone)}"
        warnings.warn(InputWarning(f"{text}: to keep that, set --config.{name}.NAME=VALUE"), stacklevel=2)
    values[last] = value
