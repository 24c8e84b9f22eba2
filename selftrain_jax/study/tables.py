"""The tables of a study's runs, below one another."""

import pathlib
import warnings
from typing import Callable

import pyarrow as pa

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.files import read_json
from selftrain_jax.core.settings import build
from selftrain_jax.run.stages import manifest_path, read_manifest
from selftrain_jax.study.collect import finished_runs, pipeline_arms
from selftrain_jax.study.expand import Study
from selftrain_jax.study.model import Run
from selftrain_jax.study.settings import StudyConfig


def study_table(workdir: pathlib.Path, make: Callable[..., pa.Table], stage: str) -> pa.Table:
    """What `make`, a function of `run.tables` that reads a `stage`, makes of every run of the study in `workdir`, as
    far as it is done; the turns of the loop on its own output are no part of it."""
    study = Study(build(StudyConfig, read_json(workdir / "study.json", "study")), workdir)
    done = {unit.name for unit in study.units if unit.done()}
    tables, runs = [], [run for run in finished_runs(study, done) if stage != "report" or _reported(run)]
    arms = {run.name: len(run.arms) for run in runs}
    if lacking := [run.name for run in study.runs if arms.get(run.name) != len(run.arms)]:
        what = f"{len(lacking)} of {len(study.runs)} runs are left out, or arms of them, since not done or stale"
        warnings.warn(InputWarning(f"study {workdir}: {what}: {', '.join(lacking)}"), stacklevel=2)
    for run in runs:
        keys = pipeline_arms(run)
        whose = {"run": run.name, "student": run.student, "condition": run.condition.name or None, "seed": run.seed}
        place = {key: whose | {"arm": arm.name, "relation": arm.relation} for arm, key in zip(run.arms, keys)}
        tables.append(make(run.pipeline, keys, place))
    if not tables:
        raise InputError(f"study {workdir} has no run that is done: `selftrain study` goes on with it")
    return pa.concat_tables(tables)


def _reported(run: Run) -> bool:
    """Whether the run has a report, and that of the evaluations of now, and of no model that is no longer asked for."""
    workdir, names = run.pipeline.workdir, ["evaluate/base"]
    keys = pipeline_arms(run)
    names += [f"evaluate/{model}" for model, where in run.pipeline.models.items() if where and where[0] in keys]
    if not manifest_path(workdir, "report").is_file():
        return False
    read, known = read_manifest(workdir, "report")["inputs"], run.pipeline.stages()[-1].after
    same = all(read.get(name) == read_manifest(workdir, name)["fingerprint"] for name in names)
    return same and read.keys() <= set(known)
