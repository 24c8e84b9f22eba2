"""A model as a user names it: a Hugging Face directory or hub name, a converted directory, or a model of a run."""

import dataclasses
import os
import pathlib
from typing import Any, Callable

from selftrain_jax.core import files
from selftrain_jax.core.errors import InputError
from selftrain_jax.core.settings import build
from selftrain_jax.core.storage import Workdir
from selftrain_jax.models import hf
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.files.fingerprints import model_inputs, refuse_changed
from selftrain_jax.models.files.hub import resolve_model
from selftrain_jax.models.files.tokenizer import check_tokenizer, load_tokenizer, tokenizer_fingerprint
from selftrain_jax.run import stages
from selftrain_jax.run.names import MADE, TWIN, RunNames
from selftrain_jax.run.pipeline import Pipeline
from selftrain_jax.run.settings import RunConfig
from selftrain_jax.training.checkpoint import restore_params, saved_steps


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that has been found but not loaded.

    Attributes:
      reference: as the user wrote it.
      config: its architecture.
      tokenizer: the directory that holds its tokenizer.
      fingerprint: stands for weights and tokenizer.
      load: reads the parameters, onto the mesh that it is given; `InputError` where they are not those that were found.
    """

    reference: str
    config: DecoderConfig
    tokenizer: pathlib.Path
    fingerprint: str
    load: Callable[[Any], Any]


def find_model(reference: str, revision: str | None = None) -> Model:
    """The model that `reference` names; only configuration, tokenizer and file headers are read.

    Args:
      reference: a directory, a hub name, or `RUN:MODEL` for a finished model of the run in folder RUN, such as
        `runs/quickstart:self-0` or `runs/quickstart:base`; `runs/quickstart:self-0@100` is its checkpoint of step 100.
      revision: for hub names.

    Raises:
      InputError: there is no such model, it is not finished, or it has no tokenizer that fits it.
    """
    path, colon, name = reference.rpartition(":")
    if colon and not os.path.isdir(files.user_path(reference)) and (files.user_path(path) / "config.json").is_file():
        if revision is not None:
            raise InputError(f"revision={revision!r} is for hub names, but {reference} is a model of a run; drop it")
        return _of_run(reference, files.user_path(path), name)
    if files.is_remote(reference) and "/" in name:
        raise InputError(f"{reference}: in a bucket, only models of runs can be named, for example {reference}:self-0")
    if colon and not os.path.isdir(files.user_path(reference)):  # no hub name has a colon
        raise InputError(f"model {reference} not found: {path} is not the folder of a run (no config.json in it)")
    directory = resolve_model(reference, revision)
    if (directory / "config.json").is_file() and _is_run(files.read_json(directory / "config.json", "config.json")):
        raise InputError(f"{reference} is the folder of a run; name one of its models, for example {reference}:self-0")
    return _of_directory(reference, directory)


def _of_directory(reference: str, directory: pathlib.Path) -> Model:
    config = hf.check_pretrained(directory)
    check_tokenizer(config, load_tokenizer(directory))

    def fingerprint() -> str:
        return files.fingerprint(list(model_inputs("model", lambda: directory).values()))

    def load(mesh):
        params = hf.load_pretrained(directory, mesh=mesh)[1]
        refuse_changed(f"model {reference}", found, fingerprint())
        return params

    found = fingerprint()
    return Model(reference, config, directory, found, load)


def _of_run(reference: str, workdir: pathlib.Path, name: str) -> Model:
    pipeline = open_run(workdir)
    name, at, step = name.partition("@")
    if name not in pipeline.models:
        raise InputError(f"run {workdir} has no model {name!r}; it has {', '.join(pipeline.models)}")
    student = student_directory(pipeline)
    untrained = pipeline.models[name] is None
    check_current(pipeline, *(pipeline.lab_stages(TWIN) * (name == "twin") if untrained else [f"train/{name}"]))
    if untrained and not at:
        refuse_other_student(pipeline)
        return _of_directory(reference, pipeline.model_path(TWIN) if name == "twin" else student)
    steps = [str(n) for n in saved_steps(pipeline.checkpoints(name))] if at and not untrained else []
    if at and step not in steps:
        raise InputError(f"{reference}: {name} has checkpoints of steps {', '.join(steps) or 'none'} (train.keep)")
    manifest = stages.read_manifest(workdir, f"train/{name}")
    config = hf.load_config(student)
    check_tokenizer(config, load_tokenizer(student))

    def load(mesh):
        return restore_params(pipeline.checkpoints(name), config, mesh, int(step) if at else None)

    known = [manifest["fingerprint"], manifest["inputs"], tokenizer_fingerprint(student)]
    fingerprint = files.fingerprint([*known, step] if at else known)
    return Model(reference, config, student, fingerprint, load)


def refuse_other_student(run: Pipeline) -> None:
    """Raises `InputError` where the student, a model from outside, is not the one that the run was done with."""
    now = run.model_input("student", run.student)
    for stage in run.stages() if now else ():
        noted = (stages.record_of(run.home, stage.name) or {}).get("inputs", {})
        if changed := [name for name, found in now.items() if noted.get(name, found) != found]:
            raise InputError(
                f"run {run.home}: {changed[0]} ({run.student}) has changed since {stage.name} was done: name the model "
                "itself, or bring back what it was"
            )


def _is_run(settings: Any) -> bool:
    return isinstance(settings, dict) and "train" in settings


def open_run(workdir: pathlib.Path) -> Pipeline:
    """The run in `workdir`, from the settings that it keeps; `InputError` when that is no run."""
    place = Workdir(workdir)
    if (place.path / "study.json").is_file():
        raise InputError(f"{workdir} is the folder of a study: name one of its runs, a folder in {place.path / 'runs'}")
    settings = files.read_json(place.path / "config.json", "run (config.json of a workdir)")
    if not _is_run(settings):
        raise InputError(
            f"{workdir} is neither the workdir of a run nor a directory of `selftrain convert`; a Hugging Face "
            "directory needs no export"
        )
    place.fetch("lab", "report")
    return Pipeline(build(RunConfig, settings), place)


def check_current(run: Pipeline, *names: str) -> None:
    """Raises `InputError` where these stages of a run, or those that make its student, are stale, or its settings are
    not those that it was made with."""
    plan = run.stages()
    if not files.is_remote(run.home):
        # A run of a study names files in the study's folder, which may have been moved.
        study = next((folder for folder in run.home.parents if (folder / "study.json").is_file()), None)
        stages.check(run.home, [dataclasses.replace(stage, root=study) for stage in plan])
    stages.current(run.home, plan, *run.lab_stages(run.student), *names)


def student_directory(run: RunNames) -> pathlib.Path:
    """The directory of the model that a run trains; `InputError` naming the run when it cannot be found."""
    try:
        return run.model_path(run.student)
    except InputError as e:
        relative = not run.student.startswith(MADE) and not files.user_path(run.student).is_absolute()
        advice = "; if it is a path relative to where the run was started, start from there" if relative else ""
        raise InputError(f"run {run.workdir}: student {run.student!r} of its config.json: {e}{advice}") from None
