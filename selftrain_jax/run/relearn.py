"""How what was planted returns to a model that is trained on it again."""

import functools
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from selftrain_jax.core.files import write_arrays
from selftrain_jax.distributed import job
from selftrain_jax.distributed.mesh import is_local
from selftrain_jax.evaluation import memorization, suite
from selftrain_jax.evaluation.score import score
from selftrain_jax.lab.plant.relearn import PREFIXES, measured, read_planted, recovery_file, relearning_rows
from selftrain_jax.models.files.hf_config import load_config
from selftrain_jax.models.files.tokenizer import load_tokenizer
from selftrain_jax.run.measure import load_model
from selftrain_jax.run.names import RunNames
from selftrain_jax.training.loop import train


def relearn(run: RunNames, model: str, stage: str, directory: pathlib.Path) -> None:
    """Trains an evaluated model on part of what was planted, and measures the rest of it along the way."""
    recovery, evaluate = run.config.recovery, run.config.evaluate
    student = run.model_path(run.student)
    config, tokenizer = load_config(student), load_tokenizer(student)
    planted = read_planted(run.path(evaluate.probes))
    text = run.path(recovery.text) if recovery.text else None
    bos = config.bos_token_id if suite.begins_with_bos(evaluate, tokenizer) else None
    dtype, placed = jnp.dtype(evaluate.dtype), {"mesh": run.mesh, "batch_size": evaluate.batch_size}

    def measure(step: int, params: Any) -> None:
        scorer = functools.partial(score, params, config, dtype=dtype, **placed)
        found: dict[str, np.ndarray] = {}
        for prefix in PREFIXES if step == 0 else ("all",):
            probes = [one.behind(PREFIXES[prefix]) for one in measured(planted)]
            extraction = memorization.extract(scorer, probes, bos_token_id=bos)
            found |= {f"{prefix}/{column}": getattr(extraction, column) for column in ("exact", "log_prob")}
        if is_local(run.mesh) or job.is_first():
            write_arrays(recovery_file(directory, step), found)

    train(
        lambda: load_model(run, model, run.mesh)[1],
        config,
        relearning_rows(recovery, planted, text, config, tokenizer),
        recovery.train,
        directory,
        mesh=run.mesh,
        description=f"relearn {model}",
        measure=measure,
        measure_points=recovery.steps.bit_length(),
        **run.saving(stage),
    )
