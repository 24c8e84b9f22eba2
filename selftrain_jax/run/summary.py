"""From the item-by-item results of all models to the figures of the report."""

import pathlib
import platform
from typing import Any, Collection, Iterator, Sequence

import numpy as np

from selftrain_jax.core.files import read_json
from selftrain_jax.data.corpus import Corpus, read_corpus
from selftrain_jax.data.training_set import read_stream
from selftrain_jax.evaluation import approximate, membership, memorization, statistics
from selftrain_jax.evaluation.settings import EvaluateSettings
from selftrain_jax.models import hf
from selftrain_jax.report.data import ReportData
from selftrain_jax.run.names import RunNames
from selftrain_jax.run.stages import read_manifest
from selftrain_jax.training.loop import read_metrics

Items = dict[str, np.ndarray]
NUM_SAMPLES_SHOWN = 6


def report_data(pipeline: RunNames, stages: Sequence[str]) -> ReportData:
    """All that the report shows, from what the finished `stages` left in the workdir."""
    config, workdir = pipeline.config, pipeline.workdir
    evaluate = config.evaluate
    items = {}
    for model in pipeline.models:
        with np.load(workdir / "evaluate" / model / "items.npz") as arrays:
            items[model] = dict(arrays)
    metrics, comparisons, curves = [], [], []
    for k, masks in enumerate(probe_masks(pipeline)):
        # Of the base model only the held-out probes differ between subset numbers.
        base = [row for row in _measure(items["base"], masks, evaluate) if k == 0 or "held_out" in row["metric"]]
        metrics += [{"model": "base", **row, "seed": k} for row in base]
        for arm in pipeline.arms:
            trained = items[f"{arm}-{k}"]
            name = _model_name(pipeline, arm)
            metrics += [{"model": name, **row, "seed": k} for row in _measure(trained, masks, evaluate)]
            changes = _compare(hits(items["base"], masks, evaluate), hits(trained, masks, evaluate))
            comparisons += [{"model": name, **row, "seed": k} for row in changes]
            for row in curve(workdir / "train" / f"{arm}-{k}" / "curve", masks):
                curves.append({"model": name, **row, "seed": k})
    corpus = read_corpus(pipeline.corpus_path(pipeline.main))
    manifests = {name: read_manifest(workdir, name) for name in stages}
    return ReportData(
        title=config.title,
        metrics=metrics,
        comparisons=comparisons,
        measured_curves=curves,
        audit=_audit(workdir, pipeline.main),
        corpus=_origin(corpus) | _corpus(corpus) if config.corpus else _corpus(corpus),
        samples=_samples(corpus),
        learning_curves={
            model if config.subset.num_subsets > 1 else _model_name(pipeline, where[0]): read_metrics(
                workdir / "train" / model / "metrics.jsonl"
            )
            for model, where in pipeline.models.items()
            if where
        },
        settings=read_json(workdir / "config.json"),
        versions=versions(pipeline.mesh),
        durations={name: manifest["seconds"] for name, manifest in manifests.items()},
        fingerprints={name: manifest["fingerprint"] for name, manifest in manifests.items()},
        command=pipeline.command,
        probes=config.evaluate.probes_chosen,
        held_out_ngram=config.evaluate.held_out_ngram,
    )


def _model_name(pipeline: RunNames, arm: str) -> str:
    return arm if arm == pipeline.main else f"control:{arm}"


