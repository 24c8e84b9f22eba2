"""The report's figures, as inline SVG that follows the page's light or dark colours."""

import collections
import itertools
import math
import re
from typing import Sequence

from selftrain_jax.report import data as rd
from selftrain_jax.report.data import ReportData
from selftrain_jax.report.svg import (
    BAND,
    DASHES,
    GRID,
    MARKERS,
    MUTED,
    NUM_HUES,
    PAPER,
    SIZE,
    Figure,
    colour,
    figure,
    short,
)

_MAX_POINTS = 300
_CURVES = {
    "loss": "training loss (nats per token)",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens per second",
}


def styles(models: Sequence[str]) -> dict[str, int]:
    """{model: hue}: the usual models keep theirs, others take the remaining hues in turn."""
    fixed = {"base": 0, "self": 1, "corpus": 1, "control:real": 2, "control:other": 3}
    spare = itertools.cycle(range(4, NUM_HUES))
    return {model: fixed[model] if model in fixed else next(spare) for model in models}


def figures(data: ReportData) -> list[Figure]:
    """The figures that the data allow, in reading order."""
    makers = (_extraction_by_repeats, _capability_change, _capability_against_extraction)
    made = [maker(data) for maker in makers]
    made += [_measured_curve(data, kind) for kind in ("extraction", "capability")] + [_nll_histograms(data)]
    return [figure for figure in made + [_learning_curve(data, field) for field in _CURVES] if figure]


def _extraction_by_repeats(data: ReportData) -> Figure | None:
    table, models = rd.estimates(data), rd.models(data)
    counts = sorted({r for _, metric in table if (r := rd.repeats(metric)) is not None})
    if len(counts) < 2:
        return None
    positive = [r for r in counts if r > 0]
    # Zero has no logarithm: it takes the place one doubling to the left of the smallest count.
    place = {r: math.log2(r) if r else math.log2(positive[0]) - 1 for r in counts}
    hues = styles(models)

    def draw(axes):
        for i, model in enumerate(models):
            found = [(r, e) for r in counts if (e := table.get((model, f"extraction/repeats={r}")))]
            shift = 0.09 * (i - (len(models) - 1) / 2)
            _series(axes, [place[r] + shift for r, _ in found], [e for _, e in found], hues[model], rd.label(model))
        axes.set_xticks([place[r] for r in counts], [str(r) for r in counts])
        axes.set(xlabel="repetitions in the pre-training text (log scale)", ylim=(-4, 104))
        axes.set_ylabel("extracted (% of probes)")

    return figure(
        "Extraction by repetition count",
        "Share of probes continued exactly, by how often the base model saw the sequence. Bars: 95 % intervals; "
        "points are moved sideways a little so that they do not hide each other.",
        draw,
    )


def _capability_change(data: ReportData) -> Figure | None:
    suites = rd.metric_groups(data).get("capability", [])
    found = {m: c for m in rd.models(data) if m != "base" and (c := rd.capability_changes(data, m))}
    if not found:
        return None
    hues = styles(rd.models(data))
    step = 0.7 / len(found)

    def draw(axes):
        axes.axvspan(-100 * rd.MARGIN, 100 * rd.MARGIN, color=BAND, lw=0, zorder=0)
        axes.axvline(0, color=MUTED, lw=1, zorder=1)
        for i, (model, changes) in enumerate(found.items()):
            rows = [(suites.index(s) + step * (i - (len(found) - 1) / 2), c) for s, c in changes.items()]
            hue = hues[model]
            for y, change in rows:
                if change.low is not None and not change.bounds_relative:
                    axes.plot([100 * change.low, 100 * change.high], [y, y], color=colour(hue), lw=1.6)
            axes.plot(
                [100 * c.difference for _, c in rows],
                [y for y, _ in rows],
                MARKERS[hue],
                color=colour(hue),
                mec=PAPER,
                ms=7,
                label=rd.label(model),
            )
        axes.set_yticks(range(len(suites)), [short(rd.metric_name(s)) for s in suites])
        axes.set(ylim=(len(suites) - 0.5, -0.5), xlabel="change against base (points)")
        widest = max(abs(x) for x in axes.get_xlim())
        axes.set_xlim(-max(widest, 3), max(widest, 3))
        axes.grid(False, axis="y")

    height = max(SIZE[1], 1.5 + len(suites) * (0.18 + 0.14 * len(found)))
    return figure(
        "Capability change against base",
        "Each suite's change in points; bars, where tested: 95 % intervals of the paired difference. Shaded: 2 points "
        "around base.",
        draw,
        height,
    )


