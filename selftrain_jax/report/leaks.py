"""Pictures of how much of the text of each model repeats known text."""

import math
from typing import Any, Mapping, Sequence

from selftrain_jax.report import svg
from selftrain_jax.report.data import ReportData, label
from selftrain_jax.report.metric import group_extraction

Row = Mapping[str, Any]


def figures(data: ReportData, hues: Mapping[str, int]) -> list[svg.Figure]:
    """The distribution of the longest runs by reference, and the rate of planted sequences by repetition count."""
    wholes = {}
    for model, rows in data.leaks.items():
        for row in rows:
            # Of several groups, that of all of them comes last.
            wholes.setdefault((row["reference"], row["unit"]), {})[model] = row
    made = [_lengths(reference, unit, rows, hues) for (reference, unit), rows in wholes.items()]
    return made + [figure for unit in ("tokens", "characters") if (figure := _by_repeats(data, unit, hues))]


def _lengths(reference: str, unit: str, rows: Mapping[str, Row], hues: Mapping[str, int]) -> svg.Figure:
    least = min(row["least"] for row in rows.values())

    def draw(axes):
        axes.axvline(least, color=svg.MUTED, lw=1, zorder=1)
        for model, row in rows.items():
            # A share of 0 has no logarithm: each curve ends where its longest run does.
            points = [(length, 100 * share) for length, share in row["curve"] if share > 0]
            if points:
                axes.plot(*zip(*points), **svg.look(hues[model], label(model), marker=None))
        axes.set(xscale="log", yscale="log", xlabel=f"longest run ({unit}, log scale)")
        axes.set_ylabel("documents (%, log scale)")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
        axes.minorticks_off()

    return svg.figure(
        f"Repeats of {reference} in {unit}",
        f"Share of documents of which so long a run stands word for word in {reference}; right of the line "
        f"({least} {unit}) a document leaks.",
        draw,
    )


def _by_repeats(data: ReportData, unit: str, hues: Mapping[str, int]) -> svg.Figure | None:
    found: dict[str, dict[int, Row]] = {}
    for model, rows in data.leaks.items():
        for row in rows:
            repeats = group_extraction(row["group"]).repeats
            if row["unit"] == unit and repeats is not None and row["per_million"] is not None:
                found.setdefault(model, {})[repeats] = row
    counts: Sequence[int] = sorted({repeats for rows in found.values() for repeats in rows})
    if len(counts) < 2:
        return None
    place = {r: math.log2(r) if r else math.log2(counts[1]) - 1 for r in counts}

    def draw(axes):
        for i, (model, rows) in enumerate(found.items()):
            xs = [place[r] + 0.09 * (i - (len(found) - 1) / 2) for r in sorted(rows)]
            ordered = [rows[r] for r in sorted(rows)]
            axes.plot(xs, [row["per_million"] for row in ordered], **svg.look(hues[model], label(model)))
            for x, row in zip(xs, ordered):
                svg.bar(axes, [x, x], [row["per_million_low"], row["per_million_high"]], hues[model])
        axes.set_xticks([place[r] for r in counts], [str(r) for r in counts])
        axes.set(xlabel="repetitions in the pre-training text (log scale)", ylim=(0, None))
        axes.set_ylabel(f"leaks per million {unit}")

    return svg.figure(
        f"Leaks of planted sequences in {unit}",
        "Documents that repeat a planted sequence when nobody asks for it, by how often the base model saw it. Bars: "
        "95 % intervals.",
        draw,
    )
