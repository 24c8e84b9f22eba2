"""What a report is made of: the data of one run, and its reduction over seeds and against the base model."""

import dataclasses
import math
import re
from typing import Any, Mapping, Sequence

from selftrain_jax.core.errors import InputError

MARGIN = 0.02
"""A capability score counts as kept when it is at most this far (2 points) below the base model's."""
METRIC_FIELDS = ("model", "metric", "value", "low", "high", "n", "seed")
_LABELS = {
    "base": "base model",
    "self": "self-generated text",
    "corpus": "text of a given corpus",
    "control:real": "control (real text)",
    "control:other": "control (another model's text)",
}
UNITS = {
    "extraction": "% of probes",
    "token_share": "% of suffix tokens",
    "first_mismatch": "tokens",
    "strength": "% of suffix tokens",
    "graded": "% of suffix tokens",
    "approximate": "% of probes",
    "edit_similarity": "% of characters",
    "ambiguous": "% of probes",
    "membership_auc": "0.5: chance",
    "tpr_at_fpr_0.01": "% of members",
    "tpr_at_fpr_0.001": "% of members",
    "capability": "% of items",
    "nll": "nats per token",
}
"""Unit by kind of metric, kinds in reading order."""
_PROBES = {
    "planted": 'Probes were planted in the base model\'s pre-training text, so "before" is high by construction.',
    "emitted": 'Probes were chosen because the base model emits them, so "before" is high by construction.',
    "random": "Probes were drawn without looking at what the base model emits.",
    "unknown": 'If probes were planted, or chosen because base emits them, "before" is high by construction.',
}
_MISSING_CONTROL = (
    "No control was run, so this report cannot tell an effect of this very text from that of any fine-tuning."
)
_READ_CONTROLS = "Read each line beside the controls: fine-tuning on any text may lower extraction as much."


