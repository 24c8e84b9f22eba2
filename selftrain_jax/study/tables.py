"""The tables of a study's runs, below one another."""

import pathlib
import warnings
from typing import Callable

import pyarrow as pa

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.files import read_json
from selftrain_jax.core.settings import build
from selftrain_jax.study.collect import finished_runs, pipeline_arms
from selftrain_jax.study.expand import Study
from selftrain_jax.study.settings import StudyConfig


def study_table(workdir: pathlib.Path, make: Callable[..., pa.Table]) -> pa.Table:
    """What `make`, a function of `run.tables`, makes of every run of the study in `workdir`, as far as it is done; the
    turns of the loop on its own output are no part of it."""
    study = Study(build(StudyConfig, read_json(workdir / "study.json", "study")), workdir)
    done = {unit.name for unit in study.units if unit.done()}
    tables, runs = [], finished_runs(study, done)
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
