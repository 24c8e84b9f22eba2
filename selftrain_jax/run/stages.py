"""A run as a folder of stages: each is done once, skipped when done, and refused when its settings no longer match.

Every stage owns `workdir/<name>/`. What it was asked for is written there when it starts (`started.json`), what it
found when it ends (`manifest.json`, last and atomically). So a run can be killed anywhere and started again with the
same command, and a changed setting is caught before it can mix with what is on disk.

A stage whose inputs are no longer those that it was made from is *stale*: nobody may take its result for a current one.

`execute.run` does the stages; here is what they are, and how they stand.
"""

import contextlib
import dataclasses
import functools
import pathlib
from typing import Any, Callable, Mapping, NoReturn, Sequence

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import Fingerprints, fingerprint, is_remote, read_json
from selftrain_jax.core.records import before_moving, differences, plain, read_record, refuse_changes, without_growth
from selftrain_jax.core.storage import RECORDS, half_redone, missing_files


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of a run.

    Attributes:
      name: its folder below the workdir, for example "train/self-0".
      settings: everything that decides its result, as JSON values.
      after: names of the stages whose results it reads.
      work: does it, in the folder it is given, and returns JSON values for the manifest. It may find its own unfinished
        work there and go on with it.
      externals: fingerprints of the files from outside the workdir that it reads.
      models: those of the models, and whatever else is dear, or perhaps a download.
      machine: what it takes from the machine, which must not change in the middle of the work.
      grows: settings that may be raised, or name more, later; the stage then goes on from what is there.
      settled: those, as dotted names, of which more would have been made only while it was at work; a stage that is
        done stays as it is.
      unnoted: groups of inputs that earlier versions did not note; a record without any of one is as good as ever.
      again: whether it is cheap, and so done anew each time, whatever is there.
      together: in a job of several processes, whether all of them do the work, on the mesh, or process 0 does it alone.
      finish: what process 0 does in the folder when all are done with `work`; it then returns the values instead.
      progress: how far the work in the folder is, in words; "" where that is not known.
      root: a folder that settings name paths in, and that may be moved.
    """

    name: str
    settings: Mapping[str, Any]
    after: Sequence[str]
    work: Callable[[pathlib.Path], Mapping[str, Any] | None]
    externals: Callable[[], Mapping[str, str]] = dict
    models: Callable[[], Mapping[str, str]] = dict
    machine: Callable[[], Mapping[str, str]] = dict
    grows: Sequence[str] = ()
    settled: Sequence[str] = ()
    unnoted: Sequence[Sequence[str]] = ()
    again: bool = False
    together: bool | Callable[[], bool] = False
    finish: Callable[[pathlib.Path], Mapping[str, Any] | None] | None = None
    progress: Callable[[pathlib.Path], str] = lambda folder: ""
    root: pathlib.Path | None = None

    def by_all(self) -> bool:
        """Whether all processes of a job do the work."""
        return self.together() if callable(self.together) else self.together


def manifest_path(workdir: pathlib.Path, name: str) -> pathlib.Path:
    return workdir / name / "manifest.json"


def read_manifest(workdir: pathlib.Path, name: str) -> dict[str, Any]:
    """The manifest of a finished stage; `InputError` naming the command that makes it otherwise."""
    path = manifest_path(workdir, name)
    if not path.is_file():
        command = name.split("/")[0]
        raise InputError(f"stage {name} is not done in {workdir}: run `selftrain {command}` or `selftrain run`")
    return read_json(path, f"manifest of stage {name}")


def fingerprints_of(workdir: pathlib.Path, **names: str) -> Fingerprints:
    """Those of finished stages of another run, as inputs of these names."""
    return Fingerprints({k: lambda name=name: read_manifest(workdir, name)["fingerprint"] for k, name in names.items()})


def state(workdir: pathlib.Path, stage: Stage) -> str:
    """ "done", "started" or "waiting"; what is done may be stale."""
    if manifest_path(workdir, stage.name).is_file():
        return "started" if grown(workdir, stage) else "done"
    return "started" if (workdir / stage.name / "started.json").is_file() else "waiting"


def check(workdir: pathlib.Path, stages: Sequence[Stage], wanted: Callable[[str], bool] = lambda name: False) -> None:
    """Raises `InputError` naming the first setting in which a stage on disk differs from the one asked for; then, the
    first reason for which a `wanted` stage could not be done."""
    for stage in stages:
        records = [] if stage.again else [_read(workdir / stage.name / file) for file in RECORDS]  # tells broken ones
        if record := next(filter(None, records), None):
            refuse_changed(workdir, stage, "setting", record["settings"], _but_for_growth(stage, record))
    plan = [stage for stage in stages if wanted(stage.name)]
    if not plan:
        return
    known = {stage.name: stage for stage in stages}
    bad = stale(workdir, stages, absent=True)
    for stage in plan:
        for name in (*stage.after, *([] if stage.again else [stage.name])):
            if name in bad and not (bad[name].outgrown and wanted(name)):
                refuse_stale(workdir, name, bad)
        for name in stage.after:
            if name in known and not wanted(name) and grown(workdir, known[name]):
                raise InputError(f"stage {name} has less than is asked for: run `selftrain {name.split('/')[0]}` first")
            if not wanted(name):
                read_manifest(workdir, name)


def _but_for_growth(stage: Stage, record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a stage, with those that have grown, and paths in a folder that was moved, as recorded."""
    found = record["settings"]
    asked = before_moving(plain(stage.settings), found, stage.root)
    for name in (*stage.grows, *(stage.settled if "fingerprint" in record else ())):
        asked = without_growth(asked, found, name)
    return asked


