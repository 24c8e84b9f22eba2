"""Numbers as text, and the table that a run prints at its end."""

import shutil
import textwrap
from typing import Any, Iterable, Mapping

from selftrain_jax.core.errors import visible
from selftrain_jax.report.data import Estimate, ReportData, finite
from selftrain_jax.report.metric import HELD_OUT, Metric, group_extraction, kind
from selftrain_jax.report.svg import short

WIDTH = 100


def terminal_columns() -> int:
    """How wide a table may be that is printed: as the terminal, at most as in files."""
    return min(WIDTH, max(40, shutil.get_terminal_size((WIDTH, 24)).columns))


def plain(value: Any, keep: type | tuple = ()) -> Any:
    """`value` with only what strict JSON holds, and what is of the types `keep`: numpy scalars and arrays unpacked, NaN
    and infinities as null, metrics and the like as their names.
    """
    if isinstance(value, Mapping):
        return {str(k): plain(v, keep) for k, v in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist(), keep)
    if isinstance(value, (list, tuple)):
        return [plain(v, keep) for v in value]
    if isinstance(value, float):
        return finite(value)
    return value if value is None or isinstance(value, (bool, int, str)) or isinstance(value, keep) else str(value)


def number(value: Any, decimals: int = 2, scale: float = 1, sign: bool = False, unit: str = "") -> str:
    """ "+1.25" with as many decimals (integers as they are), or "-" for None."""
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool) and scale == 1 and not sign:
        return f"{value}{unit}"
    # Adding 0.0 turns the -0.0 that rounding leaves into 0.0.
    return f"{round(scale * value, decimals) + 0.0:{'+' * sign}.{decimals}f}{unit}"


def interval(
    low: float | None,
    high: float | None,
    decimals: int = 2,
    scale: float = 1,
    sign: bool = False,
    unit: str = "",
    comma: str = ", ",
) -> str:
    """ "[+0.10, +2.40]", or "" where either end is missing."""
    if low is None or high is None:
        return ""
    return "[" + comma.join(number(float(end), decimals, scale, sign, unit) for end in (low, high)) + "]"


def estimate(found: Estimate | None, metric: Metric, compact: bool = False) -> tuple[str, str]:
    """(value, interval) in the metric's unit; a compact interval has one decimal less."""
    if found is None:
        return "-", ""
    decimals, comma = (metric.decimals - 1, ",") if compact else (metric.decimals, ", ")
    return (
        number(found.value, metric.decimals, metric.scale),
        interval(found.low, found.high, decimals, metric.scale, comma=comma),
    )


def leak_words(row: Mapping[str, Any]) -> str:
    """What a row of `ReportData.leaks` is of: "wiki, tokens", "probes, 64 repeats, tokens"."""
    group = group_extraction(row["group"]).group_words if row["group"] else ""
    return ", ".join(filter(None, (row["reference"], group, row["unit"])))


def leak_rate(row: Mapping[str, Any]) -> tuple[str, str]:
    """(documents that leak per million of the unit, interval)."""
    return number(row["per_million"], 2), interval(row["per_million_low"], row["per_million_high"], 2)


def _leak_line(row: Mapping[str, Any]) -> str:
    what = f"{leak_words(row)}: {row['leaking']} of {row['documents']} documents repeat {row['least']} or more"
    rates = " ".join(filter(None, (f"per million {row['unit']}", *leak_rate(row))))
    return f"{what}; {rates}; longest {row['most']}"


