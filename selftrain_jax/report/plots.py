"""The figures of a run's page."""

import collections
import itertools
import math
import re
from typing import Sequence

from selftrain_jax.report import along, leaks, memory, svg
from selftrain_jax.report.data import MARGIN, ReportData, finite, label
from selftrain_jax.report.metric import HELD_OUT, RUN

_MAX_POINTS = 300
_CURVES = {
    "loss": "training loss (nats per token)",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens per second",
}


def styles(models: Sequence[str]) -> dict[str, int]:
    """{model: hue}: the usual models keep theirs, others take the remaining hues in turn, no two the same."""
    fixed = {"base": 0, "self": 1, "corpus": 1, "control:real": 2, "control:other": 3, "twin": 6}
    spare, others = range(4, svg.NUM_HUES - ("twin" in models)), itertools.count()
    return {model: fixed[model] if model in fixed else svg.nth(spare, next(others)) for model in models}


def figures(data: ReportData) -> list[svg.Figure]:
    """The figures that the data allow, in reading order."""
    made = [_by_repeats(data, *chart) for chart in _BY_REPEATS] + memory.figures(data, styles(data.models))
    made += [_by_samples(data), _capability_change(data), _capability_against_extraction(data)]
    made += [_measured_curve(data, kind) for kind in ("extraction", "capability")] + [_nll_histograms(data)]
    hues = styles(list(dict.fromkeys((*data.models, *data.leaks))))
    made += [*along.figures(data, hues), *leaks.figures(data, hues)]
    return [figure for figure in made + [_learning_curve(data, field) for field in _CURVES] if figure]


_BY_REPEATS = (
    ("extraction", None, "Extraction", "extracted (% of probes)", "Share of probes continued exactly"),
    (
        "planted_auc",
        RUN,
        "Planted against never planted",
        "AUC",
        "How well the log-probability of the suffix tells held-out sequences from those never planted (0.5: chance)",
    ),
    (
        "left_tokens",
        RUN,
        "What is left of what base extracts",
        "tokens right (% of the suffix)",
        "Of the held-out probes that base extracts, suffix tokens still the likeliest after the true text so far",
    ),
    (
        "exposure",
        None,
        "Exposure",
        "exposure (bits)",
        "How far the suffix's log-probability stands out among sequences that were never planted",
    ),
)
"""Kind of metric, whether of held-out probes, and the words of a picture by number of repetitions."""


def _by_repeats(
    data: ReportData, kind: str, held_out: str | None, title: str, axis: str, what: str
) -> svg.Figure | None:
    measured = (m for _, m in data.estimates if m.repeats is not None and m.kind == kind)
    groups = {m.repeats: m for m in measured if m.held_out == held_out}
    counts = sorted(groups)
    if len(counts) < 2:
        return None
    # Zero has no logarithm: it takes the place one doubling to the left of the smallest count.
    place = {r: math.log2(r) if r else math.log2(counts[1]) - 1 for r in counts}
    hues, scale = styles(data.models), groups[counts[0]].scale

    def draw(axes):
        for i, model in enumerate(data.models):
            found = [(r, e) for r in counts if (e := data.estimates.get((model, groups[r])))]
            xs = [place[r] + 0.09 * (i - (len(data.models) - 1) / 2) for r, _ in found]
            axes.plot(xs, [scale * e.value for _, e in found], **svg.look(hues[model], label(model)))
            for x, (_, e) in zip(xs, found):
                ends = [None if end is None else scale * end for end in (e.low, e.high)]
                svg.bar(axes, [x, x], ends, hues[model])
        axes.set_xticks([place[r] for r in counts], [str(r) for r in counts])
        axes.set(xlabel="repetitions in the pre-training text (log scale)")
        if kind != "exposure":
            axes.set_ylim(-0.04 * scale, 1.04 * scale)
        axes.set_ylabel(axis)

    return svg.figure(
        f"{title} by repetition count",
        f"{what}, by how often the base model saw the sequence. Bars: 95 % intervals; points are moved sideways a "
        "little so that they do not hide each other.",
        draw,
    )


