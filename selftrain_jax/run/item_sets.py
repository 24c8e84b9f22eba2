"""Which items a figure is of, as a fingerprint: figures of two runs are comparable where it is the same."""

import dataclasses
from typing import Any, Iterable, Sequence

import numpy as np

from selftrain_jax.core.files import fingerprint
from selftrain_jax.evaluation.items import Items
from selftrain_jax.evaluation.settings import SUITES
from selftrain_jax.models.files.tokenizer import tokenizer_fingerprint
from selftrain_jax.report.metric import HELD_OUT, Metric
from selftrain_jax.run.names import RunNames
from selftrain_jax.run.stages import read_manifest


def item_sets(
    run: RunNames, metrics: Iterable[Metric], masks: Sequence[dict[Metric, np.ndarray]], base: Items
) -> dict[str, dict[str, Any]]:
    """Name of every metric -> the fields of it, and "items", the fingerprint of what it is measured on: the file, what
    is read of it, and of probes which of them count. `masks` are those of all subsets."""
    evaluate, tokenizer = run.config.evaluate, tokenizer_fingerprint(run.model_path(run.student))
    inputs, files = read_manifest(run.workdir, "evaluate/base")["inputs"], evaluate.files()

    def file(setting: str) -> Any:
        path = files[setting]
        return inputs.get(setting) or [path, *(inputs[stage] for stage in run.lab_stages(path))]

    def chosen(metric: Metric) -> list[tuple[int, ...]]:
        """The probes that count, of each subset where they differ."""
        of = dataclasses.replace(metric, kind="extraction", samples=None)
        read = [of, HELD_OUT] if metric.kind == "planted_auc" else [of]
        found = [np.concatenate([mask[key] for key in read]) for mask in masks] if of in masks[0] else []
        if metric.kind.startswith("left_"):
            found = [mask[base.probes["index"]] & base.probes["exact"] for mask in found]
        return list(dict.fromkeys(tuple(np.flatnonzero(mask).tolist()) for mask in found))

    def items(metric: Metric) -> Any:
        if metric.kind in ("capability", "contaminated"):
            setting = next(f"{kind}.{metric.item}" for kind in SUITES if metric.item in getattr(evaluate, kind))
            return [file(setting), evaluate.limit]
        if metric.kind == "nll":  # per token of this tokenizer
            read = [evaluate.max_chars, evaluate.max_length, evaluate.context_len]
            return [file(f"texts.{metric.item}"), tokenizer, *read]
        attack = [evaluate.nonmembers, evaluate.recall_shots] if metric.item else []
        attack = [evaluate.nonmembers] if metric.kind == "exposure" else attack
        return [file("probes"), tokenizer, attack, chosen(metric)]

    known = dict.fromkeys(metrics)
    return {metric.name: {**dataclasses.asdict(metric), "items": fingerprint(items(metric))} for metric in known}
