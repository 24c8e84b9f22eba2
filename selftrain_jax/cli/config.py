"""From a config file and `--config.a.b=value` to the settings of a run or a study."""

import ast
import pathlib
import re
import runpy
import shlex
import sys
import traceback
from typing import Any, Sequence

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import at_home
from selftrain_jax.core.settings import Typed, build
from selftrain_jax.run.settings import RunConfig
from selftrain_jax.study.settings import StudyConfig


def load_config(reference: str, overrides: Sequence[str] = (), study: bool | None = False) -> RunConfig | StudyConfig:
    """The `RunConfig` (or, of a study, `StudyConfig`) of a config file, `FILE.py` or `FILE.py:ARGUMENT`, with
    `--config.a.b=value` overrides. `~/` at the beginning of a value is the home folder. With `study` None it may be of
    either.

    Raises:
      InputError: the file is missing or broken, or a setting is unknown, of the wrong type or out of range.
    """
    name, _, argument = reference.partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        raise InputError(f"config file not found: {path}")
    folder = str(path.parent.absolute())
    sys.path.insert(0, folder)  # a config may build on its neighbour
    try:
        values = _plain(runpy.run_path(str(path))["get_config"](*([argument] if argument else [])))
    except Exception as e:  # whatever the file does wrong is bad input
        where = [f"line {f.lineno}: " for f in traceback.extract_tb(e.__traceback__) if f.filename == str(path)]
        what = f"{''.join(where[-1:])}{type(e).__name__}: {' '.join(str(e).split())}"
        raise InputError(f"config {reference}: {what}") from None
    finally:
        sys.path.remove(folder)
    if not isinstance(values, dict):
        raise InputError(f"config {reference}: get_config() must return a dict or a ConfigDict, not {values!r:.80}")
    for override in overrides:
        _override(values, override)
    is_study = "students" in values
    if study not in (None, is_study):
        command = "study" if is_study else "run"
        raise InputError(
            f"config {reference} describes a {command}: use `selftrain {command} --config={reference} ...`"
        )
    return build(StudyConfig if is_study else RunConfig, at_home(values))


def _plain(values: Any) -> Any:
    """A copy of `values` in which every group of settings, a ConfigDict or a dict, is a dict."""
    if hasattr(values, "to_dict"):
        values = values.to_dict()
    return {name: _plain(value) for name, value in values.items()} if isinstance(values, dict) else values


def _override(values: dict[str, Any], override: str) -> None:
    """Applies one `--config.a.b=value`; the value is read as a Python literal, or else as a string."""
    name, equals, text = override.removeprefix("--config.").partition("=")
    if not override.startswith("--config.") or not equals:
        raise InputError(f"argument {override!r} is not understood; settings are changed with --config.NAME=VALUE")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that `literal_eval` names
        value = text
        if escape := re.search(r"\\[nrt]", text):
            quoted = repr(text).replace("\\\\", "\\")
            raise InputError(
                f"setting {name}: {escape[0]} is two characters in a shell; for the one that Python means by it write "
                f"--config.{name}={shlex.quote(quoted)}, and for the two {shlex.quote('r' + quoted)}"
            )
    if type(value) in (int, float):
        value = Typed(text.strip())
    *groups, last = name.split(".")
    for group in groups:
        values = values.setdefault(group, {})
        if not isinstance(values, dict):
            raise InputError(f"argument {override!r}: {group} is a single value, not a group of settings")
    values[last] = value