def probe_masks(pipeline: RunNames, arms: Collection[str] | None = None) -> list[dict[str, np.ndarray]]:
    """For every subset number: which probes count towards which extraction metric.

    One held-out set serves all models of a subset number, base included: the probes that occur in the training text of
    none of the arms (or of `arms`, some of them). So every row of the table speaks of the same probes.
    """
    evaluate, subset = pipeline.config.evaluate, pipeline.config.subset
    if not evaluate.probes:
        return [{}] * subset.num_subsets
    probes = memorization.load_probes(
        pipeline.path(evaluate.probes), hf.load_config(pipeline.model_path(pipeline.student)), add_bos=evaluate.add_bos
    )
    groups = np.array([p.group for p in probes])
    fixed = {"extraction/all": np.ones(len(probes), bool)}
    if len(set(groups)) > 1:
        fixed |= {f"extraction/{group}": groups == group for group in dict.fromkeys(groups)}
    if evaluate.offset_edges:
        offsets = np.array(memorization.offset_labels(probes, evaluate.offset_edges))
        by_offset = {
            f"extraction/offset={label}": offsets == label for label in sorted(set(offsets), key=_first_number)
        }
    else:
        by_offset = {}
    masks = []
    for k in range(subset.num_subsets):
        streams = [read_stream(pipeline.workdir / "subset" / f"{arm}-{k}") for arm in arms or pipeline.arms]
        held_out = memorization.held_out(probes, streams, evaluate.held_out_ngram)
        by_group = {
            f"{name.replace('extraction/', 'extraction/held_out/')}": mask & held_out
            for name, mask in fixed.items()
            if name != "extraction/all"
        }
        weaker = {
            f"extraction/held_out={name}": memorization.held_out(probes, streams, n)
            for name, n in (("13", 13), ("suffix", None))
            if n != evaluate.held_out_ngram
        }
        masks.append(fixed | by_offset | {"extraction/held_out": held_out} | weaker | by_group)
    return masks


def _first_number(label: str) -> float:
    head = label.rstrip("+").split("-")[0]
    return float(head) if head.isdigit() else float("inf")


