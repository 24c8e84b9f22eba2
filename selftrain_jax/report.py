"""The report of one run: report.json, one self-contained HTML page, and the table printed at the end of the run."""

import dataclasses
import os
import pathlib
import re
import textwrap
from typing import Any, Mapping
import unicodedata

from selftrain_jax import files
from selftrain_jax import report_data as rd
from selftrain_jax.report_data import ReportData

SCHEMA = 1
_WIDTH = 100


def format_estimate(estimate: rd.Estimate | None, rate: bool, compact: bool = False, interval: bool = True) -> str:
    """"93.1 [90.0, 95.4]" (percent when `rate`, nats or as measured otherwise), or "-" where nothing was measured."""
    if estimate is None:
        return "-"
    scale, digits = (100, 1) if rate else (1, 3)
    text = f"{scale * estimate.value:.{digits}f}"
    if interval and estimate.low is not None and estimate.high is not None:
        digits, comma = (digits - 1, ",") if compact else (digits, ", ")
        text += f" [{scale * estimate.low:.{digits}f}{comma}{scale * estimate.high:.{digits}f}]"
    return text


def format_table(data: ReportData) -> str:
    """The before/after table and the verdict as plain ASCII text, at most 100 columns wide.

    Intervals lose a digit, then give way, when the models would not fit side by side otherwise.
    """
    names, table = rd.models(data), rd.estimates(data)
    rows: list[list] = [["", "n", *names]]
    for kind, metrics in rd.metric_groups(data).items():
        rows.append([f"{kind} ({rd.UNITS[kind]})" if kind in rd.UNITS else kind])
        for metric in metrics:
            name = rd.metric_name(metric)
            n = rd.num_items(table, metric)
            rows.append([f"  {name if len(name) <= 24 else name[:22] + '..'}", "-" if n is None else str(n),
                         *((table.get((m, metric)), rd.is_rate(metric)) for m in names)])
    lines = [data.title, "", *(_layout(rows) if names else ["No metric was measured."])]
    lines += ["", "Intervals are 95 %; n: items; '-': not measured.", *_verdict(data), "", *rd.notes(data)]
    lines = [part for line in lines for part in textwrap.wrap(
        line, _WIDTH, subsequent_indent=" " * 18 if line.startswith("  ") else "", break_on_hyphens=False) or [""]]
    return "\n".join(line.rstrip() for line in lines).strip().encode("ascii", "replace").decode() + "\n"


def _layout(rows: list[list]) -> list[str]:
    """Aligns the rows at the widest form of their cells that fits; more models than fit continue in a second block."""
    for options in ({}, {"compact": True}, {"interval": False}):
        cells = [[c if isinstance(c, str) else format_estimate(*c, **options) for c in row] for row in rows]
        full = [row for row in cells if len(row) > 1]
        widths = [max(len(row[i]) for row in full) for i in range(len(full[0]))]
        free = _WIDTH - widths[0] - 2 - widths[1]
        if sum(width + 2 for width in widths[2:]) <= free:
            break
    fits = max(1, free // (2 + max(widths[2:])))
    lines = []
    for start in range(2, len(widths), fits):
        lines += [""] * bool(lines)
        for row in cells:
            head = row[0].ljust(widths[0]) + (f"  {row[1]:>{widths[1]}}" if len(row) > 1 else "")
            lines.append(head + "".join(f"  {cell:>{widths[i]}}" for i, cell in enumerate(row) if start <= i < start + fits))
    return lines


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
        lines += ["", "Capability within 2 points of base, change in points:"]
        for model, suites in found.items():
            parts = [
                f"{word}: " + ", ".join(f"{rd.metric_name(s)} {100 * c.difference:+.1f}{'*' * c.verdict.endswith('*')}"
                                    for s, c in group.items())
                for word, outside in (("yes", False), ("NO", True))
                if (group := {s: c for s, c in suites.items() if (c.verdict == "outside") == outside})
            ]
            lines.append(f"  {model:<15} " + "; ".join(parts))
        if any(c.verdict == "within*" for suites in found.values() for c in suites.values()):
            lines.append("  * the 95 % interval reaches beyond 2 points")
    return lines


def write_report(directory: str | os.PathLike, data: ReportData) -> None:
    """Writes `report.json` and `report.html` into `directory` (created when missing), each atomically."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    value = {"schema": SCHEMA, "metrics": [{name: row[name] for name in rd.METRIC_FIELDS} for row in data.metrics]}
    for field in dataclasses.fields(data):
        if field.name not in (*value, "samples", "learning_curves"):
            value[field.name] = getattr(data, field.name)
    files.write_json(directory / "report.json", _plain(value))
    files.write_atomic(directory / "report.html", render_html(data).encode("utf-8", "replace"))


def render_html(data: ReportData) -> str:
    """The whole page as one string: no script, no network, figures as inline SVG, every text from the run escaped."""
    import jinja2

    from selftrain_jax import report_plots

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    )
    environment.filters |= {"typeset": _typeset, "document": _document, "flat": _flat, "cell": _cell, "estimate": _split_estimate, "duration": _duration}
    return environment.get_template("report_template.html").render(
        rd=rd, data=data, table=rd.estimates(data), changes=rd.changes(data), models=rd.models(data),
        groups=rd.metric_groups(data), figures=report_plots.figures(data), styles=report_plots.styles(rd.models(data)),
    )


def _plain(value: Any) -> Any:
    """`value` with only what strict JSON holds: numpy scalars and arrays unpacked, NaN and infinities as null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return rd.number(value)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _typeset(text: str) -> str:
    """Proper minus signs and arrows, and no line break before a percent sign."""
    return re.sub(r"(?<![\w.])-(?=\d)", "\N{MINUS SIGN}", text.replace(" -> ", " \N{RIGHTWARDS ARROW} ").replace(" %", "\xa0%"))


def _cell(change: rd.Change, rate: bool) -> tuple[str, str]:
    """(change, interval) for the table of changes: points for a rate, nats or as measured otherwise, percent if relative."""
    def show(x: float, percent_sign: bool) -> str:
        return f"{100 * x:+.1f}" + " %" * percent_sign if rate or percent_sign else f"{x:+.3f}"
    value = show(change.relative, True) if change.difference is None else show(change.difference, False)
    if change.low is None or change.high is None:
        return value, ""
    return value, f"[{show(change.low, change.bounds_relative)}, {show(change.high, change.bounds_relative)}]"


def _split_estimate(estimate: rd.Estimate | None, rate: bool) -> tuple[str, str]:
    """(value, interval) for the table of metrics."""
    value, _, interval = format_estimate(estimate, rate).partition(" ")
    return value, interval


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _document(text: str, limit: int = 4000) -> str:
    """The first `limit` characters with control characters made visible: a sample may hold any byte."""
    shown = "".join(
        "\N{REPLACEMENT CHARACTER}" if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cs") else c for c in text[:limit]
    )
    return shown + (f"\n... ({len(text) - limit} more characters)" if len(text) > limit else "")


def _flat(value: Mapping, prefix: str = "") -> list[tuple[str, str]]:
    """(dotted name, value) of every leaf of a nested dict."""
    leaves = []
    for name, item in value.items():
        if isinstance(item, Mapping) and item:
            leaves += _flat(item, f"{prefix}{name}.")
        else:
            leaves.append((f"{prefix}{name}", str(item)))
    return leaves
