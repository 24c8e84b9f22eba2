"""What a run or a study leaves for its readers: JSON, tables, and one self-contained HTML page."""

import base64
import dataclasses
import functools
import hashlib
import os
import pathlib
import re
import urllib.parse
from typing import Any, Mapping

import jinja2

from selftrain_jax.core import files
from selftrain_jax.core.errors import visible
from selftrain_jax.core.progress import duration
from selftrain_jax.report import memory, plots, study_data, study_plots, study_tables, tables
from selftrain_jax.report.comparison import Comparison
from selftrain_jax.report.data import METRIC_FIELDS, Change, ReportData, is_thin, label
from selftrain_jax.report.metric import DRIFT, EXTRACTION, HELD_OUT, KINDS, Metric, grouped, kind
from selftrain_jax.report.study_data import StudyData
from selftrain_jax.report.study_tables import format_study, plain_study
from selftrain_jax.report.svg import NUM_HUES
from selftrain_jax.report.tables import format_table, interval, number, plain

SCHEMA = 2
_ON_THE_PAGE = ("samples", "learning_curves", "listings", "device_hours", "tokens")
"""What of a run's data is shown, but not kept in report.json, since other files hold it."""
_OPEN = ("extraction", "capability")
"""The kinds of metrics that a page shows unfolded."""
_LONG = 12
"""Rows from which on a study's table is folded, to be filtered and sorted."""
_TEMPLATES = pathlib.Path(__file__).parent / "templates"


def write_report(directory: str | os.PathLike, data: ReportData) -> None:
    """Writes `report.json`, `report.html` and `table.txt` of a run into `directory`, each atomically."""
    value = {
        "schema": SCHEMA,
        "metrics": [{k: row[k] for k in (*METRIC_FIELDS, "clusters") if k in row} for row in data.metrics],
    }
    for field in dataclasses.fields(data):
        if field.name not in (*value, *_ON_THE_PAGE):
            value[field.name] = getattr(data, field.name)
    texts = {"report.html": render_html(data), "table.txt": format_table(data, memory.lines(data))}
    _write(pathlib.Path(directory), {"report.json": value}, texts)


def write_study_report(directory: str | os.PathLike, data: StudyData) -> None:
    """Writes study.json, study.html, table.txt, tables/*.csv and tables/*.tex into `directory`, each atomically.

    The set of files does not depend on what was measured: a table without rows has a header alone.
    """
    data = plain_study(data)
    texts = {f"tables/{name}.csv": study_tables.csv_text(data, name) for name in study_tables.COLUMNS}
    notes = "".join(f"% {' '.join(note.split())}\n" for note in data.notes)
    texts |= {f"tables/{name}.tex": notes + write(data) for name, write in study_tables.LATEX.items()}
    texts |= {"table.txt": format_study(data), "study.html": render_study(data)}
    value = {"schema": SCHEMA} | {f.name: getattr(data, f.name) for f in dataclasses.fields(data)}
    _write(pathlib.Path(directory), {"study.json": value}, texts)


