"""The figures that a training leaves, line by line; read without JAX."""

import contextlib
import json
import os
import pathlib

from selftrain_jax.core.files import as_path


def read_metrics(path: str | os.PathLike) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl`; what is no such line, cut short by a kill or damaged, is left out."""
    lines = []
    path = as_path(path)
    if path.exists():
        for text in path.read_bytes().decode(errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                line = json.loads(text)
                if isinstance(line, dict) and isinstance(line.get("step"), int):
                    lines.append(line)
    return lines


def training_progress(directory: pathlib.Path, epochs: int) -> str:
    """ "step 40 of 291": how far the training in a folder is; "" before its first line of metrics."""
    lines = read_metrics(directory / "metrics.jsonl")
    if not lines:
        return ""
    step, epoch = lines[-1]["step"], lines[-1]["epoch"]
    return f"step {step:,} of {round(step / epoch * epochs):,}"
