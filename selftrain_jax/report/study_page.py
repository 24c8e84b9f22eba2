"""The report of a study: study.json, one self-contained page, a table for the terminal, and tables for other
programs.
"""

import dataclasses
import os
import pathlib
import urllib.parse
from typing import Any, Mapping

from selftrain_jax.core import files
from selftrain_jax.report import page as run_report
from selftrain_jax.report import study_layout as layout
from selftrain_jax.report import study_plots as plots
from selftrain_jax.report import study_tables as tables
from selftrain_jax.report.study_data import StudyData
from selftrain_jax.report.study_tables import format_study
from selftrain_jax.report.svg import NUM_HUES

__all__ = ["SCHEMA", "format_study", "render_html", "write_study_report"]

SCHEMA = 1


def write_study_report(directory: str | os.PathLike, data: StudyData) -> None:
    """Writes study.json, study.html, table.txt, tables/*.csv and tables/*.tex into `directory`, each atomically.

    The set of files does not depend on what was measured: a table without rows has a header alone.
    """
    directory, data = pathlib.Path(directory), layout.clean(data)
    (directory / "tables").mkdir(parents=True, exist_ok=True)
    texts = {f"tables/{name}.csv": tables.csv_text(data, name) for name in tables.COLUMNS}
    texts |= {
        "tables/utility.tex": tables.tex_utility(data),
        "tables/correlations.tex": tables.tex_correlations(data),
        "tables/selectivity.tex": tables.tex_selectivity(data),
        "table.txt": format_study(data),
        "study.html": render_html(data),
    }
    for name, text in texts.items():
        files.write_atomic(directory / name, text.encode("utf-8", "replace"))
    value = {"schema": SCHEMA} | {f.name: getattr(data, f.name) for f in dataclasses.fields(data)}
    files.write_json(directory / "study.json", value)


def render_html(data: StudyData) -> str:
    """The whole page as one string: no script, no network, figures as inline SVG, every text from the study escaped."""

    data = layout.clean(data)
    environment = run_report.environment()
    environment.filters |= {"shade": _shade, "href": _href, "shown": _shown}
    values = [abs(row["value"]) for row in data.utility if row["value"] is not None]
    return environment.get_template("study.html").render(
        data=data,
        layout=layout,
        num_hues=NUM_HUES,
        students=layout.students(data),
        seeds=layout.seeds(data),
        largest=max(values, default=0),
        heat=_heat_maps(data),
        results=_results(data),
        by_relation=plots.by_relation(data),
        proxies=plots.proxies(data),
        curves=plots.curves(data),
        generations=plots.generations(data),
    )


def _heat_maps(data: StudyData) -> list[tuple[str, list[str], list[tuple[str, list]]]]:
    """[(condition, students, [(arm, a row of utility or None for each student)])]."""
    maps = []
    for (condition,), rows in layout.grouped(data.utility, "condition").items():
        cells = {(row["arm"], row["student"]): row for row in rows if row["value"] is not None}
        columns = [s for s in layout.students(data) if any(row["student"] == s for row in rows)]
        arms = layout.arms(data, rows)
        maps.append((condition, columns, [(arm, [cells.get((arm, s)) for s in columns]) for arm in arms]))
    return maps


def _results(data: StudyData) -> list[tuple[str, list[Mapping], list[tuple[str, list]]]]:
    """[(student, its trained models, [(metric, its row of results or None for each)])]."""
    found = []
    order = layout.arms(data, data.results)
    for student in layout.students(data):
        rows = [row for row in data.results if row["student"] == student]
        runs = layout.grouped(rows, "arm", "condition", "seed", "subset")
        heads = sorted((group[0] for group in runs.values()), key=lambda r: order.index(r["arm"]))
        keys = [tuple(head[k] for k in ("arm", "condition", "seed", "subset")) for head in heads]
        cells = {key: {row["metric"]: row for row in group} for key, group in runs.items()}
        metrics = list(dict.fromkeys(row["metric"] for row in rows))
        if heads:
            found.append((student, heads, [(m, [cells[key].get(m) for key in keys]) for m in metrics]))
    return found


def _shade(value: float, largest: float) -> str:
    """CSS of a heat map's cell: the sign's colour, as strong as the value's share of the largest on the page."""
    share = abs(value) / largest if largest else 0
    return f"background: rgb(var(--{'gain' if value >= 0 else 'loss'}) / {0.6 * share:.3f})"


def _href(path: Any) -> str | None:
    """`path` as a relative link, or None for what could lead out of the study's folder tree or to a script."""
    if not path or str(path).startswith(("/", "\\")):
        return None
    return urllib.parse.quote(str(path).encode("utf-8", "replace"), safe="/")


def _shown(row: Mapping | None, metric: str) -> tuple[str, str]:
    """(after, before) of a row of results, in the metric's unit."""
    if row is None:
        return "", ""
    scale, digits, _ = layout.metric_scale(metric)
    after, before = (
        None if row[k] is None else layout.number(float(row[k]), digits, scale) for k in ("after", "before")
    )
    return after or "-", before or ""
