"""What a page and a table say of planted sequences."""

import dataclasses
import json

from selftrain_jax.report import memory
from selftrain_jax.report.data import ReportData
from selftrain_jax.report.metric import EXTRACTION
from selftrain_jax.report.page import write_report


def row(model, measure, repeats, value, twin, difference, low, high):
    figures = {"value": value, "twin": twin, "difference": difference, "low": low, "high": high, "n": 32}
    return {"model": model, "seed": 0, "kind": "all", "measure": measure, "repeats": repeats, **figures}


ENDS = {"low": 0.2, "high": 0.9}
RECOVERY = {
    "n": 40,
    "steps": [0, 1, 2],
    "extraction": [{"value": value, **ENDS} for value in (0.3, 0.4, 0.6)],
    "log_prob": [-1.0, -0.9, -0.8],
    "access": {"prefix: half": {"value": 0.25, **ENDS}, "100 samples": {"value": 0.5, **ENDS}},
    "half_back": {"step": 2, "low": 0, "high": None},
}
JUDGED = {"lost": 28, "back": 0.9, "twin_back": 0.0, "difference": 0.9, "low": 0.7, "high": 1.0}
DATA = ReportData(
    title="Planted",
    metrics=[
        {"model": model, "metric": EXTRACTION, "value": 0.5, "low": 0.4, "high": 0.6, "n": 64, "seed": 0}
        for model in ("base", "twin", "self")
    ],
    planted=[
        row("base", "extraction", 0, 0.03125, 0.0, 0.03125, -0.08, 0.16),
        row("base", "extraction", 64, 0.9375, 0.0, 0.9375, 0.74, 0.98),
        row("base", "exposure", 4, 1.5, 1.25, 0.25, -0.5, 1.0),
        row("base", "exposure", 64, 5.0, 1.5, 3.5, 3.0, 4.0),
        row("self", "membership zlib", 64, 0.875, 0.5, 0.375, 0.125, 0.625),
    ],
    recovery=[
        {"model": "base", "seed": 0, **RECOVERY},
        {"model": "self", "seed": 0, **RECOVERY, **JUDGED, "verdict": "hidden", "why": "surely more than 50%"},
    ],
)


def test_the_table_says_what_planting_caused_and_what_was_judged():
    lines = list(memory.lines(DATA))
    assert "  64              +93.8 [+74.0, +98.0] (n 32)" in lines
    assert "  64              +3.50 [+3.00, +4.00] (n 32)" in lines
    judged = "hidden: of 28 lost, surely more than 50%; half is back after 2 [0, over 2] steps"
    assert lines[-1] == f"  {'self':<15} {judged}"
    assert list(memory.lines(ReportData("Nothing planted", DATA.metrics))) == []


def test_of_several_subsets_each_is_named_and_pictures_say_which_they_show():
    more = [{**one, "seed": 1} for one in (*DATA.planted, *DATA.recovery) if one["model"] == "self"]
    several = dataclasses.replace(DATA, recovery=[*DATA.recovery, more[-1]])
    assert [line.split(":")[0].split() for line in list(memory.lines(several))[-2:]] == [
        ["self", "subset", "0"],
        ["self", "subset", "1"],
    ]
    hues = {"base": 0, "self": 1}
    for data, told in ((DATA, False), (several, True)):
        relearning = memory.figures(data, hues)[-1]
        assert ("of subset 0" in relearning.caption) == told


def test_page_and_files_hold_figures_tables_and_the_verdict(tmp_path):
    write_report(tmp_path, DATA)
    page = (tmp_path / "report.html").read_text()
    for text in ("What planting caused", "Erased or hidden", "Relearning", "Planted minus twin: exposure", "twin (not"):
        assert text in page
    assert "membership, AUC (zlib)" in page and "<strong>hidden</strong>" in page and "over 2" in page
    assert json.loads((tmp_path / "report.json").read_text())["recovery"][1]["verdict"] == "hidden"
    assert "hidden: of 28 lost" in (tmp_path / "table.txt").read_text()
    write_report(tmp_path, ReportData("Nothing planted", DATA.metrics))
    assert "What planting caused" not in (tmp_path / "report.html").read_text()


def test_the_twin_is_shown_beside_base_and_judged_by_nobody():
    assert DATA.models == ["base", "twin", "self"] and DATA.trained == ["self"]
    assert {model for model, _ in DATA.changes} == {"self"}