def format_leaks(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows of `evaluation.leaks.find_leaks`, and the documents that they show, as plain ASCII text."""
    lines = []
    for row in rows:
        lines.append(_leak_line(row))
        for one in row["shown"]:
            before, run, after = (" ".join(one[name].split()) for name in ("before", "run", "after"))
            place = f"document {one['id']}, {one['length']} {row['unit']} from {one['begin']} on"
            lines.append(f"  {place}: ...{before[-60:]} >>{run}<< {after[:60]}...")
    return printable(lines)


def printable(lines: Iterable[str], width: int = WIDTH) -> str:
    """Plain ASCII text, at most `width` columns wide."""
    wrapped = []
    for line in lines:
        line = _ascii(visible(line, mask=" "))
        indent = " " * min(18, width // 4) * line.startswith("  ")
        fits = len(line) <= width
        parts = [line] if fits else textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False)
        wrapped += [part.rstrip() for part in parts]
    return "\n".join(wrapped).strip() + "\n"


def _ascii(text: str) -> str:
    """Other characters escaped: two names stay two."""
    return text.encode("ascii", "backslashreplace").decode()


def format_table(data: ReportData, more: Iterable[str] = (), width: int = WIDTH) -> str:
    """The before/after table and the verdict as plain ASCII text, at most `width` columns wide, of at least 40.

    `more` follows the verdict. Where models would not fit side by side, intervals lose a digit, then give way.
    """
    rows: list[list] = [["", "n", *map(_ascii, data.models)]]
    for name, metrics in data.kinds.items():
        unit = kind(name).unit
        rows.append([kind(name).words + f" ({unit})" * bool(unit)])
        for metric, words in zip(
            metrics, short([_ascii(metric.words) for metric in metrics], min(24, width // 2 - 4), "..")
        ):
            cells = [(data.estimates.get((model, metric)), metric) for model in data.models]
            rows.append([f"  {words}", data.num_items(metric) or "-", *cells])
    lines = [data.title, "", *(layout(rows, width) if data.models else ["No metric was measured."])]
    return printable(
        [
            *lines,
            "",
            "Intervals are 95 %; n: items, of likelihood tokens; '-': not measured.",
            *_verdict(data),
            *more,
            "",
            *data.notes,
        ],
        width,
    )


def layout(rows: list[list], width: int = WIDTH) -> list[str]:
    """Aligns the rows; more models than fit continue in a second block.

    Where not every cell fits in full, intervals lose a digit, and a row whose intervals still do not fit goes without.
    """
    heads = [max(len(row[i]) for row in rows if len(row) > 1) for i in range(2)]
    free = width - sum(heads) - 2
    least = 0 if width == WIDTH else min(free, 16)  # narrower, models go on below each other before intervals go
    room = max(free // (len(rows[0]) - 2), least) - 2

    def written(compact: bool) -> list[list[str]]:
        return [[c if isinstance(c, str) else " ".join(filter(None, estimate(*c, compact))) for c in r] for r in rows]

    def fits(row: list[str]) -> bool:
        return max(map(len, row[2:]), default=0) <= room

    cells = written(compact=False)
    if not all(map(fits, cells[1:])):
        bare = [[c if isinstance(c, str) else estimate(*c)[0] for c in row] for row in rows]
        cells = [rows[0], *(short if fits(short) else bare[i] for i, short in enumerate(written(compact=True)) if i)]
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


def _verdict(data: ReportData) -> list[str]:
    """One line for each trained model on extraction, one on every capability suite; the controls stand beside self."""
    lines = []
    if found := {m: text for m in data.trained if (text := data.extraction_change(m))}:
        what = f"Held-out extraction (no {data.held_out_ngram} words in a row in the training text)"
        what = what if data.headline == HELD_OUT else "Extraction, all probes"
        lines += ["", f"{what}, n {data.num_items(data.headline)}, before -> after:"]
        lines += [f"  {m:<15} {text}" for m, text in found.items()]
    if found := {m: suites for m in data.trained if (suites := data.capability_changes(m))}:
        lines += ["", "Capability against base in points (kept, LOST: by the 95 % interval, at most 2 points below):"]
        for model, suites in found.items():
            shown = {"kept": [], "LOST": [], "undecided": []}
            for suite, change in suites.items():
                word = "LOST" if change.verdict == "lost" else change.verdict
                shown[word].append(f"{suite.words} {number(change.difference, 1, 100, True)}")
            parts = [f"{word}: {', '.join(names)}" for word, names in shown.items() if names]
            lines.append(f"  {model:<15} " + "; ".join(parts))
    if data.contamination:
        lines += [
            "",
            "Capability on items whose question and right answer stand in the training text, and on the others:",
        ]
        for row in data.contamination:
            place = "in the text" if row["in_training_text"] else "not in it"
            before, after, change = (
                number(row[k], 1, 100, k == "difference") for k in ("before", "after", "difference")
            )
            seed = f", seed {row['seed']}" * (len({r["seed"] for r in data.contamination}) > 1)
            ends = interval(row["low"], row["high"], 1, 100, True)
            what = f"{row['metric'].words}, {place} (n {row['n']}){seed}"
            lines.append(f"  {row['model']:<15} {what}: {before} % -> {after} %, {change} {ends}".rstrip())
    if data.leaks:
        lines += ["", "Known text that the text of each model repeats, word for word:"]
    for model, rows in data.leaks.items():
        # Of several groups, the row of all of them comes last.
        shown = {row["reference"]: row for row in rows if row["unit"] == rows[0]["unit"]}
        lines += [f"  {model:<15} {_leak_line(row)}" for row in shown.values()]
    if data.drawn:
        lines += ["", "Documents drawn for training, different ones, and how often each on average:"]
        lines += [f"  {m:<15} {n:,}, {distinct:,}, {n / distinct:.1f}" for m, (n, distinct) in data.drawn.items()]
    return lines
