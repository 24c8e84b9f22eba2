"""A student whose weights are moved in a random direction, evaluated."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from selftrain_jax.core.randomness import pinned, seed_key
from selftrain_jax.evaluation import suite
from selftrain_jax.models import hf
from selftrain_jax.models.decoder import Params
from selftrain_jax.run.pipeline import Pipeline
from selftrain_jax.training.checkpoint import restore_params


def evaluate_moved(pipeline: Pipeline, model: str, seed: int, directory: pathlib.Path) -> dict[str, Any]:
    """What `suite.evaluate_model` finds for the student, moved as far as training has moved it to become `model`."""
    student, mesh = pipeline.model_path(pipeline.student), pipeline.local_mesh
    config, params = hf.load_pretrained(student, mesh=mesh)
    trained = restore_params(pipeline.checkpoints(model), config, mesh)
    moved = config, moved_at_random(params, trained, seed_key(seed))
    evaluate = pipeline.config.evaluate
    return suite.evaluate_model(moved, student, evaluate, pipeline.path, directory, mesh=mesh, name="noise")


@pinned()
def moved_at_random(params: Params, trained: Params, key: PRNGKeyArray) -> Params:
    """`params` plus normal noise, of which each array has the norm of `trained` minus `params`."""
    keys = jax.tree.unflatten(jax.tree.structure(params), jax.random.split(key, len(jax.tree.leaves(params))))
    return jax.jit(lambda *trees: jax.tree.map(_moved, *trees))(params, trained, keys)


def _moved(x, y, key):
    noise = jax.random.normal(key, x.shape, jnp.float32)
    distance = jnp.linalg.norm(y.astype(jnp.float32).ravel() - x.astype(jnp.float32).ravel())
    return x + (noise * distance / jnp.linalg.norm(noise.ravel())).astype(x.dtype)
