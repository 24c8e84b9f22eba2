"""A run as a folder of stages: each is done once, skipped when done, and refused when its settings no longer match.

Every stage owns `workdir/<name>/`. What it was asked for is written there when it starts (`started.json`), what it
found when it ends (`manifest.json`, last and atomically). So a run can be killed anywhere and started again with the
same command, and a changed setting is caught before it can mix with what is on disk.

A stage whose inputs are no longer those that it was made from is *stale*: nobody may take its result for a current one.

In a job of several processes, process 0 alone reads and writes these files and decides; the others hear from it what to
do, since what one host writes may reach another's view of a network file system late.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import time
from typing import Any, Callable, Mapping, NoReturn, Sequence

from selftrain_jax.core import progress
from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import fingerprint, is_remote, read_json, write_atomic
from selftrain_jax.core.records import (
    before_moving,
    differences,
    plain,
    read_record,
    refuse_changes,
    without_growth,
    write_record,
)
from selftrain_jax.core.storage import RECORDS, Workdir, half_redone, missing_files
from selftrain_jax.distributed import job, preemption


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
            _refuse_changes(workdir, stage, "setting", record["settings"], _but_for_growth(stage, record))
    plan = [stage for stage in stages if wanted(stage.name)]
    if not plan:
        return
    known = {stage.name: stage for stage in stages}
    bad = stale(workdir, stages, absent=True)
    for stage in plan:
        for name in (*stage.after, *([] if stage.again else [stage.name])):
            if name in bad and not (bad[name].outgrown and wanted(name)):
                _refuse_stale(workdir, name, bad)
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
    records = {name: _record(workdir, name) for name in names}
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
    for name, now in _outside(stage, models).items():
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


def _outside(stage: Stage, models: bool) -> dict[str, str]:
    """Fingerprints of what it reads from outside, as far as that can still be read."""
    found: dict[str, str] = {}
    for look in (stage.externals, *([stage.models] if models else [])):
        with contextlib.suppress(InputError):
            found.update(look())
    return found


def _predicted(
    stage: Stage, record: dict[str, Any] | None, inputs: Mapping[str, Callable[[], str | None]]
) -> str | None:
    """The fingerprint that a stage will have; None where one before it, or what it reads, is not known."""
    try:
        outside = {**record["inputs"]} if record else {**stage.externals(), **stage.models(), **stage.machine()}
        if record and stage.grows:
            outside = {**_outside(stage, True), **outside}
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
            _refuse_stale(workdir, name, found)


def _refuse_stale(workdir: pathlib.Path, name: str, found: Mapping[str, Stale]) -> NoReturn:
    folders = ", ".join(str(workdir / other) for other in found if found[other].outgrown == found[name].outgrown)
    raise InputError(
        f"stage {name} in {workdir} is stale: {found[name].why}; undo that, delete {folders} to have it made anew (as "
        "--redo of `selftrain run` or `study` does), or use another --workdir"
    )


def _record(workdir: pathlib.Path, name: str) -> dict[str, Any] | None:
    """What is on disk of a stage: its manifest, or else what it was started with."""
    return next(filter(None, (_read(workdir / name / file) for file in RECORDS)), None)


_PARTS = {"settings": dict, "inputs": dict, "files": (dict, list), "earlier": list}


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


def run(
    workdir: Workdir | pathlib.Path, stages: Sequence[Stage], wanted: Callable[[str], bool], say: Callable[[str], None]
) -> None:
    """Does the stages whose name is `wanted`, in order, skipping those that are done.

    What was made from less than is asked for now is set aside, in the folder `replaced`, and made anew.

    Raises:
      InputError: a setting or an input differs from what is on disk, or between the processes of a job, or a stage is
        not done that a wanted one needs; before any of them begins.
    """
    workdir = workdir if isinstance(workdir, Workdir) else Workdir(workdir)
    job.on_first("check of the workdir", lambda: check(workdir.path, stages, wanted))
    plan = [stage for stage in stages if wanted(stage.name)]
    todo = job.on_first("what is to do", lambda: [s.name for s in plan if state(workdir.path, s) != "done"])
    for stage in plan:
        if stage.name in todo and stage.by_all():
            _refuse_other_inputs(stage)
    for number, stage in enumerate(stages, 1):
        if wanted(stage.name):
            if stage.again:  # a file may have changed while earlier stages were at work
                job.on_first(f"check before {stage.name}", lambda: check(workdir.path, stages, stage.name.__eq__))
            _run_one(workdir, stage, f"[{number}/{len(stages)}] {stage.name}", say)


def _run_one(workdir: Workdir, stage: Stage, title: str, say: Callable[[str], None]) -> None:
    directory, local = workdir.path / stage.name, workdir.local / stage.name
    asked: dict[str, Any] = {}
    earlier: list[str] = []
    was: dict[str, bytes] = {}  # the records of what is done, which goes on

    def begins() -> bool:
        inputs = {name: read_manifest(workdir.path, name)["fingerprint"] for name in stage.after}
        machine = stage.machine()
        inputs |= {**stage.externals(), **stage.models(), **machine}
        asked.update(stage=stage.name, settings=plain(stage.settings), inputs=inputs)
        record = None if stage.again else _record(workdir.path, stage.name)
        found = stale(workdir.path, [stage]) if record else {}
        if found and not found[stage.name].outgrown:
            _refuse_stale(workdir.path, stage.name, found)
        if record:
            done = "fingerprint" in record
            if done and not found and not grown(workdir.path, stage):
                say(f"{title}: done before")
                return False
            earlier.extend([*record.get("earlier", ()), *([record["fingerprint"]] if done else [])])
            if found:
                say(f"{title}: {found[stage.name].why}; what it was is kept in {workdir.set_aside(stage.name)}")
            else:
                _refuse_changes(workdir.path, stage, "input", {n: record["inputs"].get(n) for n in machine}, machine)
        workdir.refuse_links(stage.name)
        say(title)
        directory.mkdir(parents=True, exist_ok=True)
        if manifest_path(workdir.path, stage.name).is_file() and not stage.again:
            was.update({name: (directory / name).read_bytes() for name in RECORDS if (directory / name).is_file()})
        write_record(directory / "started.json", asked, earlier=earlier)
        (directory / "manifest.json").unlink(missing_ok=True)
        return True

    def ends() -> None:
        seconds = round(time.perf_counter() - begin, 2)
        outcome = {"fingerprint": fingerprint(asked), "seconds": seconds, "result": result}
        write_record(
            directory / "manifest.json", asked, earlier=earlier, files=workdir.result_files(stage.name), **outcome
        )
        progress.note(f"{title}: done in {progress.duration(seconds)}")

    def works() -> Mapping[str, Any]:
        workdir.fetch()
        with workdir.sending(stage.name):
            return (stage.finish or stage.work)(local) or {}

    if not job.on_first(f"begin of {stage.name}", begins):
        return
    begin = time.perf_counter()
    local.mkdir(parents=True, exist_ok=True)
    preemption.begins(stage.name)
    try:
        if stage.by_all():
            workdir.fetch(stage.name, *stage.after)
            _refuse_other_inputs(stage)
            job.barrier(f"all begin {stage.name}")
            with workdir.sending(stage.name):
                result = stage.work(local) or {}
            job.barrier(f"all are done with {stage.name}")
        if stage.finish or not stage.by_all():
            result = job.on_first(stage.name, works)
    except InputError:
        # Nothing was made from the bad input: the next attempt may ask for something else.
        if job.is_first() and [path.name for path in directory.iterdir()] == ["started.json"]:
            (directory / "started.json").unlink()
        elif job.is_first() and was and not missing_files(directory, json.loads(was["manifest.json"]).get("files", ())):
            for name in reversed(was):  # the manifest last
                write_atomic(directory / name, was[name])
        raise
    job.on_first(f"end of {stage.name}", ends)


def _refuse_other_inputs(stage: Stage) -> None:
    """Raises `InputError` on all processes of a job where one of them would read what process 0 does not note."""
    if names := job.differing(lambda: {**_outside(stage, True), **stage.machine()}):
        what = f"stage {stage.name}: {', '.join(names)} is not the same for all processes of this job"
        raise InputError(f"{what}: put the same files and models on all machines")


def _refuse_changes(workdir: pathlib.Path, stage: Stage, kind: str, found: Any, asked: Any) -> None:
    redo = f"`selftrain {'run' if stage.root is None else 'study'} --redo`"
    way_out = f"use another --workdir, or delete that folder and those of the stages after it, which {redo} does"
    refuse_changes(f"stage {stage.name}", found, asked, workdir / stage.name, way_out, kind=kind)
