"""The report of one run: report.json, one self-contained HTML page, and the table printed at the end of the run."""

import dataclasses
import os
import pathlib
import re
import textwrap
import unicodedata
from typing import Any, Mapping

from selftrain_jax.core import files
from selftrain_jax.report import data as rd
from selftrain_jax.report import plots as report_plots
from selftrain_jax.report.data import ReportData

SCHEMA = 1
_WIDTH = 100


def format_estimate(estimate: rd.Estimate | None, metric: str, compact: bool = False, interval: bool = True) -> str:
    """ "93.1 [90.0, 95.4]" (percent for rates, else in the metric's unit), or "-" where nothing was measured."""
    if estimate is None:
        return "-"
    scale = 100 if rd.is_rate(metric) else 1
    digits = 1 if scale == 100 or metric.startswith("first_mismatch/") else 3
    text = f"{scale * estimate.value:.{digits}f}"
    if interval and estimate.low is not None and estimate.high is not None:
        digits, comma = (digits - 1, ",") if compact else (digits, ", ")
        text += f" [{scale * estimate.low:.{digits}f}{comma}{scale * estimate.high:.{digits}f}]"
    return text


def format_table(data: ReportData) -> str:
    """The before/after table and the verdict as plain ASCII text, at most 100 columns wide.

    Where the models would not fit side by side otherwise, intervals lose a digit, then give way.
    """
    names, table = rd.models(data), rd.estimates(data)
    rows: list[list] = [["", "n", *names]]
    for kind, metrics in rd.metric_groups(data).items():
        rows.append([rd.group_name(kind) + (f" ({rd.UNITS[kind]})" if kind in rd.UNITS else "")])
        for metric in metrics:
            name, n = rd.metric_name(metric), rd.num_items(table, metric)
            head = [f"  {name if len(name) <= 24 else name[:22] + '..'}", "-" if n is None else str(n)]
            rows.append(head + [(table.get((m, metric)), metric) for m in names])
    lines = [data.title, "", *(_layout(rows) if names else ["No metric was measured."])]
    lines += ["", "Intervals are 95 %; n: items; '-': not measured.", *_verdict(data), "", *rd.notes(data)]
    lines = [
        part
        for line in lines
        for part in textwrap.wrap(
            line, _WIDTH, subsequent_indent=" " * 18 if line.startswith("  ") else "", break_on_hyphens=False
        )
        or [""]
    ]
    return "\n".join(line.rstrip() for line in lines).strip().encode("ascii", "replace").decode() + "\n"


