"""The evaluation of an untouched student, copied where it is done already and repeated where noise is measured."""

import dataclasses
import shutil

from selftrain_jax.run import stages
from selftrain_jax.run.evaluate import evaluate_stage
from selftrain_jax.run.stages import Stage
from selftrain_jax.study.model import Run


def copied_base(first: Run, run: Run) -> Stage:
    """The evaluation of the untouched student, which another condition of the same student has done already."""

    def work(directory):
        for file in (first.pipeline.workdir / "evaluate" / "base").iterdir():
            if file.name not in ("manifest.json", "started.json"):
                shutil.copy(file, directory)
        return stages.read_manifest(first.pipeline.workdir, "evaluate/base")["result"]

    return dataclasses.replace(evaluate_stage(run.pipeline, "base"), work=work)


def evaluated_again(name: str, run: Run) -> Stage:
    """The evaluation of the untouched student in batches of another size: what differs is numeric noise."""
    config = run.pipeline.config
    evaluate = dataclasses.replace(config.evaluate, batch_size=max(config.evaluate.batch_size // 2, 1))
    pipeline = dataclasses.replace(run.pipeline, config=dataclasses.replace(config, evaluate=evaluate))
    return dataclasses.replace(evaluate_stage(pipeline, "base"), name=name)
