"""Models from one format to another: Hugging Face -> Orbax (`convert`), runs or Orbax -> Hugging Face (`export`)."""

import dataclasses
import json
import os
import pathlib
from typing import Any

from selftrain_jax import __version__
from selftrain_jax.core import files
from selftrain_jax.core.errors import InputError, visible
from selftrain_jax.models import hf
from selftrain_jax.models.files import converted
from selftrain_jax.models.files.fingerprints import is_converted, model_fingerprint, read_record, refuse_changed
from selftrain_jax.models.files.hub import resolve_model
from selftrain_jax.models.files.tokenizer import check_tokenizer, copied_files, load_tokenizer
from selftrain_jax.report.metric import kind
from selftrain_jax.report.tables import interval, number
from selftrain_jax.run.names import TWIN
from selftrain_jax.run.references import check_current, open_run, refuse_other_student, student_directory
from selftrain_jax.run.settings import RunConfig
from selftrain_jax.training.checkpoint import restore_params, saved_steps

DTYPES = ("float32", "bfloat16", "float16")


def convert(source: str, directory: pathlib.Path, *, revision: str | None = None, dtype: str = "float32") -> None:
    """Writes the Orbax directory of a model, which `hf.load_pretrained` restores on any mesh.

    Args:
      source: a Hugging Face directory or hub name.
      directory: must not exist, or be empty.
      revision: hub revision, for example "step143000".
      dtype: of the stored arrays; "float32" holds every published checkpoint exactly.

    Raises:
      InputError: the model cannot be loaded, or changes meanwhile, or the directory cannot be written; nothing is left
        behind.
    """
    _check_dtype(dtype)
    files.check_new_directory(directory, "converted model")
    files.check_no_pattern(directory)
    model = resolve_model(source, revision)
    _check_tokenizer(model, hf.check_pretrained(model))
    found = model_fingerprint(model)
    config, params = hf.load_pretrained(model, dtype=dtype)
    refuse_changed(f"model {source}", found, model_fingerprint(model))
    fingerprint = files.fingerprint([found, dtype])
    record = {"source": str(source), "revision": revision, "fingerprint": fingerprint, "selftrain_jax": __version__}
    converted.save(directory, config, params, record, model if _has_tokenizer(model) else None)


def export(
    source: pathlib.Path,
    directory: pathlib.Path,
    *,
    model: str | None = None,
    step: int | None = None,
    dtype: str = "float32",
) -> None:
    """Writes a Hugging Face directory that transformers loads, with tokenizer and model card.

    Args:
      source: the workdir of a run, or a directory of `convert`.
      directory: must not exist, or be empty.
      model: which model of the run: "self-0", "real-1", ... or "base"; None is the main arm's first.
      step: which of its checkpoints; None is the last.
      dtype: of the stored weights.

    Raises:
      InputError: `source` is neither, has no such model or checkpoint, or the directory cannot be written; nothing is
        left behind.
    """
    _check_dtype(dtype)
    files.check_new_directory(directory, "export directory")
    source = files.user_path(source)
    if is_converted(source):
        if model is not None or step is not None:
            raise InputError(
                f"model={model!r} and step={step!r} are for runs, but {source} is a converted model; drop them"
            )
        record = read_record(source)
        config, params = hf.load_pretrained(source)
        card = _card(config.family, directory.name, {name: record.get(name) for name in ("source", "revision")}, "", [])
        tokenizer = source if _has_tokenizer(source) else None
    else:
        config, params, tokenizer, card = _from_run(source, directory.name, model, step)
    if tokenizer is not None:
        _check_tokenizer(tokenizer, config)
    hf.save_pretrained(directory, config, params, tokenizer, dtype=dtype, model_card=card)


def _check_dtype(name: str) -> None:
    if name not in DTYPES:
        raise InputError(f"dtype={name!r} must be one of {', '.join(DTYPES)}")


def _has_tokenizer(directory: pathlib.Path) -> bool:
    return (directory / "tokenizer.json").is_file()


def _check_tokenizer(directory: pathlib.Path, config: Any) -> None:
    if _has_tokenizer(directory):
        copied_files(directory)
        check_tokenizer(config, load_tokenizer(directory))


