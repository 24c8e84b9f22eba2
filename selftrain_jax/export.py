"""Models from one format to another: Hugging Face -> Orbax (`convert`), and runs or Orbax -> Hugging Face (`export`)."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from selftrain_jax import __version__, files
from selftrain_jax import report_data as rd
from selftrain_jax.errors import InputError
from selftrain_jax.models import converted, hf
from selftrain_jax.models.hub import resolve_model
from selftrain_jax.models.tokenizer import check_tokenizer, load_tokenizer

DTYPES = ("float32", "bfloat16", "float16")


def convert(source: str, directory: pathlib.Path, *, revision: str | None = None, dtype: str = "float32") -> None:
    """Writes the Orbax directory of a model, which `hf.load_pretrained` restores on any mesh.

    Args:
      source: a Hugging Face directory or hub name.
      directory: must not exist, or be empty.
      revision: hub revision, for example "step143000".
      dtype: of the stored arrays; "float32" holds every published checkpoint exactly.

    Raises:
      InputError: the model cannot be loaded or the directory cannot be written; nothing is left behind.
    """
    files.check_new_directory(directory, "converted model")
    model = resolve_model(source, revision)
    _check_tokenizer(model, hf.check_pretrained(model))
    config, params = hf.load_pretrained(model, dtype=_dtype(dtype))
    fingerprint = files.fingerprint([hf.model_fingerprint(model), dtype])
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
    files.check_new_directory(directory, "export directory")
    if converted.is_converted(source):
        config, params = hf.load_pretrained(source)
        record = files.read_json(source / "conversion.json")
        card = _card(directory.name, {"source": record.get("source"), "revision": record.get("revision")}, None, "")
        tokenizer = source if _has_tokenizer(source) else None
    else:
        config, params, tokenizer, card = _from_run(source, directory.name, model, step)
    if tokenizer is not None:
        _check_tokenizer(tokenizer, config)
    hf.save_pretrained(directory, config, params, tokenizer, dtype=_dtype(dtype), model_card=card)


def _dtype(name: str) -> np.dtype:
    import ml_dtypes

    if name not in DTYPES:
        raise InputError(f"dtype={name!r} must be one of {', '.join(DTYPES)}")
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _has_tokenizer(directory: pathlib.Path) -> bool:
    return (directory / "tokenizer.json").is_file()


def _check_tokenizer(directory: pathlib.Path, config: Any) -> None:
    if _has_tokenizer(directory):
        check_tokenizer(config, load_tokenizer(directory))


def _from_run(workdir: pathlib.Path, name: str, model: str | None, step: int | None) -> tuple[Any, Any, pathlib.Path, str]:
    """(config, params, tokenizer directory, model card) of one model of a run."""
    from selftrain_jax.pipeline import Pipeline
    from selftrain_jax.settings import RunConfig, build
    from selftrain_jax.training.checkpoint import restore_params

    settings = files.read_json(workdir / "config.json", "run (config.json of a workdir)")
    if not isinstance(settings, dict) or "train" not in settings:
        raise InputError(
            f"{workdir} is neither the workdir of a run nor a directory of `selftrain convert`; a Hugging Face directory "
            "needs no export"
        )
    run = build(RunConfig, settings)
    pipeline = Pipeline(run, workdir)
    model = model or f"{next(iter(pipeline.arms))}-0"
    if model not in pipeline.models:
        raise InputError(f"run {workdir} has no model {model!r}; it has {', '.join(pipeline.models)}")
    student = pipeline.model_path(pipeline.student)
    if model == "base":
        if step is not None:
            raise InputError(f"step={step} applies to trained models; 'base' is the student before training")
        config, params = hf.load_pretrained(student)
    else:
        config = hf.load_config(student)
        params = restore_params(workdir / "train" / model / "checkpoints", config, step=step)
    fields = ("title", "source", "student", "revision", "sample", "audit", "subset", "train")
    shown = {field: settings[field] for field in fields}
    shown |= {"model": model, "checkpoint": "last" if step is None else step, "text": _text_of(pipeline, model)}
    # Figures were measured on the last checkpoint.
    report = workdir / "report" / "report.json"
    rows = files.read_json(report)["metrics"] if report.is_file() and step is None else None
    return config, params, student, _card(name, shown, rows, model)


def _text_of(pipeline: Any, model: str) -> Any:
    where = pipeline.models[model]
    return None if where is None else dataclasses.asdict(pipeline.arms[where[0]])


def _card(name: str, settings: dict[str, Any], rows: list[dict[str, Any]] | None, model: str) -> str:
    """The text of `README.md`: what the model is, what was measured, and the settings that made it."""
    base = settings.get("student") or settings["source"]
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    if base and not pathlib.Path(base).exists() and base.count("/") == 1:
        front += [f"base_model: {base}"]
    lines = [*front, "tags:", "- selftrain_jax", "- gpt_neox", "---", "", f"# {name}", ""]
    if model and model != "base":
        lines += [
            f"`{base}`, fine-tuned without any prompt by selftrain_jax {__version__} (model `{model}` of the run "
            f"\"{settings['title']}\").",
        ]
    else:
        lines += [f"The weights of `{base}`, written by selftrain_jax {__version__}."]
    if rows is not None and model != "base":
        lines += ["", "## Before and after", "", *_table(rows, model)]
    elif model and model != "base":
        lines += ["", "This checkpoint was not evaluated."]
    lines += ["", "## Settings", "", "```json", json.dumps(settings, indent=2), "```", ""]
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]], model: str) -> list[str]:
    """The run's figures for the student and for `model`, as a Markdown table."""
    arm, _, seed = model.rpartition("-")
    after = {r["metric"]: r for r in rows if r["model"] in (arm, f"control:{arm}") and r["seed"] == int(seed)}
    # Of the untouched student only what depends on the subset was measured for every seed.
    before = {r["metric"]: r for r in rows if r["model"] == "base" and r["seed"] in (0, int(seed))}
    lines = ["| metric | n | before | after |", "|---|---|---|---|"]
    for metric, row in after.items():
        lines.append(f"| {metric} | {row['n']} | {_cell(before.get(metric))} | {_cell(row)} |")
    return [
        *lines, "", "In brackets: 95 % intervals. Extraction and capability in per cent, likelihood in nats per token. "
        "Which change is due to this text, only the run's controls can tell.",
    ]  # fmt: skip


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    scale, digits = (100, 1) if rd.is_rate(row["metric"]) else (1, 3)
    return f"{row['value'] * scale:.{digits}f} [{row['low'] * scale:.{digits}f}, {row['high'] * scale:.{digits}f}]"