def outdated(workdir: pathlib.Path, stages: Sequence[Stage], outgrown: bool = False) -> dict[str, str]:
    """The stages on disk that would have to be done anew, for their settings or for what they were made from, or, if
    `outgrown`, because that has merely grown; in order, with the reason. What is cheap needs no telling."""
    again = {stage.name for stage in stages if stage.again}
    found = stale(workdir, stages, absent=True, settings=True)
    return {name: why.why for name, why in found.items() if why.outgrown == outgrown and name not in again}


@dataclasses.dataclass(frozen=True)
class Stale:
    """Why a stage's result is not that of now. `outgrown`: it is, but for a stage before it that was asked for more.
    `derived`: it is but for a stage before it, the first, which `why` names."""

    why: str
    outgrown: bool = False
    derived: bool = False


def stale(
    workdir: pathlib.Path, stages: Sequence[Stage], *, models: bool = True, absent: bool = False, settings: bool = False
) -> dict[str, Stale]:
    """The stages on disk that are not what the settings, files and other stages of now would make, by name.

    Args:
      stages: in order; what they come after beside them is taken as it is on disk.
      models: whether to look at models from outside, too.
      absent: whether a stage that is gone counts as what it will be once it is made again; otherwise, as what it was.
      settings: whether a changed setting counts, too.
    """
    found: dict[str, Stale] = {}
    earlier: dict[str, Sequence[str]] = {}  # fingerprints that a stage had when less was asked for
    will_be: dict[str, Callable[[], str | None]] = {}  # that of the stage once it is done; None: not known
    names = {stage.name for stage in stages} | {name for stage in stages for name in stage.after}
    records = {name: record_of(workdir, name) for name in names}
    for name, record in records.items():
        will_be[name] = functools.partial((record or {}).get, "fingerprint")
        earlier[name] = (record or {}).get("earlier", ())
    for stage in stages:
        record, inputs = records[stage.name], {name: will_be[name] for name in stage.after}
        reason = record and settings and not stage.again and _changed(stage, record)
        if record and (reason := reason or _why_stale(workdir, stage, record, inputs, earlier, found, models)):
            found[stage.name] = reason
        done = record.get("fingerprint") if record else None
        made_anew = bool(done) and (stage.name in found or grown(workdir, stage))
        if made_anew:
            earlier[stage.name] = [*earlier[stage.name], done]
        if made_anew or (not done if record else absent):
            will_be[stage.name] = functools.cache(functools.partial(_predicted, stage, record, inputs))
    return found


def _changed(stage: Stage, record: Mapping[str, Any]) -> Stale | None:
    for name, old, new in differences(record["settings"], _but_for_growth(stage, record)):
        return Stale(f"setting {name} is {new!r} and was {old!r}")
    return None


