"""From the item-by-item results of all models to the figures of the report."""

import dataclasses
import functools
import pathlib
from typing import Any, Callable, Collection, Iterator, Mapping, Sequence

import numpy as np

from selftrain_jax.core.files import read_json
from selftrain_jax.data.corpus import read_corpus
from selftrain_jax.data.training_set import read_documents
from selftrain_jax.evaluation import approximate, discoverable, exposure, membership, memorization, roc, statistics
from selftrain_jax.evaluation.items import Items
from selftrain_jax.evaluation.settings import DiscoverableSettings, EvaluateSettings
from selftrain_jax.models.files.hf_config import load_config
from selftrain_jax.models.files.tokenizer import load_tokenizer
from selftrain_jax.report.data import ReportData
from selftrain_jax.report.metric import (
    EXTRACTION,
    HELD_OUT,
    RUN,
    UNKNOWN_OFFSET,
    Metric,
    check_distinct,
    each_suite,
    group_extraction,
    grouped,
)
from selftrain_jax.run import facts, listings
from selftrain_jax.run.along import along_texts
from selftrain_jax.run.item_sets import item_sets
from selftrain_jax.run.leaks import read_leaks
from selftrain_jax.run.memory import memory_data
from selftrain_jax.run.names import SHUFFLED, RunNames
from selftrain_jax.run.stages import read_manifest
from selftrain_jax.training.metrics import read_metrics

Masks = dict[Metric, np.ndarray]
LEAST_ITEMS = 10
"""Items that must stand in the training text, and as many that must not, for capability on either to be shown."""


def report_data(pipeline: RunNames, stages: Sequence[str]) -> ReportData:
    """All that the report shows, from what the finished `stages` left in the workdir."""
    config, workdir, evaluate = pipeline.config, pipeline.workdir, pipeline.config.evaluate
    items = {model: Items.load(workdir / "evaluate" / model) for model in pipeline.models}
    metrics, comparisons, curves, contamination = [], [], [], []
    all_masks = probe_masks(pipeline)
    for k, masks in enumerate(all_masks):
        for model in (name for name, where in pipeline.models.items() if not where):
            for row in _measure(items[model], masks, evaluate, items["base"]):
                # Of what is not self-trained only the held-out probes differ between subset numbers.
                if k == 0 or row["metric"].held_out:
                    metrics.append({"model": model, **row, "seed": k})
        for arm in pipeline.arms:
            trained, name = items[f"{arm}-{k}"], model_name(pipeline, arm)
            metrics += [{"model": name, **row, "seed": k} for row in _measure(trained, masks, evaluate, items["base"])]
            for suite, flags in trained.contaminated.items():
                row = _row(Metric("contaminated", suite), int(flags.sum()), None, None, len(flags))
                metrics.append({"model": name, **row, "seed": k})
            contamination += [{"model": name, **row, "seed": k} for row in _by_contamination(items["base"], trained)]
            pair = (items["base"], trained)
            before, after = (hits(of, masks, evaluate.suffix_lengths, evaluate.discoverable) for of in pair)
            cluster = functools.partial(_cluster, items["base"], masks)
            changes = [*_compare(before, after, cluster), *_compare_means(*pair, masks), *_compare_ranks(*pair, masks)]
            comparisons += [{"model": name, **row, "seed": k} for row in changes]
            for step, found in curve(workdir / "train" / f"{arm}-{k}"):
                curves += [
                    {"model": name, "step": step, **_rate(*hit, _cluster(found, masks, hit[0])), "seed": k}
                    for hit in hits(found, masks).items()
                ]
    _adjust(comparisons)
    names = {model: model_name(pipeline, where[0]) if where else model for model, where in pipeline.models.items()}
    learning_curves = {
        model if config.subset.num_subsets > 1 else name: read_metrics(workdir / "train" / model / "metrics.jsonl")
        for model, name in names.items()
        if pipeline.models[model]
    }
    corpus = read_corpus(pipeline.corpus_path(pipeline.main))
    manifests = {name: read_manifest(workdir, name) for name in stages}
    settings = read_json(workdir / "config.json")
    settings["evaluate"]["add_bos"] = manifests["evaluate/base"]["result"]["add_bos"]  # what "auto" came to
    return ReportData(
        title=config.heading,
        metrics=metrics,
        comparisons=comparisons,
        contamination=contamination,
        measured_curves=curves,
        audit=facts.audit(workdir, pipeline.main),
        corpus=facts.origin(corpus) | facts.size(corpus) if config.corpus else facts.size(corpus),
        unknown=manifests["evaluate/base"]["result"].get("unknown", {}),
        drawn={model_name(pipeline, arm): facts.drawn(pipeline, arm) for arm in pipeline.arms},
        samples=facts.samples(corpus),
        **listings.shown(pipeline, items, all_masks, corpus, manifests),
        learning_curves=learning_curves,
        settings=settings,
        versions=facts.versions(manifests.values()),
        durations={name: manifest["seconds"] for name, manifest in manifests.items()},
        fingerprints={name: manifest["fingerprint"] for name, manifest in manifests.items()},
        command=pipeline.command,
        probes=config.evaluate.probes_chosen,
        held_out_ngram=config.evaluate.held_out_ngram,
        one_document=one_document(items["base"]),
        figures=item_sets(pipeline, (row["metric"] for row in metrics), all_masks, items["base"]),
        **memory_data(pipeline, items, all_masks, names),
        along=along_texts({name: [items[m] for m, of in names.items() if of == name] for name in names.values()}),
        leaks={model_name(pipeline, arm): rows for arm, rows in read_leaks(pipeline).items()},
    )


