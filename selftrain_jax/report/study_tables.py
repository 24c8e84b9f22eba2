"""A study's rows as files for other programs (CSV, LaTeX) and as text for the terminal."""

import csv
import dataclasses
import functools
import io
import re
import textwrap
import unicodedata
from typing import Any, Sequence

from selftrain_jax.report.metric import Metric, Row, grouped
from selftrain_jax.report.study_data import StudyData, conditions, in_order, proxy_words
from selftrain_jax.report.tables import WIDTH, interval, number, plain, printable

_PAIR = ("student", "arm", "relation", "condition")
_INTERVAL = ("value", "low", "high")
COLUMNS = {
    "utility": (*_PAIR, *_INTERVAL, "num_replicates", "p_value", "significant"),
    "results": (*_PAIR, "seed", "subset", "metric", "before", "after", "n"),
    "memory": (
        *_PAIR,
        *("seed", "subset", "extracted", "lost"),
        *("token_share_before", "token_share_after", "log_prob_before", "log_prob_after"),
    ),
    "proxies": (*_PAIR, "seed", "proxy", "value", "utility"),
    "correlations": ("proxy", "kind", "scope", "n", "sources", "rho", "low", "high", "p_value"),
    "selectivity": (*_PAIR, *_INTERVAL, "capability_kept", "extraction_lost", "num_replicates"),
    "curves": (*_PAIR, "seed", "subset", "step", "metric", "value"),
    "contamination": (*_PAIR, "metric", "in_training_text", "n", *_INTERVAL, "num_replicates"),
    "grid": ("student", "tokens", "learning_rate", "temperature", "metric", *_INTERVAL, "num_replicates"),
    "matched": (*_PAIR, "metric", "drift", *_INTERVAL, "num_replicates"),
    "components": ("relation", "metric", "between", "within", "num_cells", "num_values"),
    "generations": ("student", "mode", "generation", "seed", "metric", "value"),
    "loops": ("student", "mode", "generation", "metric", "level", *_INTERVAL, "num_replicates"),
    "by_relation": ("relation", *_INTERVAL, "num_replicates"),
    "contrasts": ("relation", "minus", "student", *_INTERVAL, "num_replicates"),
    "verdicts": (
        *("finding", "claim", "rules", "seeds", "verdict", "reason", "name", *_INTERVAL, "unit"),
        *("num_replicates", "detectable", "p_value"),
    ),
}
"""The columns of each CSV file, named like the field of `StudyData`; verdicts have one row per piece of evidence,
those of older rules last."""


def plain_study(data: StudyData) -> StudyData:
    """`data` with Python numbers in place of numpy's, and None in place of NaN and infinities."""
    return StudyData(**{f.name: plain(getattr(data, f.name), keep=Metric) for f in dataclasses.fields(data)})


def points(row: Row) -> tuple[str, str]:
    """(utility in points with "*" where significant, its interval) of a row of `StudyData.utility` or `by_relation`."""
    star = "*" * bool(row["value"] is not None and row.get("significant"))
    return number(row["value"], 2, 100, True) + star, interval(row["low"], row["high"], 2, 100, True)


def signed(row: Row, name: str = "value") -> tuple[str, str]:
    """(number, interval) of a rank correlation or a selectivity index."""
    return number(row[name], sign=True), interval(row["low"], row["high"], sign=True)


def of_metric(row: Row, sign: bool) -> tuple[str, str]:
    """(number, interval) of a row with a metric, in its unit."""
    form = {"decimals": row["metric"].decimals, "scale": row["metric"].scale, "sign": sign}
    return number(row["value"], **form), interval(row["low"], row["high"], **form)


def _shares(row: Row) -> list[str]:
    return [number(row[part], 1, 100) for part in ("capability_kept", "extraction_lost")]


def evidence(row: Row) -> tuple[str, str, str]:
    """(value with its unit, interval, what was behind it) of a row of a verdict's evidence."""
    decimals, sign = {"points": (2, True), "%": (1, False)}.get(row["unit"], (3, False))
    value, unit = row["value"], f" {row['unit']}" * bool(row["unit"])
    if isinstance(value, (str, bool)):
        return str(value), "", ""
    behind = [f"n = {row['num_replicates']}"] if row.get("num_replicates") else []
    if (p_value := row.get("p_value")) is not None:
        behind.append(p_words(p_value))
    if least := row.get("detectable"):
        behind.append(f"80 % power at {number(least, decimals)}")
    bounds = interval(row["low"], row["high"], decimals, 1, sign)
    return number(value, decimals, 1, sign, unit), bounds, ", ".join(behind)


