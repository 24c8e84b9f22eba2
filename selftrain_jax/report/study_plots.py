"""The figures of a study's page."""

import functools
import textwrap
from typing import Mapping, Sequence

from selftrain_jax.report import svg
from selftrain_jax.report.metric import CAPABILITY, EXTRACTION, HELD_OUT, RUN, Metric, Row, grouped
from selftrain_jax.report.study_data import RELATIONS, StudyData, conditions, hue, in_order, over_seeds, proxy_words
from selftrain_jax.report.study_tables import of_metric
from selftrain_jax.report.tables import interval, number

_HEIGHT = 3.5
_MAP_WIDTH = 4.4
# Of students, repetition groups and the like, which have no relation.
_HUES = (1, 2, 3, 6, 4, 5, 0)
_RHO = "\N{GREEK SMALL LETTER RHO}"
_OVER_GENERATIONS = (CAPABILITY, EXTRACTION, HELD_OUT)
_OF_CORPUS = ("distinct_1", "distinct_2", "distinct_4", "entropy", "mean_length", "source_nll", "nll")

_wide = functools.partial(svg.figure, width=4.8)
_curve = functools.partial(_wide, numbers="tables/curves.csv")


def contrasts(data: StudyData) -> svg.Figure | None:
    """Utility of each relation minus that of each other, within students, with its interval; students as dots; None
    without rows."""
    rows = [row for row in data.contrasts if not row["student"] and row["value"] is not None]
    if not rows:
        return None

    def draw(axes):
        axes.axvline(0, color=svg.MUTED, lw=1, zorder=1)
        for y, row in enumerate(rows):
            of, about = hue(row["minus"]), (row["relation"], row["minus"])
            single = [r for r in data.contrasts if r["student"] and (r["relation"], r["minus"]) == about]
            values = [r["value"] for r in single if r["value"] is not None]
            spread = [y + 0.14 + 0.26 * i / max(len(values) - 1, 1) for i in range(len(values))]
            axes.plot(svg.percent(values), spread, "o", color=svg.colour(of), alpha=0.55, ms=4, mew=0, zorder=2)
            svg.bar(axes, svg.percent([row["low"], row["high"]]), [y, y], of, lw=2, zorder=3)
            axes.plot([100 * row["value"]], [y], **svg.look(of, ls="none", ms=9, zorder=4))
        names = [textwrap.fill(f"{row['relation']} minus {row['minus']}", 30) for row in rows]
        axes.set_yticks(range(len(rows)), names)
        axes.set(ylim=(len(rows) - 0.4, -0.5), xlabel="difference of utility (points)")
        axes.grid(False, axis="y")

    bounded = any(interval(row["low"], row["high"]) for row in rows)
    return _wide(
        "Within students",
        "Large marks: utility of one relation minus that of another, mean over the students that have both."
        + " Bars: 95 % intervals over seeds." * bounded
        + " Small dots: students.",
        draw,
        1.1 + 0.55 * len(rows),
        name="contrasts",
        numbers="tables/contrasts.csv",
    )


def maps(data: StudyData) -> list[svg.Figure]:
    """One heat map per student, budget and metric of `StudyData.grid`; shades of one metric compare."""
    made, several = [], len({row["tokens"] for row in data.grid}) > 1
    scales = {metric: _largest(rows) for (metric,), rows in grouped(data.grid, "metric").items()}
    for i, ((student, tokens, metric), rows) in enumerate(grouped(data.grid, "student", "tokens", "metric").items()):
        title = f"{student}{f', {tokens} tokens' * several}: {metric.title}"
        made.append(_map(title, metric, [row for row in rows if row["value"] is not None], scales[metric], f"map-{i}"))
    return made


def _largest(rows: Sequence[Row]) -> float:
    return max((abs(row["value"]) for row in rows if row["value"] is not None), default=0) or 1


