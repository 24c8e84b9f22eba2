"""Doing the stages of a run, in order.

In a job of several processes, process 0 alone reads and writes the records of stages and decides; the others hear from
it what to do, since what one host writes may reach another's view of a network file system late.

What stages work with is imported here already, though none of it is named: a run of hours is of one version of the
package, also where that is updated meanwhile.
"""

import json
import pathlib
import time
from typing import Any, Callable, Mapping, Sequence

from selftrain_jax.core import progress
from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import fingerprint, write_atomic
from selftrain_jax.core.records import plain, write_record
from selftrain_jax.core.rows import hidden
from selftrain_jax.core.storage import RECORDS, Workdir, missing_files
from selftrain_jax.data import generate  # noqa: F401
from selftrain_jax.distributed import job, preemption
from selftrain_jax.lab import pretrain  # noqa: F401
from selftrain_jax.lab.plant import text  # noqa: F401
from selftrain_jax.report import page  # noqa: F401
from selftrain_jax.run import facts, known_text, measure, relearn  # noqa: F401
from selftrain_jax.run.stages import (
    Stage,
    check,
    grown,
    manifest_path,
    outside_inputs,
    read_manifest,
    record_of,
    refuse_changed,
    refuse_stale,
    stale,
    state,
)


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
    software: list[dict[str, str]] = []  # of all that worked on what there will be, in the end this one
    now = facts.software()
    was: dict[str, bytes] = {}  # the records of what is done, which goes on

    def begins() -> bool:
        inputs = {name: read_manifest(workdir.path, name)["fingerprint"] for name in stage.after}
        machine = stage.machine()
        inputs |= {**stage.externals(), **stage.models(), **machine}
        asked.update(stage=stage.name, settings=plain(stage.settings), inputs=inputs)
        record = None if stage.again else record_of(workdir.path, stage.name)
        found = stale(workdir.path, [stage]) if record else {}
        if found and not found[stage.name].outgrown:
            refuse_stale(workdir.path, stage.name, found)
        if record:
            done = "fingerprint" in record
            if done and not found and not grown(workdir.path, stage):
                say(f"{title}: done before")
                return False
            earlier.extend([*record.get("earlier", ()), *([record["fingerprint"]] if done else [])])
            software.extend(of for of in record.get("software", [{}]) if not found and of != now)
            if found:
                say(f"{title}: {found[stage.name].why}; what it was is kept in {workdir.set_aside(stage.name)}")
            else:
                refuse_changed(workdir.path, stage, "input", {n: record["inputs"].get(n) for n in machine}, machine)
        workdir.refuse_links(stage.name)
        if not (record or stage.again) and (left := _unrecorded(directory)):
            raise InputError(
                f"{directory} holds {left}, and nothing says how that was made (no started.json, as of a copy that "
                "broke off): copy it whole, or remove it"
            )
        say(title)
        directory.mkdir(parents=True, exist_ok=True)
        if manifest_path(workdir.path, stage.name).is_file() and not stage.again:
            was.update({name: (directory / name).read_bytes() for name in RECORDS if (directory / name).is_file()})
        software.append(now)
        write_record(directory / "started.json", asked, earlier=earlier, software=software)
        (directory / "manifest.json").unlink(missing_ok=True)
        return True

    def ends() -> None:
        seconds = round(time.perf_counter() - begin, 2)
        outcome = {"fingerprint": fingerprint(asked), "seconds": seconds, "result": result}
        outcome |= {"earlier": earlier, "software": software, "files": workdir.result_files(stage.name)}
        write_record(directory / "manifest.json", asked, **outcome)
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


def _unrecorded(directory: pathlib.Path) -> str:
    """What is in the folder of a stage that was never begun; "" for nothing."""
    names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    return ", ".join(name for name in names if not hidden(name))


def _refuse_other_inputs(stage: Stage) -> None:
    """Raises `InputError` on all processes of a job where one of them would read what process 0 does not note."""
    if names := job.differing(lambda: {**outside_inputs(stage, True), **stage.machine()}):
        what = f"stage {stage.name}: {', '.join(names)} is not the same for all processes of this job"
        raise InputError(f"{what}: put the same files and models on all machines")