def model_name(pipeline: RunNames, arm: str) -> str:
    """What the report calls the models of an arm."""
    return arm if arm == pipeline.main else f"control:{arm}"


def probe_masks(pipeline: RunNames, arms: Collection[str] | None = None) -> list[Masks]:
    """For every subset number: which probes count towards which extraction metric.

    One held-out set serves all models of a subset number, base included: the probes that occur in the training text of
    none of the arms (or of `arms`, some of them) but `SHUFFLED`. So every row of the table speaks of the same probes.
    """
    evaluate, subset = pipeline.config.evaluate, pipeline.config.subset
    if not evaluate.probes:
        return [{}] * subset.num_subsets
    student = pipeline.model_path(pipeline.student)
    probes = memorization.load_probes(pipeline.path(evaluate.probes), load_config(student))
    tokenizer = load_tokenizer(student)
    groups, by_offset = _parts(Items.load(pipeline.workdir / "evaluate" / "base").probes, evaluate)
    masks = []
    for k in range(subset.num_subsets):
        folders = [pipeline.workdir / "subset" / f"{arm}-{k}" for arm in arms or pipeline.arms if arm != SHUFFLED]
        documents = (ids for folder in folders for ids in read_documents(folder))
        filters = {RUN: evaluate.held_out_ngram, 13: 13, "suffix": None}
        absent = memorization.held_out(probes, documents, tokenizer, tuple(filters.values()))
        held_out = {
            dataclasses.replace(EXTRACTION, held_out=name): absent[n]
            for name, n in filters.items()
            if name == RUN or n != evaluate.held_out_ngram
        }
        by_group = {
            dataclasses.replace(metric, held_out=RUN): mask & held_out[HELD_OUT] for metric, mask in groups.items()
        }
        masks.append({EXTRACTION: np.ones(len(probes), bool)} | groups | by_offset | held_out | by_group)
    return masks


def _parts(columns: Masks, evaluate: EvaluateSettings) -> tuple[Masks, Masks]:
    """The probes of each group, and by their offset; `columns` as of `memorization.probe_columns`."""
    labels = dict.fromkeys(columns["group"].tolist())
    groups = {group_extraction(label): columns["group"] == label for label in labels if label != "all"}
    by_offset = {}
    if evaluate.offset_edges:
        offsets = columns["offset"]
        bins = memorization.offset_bins(offsets, evaluate.offset_edges) | {UNKNOWN_OFFSET: offsets < 0}
        by_offset = {Metric("extraction", offset=offset): mask for offset, mask in bins.items() if mask.any()}
    return groups if len(labels) > 1 else {}, by_offset


