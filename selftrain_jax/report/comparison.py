"""Several runs side by side: their figures, where these are of the same items, and what differs in their settings."""

import dataclasses
import functools
from typing import Any, Mapping, Sequence

from selftrain_jax.core.records import apart
from selftrain_jax.report.data import Estimate, ReportData, label
from selftrain_jax.report.metric import Metric
from selftrain_jax.report.svg import short
from selftrain_jax.report.tables import layout, printable


@dataclasses.dataclass(frozen=True)
class Figure:
    """A metric of one model in every run, None where it was not measured; `apart` says why the runs' figures are not
    comparable, "" where they are of the same items."""

    model: str
    metric: Metric
    estimates: tuple[Estimate | None, ...]
    apart: str

    @property
    def counts(self) -> str:
        """How many items: one number, or one a run where they differ."""
        found = ["-" if e is None or e.n is None else str(e.n) for e in self.estimates]
        known = dict.fromkeys(n for n in found if n != "-")
        return "|".join(known if len(known) < 2 else found) or "-"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """names: of the runs. reports: what their report.json holds, with `figures`."""

    names: Sequence[str]
    reports: Sequence[Mapping[str, Any]]

    @property
    def title(self) -> str:
        return f"{len(self.names)} runs side by side"

    @property
    def settings(self) -> list[tuple[str, list[Any]]]:
        """(setting, its value in every run) of all that differ."""
        return list(apart([report["settings"] for report in self.reports]))

    @functools.cached_property
    def figures(self) -> dict[str, list[Figure]]:
        """By model, in reading order."""
        known, estimates, models = [], [], []
        for report in self.reports:
            metrics = {name: _metric(about) for name, about in report["figures"].items()}
            rows = [{**row, "metric": metrics[row["metric"]]} for row in report["metrics"]]
            data = ReportData(title="", metrics=rows)
            known.append({metrics[name]: about["items"] for name, about in report["figures"].items()})
            estimates.append(data.estimates)
            models += data.models
        found: dict[str, list[Figure]] = {}
        for model in dict.fromkeys(models):
            metrics = dict.fromkeys(metric for of in estimates for m, metric in of if m == model)
            for metric in sorted(metrics, key=lambda m: m.order):
                values = tuple(of.get((model, metric)) for of in estimates)
                found.setdefault(model, []).append(Figure(model, metric, values, _apart(metric, values, known)))
        return found

    @property
    def apart(self) -> dict[str, list[Metric]]:
        """Reason -> the metrics that are not of the same items in all runs."""
        found: dict[str, list[Metric]] = {}
        for figure in [figure for figures in self.figures.values() for figure in figures if figure.apart]:
            if figure.metric not in found.setdefault(figure.apart, []):
                found[figure.apart].append(figure.metric)
        return found


def _metric(about: Mapping[str, Any]) -> Metric:
    """The metric that `about`, of `figures` in report.json, describes."""
    fields = {field.name: about[field.name] for field in dataclasses.fields(Metric)}
    return Metric(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def _apart(metric: Metric, values: Sequence[Estimate | None], known: Sequence[Mapping[Metric, str]]) -> str:
    items = {of[metric] for of, value in zip(known, values) if value is not None}
    if len(items) < 2:
        return ""
    if metric.held_out is not None:
        whole = {of[Metric("extraction")] for of, value in zip(known, values) if value is not None}
        return "other held-out probes" if len(whole) == 1 else "other probes"
    return "other probes" if metric.is_of_probes else "another text" if metric.kind == "nll" else "other items"


def format_comparison(found: Comparison) -> str:
    """The same as plain ASCII text, at most 100 columns wide."""
    lines = [found.title, ""]
    for setting, values in found.settings:
        lines.append(f"{setting}: " + " | ".join(f"{n}: {value}" for n, value in zip(found.names, values)))
    lines += [] if found.settings else ["No setting differs."]
    for model, figures in found.figures.items():
        rows: list[list] = [["", "n", *found.names]]
        kind = None
        words = short([figure.metric.words for figure in figures], 24, "..")
        for figure, shown in zip(figures, words):
            if figure.metric.kind != kind:
                kind, of = figure.metric.kind, figure.metric.of
                rows.append([of.words + f" ({of.unit})" * bool(of.unit)])
            mark = "!" if figure.apart else " "
            rows.append([f"{mark} {shown}", figure.counts, *((value, figure.metric) for value in figure.estimates)])
        lines += ["", f"{label(model)}:", *layout(rows)]
    lines += ["", "Intervals are 95 %; n: items; '-': not measured."]
    for reason, metrics in found.apart.items():
        lines.append(f"! NOT COMPARABLE, {reason}: {'; '.join(metric.title for metric in metrics)}.")
    return printable(lines)