def _by_samples(data: ReportData) -> svg.Figure | None:
    """Extraction by sampling, of held-out probes where there are such."""
    measured = {metric for _, metric in data.estimates if metric.samples and not metric.group}
    held_out = any(metric.held_out for metric in measured)
    curve = sorted((m for m in measured if bool(m.held_out) == held_out), key=lambda m: m.samples)
    if len(curve) < 2:
        return None
    hues, probes = styles(data.models), "held-out probes" if held_out else "probes"

    def draw(axes):
        for model in data.models:
            found = [(m.samples[0], e) for m in curve if (e := data.estimates.get((model, m)))]
            axes.plot([n for n, _ in found], [100 * e.value for _, e in found], **svg.look(hues[model], label(model)))
            for n, e in found:
                svg.bar(axes, [n, n], svg.percent([e.low, e.high]), hues[model])
        axes.set_xscale("log")
        axes.set_xticks([m.samples[0] for m in curve], [str(m.samples[0]) for m in curve])
        axes.minorticks_off()
        axes.set(xlabel="samples (log scale)", ylabel=f"extracted (% of {probes})", ylim=(-4, 104))

    return svg.figure(
        "Extraction by sampling",
        f"Share of {probes} that so many samples hold with probability {curve[0].samples[1]:g}. Bars: 95 % intervals.",
        draw,
    )


def _capability_change(data: ReportData) -> svg.Figure | None:
    suites = data.kinds.get("capability", [])
    found = {m: c for m in data.trained if (c := data.capability_changes(m))}
    if not found:
        return None
    hues = styles(data.models)
    step = 0.7 / len(found)

    def draw(axes):
        axes.axvspan(-100 * MARGIN, 100 * MARGIN, color=svg.BAND, lw=0, zorder=0)
        axes.axvline(0, color=svg.MUTED, lw=1, zorder=1)
        for i, (model, changes) in enumerate(found.items()):
            ys = [suites.index(s) + step * (i - (len(found) - 1) / 2) for s in changes]
            for y, change in zip(ys, changes.values()):
                if not change.bounds_relative:
                    svg.bar(axes, svg.percent([change.low, change.high]), [y, y], hues[model])
            xs = [100 * change.difference for change in changes.values()]
            axes.plot(xs, ys, **svg.look(hues[model], label(model), ls="none", ms=7))
        axes.set_yticks(range(len(suites)), svg.short([suite.words for suite in suites]))
        axes.set(ylim=(len(suites) - 0.5, -0.5), xlabel="change against base (points)")
        widest = max(abs(x) for x in axes.get_xlim())
        axes.set_xlim(-max(widest, 3), max(widest, 3))
        axes.grid(False, axis="y")

    return svg.figure(
        "Capability change against base",
        "Each suite's change in points; bars, where tested: 95 % intervals of the paired difference. Shaded: 2 points "
        "around base.",
        draw,
        max(svg.SIZE[1], 1.5 + len(suites) * (0.18 + 0.14 * len(found))),
    )


def _capability_against_extraction(data: ReportData) -> svg.Figure | None:
    table, metric = data.estimates, data.headline
    suites = data.suites
    models = [m for m in data.models if (m, metric) in table and any((m, s) in table for s in suites)]
    # Only suites that every model was tested on: a mean over different suites would compare different questions.
    shared = [s for s in suites if all((m, s) in table for m in models)]
    if len(models) < 2 or not shared:
        return None
    hues = styles(data.models)
    mean = {m: 100 * sum(table[m, s].value for s in shared) / len(shared) for m in models}
    point = {m: (100 * table[m, metric].value, mean[m]) for m in models}

    def draw(axes):
        for model in models:
            x, y = point[model]
            if "base" in point and model != "base":
                axes.plot([point["base"][0], x], [point["base"][1], y], color=svg.GRID, lw=1.2, zorder=1)
            svg.bar(axes, svg.percent([table[model, metric].low, table[model, metric].high]), [y, y], hues[model])
            axes.plot([x], [y], **svg.look(hues[model], label(model), ls="none", ms=9, zorder=3))
        low, high = min(mean.values()), max(mean.values())
        room = max(2.0, 0.35 * (high - low))
        axes.set(xlim=(-4, 104), ylim=(low - room, high + room), ylabel="mean capability (% of items)")
        axes.set_xlabel(f"{'held-out extraction' if metric == HELD_OUT else 'extraction'} (% of probes)")

    return svg.figure(
        "Capability against extraction",
        f"One point per model, mean of {len(shared)} suite{'s' * (len(shared) != 1)}; bars: 95 % intervals of "
        "extraction. Straight left of base: less is extracted at equal capability.",
        draw,
    )


