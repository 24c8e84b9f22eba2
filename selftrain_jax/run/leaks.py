"""The stage that looks for known text in what a run trains on: above all in what its models wrote."""

import dataclasses
import functools
import pathlib
from typing import Any

from selftrain_jax.core.files import read_json, write_json
from selftrain_jax.data.corpus import Corpus, corpus_fingerprint
from selftrain_jax.data.training_set import same_tokenizer
from selftrain_jax.evaluation import leaks, memorization
from selftrain_jax.models import hf
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
        student = run.model_path(run.student)
        tokenizer, documents = load_tokenizer(student), run.training_text(arm).documents()
        own = isinstance(documents, Corpus) and same_tokenizer(documents.manifest["provenance"], student)
        rows = leaks.find_leaks(documents, known(run, tokenizer), tokenizer, encode=not own, show=settings.show)
        write_json(directory / _FILE, rows)
        return {"leaking": {f"{row['reference']}/{row['group']}/{row['unit']}": row["leaking"] for row in rows}}

    def externals() -> dict[str, str]:
        return run.file_inputs(files) | ({"corpus": corpus_fingerprint(origin.corpus)} if origin.corpus else {})

    models = functools.partial(run.vocabulary_input, "student", run.student)
    asked = dataclasses.asdict(settings) | dataclasses.asdict(origin) | {"student": run.student}
    before = [*([f"sample/{arm}"] if origin.source else []), *run.lab_stages(run.student, *files.values())]
    return Stage(f"evaluate/leaks/{arm}", asked, before, work, externals, models)


def known(run: RunNames, tokenizer: Any, with_probes: bool = True) -> list[leaks.Known]:
    """All text that is looked for; `InputError` for a file that is unusable. `with_probes`: whether these are made."""
    settings = run.config.leaks
    lengths = settings.least_tokens, settings.least_characters
    found = [
        one
        for name, path in settings.references.items()
        for one in leaks.known_texts(name, run.path(path), tokenizer, *lengths)
    ]
    if settings.probes and with_probes:
        config = hf.load_config(run.model_path(run.student))
        probes = memorization.load_probes(run.path(run.config.evaluate.probes), config)
        found += leaks.known_probes(probes, tokenizer, *lengths)
    return found


def read_leaks(run: RunNames) -> dict[str, list[dict[str, Any]]]:
    """The rows of each arm, where leaks were looked for."""
    wanted = leak_stages(run)
    return {arm: read_json(run.workdir / stage.name / _FILE, "leaks") for arm, stage in wanted.items()}