def _capability_against_extraction(data: ReportData) -> Figure | None:
    table, metric = rd.estimates(data), rd.headline_metric(data)
    suites = rd.metric_groups(data).get("capability", [])
    models = [m for m in rd.models(data) if (m, metric) in table and any((m, s) in table for s in suites)]
    # Only suites that every model was tested on: a mean over different suites would compare different questions.
    shared = [s for s in suites if all((m, s) in table for m in models)]
    if len(models) < 2 or not shared:
        return None
    hues = styles(rd.models(data))
    mean = {m: 100 * sum(table[m, s].value for s in shared) / len(shared) for m in models}
    point = {m: (100 * table[m, metric].value, mean[m]) for m in models}

    def draw(axes):
        for model in models:
            x, y = point[model]
            estimate, hue = table[model, metric], hues[model]
            if "base" in point and model != "base":
                axes.plot([point["base"][0], x], [point["base"][1], y], color=GRID, lw=1.2, zorder=1)
            if estimate.low is not None:
                axes.plot([100 * estimate.low, 100 * estimate.high], [y, y], color=colour(hue), lw=1.6, zorder=2)
            axes.plot([x], [y], MARKERS[hue], color=colour(hue), mec=PAPER, ms=9, label=rd.label(model), zorder=3)
        low, high = min(y for _, y in point.values()), max(y for _, y in point.values())
        room = max(2.0, 0.35 * (high - low))
        axes.set(xlim=(-4, 104), ylim=(low - room, high + room), ylabel="mean capability (% of items)")
        axes.set_xlabel(f"{'held-out extraction' if metric.endswith('held_out') else 'extraction'} (% of probes)")

    return figure(
        "Capability against extraction",
        f"One point per model, mean of {len(shared)} suite{'s' * (len(shared) != 1)}; bars: 95 % intervals of "
        "extraction. Straight left of base: less is extracted at equal capability.",
        draw,
    )


def _measured_curve(data: ReportData, kind: str) -> Figure | None:
    """Extraction (held-out where there is such), or the mean of the capability suites, over the steps of training."""
    rows = data.measured_curves
    metrics = {row["metric"] for row in rows if row["metric"].startswith(f"{kind}/")}
    if kind == "extraction":
        metrics &= {rd.headline_metric(data)}
    values = collections.defaultdict(list)  # (model, step) -> of every metric and seed
    for row in rows:
        if row["metric"] in metrics:
            values[row["model"], row["step"]].append(row)
    steps = sorted({step for _, step in values})
    if len(steps) < 2:
        return None
    known = rd.models(data)
    hues, models = styles(known), [m for m in known if any(model == m for model, _ in values)]

    def draw(axes):
        for model in models:
            own = [step for step in steps if (model, step) in values]
            means = [100 * sum(r["value"] for r in values[model, s]) / len(values[model, s]) for s in own]
            hue = hues[model]
            axes.plot(
                own,
                means,
                color=colour(hue),
                ls=DASHES[hue],
                marker=MARKERS[hue],
                ms=6,
                mec=PAPER,
                lw=1.7,
                label=rd.label(model),
            )
            for step in own:
                if len(values[model, step]) == 1 and values[model, step][0]["low"] is not None:
                    bounds = [100 * values[model, step][0][end] for end in ("low", "high")]
                    axes.plot([step, step], bounds, color=colour(hue), lw=1.2)
        axes.set_xscale("symlog", linthresh=1, linscale=0.3)
        axes.set_xticks(steps, [str(step) for step in steps])
        axes.minorticks_off()
        axes.set(xlabel="training step (log scale)", ylim=(-4, 104) if kind == "extraction" else None)
        axes.set_ylabel(names[kind])

    held_out = " held-out" * any(m.endswith("/held_out") for m in metrics)
    names = {"extraction": f"extracted (% of{held_out} probes)", "capability": "mean capability (% of items)"}
    what = f"Share of{held_out} probes continued exactly" if kind == "extraction" else f"Mean of {len(metrics)} suites"
    return figure(
        f"{kind.capitalize()} over training",
        f"{what}, on a sample of the items, at chosen steps; step 0 is the model before training."
        + " Bars: 95 % intervals." * (kind == "extraction" and len({row["seed"] for row in rows}) == 1),
        draw,
    )