@dataclasses.dataclass(frozen=True)
class ReportData:
    """What is known about one run; everything but `metrics` may be left out.

    metrics: rows {"model", "metric", "value", "low", "high", "n", "seed"}. `model` is "base", "self" or "corpus",
      "control:real", "control:other" or any other name; `metric` is "extraction/all", "extraction/held_out",
      "extraction/repeats=64", "capability/<suite>", "nll/<set>", ... Extraction and capability are fractions in [0, 1];
      `low`, `high`, `n` may be None.
    comparisons: rows {"model", "metric", "difference" and/or "relative_change", "low", "high", "p_value"}, paired,
      against base. `low` and `high` bound `difference` where there is one, else `relative_change` (-1 means -100 %).
    audit: {"ngram", "threshold", "num_documents", "num_flagged", "benchmarks": {name: {count: number}},
      "nll_histogram": {"edges": [K+1], "before": [K], "after": [K]}}.
    corpus: statistics by name: "num_documents", "num_tokens", "mean_length", "mean_nll", "stop_reasons":
      {reason: count}, or any other; nested dicts are shown flat.
    samples: a few documents {"id", "text", "nll" (nats per token), "stop_reason"}.
    measured_curves: rows {"model", "step", "metric", "value", "low", "high", "n", "seed"}, measured during training.
    learning_curves: {model: [{"step", "loss", "learning_rate", "grad_norm", "tokens_per_second", ...}]}.
    settings, versions: nested or flat dicts; durations: seconds by stage; fingerprints: by stage.
    command: the command line that repeats the run.
    probes: how probes were chosen: "planted", "emitted" (because the base model emits them), "random" or "unknown".
    """

    title: str
    metrics: Sequence[Mapping[str, Any]]
    comparisons: Sequence[Mapping[str, Any]] = ()
    audit: Mapping[str, Any] | None = None
    corpus: Mapping[str, Any] | None = None
    samples: Sequence[Mapping[str, Any]] = ()
    measured_curves: Sequence[Mapping[str, Any]] = ()
    learning_curves: Mapping[str, Sequence[Mapping[str, Any]]] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    durations: Mapping[str, float] = dataclasses.field(default_factory=dict)
    fingerprints: Mapping[str, str] = dataclasses.field(default_factory=dict)
    command: str = ""
    probes: str = "unknown"
    held_out_ngram: int = 8

    def __post_init__(self):
        if self.probes not in _PROBES:
            raise InputError(f"report probes={self.probes!r} must be one of {', '.join(_PROBES)}")
        seen = set()
        for row in self.metrics:
            if missing := [name for name in METRIC_FIELDS if name not in row]:
                raise InputError(f"report metrics: a row lacks {', '.join(missing)}: {dict(row)}")
            key = row["model"], row["metric"], row["seed"]
            if key in seen:
                raise InputError(f"report metrics: two rows for model, metric, seed = {key}; keep one")
            seen.add(key)
            if is_rate(row["metric"]) and number(row["value"]) is not None and not 0 <= row["value"] <= 1:
                raise InputError(
                    f"report metrics: {row['model']} {row['metric']} = {row['value']} must be a fraction in [0, 1]"
                )
        histogram = (self.audit or {}).get("nll_histogram")
        if histogram and any(len(histogram["edges"]) != len(histogram[k]) + 1 for k in ("before", "after")):
            raise InputError("report audit: nll_histogram needs one more edge than counts, both before and after")


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One metric of one model over its seeds: mean of `values`, lowest `low`, highest `high`, largest `n`."""

    value: float
    low: float | None
    high: float | None
    n: int | None
    values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Change:
    """A metric of one model against base; the interval is of `difference`, or of `relative` where `bounds_relative`."""

    difference: float | None
    relative: float | None
    low: float | None
    high: float | None
    p_value: float | None
    bounds_relative: bool = False

    @property
    def verdict(self) -> str:
        """ "kept" or "lost" by the margin; "kept*" when the interval reaches below it."""
        if self.difference < -MARGIN - 1e-9:
            return "lost"
        reaches = not self.bounds_relative and self.low is not None and self.low < -MARGIN - 1e-9
        return "kept*" if reaches else "kept"


def is_rate(metric: str) -> bool:
    """Whether the metric is a fraction that is shown in percent."""
    return UNITS.get(metric.split("/")[0], "").startswith("%")


def label(model: str) -> str:
    """The words for a model's name."""
    return _LABELS.get(model) or (f"control ({model[8:]})" if model.startswith("control:") else model)


def models(data: ReportData) -> list[str]:
    """Model names: base, self or corpus, the controls, then the others in order of appearance."""
    names = list(dict.fromkeys(row["model"] for row in data.metrics))
    known = list(_LABELS)
    return sorted(names, key=lambda m: known.index(m) if m in known else len(known) + (not m.startswith("control:")))


def metric_groups(data: ReportData) -> dict[str, list[str]]:
    """Metric names by kind, in reading order; extraction of all probes, held-out ones, then by repetition count."""
    names = list(dict.fromkeys(row["metric"] for row in data.metrics))

    def order(name: str):
        kind, _, rest = name.partition("/")
        # All, held-out, its weaker filters; then the groups, then their held-out parts.
        part = next((start for start in ("held_out/", "held_out=") if rest.startswith(start)), rest)
        first = {"all": 0, "held_out": 1, "held_out=": 2, "held_out/": 4}.get(part, 3)
        count = repeats(name.replace("held_out/", "")) or 0
        return list(UNITS).index(kind) if kind in UNITS else len(UNITS), first, count

    groups: dict[str, list[str]] = {}
    for name in sorted(names, key=order):
        groups.setdefault(name.split("/")[0], []).append(name)
    return groups


def repeats(metric: str) -> int | None:
    """The repetition count r of "extraction/repeats=r", else None."""
    match = re.fullmatch(r"extraction/repeats=(\d+)", metric)
    return int(match[1]) if match else None


