"""The figures of a study's page, as inline SVG in the style of a run's report."""

import math
import textwrap
from typing import Mapping, Sequence

from selftrain_jax.report import study_layout as layout
from selftrain_jax.report.study_data import StudyData
from selftrain_jax.report.svg import DASHES, MARKERS, MUTED, PAPER, Figure, colour, figure, short

_SIZE = (4.8, 3.5)
_PANEL = (3.7, 3.0)
_NUM_TICKS = 7
# Of students, repetition groups and the like, which have no relation.
_HUES = (1, 2, 3, 6, 4, 5, 0)


def by_relation(data: StudyData) -> Figure | None:
    """Utility of every relation with its interval, and of its pairs as dots; None without rows."""
    rows = [row for row in layout.in_order(data.by_relation) if row["value"] is not None]
    if not rows:
        return None

    def draw(axes):
        axes.axvline(0, color=MUTED, lw=1, zorder=1)
        for y, row in enumerate(rows):
            hue = layout.hue(row["relation"])
            pairs = [u for u in data.utility if u["relation"] == row["relation"] and u["value"] is not None]
            spread = [0.14 + 0.26 * i / max(len(pairs) - 1, 1) for i in range(len(pairs))]
            axes.plot(
                [100 * u["value"] for u in pairs],
                [y + s for s in spread],
                "o",
                color=colour(hue),
                alpha=0.55,
                ms=4,
                mew=0,
                zorder=2,
            )
            if row["low"] is not None and row["high"] is not None:
                axes.plot([100 * row["low"], 100 * row["high"]], [y, y], color=colour(hue), lw=2, zorder=3)
            axes.plot([100 * row["value"]], [y], MARKERS[hue], color=colour(hue), mec=PAPER, ms=9, zorder=4)
        axes.set_yticks(range(len(rows)), ["\n".join(textwrap.wrap(row["relation"], 16)) for row in rows])
        axes.set(ylim=(len(rows) - 0.4, -0.5), xlabel="utility (points)")
        axes.grid(False, axis="y")

    return figure(
        "Means and pairs",
        "Large marks: mean over all pairs of the relation."
        + " Bars: 95 % intervals over seeds." * any(layout.interval(row) for row in rows)
        + " Small dots: pairs.",
        draw,
        1.1 + 0.55 * len(rows),
        width=_SIZE[0],
        name="by-relation",
    )


def proxies(data: StudyData) -> list[Figure]:
    """One panel per proxy: its value against utility, one point per pair and seed, titled with rho over all pairs."""
    made = []
    for i, ((proxy,), rows) in enumerate(layout.grouped(data.proxies, "proxy").items()):
        rows = [row for row in rows if row["value"] is not None and row["utility"] is not None]
        if rows:
            made.append(_proxy(data, proxy, rows, f"proxy-{i}"))
    return made


def _proxy(data: StudyData, proxy: str, rows: Sequence[Mapping], name: str) -> Figure:
    known = [row for row in data.correlations if row["proxy"] == proxy and row["rho"] is not None]
    # The correlation over all pairs where there is one, else the first that there is.
    known.sort(key=lambda row: row["scope"] != "all pairs")
    title = layout.metric_name(proxy)
    if known:
        value = layout.number(float(known[0]["rho"]), 2, sign=True)
        rho = f"\N{GREEK SMALL LETTER RHO} = {value} {layout.interval(known[0], 2, 1, True)}".rstrip()
        title += ": " + rho.replace(" ", "\N{NO-BREAK SPACE}")

    def draw(axes):
        axes.axhline(0, color=MUTED, lw=1, zorder=1)
        for (relation,), group in layout.grouped(layout.in_order(rows), "relation").items():
            hue = layout.hue(relation)
            axes.plot(
                [row["value"] for row in group],
                [100 * row["utility"] for row in group],
                MARKERS[hue],
                color=colour(hue),
                mec=PAPER,
                mew=0.5,
                ms=6.5,
                ls="none",
            )
        axes.set(xlabel=short(layout.metric_name(proxy), 34), ylabel="utility (points)")
        axes.locator_params(nbins=6)

    per = "pair" + ", condition" * (len(layout.conditions(rows)) > 1)
    several = len({row["seed"] for row in rows}) > 1
    caption = f"One point per {per}{' and seed' * several}, {len(rows)} in all."
    if known and any(row["relation"] in layout.CONTROLS for row in rows):
        caption += " Controls are shown, and are no part of the correlation."
    if known:
        caption += (
            f" \N{GREEK SMALL LETTER RHO}: Spearman's, {known[0]['scope']}"
            + ", 95 % interval over pairs." * bool(layout.interval(known[0]))
        )
    return figure(
        title, caption.rstrip(".") + ".", draw, _PANEL[1], width=_PANEL[0], name=name, numbers="tables/proxies.csv"
    )