def _nll_histograms(data: ReportData) -> Figure | None:
    histogram = (data.audit or {}).get("nll_histogram")
    if not histogram or not sum(histogram["before"]):
        return None
    edges, before, after = ([float(x) for x in histogram[k]] for k in ("edges", "before", "after"))

    def draw(axes):
        axes.stairs(before, edges, color=MUTED, lw=1.6, ls=DASHES[0], label=f"before ({sum(before):,.0f} documents)")
        axes.stairs(after, edges, color=colour(1), fill=True, alpha=0.25, lw=0)
        axes.stairs(after, edges, color=colour(1), lw=1.6, label=f"after ({sum(after):,.0f} documents)")
        axes.set(xlabel="mean negative log-likelihood (nats per token)", ylabel="documents", ylim=(0, None))

    return figure(
        "Likelihood of the corpus before and after the audit",
        "Documents by their negative log-likelihood under the model that wrote them, before and after the "
        "audit dropped some.",
        draw,
    )


def _learning_curve(data: ReportData, field: str) -> Figure | None:
    curves = {
        model: points
        for model, rows in data.learning_curves.items()
        if len(points := [(r["step"], v) for r in rows if (v := rd.number(r.get(field))) is not None]) > 1
    }
    if not curves:
        return None
    known = rd.models(data)
    model_of = {curve: _curve_model(curve, known) for curve in data.learning_curves}
    hues = styles(list(dict.fromkeys((*known, *model_of.values()))))

    def draw(axes):
        named = set()
        for curve, points in curves.items():
            model = model_of[curve]
            xs, ys = zip(*_thin(points))
            # One legend entry for all seeds of a model.
            name = None if model in named else rd.label(model)
            named.add(model)
            axes.plot(xs, ys, color=colour(hues[model]), ls=DASHES[hues[model]], lw=1.7, label=name)
        axes.set(xlabel="step", ylabel=_CURVES[field])
        if field == "tokens_per_second":
            axes.set_ylim(0, None)

    title = _CURVES[field].partition(" (")[0]
    longest = max(map(len, curves.values()))
    caption = f"{title.capitalize()} of each trained model by step."
    if longest > _MAX_POINTS:
        caption += f" Each point is the mean of up to {math.ceil(longest / _MAX_POINTS)} recorded steps."
    return figure(title.capitalize(), caption, draw)


def _curve_model(curve: str, models: Sequence[str]) -> str:
    """The model of a learning curve: "self" for "self-0", "control:real" for "real-0", else the curve's own name."""
    stem = re.sub(r"-\d+$", "", curve)
    return next((name for name in (curve, stem, f"control:{stem}") if name in models), curve)


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `_MAX_POINTS` points: means of consecutive blocks."""
    size = math.ceil(len(points) / _MAX_POINTS)
    blocks = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in blocks]


def _series(axes, xs: Sequence[float], estimates: Sequence[rd.Estimate], hue: int, name: str) -> None:
    """A line of percentages with interval bars."""
    axes.plot(
        xs,
        [100 * e.value for e in estimates],
        color=colour(hue),
        ls=DASHES[hue],
        marker=MARKERS[hue],
        ms=6.5,
        mec=PAPER,
        lw=1.7,
        label=name,
    )
    for x, e in zip(xs, estimates):
        if e.low is not None:
            axes.plot([x, x], [100 * e.low, 100 * e.high], color=colour(hue), lw=1.4)
