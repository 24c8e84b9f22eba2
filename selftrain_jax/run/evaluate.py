"""The stages that measure the models of a run and report on them."""

from typing import Any, Sequence

from selftrain_jax.core.files import fingerprint
from selftrain_jax.core.records import plain
from selftrain_jax.data.training_set import read_training_texts
from selftrain_jax.distributed.mesh import is_local
from selftrain_jax.evaluation import memorization, suite
from selftrain_jax.evaluation.settings import SUITES
from selftrain_jax.models import hf
from selftrain_jax.report import page
from selftrain_jax.run import summary
from selftrain_jax.run.names import RunNames
from selftrain_jax.run.stages import Stage, read_manifest
from selftrain_jax.training.checkpoint import restore_params

_ADDED_TO = ("texts", *SUITES, "probes")
"""The settings of `evaluate` that may name more later: what is measured already stays."""


def evaluate_stage(run: RunNames, model: str) -> Stage:
    evaluate, files = run.config.evaluate, run.config.evaluate.files()
    settings = evaluate.stage_settings() | {"student": run.student}
    after = [*([] if model == "base" else [f"train/{model}"]), *run.lab_stages(run.student, *files.values())]

    def parts() -> dict[str, str]:
        """Setting that names a file -> fingerprint of all that decides what is measured with it."""
        shared = {name: value for name, value in settings.items() if name not in _ADDED_TO}
        made = {name: read_manifest(run.workdir, name)["fingerprint"] for name in after}
        world, read = made.pop("lab/world", None), run.file_inputs(files)
        of = fingerprint([plain(shared), made, run.model_input("student", run.student)])
        return {name: fingerprint([of, read[name] if name in read else [world, files[name]]]) for name in files}

    def work(directory):
        tokenizer = run.model_path(run.student)
        if evaluate.probes:
            probes = memorization.load_probes(run.path(evaluate.probes), hf.load_config(tokenizer))
            summary.check_groups(probes, evaluate)
        loaded = _load(run, model)
        trained_on = None if model == "base" else read_training_texts(run.workdir / "subset" / model, tokenizer)
        arguments = {"mesh": run.local_mesh, "name": model, "trained_on": trained_on, "parts": parts()}
        return suite.evaluate_model(loaded, tokenizer, evaluate, run.path, directory, **arguments)

    return Stage(
        f"evaluate/{model}",
        settings,
        after,
        work,
        lambda: run.file_inputs(files),
        lambda: run.model_input("student", run.student),
        grows=_ADDED_TO,
        # Only where not even the tensor axis fits the devices of one process.
        together=lambda: not is_local(run.local_mesh),
    )


def _load(run: RunNames, model: str) -> tuple[Any, Any]:
    """(config, params on `local_mesh`) of an evaluated model."""
    student = run.model_path(run.student)
    if model == "base":
        return hf.load_pretrained(student, mesh=run.local_mesh)
    config = hf.load_config(student)
    return config, restore_params(run.checkpoints(model), config, run.local_mesh)


def report_stage(run: RunNames, before: Sequence[str]) -> Stage:
    """`before`: the names of all other stages, in order."""

    def work(directory):
        page.write_report(directory, summary.report_data(run, before))

    after = [f"evaluate/{model}" for model in run.models]
    return Stage("report", {"title": run.config.heading}, after, work, again=True)