def curves(data: StudyData) -> list[tuple[str, list[Figure]]]:
    """[(student and condition, figures)]: capability against extraction, and both against the step of training."""
    made = []
    groups = layout.grouped(data.curves, "condition", "student")
    order = layout.students(data)
    for i, ((condition, student), rows) in enumerate(sorted(groups.items(), key=lambda g: order.index(g[0][1]))):
        name = f"curve-{i}"
        where = student + f", {condition}" * bool(condition)
        extraction = layout.extraction_metric(rows)
        looks = _looks(data, rows)
        figures = [_path(rows, extraction, looks, where, f"{name}-path")]
        figures += [
            _steps(rows, metric, looks, where, f"{name}-{k}")
            for k, metric in enumerate(filter(None, (extraction, "capability")))
        ]
        figures.append(_groups(rows, where, f"{name}-groups"))
        if any(figures):
            made.append((where, [found for found in figures if found]))
    return made


def _looks(data: StudyData, rows: Sequence[Mapping]) -> dict[str, dict]:
    """{arm: how its curve looks}: the colour says the relation, marker and dashes tell arms of one relation apart."""
    looks, used = {}, dict[str, int]()
    relations = {row["arm"]: row["relation"] for row in rows}
    for arm in sorted(relations, key=layout.arms(data, data.curves).index):
        relation = relations[arm]
        nth = used[relation] = used.get(relation, -1) + 1
        hue = layout.hue(relation)
        k = (hue + 2 * nth) % len(MARKERS)
        # A control is named for what it is; a source also says how it stands to this student.
        label = (
            arm if relation in layout.CONTROLS or relation not in layout.RELATIONS else f"{arm} ({_brief(relation)})"
        )
        looks[arm] = {
            "color": colour(hue),
            "ls": DASHES[k],
            "marker": MARKERS[k],
            "ms": 5.5,
            "lw": 1.7,
            "mec": PAPER,
            "mew": 0.6,
            "label": label,
        }
    return looks


def _brief(relation: str) -> str:
    return {"same family, different recipe": "same family"}.get(relation, relation)


def _path(rows, extraction: str | None, looks: Mapping[str, dict], where: str, name: str) -> Figure | None:
    means = layout.over_seeds(rows, lambda r: (r["arm"], r["step"], r["metric"]))
    paths = {}
    for arm in looks:
        steps = sorted({step for a, step, _ in means if a == arm})
        path = [
            (100 * means[arm, s, extraction][0], 100 * means[arm, s, "capability"][0])
            for s in steps
            if (arm, s, extraction) in means and (arm, s, "capability") in means
        ]
        if len(path) > 1:
            paths[arm] = path
    if not paths:
        return None

    def draw(axes):
        for arm, path in paths.items():
            xs, ys = zip(*path)
            axes.plot(xs, ys, **looks[arm] | {"ms": 4}, zorder=3)
            axes.plot(xs[-1:], ys[-1:], **looks[arm] | {"ms": 8, "label": None}, zorder=4)
        for x, y in dict.fromkeys(path[0] for path in paths.values()):
            axes.plot([x], [y], "o", ms=12, mfc="none", mec=MUTED, mew=1.6, zorder=5)
        axes.set(xlabel=f"extraction, {_which(extraction)} (% of probes)", ylabel="capability (% of items)")
        axes.margins(0.08)

    return figure(
        f"{where}: capability against extraction",
        "Paths through training, mean over seeds; ring: the start, large mark: the end. Straight left: memorization is "
        "lost at equal capability.",
        draw,
        _height(paths),
        width=_SIZE[0],
        name=name,
        numbers="tables/curves.csv",
    )


def _steps(rows, metric: str, looks: Mapping[str, dict], where: str, name: str) -> Figure | None:
    values = layout.over_seeds((r for r in rows if r["metric"] == metric), lambda r: (r["arm"], r["step"]))
    lines = {arm: line for arm in looks if len(line := _line(values, arm)) > 1}
    if not lines:
        return None
    kind = metric.split("/")[0]

    def draw(axes):
        for arm, line in lines.items():
            _ranged(axes, line, looks[arm], 100)
        _step_axis(axes, [step for line in lines.values() for step, *_ in line])
        axes.set_ylabel("capability (% of items)" if kind == "capability" else f"extraction, {_which(metric)} (%)")
        if kind == "extraction":
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))

    return figure(
        f"{where}: {layout.metric_name(metric)} over training",
        _mean(rows) + " Step 0 is the model before training." * any(row["step"] == 0 for row in rows),
        draw,
        _height(lines),
        width=_SIZE[0],
        name=name,
        numbers="tables/curves.csv",
    )


def _groups(rows, where: str, name: str) -> Figure | None:
    own = [row for row in rows if row["relation"] == "self" and layout.held_out_group(row["metric"])]
    # With several temperatures, one arm: more would need a second dimension of looks.
    arm = next((row["arm"] for row in own), None)
    own = [row for row in own if row["arm"] == arm]
    values = layout.over_seeds(own, lambda r: (r["metric"], r["step"]))
    metrics = sorted({metric for metric, _ in values}, key=_group_key)
    lines = {metric: line for metric in metrics if len(line := _line(values, metric)) > 1}
    if not lines:
        return None

    def draw(axes):
        for i, (metric, line) in enumerate(lines.items()):
            _ranged(axes, line, _look(i, layout.held_out_group(metric)), 100)
        _step_axis(axes, [step for line in lines.values() for step, *_ in line])
        axes.set_ylabel("extraction, held-out (%)")

    return figure(
        f"{where}: held-out extraction by repetition",
        f"Trained on {arm} (self); by how often a sequence occurs in the pre-training text. {_mean(own)}",
        draw,
        _height(lines),
        width=_SIZE[0],
        name=name,
        numbers="tables/curves.csv",
    )


