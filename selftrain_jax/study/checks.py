"""What is wrong with a study, as far as that can be told before any work."""

import dataclasses
import pathlib

from selftrain_jax.core.errors import InputError
from selftrain_jax.data.corpus import read_corpus
from selftrain_jax.data.texts import load_texts
from selftrain_jax.evaluation.proxies import sentence_library
from selftrain_jax.models import hf
from selftrain_jax.models.files.tokenizer import check_tokenizer, load_tokenizer, start_ids
from selftrain_jax.run import stages
from selftrain_jax.run.checks import check_files, warn_of_shared
from selftrain_jax.run.names import LAB
from selftrain_jax.run.pipeline import Pipeline
from selftrain_jax.study.expand import Study
from selftrain_jax.study.settings import DATA
from selftrain_jax.study.tasks import task_book


def check_study(study: Study, *, redo: bool = False) -> None:
    """Raises `InputError` for models and files that are missing or broken; unless `redo`, for changed settings, and for
    units whose inputs have changed, too."""
    config = study.config
    for setting, value in config.files().items():
        if value.startswith(DATA) and not pathlib.Path(file := study.path(value, 0, "")).is_file():
            raise InputError(
                f"setting {setting}={value!r}: file not found: {file}; name the folder of these files with "
                "--config.data=DIR (docs/studies.md says where they come from), or another file"
            )
    if not redo:
        _check_settings(study)
    _check_models(study)
    if config.tasks.names:
        task_book(config.tasks)
    if config.real and not config.real.startswith(LAB):
        texts = {n: study.path(path, 0, "") for n, path in config.evaluate.texts.items() if not path.startswith(LAB)}
        warn_of_shared({"real": load_texts(study.path(config.real, 0, ""))}, texts)
    for unit in study.lab_units():
        for stage in unit.stages:
            dict(stage.externals())  # which says what is missing or broken
    for unit in () if redo else study.units:
        stages.current(unit.workdir, unit.stages, *(stage.name for stage in unit.stages if not stage.again))
    if config.proxies.sentence_encoder:
        sentence_library()
    _check_files(study)


def _check_settings(study: Study) -> None:
    grown = set()
    for unit in study.units:
        stages.check(unit.workdir, unit.stages)
        if grown & set(unit.needs) and any(stages.state(unit.workdir, s) != "waiting" for s in unit.stages):
            raise InputError(
                f"{min(grown & set(unit.needs))} has less than is asked for, and {unit.name} was made from it: set "
                "back what was raised or added (num_samples, suites), have it made anew by --redo, or name another "
                "--workdir"
            )
        grown |= {unit.name} if any(stages.grown(unit.workdir, stage) for stage in unit.stages) else set()


def _check_models(study: Study) -> None:
    config = study.config
    for name, model in config.models.items():
        try:
            if model.corpus:
                read_corpus(model.corpus)
            elif model.path:
                path = study.resolve(name, config.seeds[0])
                known, tokenizer = hf.check_pretrained(path), load_tokenizer(path)
                check_tokenizer(known, tokenizer)
                if name in config.writers:
                    start_ids(study.sample_settings(name, 0).start, known, tokenizer)
        except InputError as e:
            raise InputError(f"models.{name}: {e}") from None


def _check_files(study: Study) -> None:
    config = study.config
    if config.lab is not None:
        for setting, path in config.files().items():
            if not path.startswith(LAB) and not pathlib.Path(path).is_file():
                raise InputError(f"setting {setting}: file not found: {path}")
        return
    for student in config.students:
        pipeline = next(run for run in study.runs if run.student == student).pipeline
        alone = dataclasses.replace(pipeline.config, corpus="", source=pipeline.config.student, controls={})
        check_files(Pipeline(alone, pipeline.workdir))