def _map(title: str, metric: Metric, rows: Sequence[Row], largest: float, name: str) -> svg.Figure:
    rates = sorted({row["learning_rate"] for row in rows})
    columns = sorted({row["temperature"] for row in rows} - {None})
    better = {"capability": 1, "nll": -1}.get(metric.kind)
    own, real = [f"{t:g}" for t in columns], ["real text"] * any(row["temperature"] is None for row in rows)
    longest = max((len(of_metric(row, better is not None)[0]) for row in rows), default=1)
    room = 0.8 * 72 * _MAP_WIDTH / (len(own) + 1.25 * len(real)) / longest  # points for a character

    def draw(axes):
        for row in rows:
            x = len(columns) + 0.25 if row["temperature"] is None else columns.index(row["temperature"])
            y, (text, bounds) = rates.index(row["learning_rate"]), of_metric(row, better is not None)
            of = 0 if better is None else 1 if better * row["value"] >= 0 else 2
            left, right, low, high = x - 0.48, x + 0.48, y - 0.48, y + 0.48
            shade = {"color": svg.colour(of), "alpha": 0.6 * abs(row["value"]) / largest, "lw": 0}
            axes.fill([left, right, right, left], [low, low, high, high], **shade)
            sure = better is not None and bool(bounds) and not row["low"] <= 0 <= row["high"]
            font = {"weight": "bold" if sure else "normal", "size": min(1.15 * room, svg.FONT_SIZE)}
            axes.text(x, y, text.replace("-", "\N{MINUS SIGN}"), ha="center", va="center", **font)
        axes.set_xticks([*range(len(own)), *[len(own) + 0.25] * len(real)], own + real)
        axes.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        axes.set(xlabel="sampling temperature of its own text", ylabel="learning rate")
        axes.set(xlim=(-0.6, len(own) - 0.4 + 1.25 * len(real)), ylim=(-0.6, len(rates) - 0.4))
        axes.grid(False)

    unit = "points" if metric.kind == "capability" else metric.of.unit
    caption = f"{'After' if better is None and metric.kind != 'drift' else 'Change by'} training, {unit}."
    return svg.figure(
        title, caption, draw, 1.2 + 0.5 * len(rates), width=_MAP_WIDTH, name=name, numbers="tables/grid.csv"
    )


def proxies(data: StudyData) -> list[svg.Figure]:
    """One panel per proxy: its value against utility, one point per pair and seed, titled with rho within students."""
    made = []
    for i, ((proxy,), rows) in enumerate(grouped(data.proxies, "proxy").items()):
        rows = [row for row in rows if row["value"] is not None and row["utility"] is not None]
        if rows:
            made.append(_proxy(data, proxy, rows, f"proxy-{i}"))
    return made


def _proxy(data: StudyData, proxy: str, rows: Sequence[Row], name: str) -> svg.Figure:
    known = [row for row in data.correlations if row["proxy"] == proxy and row["rho"] is not None]
    # The correlation within students where there is one, else the first that there is.
    known.sort(key=lambda row: row["scope"] != "within students")
    title = proxy_words(proxy)
    per = "pair" + ", condition" * (len(conditions(rows)) > 1)
    several = len({row["seed"] for row in rows}) > 1
    caption = f"One point per {per}{' and seed' * several}, {len(rows)} in all"
    if known:
        bounds = interval(known[0]["low"], known[0]["high"], sign=True)
        rho = f"{_RHO} = {number(float(known[0]['rho']), sign=True)} {bounds}".rstrip()
        title += ": " + rho.replace(" ", "\N{NO-BREAK SPACE}")
        if known[0]["n"] < len(rows):
            caption += ". Controls, and texts that the student cannot read, are shown and no part of the correlation"
        caption += f". {_RHO}: Spearman's, {known[0]['scope']}" + ", 95 % interval over sources" * bool(bounds)

    def draw(axes):
        axes.axhline(0, color=svg.MUTED, lw=1, zorder=1)
        for (relation,), group in grouped(in_order(rows), "relation").items():
            ys = svg.percent([row["utility"] for row in group])
            axes.plot([row["value"] for row in group], ys, **svg.look(hue(relation), ls="none"))
        axes.set(xlabel=svg.short([proxy_words(proxy)], 34)[0], ylabel="utility (points)")
        axes.locator_params(nbins=6)

    return svg.figure(title, caption + ".", draw, 3.0, width=3.7, name=name, numbers="tables/proxies.csv")