def estimates(data: ReportData) -> dict[tuple[str, str], Estimate]:
    """{(model, metric): Estimate}; rows whose value is missing or not finite are left out."""
    rows: dict[tuple[str, str], list] = {}
    for row in data.metrics:
        if number(row["value"]) is not None:
            rows.setdefault((row["model"], row["metric"]), []).append(row)
    result = {}
    for key, group in rows.items():
        values = tuple(float(row["value"]) for row in group)
        counts = [row["n"] for row in group if row["n"] is not None]
        result[key] = Estimate(sum(values) / len(values), *_envelope(group), max(counts, default=None), values)
    return result


def changes(data: ReportData) -> dict[tuple[str, str], Change]:
    """{(model, metric): Change against base}, from the paired comparisons where given, else from the two estimates.

    Several comparisons of one model (seeds) are averaged; the interval spans all of theirs, the p-value is the largest.
    """
    table = estimates(data)
    rows: dict[tuple[str, str], list] = {}
    for row in data.comparisons:
        rows.setdefault((row["model"], row["metric"]), []).append(row)
    result = {}
    for model, metric in dict.fromkeys((*table, *rows)):
        if model == "base":
            continue
        group = rows.get((model, metric), [])
        difference, relative = _mean(group, "difference"), _mean(group, "relative_change")
        bounds_relative = difference is None and relative is not None
        base, after = table.get(("base", metric)), table.get((model, metric))
        if difference is None and base and after:
            difference = after.value - base.value
        if relative is None and difference is not None and base and base.value > 0:
            relative = difference / base.value
        if difference is None and relative is None:
            continue
        p_values = [p for row in group if (p := number(row.get("p_value"))) is not None]
        result[model, metric] = Change(
            difference, relative, *_envelope(group), max(p_values, default=None), bounds_relative
        )
    return result


def headline_metric(data: ReportData) -> str | None:
    """ "extraction/held_out" when measured, else "extraction/all", else None."""
    names = {metric for _, metric in estimates(data)}
    return next((name for name in ("extraction/held_out", "extraction/all") if name in names), None)


def metric_name(metric: str) -> str:
    """The words for a metric within its group."""
    rest = metric.partition("/")[2] or metric
    if metric.startswith("extraction/held_out/"):
        return "held-out, " + metric_name(f"extraction/{rest[9:]}")
    if (count := repeats(metric)) is not None:
        return f"{count} repeat" + "s" * (count != 1)
    if match := re.fullmatch(r"held_out=(\w+)", rest):
        return f"held-out, {match[1]}" + "-gram" * match[1].isdigit()
    if match := re.fullmatch(r"suffix=(\d+)", rest):
        return f"first {match[1]} tokens"
    return {"all": "all probes", "held_out": "held-out"}.get(rest, rest.replace("offset=", "offset "))


def group_name(kind: str) -> str:
    """The words for a kind of metric."""
    words = {
        "nll": "negative log-likelihood",
        "strength": "extraction strength",
        "graded": "graded memorization score",
        "approximate": "approximate match",
        "membership_auc": "membership, AUC",
        "tpr_at_fpr_0.01": "membership, TPR at 1 % FPR",
        "tpr_at_fpr_0.001": "membership, TPR at 0.1 % FPR",
    }
    return words.get(kind, kind.replace("_", " "))


def extraction_change(data: ReportData, model: str) -> str | None:
    """ "100.0 % -> 3.1 % (-96.9 %)": the headline extraction of base, of `model`, and the relative change."""
    metric = headline_metric(data)
    table = estimates(data)
    before, after = table.get(("base", metric)), table.get((model, metric))
    if not before or not after:
        return None
    relative = changes(data)[model, metric].relative
    change = f"{100 * relative:+.1f} %" if relative is not None else "no relative change: base is 0"
    return f"{100 * before.value:.1f} % -> {100 * after.value:.1f} % ({change})"


def capability_changes(data: ReportData, model: str) -> dict[str, Change]:
    """{suite metric: Change} of `model`, for the suites measured on it and on base."""
    known = changes(data)
    return {
        metric: known[model, metric]
        for metric in metric_groups(data).get("capability", [])
        if (model, metric) in known and known[model, metric].difference is not None
    }