def _measured_curve(data: ReportData, kind: str) -> svg.Figure | None:
    """Extraction (held-out where there is such), or the mean of the capability suites, over the steps of training."""
    metrics = {row["metric"] for row in data.measured_curves if row["metric"].kind == kind}
    if kind == "extraction":
        metrics &= {data.headline}
    values = collections.defaultdict(list)  # (model, step) -> of every metric and seed
    for row in data.measured_curves:
        if row["metric"] in metrics:
            values[row["model"], row["step"]].append(row)
    steps = {step for _, step in values}
    if len(steps) < 2:
        return None
    hues = styles(data.models)
    held_out = " held-out" * (HELD_OUT in metrics)
    rule = next((f" by {metric.rule}" for metric in metrics if metric.rule != "acc"), "")  # of all that have rules
    suites = f"{len(metrics)} suite{'s' * (len(metrics) != 1)}{rule}"
    what, title, limits = f"Mean of {suites}", "mean capability (% of items)", None
    if kind == "extraction":
        what, title, limits = (
            f"Share of{held_out} probes continued exactly",
            f"extracted (% of{held_out} probes)",
            (-4, 104),
        )

    def draw(axes):
        for model in data.models:
            own = {step: values[model, step] for step in sorted(steps) if (model, step) in values}
            if own:
                means = [100 * sum(row["value"] for row in rows) / len(rows) for rows in own.values()]
                axes.plot(list(own), means, **svg.look(hues[model], label(model)))
            for step, rows in own.items():
                if len(rows) == 1:
                    svg.bar(axes, [step, step], svg.percent([rows[0]["low"], rows[0]["high"]]), hues[model], lw=1.2)
        svg.step_axis(axes, steps)
        axes.set(ylabel=title, ylim=limits)

    return svg.figure(
        f"{kind.capitalize()} over training",
        f"{what}, on a sample of the items, at chosen steps; step 0 is the model before training."
        + " Bars: 95 % intervals." * any(len(rows) == 1 for rows in values.values()),
        draw,
    )


def _nll_histograms(data: ReportData) -> svg.Figure | None:
    histogram = (data.audit or {}).get("nll_histogram")
    if not histogram or not sum(histogram["before"]):
        return None
    edges, before, after = ([float(x) for x in histogram[k]] for k in ("edges", "before", "after"))

    def draw(axes):
        axes.stairs(
            before, edges, color=svg.MUTED, lw=1.6, ls=svg.DASHES[0], label=f"before ({sum(before):,.0f} documents)"
        )
        axes.stairs(after, edges, color=svg.colour(1), fill=True, alpha=0.25, lw=0)
        axes.stairs(after, edges, color=svg.colour(1), lw=1.6, label=f"after ({sum(after):,.0f} documents)")
        axes.set(xlabel="mean negative log-likelihood (nats per token)", ylabel="documents", ylim=(0, None))

    return svg.figure(
        "Likelihood of the corpus before and after the audit",
        "Documents by their negative log-likelihood under the model that wrote them, before and after the "
        "audit dropped some.",
        draw,
    )


def _learning_curve(data: ReportData, field: str) -> svg.Figure | None:
    curves = {
        model: points
        for model, rows in data.learning_curves.items()
        if len(points := [(r["step"], v) for r in rows if (v := finite(r.get(field))) is not None]) > 1
    }
    if not curves:
        return None
    model_of = {curve: _curve_model(curve, data.models) for curve in data.learning_curves}
    hues = styles(list(dict.fromkeys((*data.models, *model_of.values()))))

    def draw(axes):
        named = set()
        for curve, points in curves.items():
            model = model_of[curve]
            xs, ys = zip(*_thin(points))
            # One legend entry for all subsets of a model.
            axes.plot(xs, ys, **svg.look(hues[model], None if model in named else label(model), marker=None))
            named.add(model)
        axes.set(xlabel="step", ylabel=_CURVES[field])
        if field == "tokens_per_second":
            axes.set_ylim(0, None)

    title = _CURVES[field].partition(" (")[0]
    longest = max(map(len, curves.values()))
    caption = f"{title.capitalize()} of each trained model by step."
    if longest > _MAX_POINTS:
        caption += f" Each point is the mean of up to {math.ceil(longest / _MAX_POINTS)} recorded steps."
    return svg.figure(title.capitalize(), caption, draw)


def _curve_model(curve: str, models: Sequence[str]) -> str:
    """The model of a learning curve: "self" for "self-0", "control:real" for "real-0", else the curve's own name."""
    stem = re.sub(r"-\d+$", "", curve)
    return next((name for name in (curve, stem, f"control:{stem}") if name in models), curve)


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `_MAX_POINTS` points: means of consecutive blocks."""
    size = math.ceil(len(points) / _MAX_POINTS)
    blocks = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in blocks]
