"""A study's rows as files for other programs (CSV, LaTeX) and as text for the terminal."""

import csv
import io
import re
import textwrap
import unicodedata
from typing import Any, Mapping, Sequence

from selftrain_jax.report import study_layout as layout
from selftrain_jax.report.study_data import StudyData

WIDTH = 100
COLUMNS = {
    "utility": ("student", "arm", "relation", "condition", "value", "low", "high", "num_replicates", "significant"),
    "results": ("student", "arm", "relation", "condition", "seed", "subset", "metric", "before", "after"),
    "proxies": ("student", "arm", "relation", "condition", "seed", "proxy", "value", "utility"),
    "correlations": ("proxy", "kind", "scope", "n", "rho", "low", "high"),
    "selectivity": (
        "student",
        "arm",
        "relation",
        "condition",
        "value",
        "low",
        "high",
        "capability_kept",
        "extraction_lost",
        "num_replicates",
    ),
    "curves": ("student", "arm", "relation", "condition", "seed", "step", "metric", "value"),
    "generations": ("student", "mode", "generation", "seed", "metric", "value"),
    "by_relation": ("relation", "value", "low", "high", "num_replicates"),
    "verdicts": ("finding", "claim", "verdict", "reason", "name", "value", "low", "high", "unit"),
}
"""The columns of each CSV file, named like the field of `StudyData`; verdicts have one row per piece of evidence."""


def csv_text(data: StudyData, table: str) -> str:
    """The rows of one table as CSV: full precision, "" for None, a header even without rows."""
    rows = getattr(data, table)
    if table == "verdicts":
        rows = [
            {k: v for k, v in row.items() if k != "evidence"} | dict(item)
            for row in rows
            for item in row["evidence"] or ({},)
        ]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS[table], restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: str(v).lower() if isinstance(v, bool) else v for k, v in row.items()} for row in rows)
    return buffer.getvalue()


_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
}  # A bracket or star that starts a row would be taken for an argument of the \\ before it.


