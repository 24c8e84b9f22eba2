"""The stage that looks for known text in what a run trains on: above all in what its models wrote."""

import dataclasses
import functools
import pathlib
from typing import Any

from selftrain_jax.core.files import read_json, write_json
from selftrain_jax.data.corpus import Corpus
from selftrain_jax.data.training_set import same_tokenizer
from selftrain_jax.models.files.tokenizer import load_tokenizer
from selftrain_jax.run.names import RunNames
from selftrain_jax.run.stages import Stage

_FILE = "leaks.json"


def leak_stages(run: RunNames) -> dict[str, Stage]:
    """By arm, where leaks are looked for; each is done when the arm's text is there."""
    return {arm: _stage(run, arm) for arm in run.arms} if run.config.leaks.wanted else {}


def _stage(run: RunNames, arm: str) -> Stage:
    settings, origin = run.config.leaks, run.arms[arm]
    files = {name: path for name, path in run.references().items() if name.startswith("leaks.")}
    files |= {"probes": run.config.evaluate.probes} if settings.probes else {}
    files |= {"texts": origin.texts}

    def work(directory: pathlib.Path) -> dict[str, Any]:
        from selftrain_jax.evaluation.leaks import find_leaks
        from selftrain_jax.run.known_text import known

        student = run.model_path(run.student)
        tokenizer, documents = load_tokenizer(student), run.training_text(arm).documents()
        own = isinstance(documents, Corpus) and same_tokenizer(documents.manifest["provenance"], student)
        rows = find_leaks(documents, known(run, tokenizer), tokenizer, encode=not own, show=settings.show)
        write_json(directory / _FILE, rows)
        return {"leaking": {f"{row['reference']}/{row['group']}/{row['unit']}": row["leaking"] for row in rows}}

    models = functools.partial(run.vocabulary_input, "student", run.student)
    asked = dataclasses.asdict(settings) | dataclasses.asdict(origin) | {"student": run.student}
    before = [*([f"sample/{arm}"] if origin.source else []), *run.lab_stages(run.student, *files.values())]
    return Stage(f"evaluate/leaks/{arm}", asked, before, work, lambda: run.file_inputs(files, origin.corpus), models)


def read_leaks(run: RunNames) -> dict[str, list[dict[str, Any]]]:
    """The rows of each arm, where leaks were looked for."""
    wanted = leak_stages(run)
    return {arm: read_json(run.workdir / stage.name / _FILE, "leaks") for arm, stage in wanted.items()}
