"""The stages of one arm, from its text to a trained model: audit, subset, train."""

import dataclasses
import functools

from selftrain_jax.data import clean, training_set
from selftrain_jax.evaluation.settings import SUITES
from selftrain_jax.run.names import ENDS, RunNames
from selftrain_jax.run.stages import Stage
from selftrain_jax.training.metrics import training_progress


def audit_stage(run: RunNames, arm: str) -> Stage:
    audit, origin, template = run.config.audit, run.arms[arm], run.config.evaluate.template
    files = {f"benchmarks.{name}": path for name, path in audit.benchmarks.items()} | {"texts": origin.texts}

    def work(directory):
        benchmarks = {name: run.path(path) for name, path in audit.benchmarks.items()}
        return clean.audit_text(run.training_text(arm), benchmarks, audit, directory, template)

    settings = dataclasses.asdict(audit) | dataclasses.asdict(origin) | {"template": template}
    before = [f"sample/{arm}"] if origin.source else []
    before += run.lab_stages(*files.values())
    return Stage(f"audit/{arm}", settings, before, work, lambda: run.file_inputs(files, origin.corpus))


def subset_stage(run: RunNames, arm: str, k: int) -> Stage:
    subset, sequence_length = run.config.subset, run.config.train.sequence_length

    def work(directory):
        audited, text, student = run.workdir / "audit" / arm, run.training_text(arm), run.model_path(run.student)
        return training_set.write_subset(audited, text, student, subset, k, sequence_length, directory)

    settings = dataclasses.asdict(subset) | {"index": k, "student": run.student, "sequence_length": sequence_length}
    del settings["max_repetitions"]  # it refuses a result, and changes none
    before = [f"audit/{arm}", *run.lab_stages(run.student)]

    models = functools.partial(run.rows_input, "student", run.student)
    return Stage(f"subset/{arm}-{k}", settings, before, work, models=models, unnoted=((ENDS.format("student"),),))


def train_stage(run: RunNames, arm: str, k: int, wandb: str, profile: bool) -> Stage:
    """`wandb` and `profile` are those of `training.loop.train`."""
    name, evaluate = f"{arm}-{k}", run.config.evaluate
    light, measured = evaluate.for_curve(), evaluate.files() if evaluate.curve_points else {}
    settings = dataclasses.asdict(run.config.train) | {"student": run.student}
    if evaluate.curve_points:
        curve = {name: getattr(evaluate, name) for name in ("curve_points", "curve_items")}
        settings |= {"curve": light.stage_settings() | curve}

    config = dataclasses.replace(run.config.train, seed=run.config.train.seed + k)

    def work(directory):
        from selftrain_jax.evaluation import suite
        from selftrain_jax.models import hf
        from selftrain_jax.training.loop import train

        student = run.model_path(run.student)
        model_config = hf.load_config(student)

        def measure(step, params):
            out = directory / "curve" / str(step)
            model, limit = (model_config, params), evaluate.curve_items
            suite.evaluate_model(model, student, light, run.path, out, mesh=run.mesh, name=name, limit=limit)

        return train(
            lambda: hf.load_pretrained(student, mesh=run.mesh)[1],
            model_config,
            training_set.read_subset(run.workdir / "subset" / name),
            config,
            directory,
            mesh=run.mesh,
            description=f"train {name}",
            wandb=wandb,
            profile=profile,
            measure=measure,
            measure_points=evaluate.curve_points,
            **run.saving(f"train/{name}"),
        )

    return Stage(
        f"train/{name}",
        settings,
        [f"subset/{name}", *run.lab_stages(run.student, *measured.values())],
        work,
        lambda: run.file_inputs(measured),
        lambda: run.model_input("student", run.student),
        settled=[f"curve.{name}" for name in ("texts", *SUITES, "probes")] if evaluate.curve_points else (),
        together=True,
        progress=functools.partial(training_progress, epochs=run.config.train.epochs),
    )