def tex(text: Any) -> str:
    """`text` as LaTeX shows it literally; control characters and line breaks become spaces."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else _TEX.get(c, c) for c in str(text))


def tex_utility(data: StudyData) -> str:
    """Sources (rows) x students (columns): utility in points, its interval, a star where the interval excludes 0."""
    students = [s for s in layout.students(data) if any(row["student"] == s for row in data.utility)]
    cells = {(row["condition"], row["arm"], row["student"]): row for row in data.utility}
    lines = [["Source", *map(tex, students)]]
    named = len(layout.conditions(data.utility)) > 1
    for (condition,), rows in layout.grouped(data.utility, "condition").items():
        if named:
            lines.append(rf"\midrule \multicolumn{{{len(students) + 1}}}{{l}}{{\emph{{{tex(condition)}}}}}")
        for arm in layout.arms(data, rows):
            lines.append([tex(arm), *(_tex_cell(cells.get((condition, arm, s))) for s in students)])
    return _tabular(
        "Utility in points; 95 % intervals over seeds; *: the interval excludes 0.",
        lines,
        "l" + "c" * len(students),
        bool(students),
    )


def _tex_cell(row: Mapping | None) -> str:
    if row is None or row["value"] is None:
        return ""
    value, interval = layout.points(row)
    return _tex_number(value.replace("*", "^{*}"), interval)


def tex_correlations(data: StudyData) -> str:
    """Rank correlation of each proxy with utility."""
    rows = [
        [
            tex(layout.metric_name(row["proxy"])),
            tex(row["kind"]),
            tex(row["scope"]),
            layout.number(row["n"]),
            _tex_number(layout.number(row["rho"], 2, 1, True), layout.interval(row, 2, 1, True)),
        ]
        for row in data.correlations
    ]
    return _tabular(
        "Spearman's rank correlation of proxy and utility; 95 % intervals over pairs.",
        [["Proxy", "Kind", "Scope", "$n$", r"$\rho$"], *rows],
        "lllrc",
        bool(rows),
    )


def tex_selectivity(data: StudyData) -> str:
    """The selectivity index of each pair, and its two parts in percent."""
    named = len(layout.conditions(data.selectivity)) > 1
    rows = [
        [
            tex(row["student"]),
            tex(row["arm"]),
            *([tex(row["condition"])] if named else []),
            _tex_number(layout.number(row["value"], 2, 1, True), layout.interval(row, 2, 1, True)),
            *(_tex_number(layout.number(row[part], 1, 100)) for part in ("capability_kept", "extraction_lost")),
        ]
        for row in layout.by_pair(data, data.selectivity)
    ]
    head = [
        "Student",
        "Source",
        *(["Condition"] if named else []),
        "Index",
        r"Capability kept (\%)",
        r"Extraction lost (\%)",
    ]
    return _tabular(
        "Selectivity: extraction lost minus capability lost, as shares of the base model's; 95 % intervals over seeds.",
        [head, *rows],
        "ll" + "l" * named + "crr",
        bool(rows),
    )


def _tex_number(value: str, interval: str = "") -> str:
    if value == "-":
        return "--"
    return f"${value}$" + rf" {{\footnotesize ${interval}$}}" * bool(interval)


def _tabular(what: str, lines: Sequence, columns: str, measured: bool) -> str:
    """A booktabs tabular; a line that is a string stands as it is. Only a comment without rows."""
    if not measured:
        return f"% {what} Nothing was measured.\n"
    body = [line if isinstance(line, str) else " & ".join(line) for line in lines]
    return "\n".join(
        [
            f"% {what}",
            r"% Needs \usepackage{booktabs}.",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            rf"{body[0]} \\",
            *([] if body[1].startswith(r"\midrule") else [r"\midrule"]),
            *(rf"{line} \\" for line in body[1:]),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def format_study(data: StudyData) -> str:
    """Verdicts, utility by pair, correlations and selectivity as plain ASCII text, at most 100 columns wide."""
    data = layout.clean(data)
    lines = [data.title, "", *_verdicts(data)]
    if data.utility:
        rows = [
            [
                row["student"],
                row["arm"],
                row["relation"],
                row["condition"],
                *layout.points(row),
                layout.number(row["num_replicates"]),
            ]
            for row in layout.by_pair(data, data.utility)
        ]
        lines += [
            "Utility: change in mean capability, in points",
            *_columns(["student", "trained on", "relation", "condition", "points", "95 % over seeds", "n"], rows, 4),
            "",
        ]
    if data.by_relation:
        rows = [
            [row["relation"], *layout.points(row), layout.number(row["num_replicates"])]
            for row in layout.in_order(data.by_relation)
        ]
        lines += ["Utility by relation, in points", *_columns(["relation", "points", "95 %", "n"], rows, 1), ""]
    if data.correlations:
        rows = [
            [
                layout.metric_name(row["proxy"]),
                row["kind"],
                row["scope"],
                layout.number(row["rho"], 2, 1, True),
                layout.interval(row, 2, 1, True),
                layout.number(row["n"]),
            ]
            for row in data.correlations
        ]
        lines += [
            "Spearman's rank correlation of proxy and utility",
            *_columns(["proxy", "kind", "scope", "rho", "95 %", "n"], rows, 3),
            "",
        ]
    if data.selectivity:
        rows = [
            [
                row["student"],
                row["arm"],
                row["condition"],
                layout.number(row["value"], 2, 1, True),
                layout.interval(row, 2, 1, True),
                layout.number(row["capability_kept"], 1, 100),
                layout.number(row["extraction_lost"], 1, 100),
                layout.number(row["num_replicates"]),
            ]
            for row in layout.by_pair(data, data.selectivity)
        ]
        lines += [
            "Selectivity: extraction lost minus capability lost, as shares of the base model's",
            *_columns(
                ["student", "trained on", "condition", "index", "95 % over seeds", "cap. kept %", "extr. lost %", "n"],
                rows,
                3,
            ),
            "",
        ]
    if any(row["low"] is not None for rows in (data.utility, data.selectivity) for row in rows):
        lines.append("n: replicates, of correlations: points; *: the interval excludes 0.")
    lines += data.notes
    wrapped = [
        part
        for line in lines
        for part in ([line] if len(line) <= WIDTH else textwrap.wrap(line, WIDTH, break_on_hyphens=False)) or [""]
    ]
    return "\n".join(map(_ascii, wrapped)).strip() + "\n"


def _ascii(line: str) -> str:
    line = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in line)
    return line.encode("ascii", "replace").decode().rstrip()


def _verdicts(data: StudyData) -> list[str]:
    width = max((len(str(row["verdict"])) for row in data.verdicts), default=0)
    lines = []
    for row in data.verdicts:
        indent = " " * (width + 2)
        head = f"{str(row['verdict']).upper():<{width}}  {row['finding']}: {row['claim']}"
        lines += textwrap.wrap(head, WIDTH, subsequent_indent=indent)
        lines += textwrap.wrap(str(row["reason"]), WIDTH, initial_indent=indent, subsequent_indent=indent)
        for item in row["evidence"]:
            text = " ".join(filter(None, (f"{item['name']}:", *layout.evidence(item))))
            lines += textwrap.wrap(text, WIDTH, initial_indent=indent + "- ", subsequent_indent=indent + "  ")
        lines.append("")
    return lines


def _columns(head: Sequence[str], rows: Sequence[Sequence[Any]], num_names: int) -> list[str]:
    """Aligned lines; columns that are empty throughout go, and names that do not fit lose their middle."""
    kept = [i for i in range(len(head)) if any(str(row[i]) for row in rows)]
    table = [[re.sub(r"\s", " ", str(row[i])) for i in kept] for row in (head, *rows)]
    names = sum(i < num_names for i in kept)
    widths = [max(len(row[i]) for row in table) for i in range(len(kept))]
    while names and sum(widths) + 2 * (len(widths) - 1) + 2 > WIDTH and max(widths[:names]) > 6:
        widths[widths.index(max(widths[:names]))] -= 1
    return [
        "  "
        + "  ".join(
            _squeeze(cell, w).ljust(w) if i < names else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))
        )
        for row in table
    ]


def _squeeze(name: str, width: int) -> str:
    if len(name) <= width:
        return name
    tail = (width - 2) // 2
    return f"{name[: width - 2 - tail]}..{name[len(name) - tail :]}"