def _write(directory: pathlib.Path, values: dict[str, Any], texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(directory / name, text.encode("utf-8", "replace"))
    for name, value in values.items():
        files.write_json(directory / name, plain(value))


def render_html(data: ReportData) -> str:
    """The page of a run as one string: one script that is the same for all runs, no network, figures as inline SVG,
    every text from the run escaped.
    """
    values = {"figures": plots.figures(data), "styles": plots.styles(data.models)}
    return _environment().get_template("run.html").render(data=data, **values)


def render_study(data: StudyData) -> str:
    """The page of a study, of the same kind."""
    data = plain_study(data)
    values = [abs(row["value"]) for row in data.utility if row["value"] is not None]
    return (
        _environment()
        .get_template("study.html")
        .render(
            data=data,
            largest=max(values, default=0),
            heat=_heat_maps(data),
            results=_results(data),
            maps=study_plots.maps(data),
            contrasts=study_plots.contrasts(data),
            proxies=study_plots.proxies(data),
            curves=study_plots.curves(data),
            generations=study_plots.generations(data),
        )
    )


def render_comparison(found: Comparison) -> str:
    """The page of several runs side by side."""
    return _environment().get_template("compare.html").render(data=found)


def _environment() -> jinja2.Environment:
    """The templates of this package and of its parts; every text that is put in is escaped.

    A page's policy lets a browser run the one script, known by its digest, and fetch nothing.
    """
    script = (_TEMPLATES / "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
    loaded = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FileSystemLoader(_TEMPLATES),
    )
    loaded.globals |= {
        "kind_of": kind,
        "KINDS": KINDS,
        "EXTRACTION": EXTRACTION,
        "HELD_OUT": HELD_OUT,
        "label": label,
        "memory": memory,
    }
    loaded.globals |= {"leak_words": tables.leak_words, "leak_rate": tables.leak_rate}
    loaded.globals |= {"script": script, "policy": policy + "form-action 'none'"}
    loaded.globals |= {"OPEN": _OPEN, "LONG": _LONG, "zip": zip}
    loaded.globals |= {"memory": memory, "DRIFT": DRIFT, "is_thin": is_thin, "study": study_data, "num_hues": NUM_HUES}
    loaded.filters |= {
        "typeset": typeset,
        "document": _document,
        "visible": functools.partial(visible, keep="\n\t"),
        "flat": _flat,
        "cell": _cell,
        "estimate": tables.estimate,
        "duration": duration,
        "count": _count,
        "percent": lambda share: "-" if share is None else number(share, 1, 100, unit=" %"),
        "points": study_tables.points,
        "signed": study_tables.signed,
        "of_metric": study_tables.of_metric,
        "evidence": study_tables.evidence,
        "p_words": study_tables.p_words,
        "shade": _shade,
        "href": _href,
        "shown": lambda value, metric: number(value, metric.decimals, metric.scale),
    }
    return loaded


def typeset(text: str) -> str:
    """Proper minus signs and arrows, and no line break before a percent sign."""
    text = text.replace(" -> ", " \N{RIGHTWARDS ARROW} ").replace(" %", "\N{NO-BREAK SPACE}%")
    return re.sub(r"(?<![\w.])-(?=\d)", "\N{MINUS SIGN}", text)


def _cell(change: Change, metric: Metric) -> tuple[str, str]:
    """(change, interval) for the table of changes: points for a rate, percent if relative, else its own unit."""
    if change.bounds_relative:
        value, form = change.relative, {"decimals": 1, "scale": 100, "unit": " %"}
    else:
        value, form = change.difference, {"decimals": 1 if metric.of.is_rate else 3, "scale": metric.scale}
    return number(value, sign=True, **form), interval(change.low, change.high, sign=True, **form)


def _document(text: str, limit: int = 4000) -> str:
    """The first `limit` characters with control characters made visible: a sample may hold any byte."""
    return visible(text[:limit], keep="\n\t") + (
        f"\n... ({len(text) - limit} more characters)" if len(text) > limit else ""
    )


def _flat(value: Mapping, readable: bool = False, prefix: str = "") -> list[tuple[str, str]]:
    """(dotted name, value) of every leaf of a nested dict; `readable` spells names and counts as in prose."""
    leaves = []
    for name, item in value.items():
        if isinstance(item, Mapping) and item:
            leaves += _flat(item, readable, f"{prefix}{name}{': ' if readable else '.'}")
        else:
            leaf = f"{prefix}{name}"
            leaves.append((leaf.replace("_", " "), _count(item)) if readable else (leaf, str(item)))
    return leaves


def _count(value: Any) -> str:
    """A number with thousands separators, "-" for None, other values as they are."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.3f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _shade(value: float, largest: float) -> str:
    """CSS of a heat map's cell: the sign's colour, as strong as the value's share of the largest on the page."""
    share = abs(value) / largest if largest else 0
    return f"background: color-mix(in srgb, var(--{'gain' if value >= 0 else 'loss'}) {60 * share:.1f}%, transparent)"


def _href(path: Any) -> str | None:
    """`path` as a relative link, or None for what could lead out of the study's folder tree or to a script."""
    if not path or str(path).startswith(("/", "\\")):
        return None
    return urllib.parse.quote(str(path).encode("utf-8", "replace"), safe="/")


def _heat_maps(data: StudyData) -> list[tuple[str, list[str], list[tuple[str, list]]]]:
    """[(condition, students, [(arm, a row of utility or None for each student)])]."""
    maps = []
    for (condition,), rows in grouped(data.utility, "condition").items():
        cells = {(row["arm"], row["student"]): row for row in rows if row["value"] is not None}
        columns = [s for s in data.students if any(row["student"] == s for row in rows)]
        maps.append((condition, columns, [(arm, [cells.get((arm, s)) for s in columns]) for arm in data.arms(rows)]))
    return maps


def _results(data: StudyData) -> list[tuple[str, list[Mapping], list[tuple[Metric, list]]]]:
    """[(student, its trained models, [(metric, its row of results or None for each)])]."""
    found = []
    order = data.arms(data.results)
    for student in data.students:
        rows = [row for row in data.results if row["student"] == student]
        runs = sorted(
            grouped(rows, "arm", "condition", "seed", "subset").values(), key=lambda run: order.index(run[0]["arm"])
        )
        cells = [{row["metric"]: row for row in run} for run in runs]
        metrics = dict.fromkeys(row["metric"] for row in rows)
        if runs:
            found.append((student, [run[0] for run in runs], [(m, [run.get(m) for run in cells]) for m in metrics]))
    return found
