"""The record of what a piece of work was asked for, left beside its result and compared with what is asked for later.

Stages of a run, trainings, results of benchmark tasks and failures of a study each leave one, a JSON object in a file.
Work that is asked for again the same way goes on or is skipped; asked for differently, it is refused by the name of the
setting (`refuse_changes`) or done anew (`read_same`).
"""

import json
import os
import pathlib
from typing import Any, Iterator, Mapping, Sequence

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import as_path, json_text, read_json, write_json


def plain(value: Any) -> Any:
    """`value` as it reads back from JSON: tuples become lists, NaN becomes None."""
    return json.loads(json_text(value))


def write_record(path: str | os.PathLike, asked: Mapping[str, Any], **outcome: Any) -> None:
    """Leaves what was asked for, and the outcome beside it, atomically."""
    write_json(path, {**asked, **outcome})


def read_record(path: str | os.PathLike) -> dict[str, Any] | None:
    """What `write_record` left in `path`, None where there is no file; `InputError` when it is damaged."""
    return read_json(path) if as_path(path).is_file() else None


def read_same(path: str | os.PathLike, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `write_record` left in `path`; None where there is nothing, or it was asked for differently or is damaged.

    Only the names in `asked` are compared, the rest is outcome.
    """
    try:
        record = read_record(path)
    except InputError:
        return None
    same = isinstance(record, dict) and all(record.get(name) == value for name, value in plain(dict(asked)).items())
    return record if same else None


def refuse_changes(
    who: str, found: Any, asked: Any, place: str | os.PathLike, way_out: str, *, kind: str = "setting"
) -> None:
    """Raises `InputError` naming the first value in which `asked` differs from what was `found` in a record.

    A name that one of them lacks counts as None, so that a new setting which is off by default changes nothing.

    Args:
      who: begins the message, for example "stage train/self-0".
      found, asked: nested dicts of JSON values.
      place: what was made from `found`.
      way_out: what else than setting it back can be done, for example "name another directory".
      kind: what the values are, "setting" or "input".
    """
    for name, old, new in differences(found, asked):
        raise InputError(
            f"{who}: {kind} {name} is {new!r} but {place} was made with {old!r}; set it back, or {way_out}"
        )


def differences(found: Any, asked: Any) -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, old, new) of every value in which `asked` differs from what was `found`, as `refuse_changes`."""
    for name, (old, new) in apart([found, plain(asked)]):
        yield name, old, new


def without_growth(asked: Mapping[str, Any], found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """`asked` with the value of a dotted name as it was `found`, where it was raised since, names more, or is no longer
    empty."""
    first, _, rest = name.partition(".")
    if first not in found or first not in asked:
        return asked
    new, old = asked[first], found[first]
    if rest:
        return {**asked, first: without_growth(new, old, rest)}
    if isinstance(new, Mapping):
        more = len(new) > len(old) and all(key in new and new[key] == value for key, value in old.items())
    else:
        more = bool(new) and not old if isinstance(new, str) else new > old
    return {**asked, first: old} if more else asked


def before_moving(asked: Any, found: Any, root: pathlib.Path | None) -> Any:
    """`asked`, with paths below `root` as they were `found` where that is the same place of a folder since moved."""
    if isinstance(asked, Mapping) and isinstance(found, Mapping):
        return {name: before_moving(value, found.get(name), root) for name, value in asked.items()}
    if isinstance(asked, str) and isinstance(found, str) and root and asked.startswith(f"{root}/"):
        return found if found.endswith(asked.removeprefix(str(root))) else asked
    return asked


def apart(values: Sequence[Any], where: str = "") -> Iterator[tuple[str, list[Any]]]:
    """(dotted name, each one's value) of every leaf in which nested dicts of JSON values are not all the same.

    Where one of them has something else than a dict, the others' dicts are given whole.
    """
    if all(isinstance(value, dict) for value in values):
        for name in dict.fromkeys(name for value in values for name in value):
            inside = f"{where}.{name}" if where else name
            yield from apart([value.get(name) for value in values], inside)
    elif any(value != values[0] for value in values):
        yield where, list(values)