def check_groups(probes: Sequence[memorization.Probe], evaluate: EvaluateSettings) -> None:
    """Raises `InputError` for groups of probes that the report would call as it calls something else."""
    groups, by_offset = _parts(memorization.probe_columns(probes), evaluate)
    others = [EXTRACTION, *by_offset, *(Metric("extraction", suffix=k) for k in evaluate.suffix_lengths)]
    others += [dataclasses.replace(EXTRACTION, held_out=name) for name in (RUN, 13, "suffix")]
    check_distinct([*others, *groups, *(dataclasses.replace(metric, held_out=RUN) for metric in groups)])


def curve(training: pathlib.Path) -> Iterator[tuple[int, Items]]:
    """(step, what was measured there) during one training, in order of steps."""
    for path in sorted(training.glob("curve/*/items.npz"), key=lambda p: int(p.parent.name)):
        yield int(path.parent.name), Items.load(path.parent)


def hits(
    items: Items, masks: Masks, suffix_lengths: Sequence[int] = (), sampled: DiscoverableSettings | None = None
) -> Masks:
    """bool arrays by metric: everything that is a share of items, and compared with the base model item by item."""
    probes, found = items.probes, {}
    for metric, mask in masks.items():
        chosen = mask[probes["index"]]
        if chosen.any():
            found[metric] = probes["exact"][chosen]
    if masks:
        found |= {Metric("extraction", suffix=k): probes["first_mismatch"] >= k for k in suffix_lengths}
    for metric, chosen in _whole_parts(items, masks) if sampled else ():
        for n in sampled.samples[-1:] if metric.group else sampled.samples:
            of = dataclasses.replace(metric, kind="discoverable", samples=(n, sampled.probability))
            found[of] = discoverable.discoverable(probes["sampled_log_prob"][chosen], *of.samples)
    if "bleu" in probes:
        found[Metric("approximate")] = probes["bleu"] > approximate.BLEU_THRESHOLD
    return found | {Metric("capability", suite, rule): right for (suite, rule), right in items.capability.items()}


def _whole_parts(items: Items, masks: Masks) -> Iterator[tuple[Metric, np.ndarray]]:
    """(metric, bool `[n]`) of all probes, of those held out by the run's own filter, and of the groups of either."""
    for metric, mask in masks.items():
        chosen = mask[items.probes["index"]]
        if metric.offset is None and metric.held_out in (None, RUN) and chosen.any():
            yield metric, chosen


def _cluster(items: Items, masks: Masks, metric: Metric) -> np.ndarray | None:
    """A label per item of `hits`, equal for items that are not independent; None where all are."""
    if metric.kind == "capability":
        return items.clusters.get(metric.item)
    labels = items.probes.get("cluster")
    mask = masks.get(dataclasses.replace(metric, kind="extraction", samples=None))
    return labels if labels is None or mask is None else labels[mask[items.probes["index"]]]


def mean_capability(items: Items) -> float | None:
    """The mean over the suites of plain accuracy, or of a suite's first rule without that; None without suites."""
    return mean_over_suites({Metric("capability", *key): float(hits.mean()) for key, hits in items.capability.items()})


def mean_over_suites(values: Mapping[Metric, float]) -> float | None:
    """The same of the values of metrics, whatever else is among them."""
    found = [values[metric] for metric in each_suite(values)]
    return sum(found) / len(found) if found else None


def nll_per_token(items: Items) -> dict[Metric, float]:
    return {Metric("nll", name): float(nats.sum() / tokens.sum()) for name, (nats, tokens) in items.nll.items()}


