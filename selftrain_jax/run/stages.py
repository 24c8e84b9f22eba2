"""A run as a folder of stages: each is done once, skipped when done, and refused when its settings no longer match.

Every stage owns `workdir/<name>/`. What it was asked for is written there when it starts (`started.json`), what it
found when it ends (`manifest.json`, last and atomically). So a run can be killed anywhere and started again with the
same command, and a changed setting is caught before it can mix with what is on disk.

In a job of several processes, process 0 alone reads and writes these files and decides; the others hear from it what to
do, since what one host writes may reach another's view of a network file system late.
"""

import dataclasses
import pathlib
import time
from typing import Any, Callable, Mapping, Sequence

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import fingerprint, read_json
from selftrain_jax.core.records import plain, read_record, refuse_changes, write_record
from selftrain_jax.core.storage import Workdir
from selftrain_jax.distributed import job, preemption

_RECORDS = ("manifest.json", "started.json")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of a run.

    Attributes:
      name: its folder below the workdir, for example "train/self-0".
      settings: everything that decides its result, as JSON values.
      after: names of the stages whose results it reads.
      work: does it, in the folder it is given, and returns JSON values for the manifest. It may find its own unfinished
        work there and go on with it.
      externals: fingerprints of the files from outside the workdir that it reads, called when the stage is reached.
      grows: settings that may be raised later; the stage then goes on from what is there.
      together: in a job of several processes, whether all of them do the work, on the mesh; otherwise process 0 does it
        alone.
      finish: what process 0 does in the folder when all are done with `work`; it then returns the values instead.
      progress: how far the work in the folder is, in words; "" where that is not known.
    """

    name: str
    settings: Mapping[str, Any]
    after: Sequence[str]
    work: Callable[[pathlib.Path], Mapping[str, Any] | None]
    externals: Callable[[], Mapping[str, str]] = dict
    grows: Sequence[str] = ()
    together: bool | Callable[[], bool] = False
    finish: Callable[[pathlib.Path], Mapping[str, Any] | None] | None = None
    progress: Callable[[pathlib.Path], str] = lambda folder: ""


def manifest_path(workdir: pathlib.Path, name: str) -> pathlib.Path:
    return workdir / name / "manifest.json"


def read_manifest(workdir: pathlib.Path, name: str) -> dict[str, Any]:
    """The manifest of a finished stage; `InputError` naming the command that makes it otherwise."""
    path = manifest_path(workdir, name)
    if not path.is_file():
        raise InputError(
            f"stage {name} is not done in {workdir}: run `selftrain {name.split('/')[0]}` or `selftrain run`"
        )
    return read_json(path, f"manifest of stage {name}")


def state(workdir: pathlib.Path, stage: Stage) -> str:
    """ "done", "started" or "waiting"."""
    if manifest_path(workdir, stage.name).is_file():
        return "started" if _grown(workdir, stage) else "done"
    return "started" if (workdir / stage.name / "started.json").is_file() else "waiting"


def check(workdir: pathlib.Path, stages: Sequence[Stage]) -> None:
    """Raises `InputError` naming the first setting in which a stage on disk differs from the one asked for."""
    for stage in stages:
        for file in _RECORDS:
            if record := read_record(workdir / stage.name / file):
                found, asked = record["settings"], stage.settings
                raised = {name: found[name] for name in stage.grows if name in found and asked[name] > found[name]}
                _refuse_changes(workdir, stage, "setting", found, {**asked, **raised})


def check_externals(workdir: pathlib.Path, stage: Stage) -> None:
    """Raises `InputError` when a file that a stage on disk was made from has changed, or cannot be read."""
    asked = dict(stage.externals())
    if record := _record(workdir, stage.name):
        _refuse_changes(workdir, stage, "input", {name: record["inputs"].get(name) for name in asked}, asked)


def _grown(workdir: pathlib.Path, stage: Stage) -> bool:
    """Whether a finished stage is asked for more."""
    record = stage.grows and read_record(manifest_path(workdir, stage.name))
    return bool(record) and any(record["settings"].get(n) != stage.settings[n] for n in stage.grows)


def run(
    workdir: Workdir | pathlib.Path, stages: Sequence[Stage], wanted: Callable[[str], bool], say: Callable[[str], None]
) -> None:
    """Does the stages whose name is `wanted`, in order, skipping those that are done.

    Raises:
      InputError: a setting or an input differs from what is on disk, or a stage is not done that a wanted one needs.
    """
    workdir = workdir if isinstance(workdir, Workdir) else Workdir(workdir)

    def check_all():
        check(workdir.path, stages)
        _check_growth(workdir.path, stages, wanted)

    job.on_first("check of the workdir", check_all)
    for number, stage in enumerate(stages, 1):
        if wanted(stage.name):
            _run_one(workdir, stage, f"[{number}/{len(stages)}] {stage.name}", say)


def stale(workdir: pathlib.Path, stages: Sequence[Stage]) -> list[str]:
    """Names of the stages on disk that were made, in part or whole, from less than is asked for now."""
    found: set[str] = set()
    asked = {stage.name: _asked_fingerprint(workdir, stage) for stage in stages if stage.grows}
    for stage in stages:
        record = _record(workdir, stage.name)
        if record and any(name in found or (asked.get(name) or old) != old for name, old in record["inputs"].items()):
            found.add(stage.name)
    return [stage.name for stage in stages if stage.name in found]


def _record(workdir: pathlib.Path, name: str) -> dict[str, Any] | None:
    """What is on disk of a stage: its manifest, or else what it was started with."""
    return next(filter(None, (read_record(workdir / name / file) for file in _RECORDS)), None)


def _asked_fingerprint(workdir: pathlib.Path, stage: Stage) -> str | None:
    """The fingerprint that the stage will have once it is done, if it has been started."""
    record = _record(workdir, stage.name)
    return record and fingerprint({"stage": stage.name, "settings": plain(stage.settings), "inputs": record["inputs"]})


def _check_growth(workdir: pathlib.Path, stages: Sequence[Stage], wanted: Callable[[str], bool]) -> None:
    """Raises `InputError` when a wanted stage was made from less than is asked for, or would be."""
    outdated = stale(workdir, stages)
    if any(wanted(name) for name in outdated):
        raise InputError(
            f"these stages in {workdir} were made from less than is asked for now: delete their folders first "
            f"({', '.join(outdated)})"
        )
    small = {stage.name for stage in stages if _grown(workdir, stage) and not wanted(stage.name)}
    for stage in stages:
        if wanted(stage.name) and small & set(stage.after):
            name = min(small & set(stage.after))
            raise InputError(f"stage {name} has less than is asked for: run `selftrain {name.split('/')[0]}` first")


def _run_one(workdir: Workdir, stage: Stage, title: str, say: Callable[[str], None]) -> None:
    directory, local = workdir.path / stage.name, workdir.local / stage.name
    asked: dict[str, Any] = {}

    def begins() -> bool:
        inputs = {name: read_manifest(workdir.path, name)["fingerprint"] for name in stage.after}
        asked.update(stage=stage.name, settings=plain(stage.settings), inputs=inputs | dict(stage.externals()))
        for file in _RECORDS:
            if record := read_record(directory / file):
                _refuse_changes(workdir.path, stage, "input", record["inputs"], asked["inputs"])
        if (directory / "manifest.json").is_file():
            if not _grown(workdir.path, stage):
                say(f"{title}: done before")
                return False
            (directory / "manifest.json").unlink()
        say(title)
        directory.mkdir(parents=True, exist_ok=True)
        write_record(directory / "started.json", asked)
        return True

    def ends() -> None:
        seconds = round(time.perf_counter() - begin, 2)
        outcome = {"fingerprint": fingerprint(asked), "seconds": seconds, "result": result}
        write_record(directory / "manifest.json", asked, **outcome)

    def works() -> Mapping[str, Any]:
        workdir.fetch()
        with workdir.sending(stage.name):
            return (stage.finish or stage.work)(local) or {}

    if not job.on_first(f"begin of {stage.name}", begins):
        return
    begin = time.perf_counter()
    together = stage.together() if callable(stage.together) else stage.together
    local.mkdir(parents=True, exist_ok=True)
    preemption.begins(stage.name)
    try:
        if together:
            workdir.fetch(stage.name, *stage.after)
            job.barrier(f"all begin {stage.name}")
            with workdir.sending(stage.name):
                result = stage.work(local) or {}
            job.barrier(f"all are done with {stage.name}")
        if stage.finish or not together:
            result = job.on_first(stage.name, works)
    except InputError:
        # Nothing was made from the bad input: the next attempt may ask for something else.
        if job.is_first() and [path.name for path in directory.iterdir()] == ["started.json"]:
            (directory / "started.json").unlink()
        raise
    job.on_first(f"end of {stage.name}", ends)


def _refuse_changes(workdir: pathlib.Path, stage: Stage, kind: str, found: Any, asked: Any) -> None:
    way_out = "use another --workdir, or delete that folder and those of the stages after it"
    refuse_changes(f"stage {stage.name}", found, asked, workdir / stage.name, way_out, kind=kind)
