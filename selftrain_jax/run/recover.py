"""The stage that asks how what was planted returns to a model: longer prefixes, sampling, and relearning."""

import dataclasses
import functools
import pathlib

from selftrain_jax.run.evaluate import made_by
from selftrain_jax.run.names import PLANT, RunNames
from selftrain_jax.run.stages import Stage
from selftrain_jax.training.metrics import training_progress


def recover_stage(run: RunNames, model: str) -> Stage:
    recovery, evaluate = run.config.recovery, run.config.evaluate
    name = f"recover/{model}"

    def work(directory: pathlib.Path) -> None:
        from selftrain_jax.run.relearn import relearn

        relearn(run, model, name, directory)

    scored = {field: getattr(evaluate, field) for field in ("add_bos", "dtype")}
    files = {"text": recovery.text}
    return Stage(
        name,
        {"train": dataclasses.asdict(recovery.train), "text": recovery.text, "steps": recovery.steps, **scored},
        [*made_by(run, model), *run.lab_stages(run.student, f"{PLANT}text", *files.values())],
        work,
        lambda: run.file_inputs(files),
        together=True,
        progress=functools.partial(training_progress, epochs=1),
    )