def curves(data: StudyData) -> list[tuple[str, list[svg.Figure]]]:
    """[(student and condition, figures)]: capability against extraction, and both against the step of training."""
    made = []
    groups = sorted(
        grouped(data.curves, "condition", "student").items(), key=lambda group: data.students.index(group[0][1])
    )
    for i, ((condition, student), rows) in enumerate(groups):
        where = student + f", {condition}" * bool(condition)
        measured = {row["metric"] for row in rows if row["value"] is not None}
        extraction = next((metric for metric in (HELD_OUT, EXTRACTION) if metric in measured), None)
        looks = _looks(data, rows)
        figures = [_path(rows, extraction, looks, where, f"curve-{i}-path")]
        for k, metric in enumerate(filter(None, (extraction, CAPABILITY))):
            figures.append(_steps(rows, metric, looks, where, f"curve-{i}-{k}"))
        figures.append(_groups(rows, where, f"curve-{i}-groups"))
        if any(figures):
            made.append((where, [found for found in figures if found]))
    return made


def _looks(data: StudyData, rows: Sequence[Row]) -> dict[str, dict]:
    """{arm: how its curve looks}: the colour says the relation, marker and dashes tell arms of one relation apart."""
    looks, used = {}, dict[str, int]()
    relations = {row["arm"]: row["relation"] for row in rows}
    for arm in sorted(relations, key=data.arms(data.curves).index):
        relation = relations[arm]
        nth = used[relation] = used.get(relation, -1) + 1
        k = (hue(relation) + 2 * nth) % len(svg.MARKERS)
        # A control is named for what it is; a source also says how it stands to this student.
        brief = "same family" if relation == RELATIONS[2] else relation
        name = f"{arm} ({brief})" if relation in RELATIONS else arm
        looks[arm] = svg.look(hue(relation), name, ls=svg.DASHES[k], marker=svg.MARKERS[k])
    return looks


def _path(rows, extraction: Metric | None, looks: Mapping[str, dict], where: str, name: str) -> svg.Figure | None:
    means = over_seeds(rows, lambda r: (r["arm"], r["step"], r["metric"]))
    paths = {}
    for arm in looks:
        steps = sorted({step for a, step, _ in means if a == arm})
        both = [[means.get((arm, step, metric)) for metric in (extraction, CAPABILITY)] for step in steps]
        path = [tuple(100 * mean for mean, *_ in pair) for pair in both if None not in pair]
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
            axes.plot([x], [y], "o", ms=12, mfc="none", mec=svg.MUTED, mew=1.6, zorder=5)
        axes.set(xlabel=f"extraction, {extraction.words} (% of probes)", ylabel="capability (% of items)")
        axes.margins(0.08)

    return _curve(
        f"{where}: capability against extraction",
        "Paths through training, mean over seeds and subsets; ring: the start, large mark: the end. Straight left: "
        "memorization is lost at equal capability.",
        draw,
        _height(paths),
        name=name,
    )


def _steps(rows, metric: Metric, looks: Mapping[str, dict], where: str, name: str) -> svg.Figure | None:
    lines = _lines((r for r in rows if r["metric"] == metric), lambda r: (r["arm"], r["step"]), looks)
    title = f"{where}: {metric.title} over training"
    caption = _mean(rows) + " Step 0 is the model before training." * any(row["step"] == 0 for row in rows)
    if metric == CAPABILITY:
        return _over_steps(title, caption, lines, looks, "capability (% of items)", name)
    return _over_steps(title, caption, lines, looks, f"extraction, {metric.words} (%)", name, from_zero=True)


def _groups(rows, where: str, name: str) -> svg.Figure | None:
    own = [r for r in rows if r["relation"] == "self" and r["metric"].group and r["metric"].held_out == RUN]
    # With several temperatures, one arm: more would need a second dimension of looks.
    arm = next((row["arm"] for row in own), None)
    own = [row for row in own if row["arm"] == arm]
    metrics = sorted({row["metric"] for row in own}, key=lambda m: (m.repeats or 0, m.group))
    lines = _lines(own, lambda r: (r["metric"], r["step"]), metrics)
    looks = {metric: svg.look(svg.nth(_HUES, i), metric.group_words) for i, metric in enumerate(lines)}
    title = f"{where}: held-out extraction by repetition"
    caption = f"Trained on {arm} (self); by how often a sequence occurs in the pre-training text. {_mean(own)}"
    return _over_steps(title, caption, lines, looks, "extraction, held-out (%)", name)


