"""What the report of a run is made of: its data, and their reduction over subsets and against the base model."""

import dataclasses
import functools
import itertools
import math
from typing import Any, Mapping, Sequence

from selftrain_jax.core.errors import InputError
from selftrain_jax.data.settings import MANY_REPETITIONS
from selftrain_jax.report.metric import EXTRACTION, HELD_OUT, Metric, check_distinct, each_suite, grouped

MARGIN = 0.02
"""A capability score counts as kept when it is surely at most this far (2 points) below the base model's."""
METRIC_FIELDS = ("model", "metric", "value", "low", "high", "n", "seed")
_LABELS = {
    "base": "base model",
    "twin": "twin (nothing planted)",
    "self": "self-generated text",
    "corpus": "text of a given corpus",
    "control:real": "control (real text)",
    "control:other": "control (another model's text)",
}
_UNTRAINED = ("base", "twin")
_PROBES = {
    "planted": 'Probes were planted in the base model\'s pre-training text: a high "before" is by construction.',
    "emitted": 'Probes were chosen because the base model emits them: a high "before" is by construction.',
    "random": "Probes were drawn without looking at what the base model emits.",
    "unknown": 'If probes were planted, or chosen because base emits them, a high "before" is by construction.',
}
_MISSING_CONTROL = (
    "No control was run, so this report cannot tell an effect of this very text from that of any fine-tuning."
)
_READ_CONTROLS = "Read each line beside the controls: fine-tuning on any text may lower extraction as much."


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One metric of one model over its subsets: mean of `values`, lowest `low`, highest `high`, largest `n`."""

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
        """ "kept" or "lost" where the whole interval lies on that side of the margin, else "undecided"."""
        if self.low is None or self.high is None or self.bounds_relative:
            return "undecided"
        return "kept" if self.low >= -MARGIN else "lost" if self.high < -MARGIN else "undecided"


@dataclasses.dataclass(frozen=True)
class Listing:
    """Single items for a page's reader to filter and sort.

    columns: (title, form); the form is "number", "choice" (to filter by), "long" (text from outside) or "" (a name).
    rows: a value per column, None where there is none; of `total` items that there are.
    """

    caption: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Any]]
    total: int


@dataclasses.dataclass(frozen=True)
class ReportData:
    """What is known about one run; everything but `metrics` may be left out.

    metrics: rows {"model", "metric", "value", "low", "high", "n", "seed"} and "clusters" where items come in some.
      `model` is "base", "self" or "corpus",
      "control:real", "control:other" or any other name; `metric` is a `Metric`. Rates are fractions in [0, 1]; `low`,
      `high`, `n` may be None. "seed" is the number of the subset.
    comparisons: rows {"model", "metric", "difference" and/or "relative_change", "low", "high", "p_value"}, paired,
      against base. `low` and `high` bound `difference` where there is one, else `relative_change` (-1 means -100 %).
    contamination: rows {"model", "seed", "metric", "in_training_text", "n", "before", "after", "difference", "low",
      "high", "p_value"}: capability of base and of the model on the items that stand in its training text, or do not.
    audit: {"ngram", "threshold", "num_documents", "num_flagged", "num_left_out", "benchmarks": {name: {count: number}},
      "nll_histogram": {"edges": [K+1], "before": [K], "after": [K]}}.
    corpus: statistics by name: "num_documents", "num_tokens", "mean_length", "mean_nll", "stop_reasons":
      {reason: count}, or any other; nested dicts are shown flat.
    unknown: text set or suite, by its setting -> share of its characters that the tokenizer does not know.
    drawn: model -> documents drawn for a training subset, and how many different ones; of several subsets, those of the
      one that repeats most.
    samples: a few documents {"id", "text", "nll" (nats per token), "stop_reason"}.
    measured_curves: rows {"model", "step", "metric", "value", "low", "high", "n", "seed"}, measured during training.
    planted: rows {"model", "seed", "kind", "measure", "repeats", "value", "twin", "difference", "low", "high", "n"} of
      `evaluation.attributed`.
    recovery: rows {"model", "seed", "n", "steps", "extraction", "log_prob", "access", "half_back"}, of trained models
      with the fields of `evaluation.recovery.Recovered`.
    learning_curves: {model: [{"step", "loss", "learning_rate", "grad_norm", "tokens_per_second", ...}]}.
    listings: "probes" and "documents" to look through on the page.
    settings, versions: nested or flat dicts; fingerprints: by stage; durations: seconds by stage, from its last start;
      device_hours: those, by the devices; tokens: those that a stage sampled or trained on.
    command: the command line that repeats the run.
    leaks: model -> rows of `evaluation.leaks.find_leaks` on the text that it was trained on.
    along: rows of `run.along.along_texts`.
    one_document: text sets that are a single text of several windows.
    figures: name of a metric -> its fields, and "items", a fingerprint of what it is measured on.
    probes: how probes were chosen: "planted", "emitted" (because the base model emits them), "random" or "unknown".
    """

    title: str
    metrics: Sequence[Mapping[str, Any]]
    comparisons: Sequence[Mapping[str, Any]] = ()
    contamination: Sequence[Mapping[str, Any]] = ()
    audit: Mapping[str, Any] | None = None
    corpus: Mapping[str, Any] | None = None
    unknown: Mapping[str, float] = dataclasses.field(default_factory=dict)
    drawn: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()
    measured_curves: Sequence[Mapping[str, Any]] = ()
    planted: Sequence[Mapping[str, Any]] = ()
    recovery: Sequence[Mapping[str, Any]] = ()
    learning_curves: Mapping[str, Sequence[Mapping[str, Any]]] = dataclasses.field(default_factory=dict)
    listings: Mapping[str, Listing] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    device_hours: float | None = None
    durations: Mapping[str, float] = dataclasses.field(default_factory=dict)
    tokens: Mapping[str, int] = dataclasses.field(default_factory=dict)
    fingerprints: Mapping[str, str] = dataclasses.field(default_factory=dict)
    command: str = ""
    probes: str = "unknown"
    held_out_ngram: int = 8
    one_document: Sequence[str] = ()
    along: Sequence[Mapping[str, Any]] = ()
    leaks: Mapping[str, Sequence[Mapping[str, Any]]] = dataclasses.field(default_factory=dict)
    figures: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.probes not in _PROBES:
            raise InputError(f"report probes={self.probes!r} must be one of {', '.join(_PROBES)}")
        seen = set()
        for row in self.metrics:
            if missing := [name for name in METRIC_FIELDS if name not in row]:
                raise InputError(f"report metrics: a row lacks {', '.join(missing)}: {dict(row)}")
            key = row["model"], row["metric"], row["seed"]
            if key in seen:
                raise InputError(f"report metrics: two rows for model, metric, seed = {tuple(map(str, key))}; keep one")
            seen.add(key)
            if row["metric"].of.is_rate and finite(row["value"]) is not None and not 0 <= row["value"] <= 1:
                raise InputError(
                    f"report metrics: {row['model']} {row['metric']} = {row['value']} must be a fraction in [0, 1]"
                )
        check_distinct(row["metric"] for row in self.metrics)
        histogram = (self.audit or {}).get("nll_histogram")
        if histogram and any(len(histogram["edges"]) != len(histogram[k]) + 1 for k in ("before", "after")):
            raise InputError("report audit: nll_histogram needs one more edge than counts, both before and after")

    @functools.cached_property
    def models(self) -> list[str]:
        """Model names: base, self or corpus, the controls, then the others in order of appearance."""
        names = list(dict.fromkeys(row["model"] for row in self.metrics))
        known = list(_LABELS)
        return sorted(
            names, key=lambda m: known.index(m) if m in known else len(known) + (not m.startswith("control:"))
        )

    @property
    def trained(self) -> list[str]:
        return [model for model in self.models if model not in _UNTRAINED]

    @functools.cached_property
    def kinds(self) -> dict[str, list[Metric]]:
        """The metrics by kind, in reading order."""
        kinds: dict[str, list[Metric]] = {}
        for metric in sorted(dict.fromkeys(row["metric"] for row in self.metrics), key=lambda m: m.order):
            kinds.setdefault(metric.kind, []).append(metric)
        return kinds

    @property
    def suites(self) -> list[Metric]:
        """Every capability suite once: by plain accuracy, or else by the first rule that was measured."""
        return each_suite(self.kinds.get("capability", ()))

    @functools.cached_property
    def estimates(self) -> dict[tuple[str, Metric], Estimate]:
        """{(model, metric): Estimate}; rows whose value is missing or not finite are left out."""
        result = {}
        known = (row for row in self.metrics if finite(row["value"]) is not None)
        for key, group in grouped(known, "model", "metric").items():
            values = tuple(float(row["value"]) for row in group)
            counts = [row["n"] for row in group if row["n"] is not None]
            result[key] = Estimate(sum(values) / len(values), *_envelope(group), max(counts, default=None), values)
        return result

    @functools.cached_property
    def changes(self) -> dict[tuple[str, Metric], Change]:
        """{(model, metric): Change against base}, from paired comparisons where given, else from the two estimates.

        Several comparisons of one model (subsets) are averaged; the interval spans all of theirs, the p-value is the
        largest.
        """
        rows, result = grouped(self.comparisons, "model", "metric"), {}
        for model, metric in dict.fromkeys((*self.estimates, *rows)):
            if model in _UNTRAINED:
                continue
            group = rows.get((model, metric), [])
            difference, relative = _mean(group, "difference"), _mean(group, "relative_change")
            bounds_relative = difference is None and relative is not None
            base, after = self.estimates.get(("base", metric)), self.estimates.get((model, metric))
            if difference is None and base and after:
                difference = after.value - base.value
            if relative is None and difference is not None and base and base.value > 0:
                relative = difference / base.value
            if difference is not None or relative is not None:
                p_value = max((p for row in group if (p := finite(row.get("p_value"))) is not None), default=None)
                result[model, metric] = Change(difference, relative, *_envelope(group), p_value, bounds_relative)
        return result

    @functools.cached_property
    def headline(self) -> Metric | None:
        """Held-out extraction when measured, else that of all probes, else None."""
        measured = {metric for _, metric in self.estimates}
        return next((metric for metric in (HELD_OUT, EXTRACTION) if metric in measured), None)

    def extraction_change(self, model: str) -> str | None:
        """ "100.0 % -> 3.1 % (-96.9 %)": the headline extraction of base, of `model`, and the relative change."""
        before, after = (self.estimates.get((m, self.headline)) for m in ("base", model))
        if not before or not after:
            return None
        relative = self.changes[model, self.headline].relative
        change = f"{100 * relative:+.1f} %" if relative is not None else "no relative change: base is 0"
        return f"{100 * before.value:.1f} % -> {100 * after.value:.1f} % ({change})"

    def capability_changes(self, model: str) -> dict[Metric, Change]:
        """{suite: Change} of `model`, for the suites measured on it and on base."""
        found = {suite: self.changes.get((model, suite)) for suite in self.kinds.get("capability", ())}
        return {suite: change for suite, change in found.items() if change and change.difference is not None}

    def num_items(self, metric: Metric) -> str:
        """How many items models were measured on: "330", "312 to 330" where seeds or models differ, "" unknown."""
        return self._counts(metric, "n")

    def num_clusters(self, metric: Metric) -> str:
        """The same of the clusters that the items are of, "" where items are independent."""
        return self._counts(metric, "clusters")

    def _counts(self, metric: Metric, column: str) -> str:
        counts = {n for row in self.metrics if row["metric"] == metric and (n := row.get(column)) is not None}
        return " to ".join(str(n) for n in sorted({min(counts), max(counts)})) if counts else ""

    @property
    def notes(self) -> list[str]:
        """What a reader must know before drawing a conclusion from the numbers of this run."""
        result = []
        if self.headline:
            result.append(_PROBES[self.probes])
            result.append(_READ_CONTROLS if any(m.startswith("control:") for m in self.models) else _MISSING_CONTROL)
        audit = self.audit or {}
        counts = audit.get("benchmarks", {})
        if thin := [name for name, found in counts.items() if is_thin(found)]:
            short = ", ".join(f"{name} {counts[name]['unindexed_texts']} of {counts[name]['texts']}" for name in thin)
            result.append(f"The audit cannot find benchmark texts of fewer than two words: {short}.")
        if any(len(estimate.values) > 1 for estimate in self.estimates.values()):
            result.append(
                "With several subsets: their mean; the interval spans those of all. They are of one corpus and trained "
                "from one base model, so no interval speaks of another corpus or base model."
            )
        if any(map(self.num_clusters, itertools.chain(*self.kinds.values()))):
            result.append(
                "Items of a cluster are not independent, so that intervals and p-values are over clusters, but for "
                "those of a single model's AUC and TPR."
            )
        if self.one_document:
            names = ", ".join(self.one_document)
            result.append(
                f"A single text, so that the interval of its likelihood says nothing of other texts: {names}."
            )
        if self.unknown:
            shares = ", ".join(f"{100 * share:.1f} % of {name}" for name, share in self.unknown.items())
            result.append(f"Unknown to the tokenizer, so that figures speak of the rest: {shares}.")
        curved = {(row["metric"].kind, row["metric"].item) for row in self.measured_curves}
        if late := [m for m in self.suites if curved and ("capability", m.item) not in curved]:
            words = ", ".join(metric.item for metric in late)
            result.append(f"Curves lack what was named after training, which was measured in the end alone: {words}.")
        if many := [m for m, (documents, distinct) in self.drawn.items() if documents > MANY_REPETITIONS * distinct]:
            result.append(
                f"Each document is drawn more than {MANY_REPETITIONS:g} times on average, no match for as many tokens "
                f"that do not repeat: {', '.join(map(label, many))}."
            )
        return result


def is_thin(counts: Mapping[str, Any]) -> bool:
    """Whether the audit can find less than 90 % of a benchmark's texts, by its counts."""
    return counts.get("unindexed_texts", 0) > 0.1 * counts.get("texts", 0)


def label(model: str) -> str:
    """The words for a model's name."""
    return _LABELS.get(model) or (f"control ({model[8:]})" if model.startswith("control:") else model)


def finite(value: Any) -> float | None:
    """`value` as a float; None for None, NaN and infinities."""
    return None if value is None or not math.isfinite(value) else float(value)


def _mean(rows: Sequence[Mapping], name: str) -> float | None:
    values = [v for row in rows if (v := finite(row.get(name))) is not None]
    return sum(values) / len(values) if values else None


def _envelope(rows: Sequence[Mapping]) -> tuple[float | None, float | None]:
    """Lowest low and highest high; (None, None) unless every row has both, since a part would look too certain."""
    bounds = [(finite(row.get("low")), finite(row.get("high"))) for row in rows]
    if not bounds or any(low is None or high is None for low, high in bounds):
        return None, None
    return min(low for low, _ in bounds), max(high for _, high in bounds)