def curve(directory: pathlib.Path, masks: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """Rows {"step", "metric", "value", "low", "high", "n"} measured during one training, in order of steps."""
    for path in sorted(directory.glob("*/items.npz"), key=lambda p: int(p.parent.name)):
        with np.load(path) as arrays:
            items = dict(arrays)
        chosen = {metric: mask[items["probe:index"]] for metric, mask in masks.items()}
        found = {metric: items["probe/exact"][mask] for metric, mask in chosen.items() if mask.any()}
        found |= {name: values for name, values in items.items() if name.startswith("capability/")}
        yield from ({"step": int(path.parent.name), **_rate(metric, hits)} for metric, hits in found.items())


def hits(items: Items, masks: dict[str, np.ndarray], evaluate: EvaluateSettings) -> Items:
    """bool arrays by metric: everything that is a share of items, and compared with the base model item by item."""
    found = {metric: items["probe/exact"][mask] for metric, mask in masks.items() if mask.any()}
    if masks:
        found |= {f"extraction/suffix={k}": items["probe/first_mismatch"] >= k for k in evaluate.suffix_lengths}
    if "probe/bleu" in items:
        found["approximate/all"] = items["probe/bleu"] > approximate.BLEU_THRESHOLD
    return found | {name: values for name, values in items.items() if name.startswith("capability/")}


def _measure(items: Items, masks: dict[str, np.ndarray], evaluate: EvaluateSettings) -> Iterator[dict[str, Any]]:
    """Rows {"metric", "value", "low", "high", "n"} of one model."""
    for metric, found in hits(items, masks, evaluate).items():
        yield _rate(metric, found)
    if masks:
        yield _rate("ambiguous/all", items["probe/least_margin"] < memorization.MARGIN_NOISE[evaluate.dtype])
        for field in ("token_share", "first_mismatch", "strength", "graded", "edit_similarity"):
            if (values := items.get(f"probe/{field}")) is not None:  # a run from before it was measured has none
                values = values.astype(float)
                low, high = statistics.bootstrap_mean(values)
                yield {"metric": f"{field}/all", "value": values.mean(), "low": low, "high": high, "n": len(values)}
    yield from _membership(items)
    for name, values in items.items():
        if name.startswith("nll/") and not name.endswith(":tokens"):
            tokens = items[f"{name}:tokens"]
            low, high = _bootstrap_ratio(values, tokens)
            yield {
                "metric": name,
                "value": values.sum() / tokens.sum(),
                "low": low,
                "high": high,
                "n": int(tokens.sum()),
            }


def _membership(items: Items) -> Iterator[dict[str, Any]]:
    attacks = {name.partition("/")[2]: values for name, values in items.items() if name.startswith("membership/")}
    if not attacks:
        return
    members = items["membership:members"]
    for attack, result in membership.membership_results(attacks, members).items():
        for kind, (value, low, high) in (
            ("membership_auc", result.auc),
            ("tpr_at_fpr_0.01", result.tpr_at_1_percent),
            ("tpr_at_fpr_0.001", result.tpr_at_01_percent),
        ):
            yield {"metric": f"{kind}/{attack}", "value": value, "low": low, "high": high, "n": len(members)}


def _rate(metric: str, hits: np.ndarray) -> dict[str, Any]:
    low, high = statistics.clopper_pearson(int(hits.sum()), len(hits))
    return {"metric": metric, "value": float(hits.mean()), "low": low, "high": high, "n": len(hits)}


def _bootstrap_ratio(values: np.ndarray, weights: np.ndarray, num_resamples: int = 2_000) -> tuple[float, float]:
    """Percentile-bootstrap interval of sum(values) / sum(weights), windows resampled together with their weights."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(values), size=(num_resamples, len(values)))
    low, high = np.quantile(values[drawn].sum(1) / weights[drawn].sum(1), (0.025, 0.975))
    return float(low), float(high)


def _compare(before: Items, after: Items) -> list[dict[str, Any]]:
    """Rows {"metric", "difference", "low", "high", "p_value", "unadjusted_p_value"}, paired item by item against base.

    p-values of the capability suites are adjusted for their number (Benjamini & Hochberg); other metrics look at the
    same probes again and again, and stand for themselves."""
    rows = []
    for metric, new in after.items():
        old = before[metric]
        difference, low, high = statistics.paired_bootstrap_difference(old, new)
        p_value = statistics.mcnemar(old, new)
        rows.append(
            {
                "metric": metric,
                "difference": difference,
                "low": low,
                "high": high,
                "p_value": p_value,
                "unadjusted_p_value": p_value,
            }
        )
    suites = [row for row in rows if row["metric"].startswith("capability/")]
    if suites:
        for row, p_value in zip(suites, statistics.benjamini_hochberg([row["p_value"] for row in suites])):
            row["p_value"] = float(p_value)
    return rows


def _audit(workdir, arm: str) -> dict[str, Any]:
    found = read_json(workdir / "audit" / arm / "audit.json", "audit")
    shown = ("ngram", "threshold", "num_documents", "num_flagged", "benchmarks", "nll_histogram")
    return {name: found[name] for name in shown}


def _origin(corpus: Corpus) -> dict[str, Any]:
    """The imported source of a given corpus, or the model that another run sampled."""
    return {name: value for name, value in corpus.manifest["provenance"].items() if name in ("source", "model")}


def _corpus(corpus: Corpus) -> dict[str, Any]:
    manifest = corpus.manifest
    return {
        "num_documents": manifest["num_documents"],
        "num_tokens": manifest["num_tokens"],
        "mean_length": manifest["length"]["mean"],
        "stop_reasons": manifest["stop_reasons"],
        **({"mean_nll": manifest["nll"]["mean"]} if manifest["nll"] else {}),
    }


def _samples(corpus: Corpus) -> list[dict[str, Any]]:
    return [
        {
            "id": d.id,
            "text": d.text,
            "nll": None if d.log_probs is None else -float(d.log_probs.mean()),
            "stop_reason": d.stop_reason,
        }
        for d in corpus[:NUM_SAMPLES_SHOWN]
    ]


def versions(mesh) -> dict[str, str]:
    import importlib.metadata

    names = (
        "selftrain_jax",
        "jax",
        "flax",
        "optax",
        "orbax-checkpoint",
        "transformers",
        "tensorflow-datasets",
        "numpy",
    )
    found = {name: importlib.metadata.version(name) for name in names}
    device = mesh.devices.flat[0]
    return found | {
        "python": platform.python_version(),
        "devices": f"{mesh.devices.size} x {device.device_kind}",
        "mesh": ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items()),
    }
