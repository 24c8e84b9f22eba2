"""What a report shows of planted sequences: planted minus twin by count, and what comes back of what was lost."""

import math
from typing import Any, Iterator, Mapping, Sequence

from selftrain_jax.report import svg
from selftrain_jax.report.data import ReportData, label
from selftrain_jax.report.metric import grouped
from selftrain_jax.report.tables import interval, number

MEASURES = {
    "extraction": ("extraction", "points", 100, 1),
    "discoverable": ("(n, p)-discoverable", "points", 100, 1),
    "exposure": ("exposure", "bits", 1, 2),
    "log_prob": ("log-probability", "nats per token", 1, 3),
    "membership": ("membership, AUC", "", 1, 3),
}
"""Measure -> its words, the unit of a difference, what it is multiplied with, decimals."""


def measure(name: str) -> tuple[str, str, int, int]:
    """The entry of `MEASURES`; of another membership attack one of its own."""
    words, unit, scale, decimals = MEASURES[name.partition(" ")[0]]
    return f"{words} ({name.partition(' ')[2]})" if " " in name else words, unit, scale, decimals


def cells(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """(planted, twin, difference, its interval) of a row of `ReportData.planted` as they are shown."""
    _, _, scale, decimals = measure(row["measure"])
    ends = interval(row["low"], row["high"], decimals, scale, sign=True)
    plain = [number(row[name], decimals, scale) for name in ("value", "twin")]
    return *plain, number(row["difference"], decimals, scale, sign=True), ends


def until_half(found: Mapping[str, Any], last: int) -> str:
    """ "4 [2, 8]": steps until half is back, "over 32" where that is beyond the `last`."""
    step, low, high = (f"over {last}" if found[name] is None else str(found[name]) for name in ("step", "low", "high"))
    return f"{step} [{low}, {high}]"


def lines(data: ReportData) -> Iterator[str]:
    """For the table in plain text."""
    shown = [row for row in data.planted if row["kind"] == "all" and row["measure"] in ("extraction", "exposure")]
    for (model, name), rows in grouped(shown, "model", "measure").items():
        if model == "base":
            words, unit, _, _ = measure(name)
            yield ""
            yield f"Planted minus twin, {words} ({unit}), by how often a sequence was inserted:"
            yield from (f"  {row['repeats']:<15} {' '.join(cells(row)[2:])} (n {row['n']})" for row in rows)
    if judged := [row for row in data.recovery if "verdict" in row]:
        yield ""
        yield "What was planted and is no longer extracted (docs/rules.md):"
        several = len({row["seed"] for row in judged}) > 1
        for row in judged:
            what = f"{row['verdict']}: of {row['lost']} lost, {row['why']}"
            if "half_back" in row:
                what += f"; half is back after {until_half(row['half_back'], row['steps'][-1])} steps"
            yield f"  {row['model']:<15} " + f"subset {row['seed']}: " * several + what


def figures(data: ReportData, hues: Mapping[str, int]) -> list[svg.Figure | None]:
    """Planted minus twin by count, and the curves of relearning."""
    return [*(_by_count(data, hues, name) for name in ("extraction", "exposure")), _curves(data, hues)]


def _first(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], str]:
    """Of several subsets the first, and what a caption says of that."""
    first = [row for row in rows if row["seed"] == 0]
    return first, " Trained models: of subset 0." * (len(first) < len(rows))


def _by_count(data: ReportData, hues: Mapping[str, int], name: str) -> svg.Figure | None:
    rows, left_out = _first([row for row in data.planted if row["kind"] == "all" and row["measure"] == name])
    counts = sorted({row["repeats"] for row in rows})
    if len(counts) < 2:
        return None
    words, unit, scale, _ = measure(name)
    # Zero has no logarithm: it takes the place one doubling to the left of the smallest count.
    place = {n: math.log2(n) if n else math.log2(counts[1]) - 1 for n in counts}
    models = grouped(rows, "model")

    def draw(axes):
        axes.axhline(0, color=svg.MUTED, lw=1, zorder=1)
        for i, ((model,), found) in enumerate(models.items()):
            xs = [place[row["repeats"]] + 0.09 * (i - (len(models) - 1) / 2) for row in found]
            axes.plot(xs, [scale * row["difference"] for row in found], **svg.look(hues[model], label(model)))
            for x, row in zip(xs, found):
                ends = [None if row[end] is None else scale * row[end] for end in ("low", "high")]
                svg.bar(axes, [x, x], ends, hues[model])
        axes.set_xticks([place[n] for n in counts], [str(n) for n in counts])
        axes.set(xlabel="insertions (log scale)", ylabel=f"{words}, planted minus twin ({unit})")

    more = "is extracted" if name == "extraction" else "suffixes stand out"
    caption = (
        f"How much more {more} than of the twin, which read "
        "the same text without the sequences, by how often they were inserted. Bars: 95 % intervals over sequences."
    )
    return svg.figure(f"Planted minus twin: {words}", caption + left_out, draw)


def _curves(data: ReportData, hues: Mapping[str, int]) -> svg.Figure | None:
    rows, left_out = _first(data.recovery)
    rows = [row for row in rows if row.get("extraction")]
    if not rows:
        return None

    def draw(axes):
        for row in rows:
            hue, steps = hues[row["model"]], row["steps"]
            values = svg.percent([of["value"] for of in row["extraction"]])
            axes.plot(steps, values, **svg.look(hue, label(row["model"])))
            for step, of in zip(steps, row["extraction"]):
                svg.bar(axes, [step, step], svg.percent([of["low"], of["high"]]), hue, lw=1.2)
        axes.axhline(50, color=svg.MUTED, lw=1, zorder=1)
        svg.step_axis(axes, rows[0]["steps"])
        axes.set(ylabel="extracted (% of what base extracts)", ylim=(-4, 104))

    caption = (
        "How fast extraction comes back while a model is trained on other sequences or text, of the planted probes "
        "that base extracts; the line at 50 %: half is back. Bars: 95 % intervals over probes."
    )
    return svg.figure("Relearning", caption + left_out, draw)