def means(items: Items, masks: Masks, base: Items) -> dict[Metric, tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """(values, weights, clusters) by metric, of which the figure is the weighted mean, and which are compared with
    `base` item by item: what is no share of items. Windows of text are clustered by text, where there are several."""
    probes, found = items.probes, {}
    cluster = probes.get("cluster")
    for field in (*("token_share", "first_mismatch", "strength"), *_FREE_RUNNING) if masks else ():
        for k, name in _at_lengths(field, probes):
            found[Metric(field, suffix=k)] = probes[name].astype(float), np.ones(len(probes[name])), cluster
    for metric, mask in masks.items():
        if metric.held_out == RUN:
            chosen = mask[probes["index"]] & base.probes["exact"]
            if chosen.any():
                lengths = probes["length"][chosen].astype(float)
                figures = {"left_tokens": probes["token_share"], "left_log_prob": probes["log_prob"] / probes["length"]}
                chosen_cluster = None if cluster is None else cluster[chosen]
                for kind, values in figures.items():
                    found[dataclasses.replace(metric, kind=kind)] = values[chosen], lengths, chosen_cluster
    for name, (nats, tokens) in items.nll.items():
        documents = None if name in one_document(items) else items.documents.get(name)
        found[Metric("nll", name)] = nats / tokens, tokens.astype(float), documents
    return found


_FREE_RUNNING = ("graded", "edit_similarity", "common_run")


def _at_lengths(field: str, columns: Masks) -> Iterator[tuple[int | None, str]]:
    """(k, column) for the columns of a figure: of the whole suffix (None) and of its first k tokens."""
    for name in columns:
        kind, _, k = name.partition("/")
        if kind == field:
            yield int(k) if k else None, name


def one_document(items: Items) -> list[str]:
    """The text sets of several windows that are a single text."""
    return [name for name, of in items.documents.items() if len(of) > 1 and (of == of[0]).all()]


Ranked = dict[Metric, tuple[np.ndarray, np.ndarray, np.ndarray | None]]


def _ranked(items: Items, masks: Masks) -> Ranked:
    """(scores, which are positives, clusters) by metric that is an AUC: held-out groups that were planted against the
    one that never was, and the attacks."""
    cluster, found = items.probes.get("cluster"), {}
    held_out = {metric: mask[items.probes["index"]] for metric, mask in masks.items() if metric.held_out == RUN}
    per_token = items.probes["log_prob"] / items.probes["length"] if masks else None
    never = next((mask for metric, mask in held_out.items() if metric.repeats == 0), np.zeros(0, bool))
    for metric, mask in held_out.items():
        if metric.repeats and mask.any() and never.any():
            both = mask | never
            clusters = None if cluster is None else cluster[both]
            found[dataclasses.replace(metric, kind="planted_auc")] = per_token[both], mask[both], clusters
    for attack, scores in items.membership.items():
        known = ~np.isnan(scores)
        clusters = None if cluster is None else cluster[known]
        found[Metric("membership_auc", attack)] = scores[known], items.members[known], clusters
    return found


def _measure(items: Items, masks: Masks, evaluate: EvaluateSettings, base: Items) -> Iterator[dict[str, Any]]:
    """Rows {"metric", "value", "low", "high", "n", "clusters"} of one model."""
    for metric, found in hits(items, masks, evaluate.suffix_lengths, evaluate.discoverable).items():
        yield _rate(metric, found, _cluster(items, masks, metric))
    if masks:
        noise = memorization.MARGIN_NOISE[evaluate.dtype]
        yield _rate(Metric("ambiguous"), items.probes["least_margin"] < noise, items.probes.get("cluster"))
    for attack, result in membership.membership_results(items.membership, items.members).items():
        members = int((items.members & ~np.isnan(items.membership[attack])).sum())
        yield _row(Metric("tpr_at_fpr_0.01", attack), *result.tpr_at_1_percent, members)
        yield _row(Metric("tpr_at_fpr_0.001", attack), *result.tpr_at_01_percent, members)
    for metric, (scores, positive, _) in _ranked(items, masks).items():
        yield _row(metric, *roc.auc(scores[positive], scores[~positive]), len(scores))
    for metric, (values, weights, cluster) in means(items, masks, base).items():
        found = statistics.weighted_mean(values, weights, _bounds(metric, items), cluster)
        n = int(weights.sum()) if metric.kind == "nll" else len(values)
        yield _row(metric, *found, n, cluster)
    for metric, (*found, n) in _exposures(items, masks):
        yield _row(metric, *found, n)


def _exposures(items: Items, masks: Masks, base: Items | None = None) -> Iterator[tuple[Metric, tuple]]:
    """(metric, what `exposure.mean_exposure` gives), of the change against `base` where that is given."""
    probes = items.probes
    for metric, chosen in _whole_parts(items, masks) if items.members is not None else ():
        if (chosen := chosen & items.members & np.isin(probes["length"], probes["length"][~items.members])).any():
            columns = (probes["log_prob"], probes["length"], items.members, chosen, probes.get("cluster"))
            found = exposure.mean_exposure(*columns, before=base and base.probes["log_prob"])
            yield dataclasses.replace(metric, kind="exposure"), found


def _bounds(metric: Metric, items: Items) -> tuple[float, float] | None:
    """What an item's figure lies between; None without bounds."""
    if metric.of.unit == "tokens":
        return 0.0, float(items.probes["length"].max())
    return (0.0, 1.0) if metric.of.is_rate else None


def _rate(metric: Metric, found: np.ndarray, cluster: np.ndarray | None = None) -> dict[str, Any]:
    return _row(metric, *statistics.share(found, cluster), len(found), cluster)


def _row(
    metric: Metric, value: float, low: float | None, high: float | None, n: int, cluster: np.ndarray | None = None
) -> dict[str, Any]:
    row = {"metric": metric, "value": value, "low": low, "high": high, "n": n}
    return row if cluster is None else row | {"clusters": len(set(cluster.tolist()))}


def _compare(
    before: Masks, after: Masks, cluster: Callable[[Metric], np.ndarray | None] = lambda metric: None
) -> list[dict[str, Any]]:
    """Rows {"metric", "difference", "low", "high", "p_value", "unadjusted_p_value"}, paired item by item against base;
    p-values are not adjusted."""
    rows = []
    for metric, new in after.items():
        labels = cluster(metric)
        difference, low, high = statistics.paired_difference(before[metric], new, cluster=labels)
        row, p_value = _change(metric, difference, low, high), statistics.mcnemar(before[metric], new, labels)
        rows.append(row | dict.fromkeys(("p_value", "unadjusted_p_value"), p_value))
    return rows


def _compare_means(base: Items, trained: Items, masks: Masks) -> list[dict[str, Any]]:
    """The same of `means`, without p-values."""
    before, rows = means(base, masks, base), []
    for metric, (values, weights, cluster) in means(trained, masks, base).items():
        span = (_bounds(metric, trained) or (0, None))[1]
        found = statistics.paired_mean(before[metric][0], values, weights, span, cluster=cluster)
        rows.append(_change(metric, *found))
    return rows


def _compare_ranks(base: Items, trained: Items, masks: Masks) -> list[dict[str, Any]]:
    """The same of what is an AUC, and of exposure."""
    before = _ranked(base, masks)
    found = [
        _change(metric, *roc.paired_auc(before[metric][0], scores, positive, cluster=cluster))
        for metric, (scores, positive, cluster) in _ranked(trained, masks).items()
    ]
    return found + [_change(metric, *change[:3]) for metric, change in _exposures(trained, masks, base)]


def _change(metric: Metric, difference: float, low: float | None, high: float | None) -> dict[str, Any]:
    return {"metric": metric, "difference": difference, "low": low, "high": high}


def _adjust(comparisons: Sequence[dict[str, Any]]) -> None:
    """Adjusts the p-values of the capability suites for all of them in all arms of a subset (Holm); other metrics look
    at the same probes again and again, and stand for themselves."""
    suites = [row for row in comparisons if row["metric"].kind == "capability"]
    for of_subset in grouped(suites, "seed").values():
        for row, p_value in zip(of_subset, statistics.holm([row["unadjusted_p_value"] for row in of_subset])):
            row["p_value"] = float(p_value)


def _by_contamination(base: Items, trained: Items) -> Iterator[dict[str, Any]]:
    """Rows of `_compare` with "in_training_text", "n", "before" and "after": capability on the items that stand in the
    text which `trained` was trained on, and on the others, of suites with `LEAST_ITEMS` of both."""
    shown = {s: flags for s, flags in trained.contaminated.items() if min(flags.sum(), (~flags).sum()) >= LEAST_ITEMS}
    for inside in (True, False):
        before, after = (
            {
                Metric("capability", s, rule): h[shown[s] == inside]
                for (s, rule), h in of.capability.items()
                if s in shown
            }
            for of in (base, trained)
        )
        clusters = {s: labels[shown[s] == inside] for s, labels in base.clusters.items() if s in shown}
        for row in _compare(before, after, lambda metric: clusters.get(metric.item)):
            hits = before[row["metric"]], after[row["metric"]]
            means = {name: float(found.mean()) for name, found in zip(("before", "after"), hits)}
            yield {**row, "in_training_text": inside, "n": len(hits[0]), **means}