def _why_stale(workdir, stage: Stage, record, inputs, earlier, found, models: bool) -> Stale | None:
    outgrown = None
    for name, now in inputs.items():
        before = record["inputs"].get(name)
        if before is None and (stage.grows or stage.settled):
            continue
        if stage.again and before and half_redone(workdir, name):
            return Stale(f"it was made from stage {name}, which --redo began to make anew: run that again")
        if name in found and not found[name].outgrown:
            why = found[name].why
            return Stale(why if found[name].derived else f"it was made from stage {name}, of which {why}", derived=True)
        if before is None and stage.again:
            outgrown = Stale(f"{name} has come since", True)
        elif before is None or now() not in (None, before):
            if before not in earlier[name]:
                return Stale(f"it was made from another {name}")
            outgrown = Stale(f"it was made from less of {name} than is asked for now", True)
    unnoted = [name for group in stage.unnoted if record["inputs"].keys().isdisjoint(group) for name in group]
    for name, now in outside_inputs(stage, models).items():
        more = name not in record["inputs"] and (stage.grows or stage.settled or name in unnoted)
        if record["inputs"].get(name) != now and not more:
            return Stale(f"its input {name} has changed since")
    if stage.again and (gone := record["inputs"].keys() - inputs.keys()):  # what else is in it may depend on that
        return Stale(f"it was made from {min(gone)} as well, which is no longer asked for")
    if stage.again and record["settings"] != plain(stage.settings):
        outgrown = Stale("its settings have changed since", True)
    for name in missing_files(workdir / stage.name, record.get("files", ())):
        there = not is_remote(workdir) and (workdir / stage.name / name).exists()
        return Stale(f"{name} has changed in its folder" if there else f"{name} is gone from its folder")
    return outgrown


def outside_inputs(stage: Stage, models: bool) -> dict[str, str]:
    """Fingerprints of what it reads from outside, as far as that can still be read."""
    found: dict[str, str] = {}
    for look in (stage.externals, *([stage.models] if models else [])):
        with contextlib.suppress(InputError):
            read = look()
            for name in read:
                with contextlib.suppress(InputError):
                    found[name] = read[name]
    return found


def _predicted(
    stage: Stage, record: dict[str, Any] | None, inputs: Mapping[str, Callable[[], str | None]]
) -> str | None:
    """The fingerprint that a stage will have; None where one before it, or what it reads, is not known."""
    try:
        outside = {**record["inputs"]} if record else {**stage.externals(), **stage.models(), **stage.machine()}
        if record and stage.grows:
            outside = {**outside_inputs(stage, True), **outside}
    except InputError:
        return None
    before = {name: now() for name, now in inputs.items()}
    asked = {"stage": stage.name, "settings": plain(stage.settings), "inputs": {**outside, **before}}
    return None if None in before.values() else fingerprint(asked)


def current(workdir: pathlib.Path, stages: Sequence[Stage], *names: str) -> None:
    """Raises `InputError` where one of these stages, as far as it is on disk, is stale. A report that merely lacks what
    has come since is as good as ever for what is in it."""
    found, again = stale(workdir, stages), {stage.name for stage in stages if stage.again}
    for name in names:
        if name in found and not (found[name].outgrown and name in again):
            refuse_stale(workdir, name, found)


def refuse_stale(workdir: pathlib.Path, name: str, found: Mapping[str, Stale]) -> NoReturn:
    folders = ", ".join(str(workdir / other) for other in found if found[other].outgrown == found[name].outgrown)
    raise InputError(
        f"stage {name} in {workdir} is stale: {found[name].why}; undo that, delete {folders} to have it made anew (as "
        "--redo of `selftrain run` or `study` does), or use another --workdir"
    )


def record_of(workdir: pathlib.Path, name: str) -> dict[str, Any] | None:
    """What is on disk of a stage: its manifest, or else what it was started with."""
    return next(filter(None, (_read(workdir / name / file) for file in RECORDS)), None)


_PARTS = {"settings": dict, "inputs": dict, "files": (dict, list), "earlier": list, "software": list}


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    """What `run` left in `path`, None where there is no file; `InputError` when it is damaged."""
    record = read_record(path)
    if record is None:
        return None
    known = isinstance(record, dict) and {"settings", "inputs"} <= record.keys()
    if not known or not all(isinstance(record[name], kind) for name, kind in _PARTS.items() if name in record):
        raise InputError(f"{path} is no record of a stage: remove {path.parent} and run the same command again")
    return record


def grown(workdir: pathlib.Path, stage: Stage) -> bool:
    """Whether a finished stage is asked for more."""
    record = stage.grows and _read(manifest_path(workdir, stage.name))
    if not record:
        return False
    asked = before_moving(plain(stage.settings), record["settings"], stage.root)
    return any(record["settings"].get(name) != asked[name] for name in stage.grows)


def refuse_changed(workdir: pathlib.Path, stage: Stage, kind: str, found: Any, asked: Any) -> None:
    redo = f"`selftrain {'run' if stage.root is None else 'study'} --redo`"
    way_out = f"use another --workdir, or delete that folder and those of the stages after it, which {redo} does"
    refuse_changes(f"stage {stage.name}", found, asked, workdir / stage.name, way_out, kind=kind)
