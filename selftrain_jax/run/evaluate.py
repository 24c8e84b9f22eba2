"""The stages that measure the models of a run and report on them."""

import functools
import operator
from typing import Sequence

from selftrain_jax.core.files import Fingerprints, fingerprint
from selftrain_jax.core.records import plain
from selftrain_jax.evaluation.settings import SUITES
from selftrain_jax.run.leaks import leak_stages
from selftrain_jax.run.names import TWIN, RunNames
from selftrain_jax.run.stages import Stage, read_manifest

_ADDED_TO = ("texts", *SUITES, "probes")
"""The settings of `evaluate` that may name more later: what is measured already stays."""


def evaluate_stage(run: RunNames, model: str) -> Stage:
    evaluate, files = run.config.evaluate, run.config.evaluate.files()
    models = {"student": run.student} | ({"reference": evaluate.reference} if evaluate.reference else {})
    settings = evaluate.stage_settings() | {"student": run.student}
    after = [*made_by(run, model), *run.lab_stages(*models.values(), *files.values())]

    def outside() -> Fingerprints:
        return functools.reduce(operator.or_, (run.model_input(name, value) for name, value in models.items()))

    def parts() -> dict[str, str]:
        """Setting that names a file -> fingerprint of all that decides what is measured with it."""
        shared = {name: value for name, value in settings.items() if name not in _ADDED_TO}
        of_model = [*made_by(run, model), *run.lab_stages(*models.values())]
        made = {name: read_manifest(run.workdir, name)["fingerprint"] for name in after}
        of, read = [plain(shared), [made[name] for name in of_model], {**outside()}], run.file_inputs(files)
        found = {
            name: fingerprint([*of, read.get(name, path), *(made[stage] for stage in run.lab_stages(path))])
            for name, path in files.items()
        }
        if evaluate.probes and evaluate.nonmembers:  # an attack counts the tokens of the texts
            texts = [value for name, value in found.items() if name.startswith("texts.")]
            found["probes"] = fingerprint([found["probes"], texts])
        return found

    def work(directory):
        from selftrain_jax.run.measure import measure

        return measure(run, model, parts(), directory)

    def together() -> bool:
        """Only where not even the tensor axis fits the devices of one process."""
        from selftrain_jax.distributed.mesh import is_local

        return not is_local(run.local_mesh)

    return Stage(
        f"evaluate/{model}",
        settings,
        after,
        work,
        lambda: run.file_inputs(files),
        outside,
        grows=_ADDED_TO,
        together=together,
    )


def made_by(run: RunNames, model: str) -> list[str]:
    """The stage that makes an evaluated model, beside those of the student."""
    return [f"train/{model}"] if run.models[model] else run.lab_stages(TWIN) if model == "twin" else []


def report_stage(run: RunNames, before: Sequence[str]) -> Stage:
    """`before`: the names of all other stages, in order."""

    def work(directory):
        from selftrain_jax.report import page
        from selftrain_jax.run import summary

        run.reported = summary.report_data(run, before)
        page.write_report(directory, run.reported)

    after = [*(f"evaluate/{model}" for model in run.models), *(stage.name for stage in leak_stages(run).values())]
    after += [f"recover/{model}" for model in run.models if run.config.recovery]
    return Stage("report", {"title": run.config.heading}, after, work, again=True)
