"""Runs side by side."""

import dataclasses
import json
import re

import pytest

from selftrain_jax.report.comparison import Comparison, format_comparison
from selftrain_jax.report.metric import EXTRACTION, HELD_OUT, Metric
from selftrain_jax.report.page import render_comparison
from tests.report.pages import check_script

OFFSET = Metric("extraction", offset=(64, None))
SAMPLED = Metric("discoverable", samples=(8, 0.5))
NLL, SUITE = Metric("nll", "wiki"), Metric("capability", "sciq")


def report(items, n=100, **settings):
    """What report.json holds of a run: base and self, with the fingerprint of each metric's items."""
    rows = [
        {"model": model, "metric": metric.name, "value": value, "low": value, "high": value, "n": n, "seed": seed}
        for metric in items
        for model, value, seed in (("base", 0.5, 0), ("self", 0.1, 0), ("self", 0.3, 1))
    ]
    # As JSON gives it back: tuples are lists.
    figures = {m.name: dataclasses.asdict(m) | {"items": of} for m, of in items.items()}
    return {
        "metrics": rows,
        "figures": json.loads(json.dumps(figures)),
        "settings": {"train": {"epochs": 2, **settings}, "title": "x"},
    }


SAME = {EXTRACTION: "p", HELD_OUT: "h", OFFSET: "o", SAMPLED: "d", NLL: "w", SUITE: "s"}


def test_figures_of_the_same_items_stand_side_by_side():
    found = Comparison(["a", "b"], [report(SAME), report(SAME, epochs=3)])
    assert found.settings == [("train.epochs", [2, 3])]
    assert found.apart == {} and list(found.figures) == ["base", "self"]
    means = {f.metric: [e.value for e in f.estimates] for f in found.figures["self"]}
    assert means.keys() == SAME.keys() and all(value == pytest.approx([0.2, 0.2]) for value in means.values())
    text = format_comparison(found)
    assert "train.epochs: a: 2 | b: 3" in text and "COMPARABLE" not in text
    assert re.search(r"^  all probes +100 +50.0 \[50.0, 50.0\] +50.0 \[50.0, 50.0\]$", text, re.M)


def test_every_run_is_shown_with_its_own_settings():
    """Also where a group of settings is off in one of three runs, and differs between the others."""
    runs = [report(SAME, recovery=of) for of in ({"steps": 1, "rows": 8}, None, {"steps": 5, "rows": 8})]
    found = Comparison(["a", "b", "c"], runs)
    assert found.settings == [("train.recovery", [run["settings"]["train"]["recovery"] for run in runs])]
    runs = [report(SAME, texts=of) for of in ({"x": 1}, {"y": 2}, {"x": 3, "y": 2})]
    assert Comparison(["a", "b", "c"], runs).settings == [
        ("train.texts.x", [1, None, 3]),
        ("train.texts.y", [None, 2, 2]),
    ]


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({HELD_OUT: "x"}, "other held-out probes"),
        ({EXTRACTION: "x"}, "other probes"),
        ({EXTRACTION: "x", HELD_OUT: "x", OFFSET: "x"}, "other probes"),
        ({SUITE: "x"}, "other items"),
        ({NLL: "x"}, "another text"),
    ],
)
def test_figures_of_other_items_are_marked_in_their_row(changed, reason):
    found = Comparison(["a", "b"], [report(SAME), report(SAME | changed)])
    assert found.apart == {reason: list(changed)}
    text = format_comparison(found)
    marked = re.findall(r"^! .* 100 ", text, re.M)
    assert len(marked) == 2 * len(changed)  # base and self
    assert f"NOT COMPARABLE, {reason}: " in text
    assert render_comparison(found).count(f"not comparable: {reason}") == 2 * len(changed)


def test_counts_of_items_that_differ_are_shown_run_by_run():
    found = Comparison(["a", "b", "c"], [report({SUITE: "1"}), report({SUITE: "2"}, n=7), report({NLL: "w"})])
    counts = {figure.metric: figure.counts for figure in found.figures["base"]}
    assert counts == {SUITE: "100|7|-", NLL: "100"}
    assert [figure.apart for figure in found.figures["base"]] == ["other items", ""]
    assert re.search(r"^! sciq +100\|7\|- +50.0.* +50.0.* +-$", format_comparison(found), re.M)


def test_the_page_escapes_and_reaches_nowhere():
    found = Comparison(["<a>", "b"], [report(SAME), report(SAME, epochs="<i>")])
    page = render_comparison(found)
    assert "<a>" not in page and "<i>" not in page and "&lt;i&gt;" in page
    check_script(page)
    assert not re.search(r"https?://", page)