def p_words(p_value: float | None) -> str:
    return "" if p_value is None else "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def csv_text(data: StudyData, table: str) -> str:
    """The rows of one table as CSV: full precision, "" for None, a header even without rows."""
    rows = getattr(data, table)
    if table == "verdicts":
        rows = [*rows, *data.older_verdicts]
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


_TEX = {c: rf"\{c}" for c in "{}$&#_%"} | {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    **{c: f"{{{c}}}" for c in "[]*"},  # starting a row, they would be taken for an argument of the \\ before it
}


def tex(text: Any) -> str:
    """`text` as LaTeX shows it literally; control characters and line breaks become spaces."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else _TEX.get(c, c) for c in str(text))


def tex_utility(data: StudyData) -> str:
    """Sources (rows) x students (columns): utility in points, its interval, a star where it is significant."""
    students = [s for s in data.students if any(row["student"] == s for row in data.utility)]
    cells = {(row["condition"], row["arm"], row["student"]): points(row) for row in data.utility}
    lines = [["Source", *map(tex, students)]]
    named = len(conditions(data.utility)) > 1
    for (condition,), rows in grouped(data.utility, "condition").items():
        if named:
            lines.append(rf"\midrule \multicolumn{{{len(students) + 1}}}{{l}}{{\emph{{{tex(condition)}}}}}")
        for arm in data.arms(rows):
            found = [cells.get((condition, arm, student), ("-", "")) for student in students]
            lines.append([tex(arm), *(_tex_number(*cell, missing="") for cell in found)])
    what = "Utility in points; 95 % intervals over seeds; *: p < 0.05, adjusted for all pairs (Holm)."
    return _tabular(what, lines, "l" + "c" * len(students), bool(students))


def tex_correlations(data: StudyData) -> str:
    """Rank correlation of each proxy with utility."""
    rows = [
        [tex(proxy_words(r["proxy"])), tex(r["kind"]), tex(r["scope"]), number(r["n"]), _tex_number(*signed(r, "rho"))]
        for r in data.correlations
    ]
    head = ["Proxy", "Kind", "Scope", "$n$", r"$\rho$"]
    what = "Spearman's rank correlation of proxy and utility; 95 % intervals over sources."
    return _tabular(what, [head, *rows], "lllrc", bool(rows))


def tex_selectivity(data: StudyData) -> str:
    """The selectivity index of each pair, and its two parts in percent."""
    names = ["student", "arm"] + ["condition"] * (len(conditions(data.selectivity)) > 1)
    rows = [
        [*(tex(row[name]) for name in names), _tex_number(*signed(row)), *map(_tex_number, _shares(row))]
        for row in data.by_pair(data.selectivity)
    ]
    words = {"student": "Student", "arm": "Source", "condition": "Condition"}
    head = [*(words[name] for name in names), "Index", r"Capability kept (\%)", r"Extraction lost (\%)"]
    what = (
        "Selectivity: extraction lost minus capability lost, as shares of the base model's; 95 % intervals over seeds."
    )
    return _tabular(what, [head, *rows], "l" * len(names) + "crr", bool(rows))


LATEX = {"utility": tex_utility, "correlations": tex_correlations, "selectivity": tex_selectivity}


def _tex_number(value: str, bounds: str = "", missing: str = "--") -> str:
    if value == "-":
        return missing
    return f"${value.replace('*', '^{*}')}$" + rf" {{\footnotesize ${bounds}$}}" * bool(bounds)


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


def format_study(data: StudyData, width: int = WIDTH) -> str:
    """Verdicts, utility by pair, correlations and selectivity as plain ASCII text, at most `width` columns wide."""
    data, titled = plain_study(data), functools.partial(_titled, width=width)
    lines = [data.title, "", *_verdicts(data, width)]
    utility = [[*(r[k] for k in _PAIR), *points(r), number(r["num_replicates"])] for r in data.by_pair(data.utility)]
    relations = [[r["relation"], *points(r), number(r["num_replicates"])] for r in in_order(data.by_relation)]
    contrasts = [
        [f"{r['relation']} minus {r['minus']}", *points(r), number(r["num_replicates"])]
        for r in data.contrasts
        if not r["student"]
    ]
    correlations = [
        [proxy_words(r["proxy"]), r["kind"], r["scope"], *signed(r, "rho"), p_words(r["p_value"]), number(r["sources"])]
        for r in data.correlations
    ]
    selectivity = [
        [r["student"], r["arm"], r["condition"], *signed(r), *_shares(r), number(r["num_replicates"])]
        for r in data.by_pair(data.selectivity)
    ]
    over_seeds, kept, lost = "95 % over seeds", "cap. kept %", "extr. lost %"
    lines += titled(
        "Utility: change in mean capability, in points",
        ["student", "trained on", "relation", "condition", "points", over_seeds, "n"],
        utility,
        num_names=4,
    )
    lines += titled(
        "Within students: utility of a relation minus that of another, in points",
        ["relations", "points", over_seeds, "n"],
        contrasts,
        num_names=1,
    )
    lines += titled(
        "Mean utility by relation, which mixes students, in points",
        ["relation", "points", over_seeds, "n"],
        relations,
        num_names=1,
    )
    lines += titled(
        "Spearman's rank correlation of proxy and utility",
        ["proxy", "kind", "scope", "rho", "95 % over sources", "", "sources"],
        correlations,
        num_names=3,
    )
    lines += titled(
        "Selectivity: extraction lost minus capability lost, as shares of the base model's",
        ["student", "trained on", "condition", "index", over_seeds, kept, lost, "n"],
        selectivity,
        num_names=3,
    )
    if any(row["low"] is not None for rows in (data.utility, data.selectivity) for row in rows):
        lines.append("n: replicates; *: p < 0.05 over seeds, adjusted for all pairs (Holm).")
    return printable([*lines, *data.notes], width)


def _verdicts(data: StudyData, columns: int) -> list[str]:
    width = max((len(str(row["verdict"])) for row in data.verdicts), default=0)
    lines = []
    for row in data.verdicts:
        indent = " " * (width + 2)
        head = f"{str(row['verdict']).upper():<{width}}  {row['finding']}: {row['claim']}"
        lines += textwrap.wrap(head, columns, subsequent_indent=indent)
        lines += textwrap.wrap(str(row["reason"]), columns, initial_indent=indent, subsequent_indent=indent)
        for item in row["evidence"]:
            *figure, behind = evidence(item)
            text = " ".join(filter(None, (f"{item['name']}:", *figure, behind and f"({behind})")))
            lines += textwrap.wrap(text, columns, initial_indent=indent + "- ", subsequent_indent=indent + "  ")
        lines.append("")
    if data.verdicts:
        legend = "n: seeds, of finding 2: sources; p: adjusted (Holm)."
        lines.append(f"Rules: version {data.verdicts[0]['rules']}, docs/rules.md. {legend}")
    for (rules,), rows in grouped(data.older_verdicts, "rules").items():
        found = "; ".join(f"{row['finding']}: {row['verdict']}" for row in rows)
        lines += textwrap.wrap(f"By version {rules}: {found}.", columns, subsequent_indent="  ")
    return [*lines, ""]


def _titled(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]], num_names: int, width: int) -> list[str]:
    """Aligned lines; columns that are empty throughout go, and names that do not fit lose their middle, as far as they
    stay different.
    """
    if not rows:
        return []
    kept = [i for i in range(len(head)) if any(str(row[i]) for row in rows)]
    table = [[re.sub(r"\s", " ", str(row[i])) for i in kept] for row in (head, *rows)]
    names = sum(i < num_names for i in kept)
    widths = [max(len(row[i]) for row in table) for i in range(len(kept))]
    narrower = [_distinct_width([row[i] for row in table[1:]]) for i in range(names)]
    while sum(widths) + 2 * (len(widths) - 1) + 2 > width:
        if not (able := [i for i in range(names) if widths[i] > narrower[i]]):
            break
        widths[max(able, key=lambda i: widths[i])] -= 1
    lines = [title]
    for row in table:
        cells = [
            _squeeze(cell, w).ljust(w) if i < names else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))
        ]
        lines.append("  " + "  ".join(cells))
    return [*lines, ""]


def _distinct_width(names: Sequence[str]) -> int:
    """The least number of columns, from 6 on, that `names` can be squeezed to while different ones stay different."""
    different = set(names)
    width = max(map(len, names))
    while width > 6 and len({_squeeze(name, width - 1) for name in different}) == len(different):
        width -= 1
    return width


def _squeeze(name: str, width: int) -> str:
    if len(name) <= width:
        return name
    tail = (width - 2) // 2
    return f"{name[: width - 2 - tail]}..{name[len(name) - tail :]}"
