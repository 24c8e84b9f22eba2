"""The models of a run, loaded and measured."""

import functools
import pathlib
from typing import Any, Mapping

from jax.sharding import Mesh

from selftrain_jax.core.errors import InputError
from selftrain_jax.data.training_set import read_training_texts
from selftrain_jax.evaluation import memorization, suite
from selftrain_jax.models import hf
from selftrain_jax.models.files.tokenizer import reads_ids, tokenizer_fingerprint
from selftrain_jax.run import summary
from selftrain_jax.run.names import TWIN, RunNames
from selftrain_jax.training.checkpoint import restore_params


def measure(run: RunNames, model: str, parts: Mapping[str, str], directory: pathlib.Path) -> dict[str, Any]:
    """What `suite.evaluate_model` finds for an evaluated model; `parts` as there."""
    evaluate, tokenizer = run.config.evaluate, run.model_path(run.student)
    if evaluate.probes:
        probes = memorization.load_probes(run.path(evaluate.probes), hf.load_config(tokenizer))
        summary.check_groups(probes, evaluate)
    loaded = load_model(run, model, run.local_mesh)
    trained_on = None
    if run.models[model]:
        run.place.fetch(f"subset/{model}")  # which processes of a job that only evaluates have not done
        trained_on = read_training_texts(run.workdir / "subset" / model, tokenizer)
    arguments = {"mesh": run.local_mesh, "name": model, "trained_on": trained_on, "parts": parts}
    if evaluate.reference:
        path = run.model_path(evaluate.reference)
        check_reference(path, tokenizer)
        arguments["reference"] = functools.partial(hf.load_pretrained, path, mesh=run.local_mesh)
    return suite.evaluate_model(loaded, tokenizer, evaluate, run.path, directory, **arguments)


def load_model(run: RunNames, model: str, mesh: Mesh) -> tuple[Any, Any]:
    """(config, params on `mesh`) of an evaluated model."""
    student = run.model_path(run.student)
    if run.models[model] is None:
        return hf.load_pretrained(run.model_path(TWIN) if model == "twin" else student, mesh=mesh)
    config = hf.load_config(student)
    return config, restore_params(run.checkpoints(model), config, mesh)


def check_reference(reference: pathlib.Path, student: pathlib.Path) -> None:
    """Raises `InputError` for a model of the reference attack that reads other tokens than the student."""
    if not reads_ids(tokenizer_fingerprint(student), reference):
        raise InputError(
            f"evaluate reference={reference} has another tokenizer than the student: name a model with the same one"
        )
