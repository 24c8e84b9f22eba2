"""What is measured on a student that no text has trained: what evaluation alone adds, what moving its weights alone
does, and what may predict which text helps it."""

import dataclasses
import functools
import shutil
from typing import TYPE_CHECKING, Callable

from selftrain_jax.core.files import Fingerprints, fingerprint
from selftrain_jax.run import stages
from selftrain_jax.run.evaluate import evaluate_stage
from selftrain_jax.run.names import RunNames
from selftrain_jax.run.stages import Stage
from selftrain_jax.study.model import Run
from selftrain_jax.study.settings import ProxySettings

if TYPE_CHECKING:
    from jax.sharding import Mesh


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
        from selftrain_jax.study.noise import evaluate_moved

        return evaluate_moved(pipeline, model, run.seed, directory)

    def externals():
        return base.externals() | stages.fingerprints_of(pipeline.workdir, trained=f"train/{model}")

    return dataclasses.replace(
        base, name=name, settings=base.settings | {"seed": run.seed}, work=work, externals=externals
    )


def proxies_stage(name: str, settings: ProxySettings, run: RunNames, arm: str, mesh: "Callable[[], Mesh]") -> Stage:
    """The stage that measures the proxies of one arm of a run; its result is {proxy: value}."""
    evaluate, train = run.config.evaluate, run.config.train
    files = {setting: path for setting, path in evaluate.files().items() if setting != "probes"}
    read = [evaluate.limit, evaluate.max_chars, train.sequence_length, train.document_boundaries]

    def externals():
        named = {"read": [*read, run.config.subset.retokenize], "files": sorted(files)}
        named = Fingerprints({name: functools.partial(fingerprint, value) for name, value in named.items()})
        return stages.fingerprints_of(run.workdir, audit=f"audit/{arm}") | run.file_inputs(files) | named

    def work(_):
        from selftrain_jax.study.proxies import measure

        return measure(settings, run, arm, mesh())

    models = functools.partial(run.model_input, "student", run.student)
    unnoted = (*files, "read", "student", "student's tokenizer"), ("files",)
    return Stage(name, dataclasses.asdict(settings), (), work, externals, models, unnoted=unnoted)
