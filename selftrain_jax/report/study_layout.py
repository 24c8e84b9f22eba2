"""How a study is laid out on paper: the order of students, arms and conditions, and numbers as text."""

import collections
import dataclasses
from typing import Any, Callable, Iterable, Mapping, Sequence

from selftrain_jax.report import data as rd
from selftrain_jax.report import page as report
from selftrain_jax.report.study_data import CONTROLS, NAMES, RELATIONS, StudyData

HUES = {
    "self": 1,
    "same lineage": 3,
    "same family, different recipe": 6,
    "other family": 2,
    "real text": 0,
    "shuffled real text": 5,
}
_OTHER_HUE = 4
EVERY_RELATION = (*RELATIONS, *CONTROLS)
_PARTS = {"held_out": "held-out", "all": "all probes", "random": "random probes"}


def clean(data: StudyData) -> StudyData:
    """`data` with Python numbers in place of numpy's, and None in place of NaN and infinities."""
    return StudyData(**{f.name: report.plain(getattr(data, f.name)) for f in dataclasses.fields(data)})


def hue(relation: str) -> int:
    """The colour of a relation, the same on the whole page."""
    return HUES.get(relation, _OTHER_HUE)


def rank(relation: str) -> int:
    """0 for the nearest relation; controls come last."""
    return EVERY_RELATION.index(relation) if relation in EVERY_RELATION else len(EVERY_RELATION)


def students(data: StudyData) -> list[str]:
    """In the order of `data.models`, then of appearance."""
    seen = dict.fromkeys(
        row["student"]
        for rows in (data.utility, data.results, data.curves, data.selectivity, data.generations)
        for row in rows
    )
    known = [row["model"] for row in data.models]
    return sorted(seen, key=lambda s: known.index(s) if s in known else len(known))


def arms(data: StudyData, rows: Sequence[Mapping]) -> list[str]:
    """The arms of `rows`: each student's own text in the students' order, then by nearest relation, controls last."""
    order = students(data)
    keys: dict[str, tuple] = {}
    for row in rows:
        at = order.index(row["student"]) if row["student"] in order else len(order)
        key = rank(row["relation"]), at if row["relation"] == "self" else 0
        keys[row["arm"]] = min(keys.get(row["arm"], key), key)
    return sorted(keys, key=keys.get)


def conditions(rows: Sequence[Mapping]) -> list[str]:
    """In order of appearance."""
    return list(dict.fromkeys(row["condition"] for row in rows))


def seeds(data: StudyData) -> list:
    """Every seed that a row names, in order."""
    rows = (*data.results, *data.proxies, *data.curves, *data.generations, *data.runs)
    return sorted({row["seed"] for row in rows if row["seed"] is not None}, key=lambda s: (str(type(s)), s))


def grouped(rows: Iterable[Mapping], *names: str) -> dict[tuple, list]:
    """{values of the columns `names`: rows}, in order of appearance."""
    groups = collections.defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in names)].append(row)
    return dict(groups)


def by_pair(data: StudyData, rows: Sequence[Mapping]) -> list[Mapping]:
    """`rows` by condition, student, then arm in the order of `arms`."""
    known, order, places = students(data), arms(data, rows), conditions(rows)
    return sorted(rows, key=lambda r: (places.index(r["condition"]), known.index(r["student"]), order.index(r["arm"])))


def in_order(rows: Sequence[Mapping], key: str = "relation") -> list[Mapping]:
    """`rows` by relation, nearest first."""
    return sorted(rows, key=lambda row: rank(row[key]))


def number(value: Any, digits: int = 2, scale: float = 1, sign: bool = False, unit: str = "") -> str:
    """ "+1.25" with as many decimals, or "-" for None."""
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool) and scale == 1 and not sign:
        return f"{value}{unit}"
    # Adding 0.0 turns the -0.0 that rounding leaves into 0.0.
    return f"{round(scale * value, digits) + 0.0:{'+' * sign}.{digits}f}{unit}"


def interval(row: Mapping, digits: int = 2, scale: float = 1, sign: bool = False) -> str:
    """ "[+0.10, +2.40]" from the row's "low" and "high", or "" where either is missing."""
    if row["low"] is None or row["high"] is None:
        return ""
    return f"[{number(float(row['low']), digits, scale, sign)}, {number(float(row['high']), digits, scale, sign)}]"


def points(row: Mapping, mark: bool = True) -> tuple[str, str]:
    """(utility in points with "*" where significant, its interval) of a row of `StudyData.utility` or `by_relation`."""
    star = "*" * bool(mark and row["value"] is not None and row.get("significant"))
    return number(row["value"], 2, 100, True) + star, interval(row, 2, 100, True)


def evidence(row: Mapping) -> tuple[str, str]:
    """(value with its unit, interval) of a row of a verdict's evidence."""
    digits, sign = {"points": (2, True), "%": (1, False)}.get(row["unit"], (3, False))
    unit = {"points": " points", "%": " %", "": ""}.get(row["unit"], f" {row['unit']}")
    value = row["value"]
    if isinstance(value, str) or isinstance(value, bool):
        return str(value), ""
    return number(value, digits, 1, sign, unit * (value is not None)), interval(row, digits, 1, sign)


def metric_scale(metric: str) -> tuple[float, int, str]:
    """(factor, decimals, unit) under which a metric of a study is shown: rates in percent."""
    kind = metric.split("/")[0]
    if kind in ("capability", "extraction"):
        return 100, 1, rd.UNITS[kind]
    units = {
        "entropy": "bits per token",
        "mean_length": "tokens",
        "source_nll": "nats per token",
        "nll": "nats per token",
    }
    return 1, 1 if kind == "mean_length" else 3, units.get(kind, "")


def metric_name(metric: str) -> str:
    """The words for a metric of a study: "extraction, held-out", "nll, prose"."""
    kind, *rest = metric.split("/")
    names = {"nll": "NLL", "source_nll": "source NLL"} | NAMES
    return ", ".join([names.get(kind, kind.replace("_", " ")), *(_group(part) for part in rest)])


def _group(part: str) -> str:
    count = rd.repeats(f"extraction/{part}")
    return rd.metric_name(f"extraction/{part}") if count is not None else _PARTS.get(part, part)


def held_out_group(metric: str) -> str | None:
    """The words for the group of "extraction/held_out/<group>", else None."""
    start = "extraction/held_out/"
    return _group(metric[len(start) :]) if metric.startswith(start) else None


def extraction_metric(rows: Sequence[Mapping]) -> str | None:
    """ "extraction/held_out" where measured, else "extraction/all", else None."""
    names = {row["metric"] for row in rows if row["value"] is not None}
    return next((name for name in ("extraction/held_out", "extraction/all") if name in names), None)


def over_seeds(rows: Iterable[Mapping], key: Callable[[Mapping], Any]) -> dict[Any, tuple[float, float, float]]:
    """{key: (mean, lowest, highest value)}; rows without a value are left out."""
    values = collections.defaultdict(list)
    for row in rows:
        if row["value"] is not None:
            values[key(row)].append(row["value"])
    return {k: (sum(v) / len(v), min(v), max(v)) for k, v in values.items()}