def _layout(rows: list[list]) -> list[str]:
    """Aligns the rows; more models than fit continue in a second block.

    Where not every cell fits in full, intervals lose a digit, and a row whose intervals still do not fit goes without.
    """
    heads = [max(len(row[i]) for row in rows if len(row) > 1) for i in range(2)]
    free = _WIDTH - sum(heads) - 2
    room = free // (len(rows[0]) - 2) - 2
    forms = ({}, {"compact": True}, {"interval": False})
    full, compact, plain = ([_write(row, **form) for row in rows] for form in forms)

    def fits(row: list[str]) -> bool:
        return max(map(len, row[2:]), default=0) <= room

    cells = full
    if not all(map(fits, full[1:])):
        cells = [rows[0], *(short if fits(short) else bare for short, bare in zip(compact[1:], plain[1:]))]
    widths = heads + [max(len(row[i]) for row in cells if len(row) > 1) for i in range(2, len(cells[0]))]
    per_block = max(1, free // (2 + max(widths[2:])))
    lines = []
    for start in range(2, len(widths), per_block):
        lines += [""] * bool(lines)
        for row in cells:
            head = row[0].ljust(widths[0]) + (f"  {row[1]:>{widths[1]}}" if len(row) > 1 else "")
            shown = [f"  {cell:>{widths[i]}}" for i, cell in enumerate(row) if start <= i < start + per_block]
            lines.append(head + "".join(shown))
    return lines


def _write(row: list, **form) -> list[str]:
    return [cell if isinstance(cell, str) else format_estimate(*cell, **form) for cell in row]


def _verdict(data: ReportData) -> list[str]:
    """One line for each trained model on extraction, one on every capability suite; the controls stand beside self."""
    trained = [m for m in rd.models(data) if m != "base"]
    lines = []
    if found := {m: text for m in trained if (text := rd.extraction_change(data, m))}:
        held_out = rd.headline_metric(data) == "extraction/held_out"
        what = f"Held-out extraction (no {data.held_out_ngram}-gram of the probe occurs in the training subset)"
        lines += ["", f"{what if held_out else 'Extraction, all probes'}, before -> after:"]
        lines += [f"  {m:<15} {text}" for m, text in found.items()]
    if found := {m: suites for m in trained if (suites := rd.capability_changes(data, m))}:
        lines += ["", "Capability against base in points (kept: at most 2 points below, or better):"]
        for model, suites in found.items():
            parts = [
                f"{word}: "
                + ", ".join(
                    f"{rd.metric_name(s)} {100 * c.difference:+.1f}{'*' * c.verdict.endswith('*')}"
                    for s, c in group.items()
                )
                for word, lost in (("kept", False), ("LOST", True))
                if (group := {s: c for s, c in suites.items() if (c.verdict == "lost") == lost})
            ]
            lines.append(f"  {model:<15} " + "; ".join(parts))
        if any(c.verdict == "kept*" for suites in found.values() for c in suites.values()):
            lines.append("  * the 95 % interval reaches further below")
    return lines


def write_report(directory: str | os.PathLike, data: ReportData) -> None:
    """Writes `report.json` and `report.html` into `directory` (created when missing), each atomically."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    value = {"schema": SCHEMA, "metrics": [{name: row[name] for name in rd.METRIC_FIELDS} for row in data.metrics]}
    for field in dataclasses.fields(data):
        if field.name not in (*value, "samples", "learning_curves"):
            value[field.name] = getattr(data, field.name)
    files.write_json(directory / "report.json", plain(value))
    files.write_atomic(directory / "report.html", render_html(data).encode("utf-8", "replace"))


def render_html(data: ReportData) -> str:
    """The whole page as one string: no script, no network, figures as inline SVG, every text from the run escaped."""

    return (
        environment()
        .get_template("run.html")
        .render(
            rd=rd,
            data=data,
            table=rd.estimates(data),
            changes=rd.changes(data),
            models=rd.models(data),
            groups=rd.metric_groups(data),
            figures=report_plots.figures(data),
            styles=report_plots.styles(rd.models(data)),
        )
    )


def environment():
    """The templates of this package and of its parts; every text that is put in is escaped."""
    import jinja2

    loaded = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates"),
    )
    loaded.filters |= {
        "typeset": typeset,
        "document": _document,
        "flat": _flat,
        "cell": _cell,
        "estimate": _split_estimate,
        "duration": _duration,
        "count": _count,
    }
    return loaded


def plain(value: Any) -> Any:
    """`value` with only what strict JSON holds: numpy scalars and arrays unpacked, NaN and infinities as null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return rd.number(value)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def typeset(text: str) -> str:
    """Proper minus signs and arrows, and no line break before a percent sign."""
    text = text.replace(" -> ", " \N{RIGHTWARDS ARROW} ").replace(" %", "\N{NO-BREAK SPACE}%")
    return re.sub(r"(?<![\w.])-(?=\d)", "\N{MINUS SIGN}", text)


def _cell(change: rd.Change, rate: bool) -> tuple[str, str]:
    """(change, interval) for the table of changes: points for a rate, percent if relative, else its own unit."""

    def show(x: float, percent_sign: bool) -> str:
        return f"{100 * x:+.1f}" + " %" * percent_sign if rate or percent_sign else f"{x:+.3f}"

    value = show(change.relative, True) if change.bounds_relative else show(change.difference, False)
    if change.low is None or change.high is None:
        return value, ""
    return value, f"[{show(change.low, change.bounds_relative)}, {show(change.high, change.bounds_relative)}]"


def _split_estimate(estimate: rd.Estimate | None, metric: str) -> tuple[str, str]:
    """(value, interval) for the table of metrics."""
    value, _, interval = format_estimate(estimate, metric).partition(" ")
    return value, interval


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _document(text: str, limit: int = 4000) -> str:
    """The first `limit` characters with control characters made visible: a sample may hold any byte."""
    shown = "".join(
        "\N{REPLACEMENT CHARACTER}" if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cs") else c
        for c in text[:limit]
    )
    return shown + (f"\n... ({len(text) - limit} more characters)" if len(text) > limit else "")


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
