"""Evaluations of a student that no text has trained: what evaluation alone adds, and what moving its weights alone
does.
"""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from selftrain_jax.core.randomness import pinned, seed_key
from selftrain_jax.evaluation import suite
from selftrain_jax.models import hf
from selftrain_jax.models.decoder import Params
from selftrain_jax.run import stages
from selftrain_jax.run.evaluate import evaluate_stage
from selftrain_jax.run.stages import Stage
from selftrain_jax.study.model import Run
from selftrain_jax.training.checkpoint import restore_params


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


def evaluated_at_random(name: str, run: Run) -> Stage:
    """The evaluation of the student with weights that are moved in a random direction, each array as far as training on
    the first arm has moved it."""
    pipeline, model = run.pipeline, f"{run.pipeline.main}-0"
    base = evaluate_stage(pipeline, "base")

    def work(directory):
        student, mesh = pipeline.model_path(pipeline.student), pipeline.local_mesh
        config, params = hf.load_pretrained(student, mesh=mesh)
        trained = restore_params(pipeline.checkpoints(model), config, mesh)
        moved = config, moved_at_random(params, trained, seed_key(run.seed))
        evaluate = pipeline.config.evaluate
        return suite.evaluate_model(moved, student, evaluate, pipeline.path, directory, mesh=mesh, name="noise")

    def externals():
        return base.externals() | {"trained": stages.read_manifest(pipeline.workdir, f"train/{model}")["fingerprint"]}

    return dataclasses.replace(
        base, name=name, settings=base.settings | {"seed": run.seed}, work=work, externals=externals
    )


@pinned()
def moved_at_random(params: Params, trained: Params, key: PRNGKeyArray) -> Params:
    """`params` plus normal noise, of which each array has the norm of `trained` minus `params`."""
    keys = jax.tree.unflatten(jax.tree.structure(params), jax.random.split(key, len(jax.tree.leaves(params))))
    return jax.jit(lambda *trees: jax.tree.map(_moved, *trees))(params, trained, keys)


def _moved(x, y, key):
    noise = jax.random.normal(key, x.shape, jnp.float32)
    distance = jnp.linalg.norm(y.astype(jnp.float32).ravel() - x.astype(jnp.float32).ravel())
    return x + (noise * distance / jnp.linalg.norm(noise.ravel())).astype(x.dtype)