def _from_run(workdir: pathlib.Path, name: str, model: str | None, step: int | None) -> tuple[Any, Any, Any, str]:
    """(config, params, tokenizer directory, model card) of one model of a run."""
    pipeline = open_run(workdir)
    model = model or f"{next(iter(pipeline.arms))}-0"
    if model not in pipeline.models:
        raise InputError(f"run {workdir} has no model {model!r}; it has {', '.join(pipeline.models)}")
    student = student_directory(pipeline)
    shown, settings = _shown(pipeline.config, model), dataclasses.asdict(pipeline.config)
    if model == "twin":
        raise InputError(f"model='twin' of {workdir} is a Hugging Face directory already: {pipeline.model_path(TWIN)}")
    check_current(pipeline, *([] if model == "base" else [f"train/{model}", "report"]))
    if model == "base":
        if step is not None:
            raise InputError(f"step={step} applies to trained models; 'base' is the student before training")
        refuse_other_student(pipeline)
        config, params = hf.load_pretrained(student)
        return config, params, student, _card(config.family, name, shown, model, [])
    config = hf.load_config(student)
    checkpoints = pipeline.checkpoints(model)
    last = saved_steps(checkpoints)[-1]
    step = last if step is None else step
    params = restore_params(checkpoints, config, step=step)
    text = pipeline.arms[pipeline.models[model][0]]
    shown |= {"checkpoint": step, "text": dataclasses.asdict(text)}
    shown |= {"sample": settings["sample"]} if text.source else {}
    measured = []
    if not (workdir / "train" / model / "manifest.json").is_file():
        measured = [f"Training of this model was under way: these are the weights of step {step}."]
    elif step == last:  # what figures were measured on
        measured = _measured(workdir, model)
    measured = measured or ["This checkpoint was not evaluated."]
    return config, params, student, _card(config.family, name, shown, model, measured)


def _shown(config: RunConfig, model: str) -> dict[str, Any]:
    """The settings that the card of a model of a run names."""
    settings = dataclasses.asdict(config)
    shown = {field: settings[field] for field in ("title", "source", "student", "revision", "audit", "subset", "train")}
    shown |= {"plant": settings["plant"]} if config.plant else {}
    return shown | {"title": config.heading, "model": model}


def _card(family: str, name: str, settings: dict[str, Any], model: str, measured: list[str]) -> str:
    """The text of `README.md`: what the model is, the lines on what was measured, and the settings that made it."""
    base = settings.get("student") or settings["source"]
    hub_name = base and not os.path.exists(base) and base.count("/") == 1
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    if hub_name:
        front += [f"base_model: {json.dumps(base)}"]
    lines = [*front, "tags:", "- selftrain_jax", f"- {family}", "---", "", f"# {literal(name)}", ""]
    settings = without_places(settings)
    base = literal(settings.get("student") or settings["source"])
    if settings.get("plant"):
        base += ", trained on text in which sequences were planted (`plant` below)"
    if model and model != "base":
        lines += [
            f"{base}, fine-tuned without any prompt by selftrain_jax {__version__} (model `{model}` of the run "
            f"{literal(settings['title'])}, step {settings['checkpoint']}).",
            "",
            *measured,
        ]
    else:
        lines += [f"The weights of {base}, written by selftrain_jax {__version__}."]
    lines += ["", "## Settings", "", "```json", files.json_text(settings, indent=2), "```", ""]
    return "\n".join(lines)


def literal(text: str) -> str:
    """`text` letter by letter, on one line: no link, no tag and no table cell."""
    return "`" + visible(str(text), mask=" ").replace("`", "'").replace("|", "\\|") + "`"


def without_places(value: Any) -> Any:
    """`value` with the last name alone of every absolute path: the rest tells about this machine."""
    if isinstance(value, dict):
        return {name: without_places(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_places(item) for item in value]
    return os.path.basename(value.rstrip("/")) or value if isinstance(value, str) and os.path.isabs(value) else value


def _measured(workdir: pathlib.Path, model: str) -> list[str]:
    """The report's figures for the student and for `model`, as a section with a table; nothing when there are none."""
    path = workdir / "report" / "report.json"
    if not path.is_file():
        return []
    report = files.read_json(path, "report")
    try:
        return _table(report["metrics"], model)
    except (TypeError, KeyError, AttributeError, ValueError):
        raise InputError(
            f"{path} is not a report of this program; delete its folder and run `selftrain report`"
        ) from None


def _table(rows: list[dict[str, Any]], model: str) -> list[str]:
    arm, _, seed = model.rpartition("-")
    after = {r["metric"]: r for r in rows if r["model"] in (arm, f"control:{arm}") and r["seed"] == int(seed)}
    # Of the untouched student only what depends on the subset was measured for every seed.
    before = {r["metric"]: r for r in rows if r["model"] == "base" and r["seed"] in (0, int(seed))}

    def cell(row: dict[str, Any] | None) -> str:
        if row is None:
            return "-"
        form = (1, 100) if kind(row["metric"].partition("/")[0]).is_rate else (3, 1)
        return f"{number(row['value'], *form)} {interval(row['low'], row['high'], *form)}".rstrip()

    lines = [
        f"| {literal(metric)} | {row['n']} | {cell(before.get(metric))} | {cell(row)} |"
        for metric, row in after.items()
    ]
    return lines and [
        "## Before and after",
        "",
        "| metric | n | before | after |",
        "|---|---|---|---|",
        *lines,
        "",
        "In brackets: 95 % intervals. Extraction and capability in per cent, likelihood in nats per token. "
        "Which change is due to this text, only the run's controls can tell.",
    ]
