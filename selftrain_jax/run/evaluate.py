"""The stages that measure the models of a run and report on them."""

from typing import Any, Sequence

from selftrain_jax.data.training_set import read_training_texts
from selftrain_jax.distributed.mesh import is_local
from selftrain_jax.evaluation import memorization, suite
from selftrain_jax.models import hf
from selftrain_jax.report import page
from selftrain_jax.run import summary
from selftrain_jax.run.names import TWIN, RunNames
from selftrain_jax.run.stages import Stage
from selftrain_jax.training.checkpoint import restore_params


def evaluate_stage(run: RunNames, model: str) -> Stage:
    evaluate, files = run.config.evaluate, run.config.evaluate.files()

    def work(directory):
        tokenizer = run.model_path(run.student)
        if evaluate.probes:
            probes = memorization.load_probes(run.path(evaluate.probes), hf.load_config(tokenizer))
            summary.check_groups(probes, evaluate)
        loaded = _load(run, model)
        trained_on = read_training_texts(run.workdir / "subset" / model, tokenizer) if run.models[model] else None
        arguments = {"mesh": run.local_mesh, "name": model, "trained_on": trained_on}
        return suite.evaluate_model(loaded, tokenizer, evaluate, run.path, directory, **arguments)

    return Stage(
        f"evaluate/{model}",
        evaluate.stage_settings() | {"student": run.student},
        [*_made_by(run, model), *run.lab_stages(run.student, *files.values())],
        work,
        lambda: run.file_inputs(files),
        lambda: run.model_input("student", run.student),
        # Only where not even the tensor axis fits the devices of one process.
        together=lambda: not is_local(run.local_mesh),
    )


def _made_by(run: RunNames, model: str) -> list[str]:
    """The stage that makes an evaluated model, beside those of the student."""
    return [f"train/{model}"] if run.models[model] else run.lab_stages(TWIN) if model == "twin" else []


def _load(run: RunNames, model: str) -> tuple[Any, Any]:
    """(config, params on `local_mesh`) of an evaluated model."""
    student = run.model_path(run.student)
    if run.models[model] is None:
        return hf.load_pretrained(run.model_path(TWIN) if model == "twin" else student, mesh=run.local_mesh)
    config = hf.load_config(student)
    return config, restore_params(run.checkpoints(model), config, run.local_mesh)


def report_stage(run: RunNames, before: Sequence[str]) -> Stage:
    """`before`: the names of all other stages, in order."""

    def work(directory):
        page.write_report(directory, summary.report_data(run, before))

    after = [f"evaluate/{model}" for model in run.models]
    return Stage("report", {"title": run.config.heading}, after, work, again=True)