def _over_steps(
    title: str, caption: str, lines: Mapping, looks: Mapping, ylabel: str, name: str, from_zero: bool = False
) -> svg.Figure | None:
    """Shares over the steps of training."""
    if not lines:
        return None

    def draw(axes):
        for key, line in lines.items():
            _ranged(axes, line, looks[key], 100)
        svg.step_axis(axes, [step for line in lines.values() for step, *_ in line])
        axes.set_ylabel(ylabel)
        if from_zero:
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))

    return _curve(title, caption, draw, _height(lines), name=name)


def generations(data: StudyData) -> list[svg.Figure]:
    """One panel per metric: generation against its value, one line per student and mode. Single suites, groups of
    probes and the like are in the table alone."""
    made = []
    names = list(dict.fromkeys((row["student"], row["mode"]) for row in data.generations))
    known = list(dict.fromkeys(student for student, _ in names))
    shown = dict(zip(known, svg.short(known, 16)))
    modes = list(dict.fromkeys(mode for _, mode in names))
    for i, ((metric,), rows) in enumerate(grouped(data.generations, "metric").items()):
        lines = _lines(rows, lambda r: ((r["student"], r["mode"]), r["generation"]), names, least=1)
        if not lines or not (metric in _OVER_GENERATIONS or metric.kind in _OF_CORPUS):
            continue

        def draw(axes):
            for (student, mode), line in lines.items():
                of, dash = svg.nth(_HUES, known.index(student)), modes.index(mode)
                style = svg.look(of, f"{shown[student]}, {mode}", ls=("-", (0, (4, 2)), (0, (1, 1)))[dash % 3])
                hollow = {"mfc": svg.PAPER, "mec": svg.colour(of), "mew": 1.4} if dash % 2 else {}
                _ranged(axes, line, style | hollow, metric.scale)
            axes.set_xticks(sorted({x for line in lines.values() for x, *_ in line})[:12])
            axes.set(xlabel="generation", ylabel=metric.of.unit or metric.title)
            axes.margins(0.07)

        place = {"width": 4.0, "name": f"generation-{i}", "numbers": "tables/generations.csv"}
        made.append(svg.figure(metric.title, _mean(rows), draw, _height(lines, 3.0), **place))
    return made


def _mean(rows: Sequence[Row]) -> str:
    seeds, trainings = ({tuple(row.get(k) for k in of) for row in rows} for of in (["seed"], ["seed", "subset"]))
    over = ["seeds"] * (len(seeds) > 1) + ["subsets"] * (len(trainings) > len(seeds))
    return f"Mean over {' and '.join(over)}; shaded: their lowest to their highest." if over else "One seed."


def _height(lines, least: float = _HEIGHT) -> float:
    """Inches: the legend's rows above the axes take room of their own."""
    return least + 0.1 * max(0, len(lines) - 2)


def _lines(rows, key, names, least: int = 2) -> dict[str, list[tuple]]:
    """{name: [(x, mean, lowest, highest)]} over seeds of the rows with key (name, x), in the order of `names`; only
    lines of at least so many points.
    """
    values = over_seeds(rows, key)
    lines = {name: sorted((x, *value) for (n, x), value in values.items() if n == name) for name in names}
    return {name: line for name, line in lines.items() if len(line) >= least}


def _ranged(axes, line: Sequence[tuple], style: Mapping, scale: float) -> None:
    """A line of means over a band from lowest to highest."""
    xs, *values = zip(*line)
    means, lows, highs = ([scale * v for v in of] for of in values)
    if lows != highs:
        axes.fill_between(xs, lows, highs, color=style["color"], alpha=0.12, lw=0)
    axes.plot(xs, means, **style)