def _group_key(metric: str) -> tuple:
    digits = "".join(c for c in metric.rsplit("/", 1)[-1] if c in "0123456789")
    return int(digits or 0), metric


_OVER_GENERATIONS = (
    "capability",
    "extraction/all",
    "extraction/held_out",
    "distinct_1",
    "distinct_2",
    "distinct_4",
    "entropy",
    "mean_length",
    "source_nll",
)


def generations(data: StudyData) -> list[Figure]:
    """One panel per metric: generation against its value, one line per student and mode. Single suites, groups of
    probes and the like are in the table alone."""
    made = []
    names = list(dict.fromkeys((row["student"], row["mode"]) for row in data.generations))
    known = list(dict.fromkeys(student for student, _ in names))
    modes = list(dict.fromkeys(mode for _, mode in names))
    for i, ((metric,), rows) in enumerate(layout.grouped(data.generations, "metric").items()):
        if metric not in _OVER_GENERATIONS and not metric.startswith("nll/"):
            continue
        values = layout.over_seeds(rows, lambda r: ((r["student"], r["mode"]), r["generation"]))
        lines = {name: line for name in names if (line := _line(values, name))}
        if not lines:
            continue
        scale, _, unit = layout.metric_scale(metric)

        def draw(axes):
            for (student, mode), line in lines.items():
                hue, dash = _HUES[known.index(student) % len(_HUES)], modes.index(mode)
                look = {
                    "color": colour(hue),
                    "ls": ("-", (0, (4, 2)), (0, (1, 1)))[dash % 3],
                    "marker": MARKERS[hue],
                    "ms": 5.5,
                    "lw": 1.7,
                    "mec": PAPER,
                    "mew": 0.6,
                    "mfc": PAPER if dash % 2 else colour(hue),
                    "label": f"{short(student, 16)}, {mode}",
                }
                if dash % 2:
                    look["mec"], look["mew"] = colour(hue), 1.4
                _ranged(axes, line, look, scale)
            axes.set_xticks(sorted({x for line in lines.values() for x, *_ in line})[:12])
            axes.set(xlabel="generation", ylabel=unit or layout.metric_name(metric))
            axes.margins(0.07)

        made.append(
            figure(
                layout.metric_name(metric),
                _mean(rows),
                draw,
                _height(lines, _PANEL[1]),
                width=4.0,
                name=f"generation-{i}",
                numbers="tables/generations.csv",
            )
        )
    return made


def _mean(rows: Sequence[Mapping]) -> str:
    several = len({row["seed"] for row in rows}) > 1
    return "Mean over seeds; shaded: their lowest to their highest." if several else "One seed."


def _which(metric: str) -> str:
    return layout.metric_name(metric).partition(", ")[2]


def _height(lines, least: float = _SIZE[1]) -> float:
    """Inches: the legend's rows above the axes take room of their own."""
    return least + 0.1 * max(0, len(lines) - 2)


def _line(values: Mapping[tuple, tuple], name) -> list[tuple]:
    return sorted((x, *value) for (n, x), value in values.items() if n == name)


def _look(i: int, label: str) -> dict:
    hue = _HUES[i % len(_HUES)]
    return {
        "color": colour(hue),
        "ls": DASHES[hue],
        "marker": MARKERS[hue],
        "ms": 5.5,
        "lw": 1.7,
        "mec": PAPER,
        "mew": 0.6,
        "label": label,
    }


def _ranged(axes, line: Sequence[tuple], look: Mapping, scale: float) -> None:
    """A line of means over a band from lowest to highest."""
    xs, means, lows, highs = zip(*line)
    if lows != highs:
        axes.fill_between(
            xs, [scale * v for v in lows], [scale * v for v in highs], color=look["color"], alpha=0.12, lw=0
        )
    axes.plot(xs, [scale * v for v in means], **look)


def _step_axis(axes, steps: Sequence[int]) -> None:
    """Steps on a log scale where they span more than a factor of 20; ticks at steps that were measured."""
    steps = sorted(set(steps))
    positive = [s for s in steps if s > 0]
    place = float
    if positive and positive[-1] > 20 * positive[0]:
        # Step 0 stands 0.4 decades to the left of the first step: what matplotlib makes of linscale * 10 / 9.
        axes.set_xscale("symlog", linthresh=positive[0], linscale=0.36)
        place = lambda s: math.log10(s) if s > 0 else math.log10(positive[0]) - 0.4  # noqa: E731
    gap = (place(steps[-1]) - place(steps[0])) / _NUM_TICKS
    ticks = [steps[-1]]
    for step in reversed(steps):
        if place(ticks[-1]) - place(step) >= gap * 0.999:
            ticks.append(step)
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.set_xlabel("training step" + " (log scale)" * (place is not float))