def notes(data: ReportData) -> list[str]:
    """What a reader must know before drawing a conclusion from the numbers of this run."""
    result = []
    if headline_metric(data):
        result.append(_PROBES[data.probes])
        result.append(_READ_CONTROLS if any(m.startswith("control:") for m in models(data)) else _MISSING_CONTROL)
    if any(len(estimate.values) > 1 for estimate in estimates(data).values()):
        result.append("With several seeds: mean over seeds; the interval spans the intervals of all seeds.")
    return result


def num_items(table: Mapping[tuple[str, str], Estimate], metric: str) -> int | None:
    """The largest number of items that any model was measured on."""
    return max((e.n for (_, name), e in table.items() if name == metric and e.n is not None), default=None)


def explanations(data: ReportData) -> dict[str, str]:
    """One line for each kind of metric that the run measured."""
    n = data.held_out_ngram
    lines = {
        "extraction/all": ("all probes", "Share of probes that greedy decoding continues with the exact suffix."),
        "extraction/held_out": (
            "held-out",
            f"The same over the probes of which no {n}-gram occurs in the training subset, so training cannot have "
            "repeated them.",
        ),
        "extraction/repeats=": ("repeats", "The same over sequences that occur that often in the pre-training text."),
        "extraction/held_out=": (
            "held-out, 13-gram or suffix",
            "The same with a weaker filter: no 13-gram, or just not the whole suffix.",
        ),
        "extraction/suffix=": (
            "first tokens",
            "Share of probes that greedy decoding continues so far without an error.",
        ),
        "extraction/offset=": ("offset", "Extraction of probes by the tokens that come before them in training."),
        "extraction/": ("extraction", "Verbatim extraction; lower means that less is memorized."),
        "token_share/": ("token share", "Share of suffix tokens that are the likeliest after the true text so far."),
        "first_mismatch/": ("first mismatch", "Suffix tokens that greedy decoding reproduces before its first error."),
        "strength/": (
            "extraction strength",
            "Share of the suffix that need not be given for greedy decoding to complete it.",
        ),
        "graded/": ("graded memorization score", "Share of suffix tokens right, one by one, in free greedy decoding."),
        "approximate/": (
            "approximate match",
            "Share of probes whose continuation has a BLEU above 0.75 with the suffix.",
        ),
        "edit_similarity/": (
            "edit similarity",
            "1 - edit distance / length of the continuation's text and the true one.",
        ),
        "ambiguous/": ("ambiguous", "Probes decided by a margin that another batch shape or device could overturn."),
        "membership_auc/": (
            "membership",
            "How well an attack tells planted probes from others: AUC, and members found at a "
            "fixed rate of false accusations.",
        ),
        "capability/": ("capability", "Share of the suite's items answered correctly; higher is better."),
        "nll/": ("negative log-likelihood", "Mean over the tokens of that text, in nats; lower is better."),
    }
    names = {row["metric"] for row in data.metrics}
    found = {words: text for start, (words, text) in lines.items() if any(name.startswith(start) for name in names)}
    return found | {"95 % interval": "A range that covers the true value in 95 % of repetitions, for the items drawn."}


def columns(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The keys of all rows, each once, in order of appearance."""
    return list(dict.fromkeys(key for row in rows.values() for key in row))


def number(value: Any) -> float | None:
    """`value` as a float; None for None, NaN and infinities."""
    return None if value is None or not math.isfinite(value) else float(value)


def _mean(rows: Sequence[Mapping], name: str) -> float | None:
    values = [v for row in rows if (v := number(row.get(name))) is not None]
    return sum(values) / len(values) if values else None


def _envelope(rows: Sequence[Mapping]) -> tuple[float | None, float | None]:
    """Lowest low and highest high; (None, None) unless every row has both, since a part would look too certain."""
    bounds = [(number(row.get("low")), number(row.get("high"))) for row in rows]
    if not bounds or any(low is None or high is None for low, high in bounds):
        return None, None
    return min(low for low, _ in bounds), max(high for _, high in bounds)
