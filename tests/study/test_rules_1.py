"""The verdicts that the first rules gave, as they gave them."""

import csv
import pathlib

import pytest

from selftrain_jax.report.metric import CAPABILITY, HELD_OUT
from selftrain_jax.report.study_data import CONTROLS
from selftrain_jax.study import analysis
from tests.study.made import FAMILY, LINEAGE, RECIPE, SELF, many_pairs, proxies_of, study

LAB = pathlib.Path(__file__).parents[2] / "docs" / "results" / "lab" / "tables"


def test_the_first_study_is_judged_as_it_was():
    """What its page said on 2026-11-23 follows from its stored rows, figure by figure."""
    tables = {name: list(csv.DictReader((LAB / f"{name}.csv").open())) for name in ("results", "proxies", "verdicts")}
    named = {metric.name: metric for metric in (CAPABILITY, HELD_OUT)}
    results = [
        row | {"metric": named[row["metric"]], "before": float(row["before"]), "after": float(row["after"])}
        for row in tables["results"]
        if row["metric"] in named
    ]
    found = analysis.analyse(results, [row | {"value": float(row["value"])} for row in tables["proxies"]])
    of_1 = [row for row in found.older_verdicts if row["rules"].startswith("1 ")]
    stored = [row for row in tables["verdicts"] if row.get("rules", "1 ").startswith("1 ")]
    assert [(row["finding"], row["verdict"]) for row in of_1 for _ in row["evidence"]] == [
        (row["finding"], row["verdict"]) for row in stored
    ]
    for ours, theirs in zip([item for row in of_1 for item in row["evidence"]], stored):
        assert ours["name"] == theirs["name"]
        figures = [float(theirs[name]) for name in ("value", "low", "high")]
        assert [ours[name] for name in ("value", "low", "high")] == pytest.approx(figures, abs=1e-9)


def verdicts(*arguments, **options):
    return [row["verdict"] for row in analysis.analyse(study(*arguments, **options), []).older_verdicts]


@pytest.mark.parametrize(
    "gains, verdict",
    [
        ({SELF: 0.03, LINEAGE: 0.02, RECIPE: 0.01, FAMILY: 0.0}, "reproduced"),
        ({SELF: 0.03, LINEAGE: 0.0, RECIPE: 0.01, FAMILY: -0.02}, "inconclusive"),  # the order is another
        ({SELF: 0.0, LINEAGE: 0.02, RECIPE: 0.02, FAMILY: 0.02}, "not reproduced"),
        (
            {SELF: 0.004, LINEAGE: 0.003, RECIPE: 0.002, FAMILY: 0.001},
            "not reproduced",
        ),  # surely, but by next to nothing
        ({SELF: -0.03, LINEAGE: -0.04, RECIPE: -0.06, FAMILY: -0.08}, "not reproduced"),  # the least harm is no help
        ({SELF: 0.03}, "inconclusive"),
    ],
    ids=str,
)
def test_the_first_finding(gains, verdict):
    assert verdicts(gains)[0] == verdict


def test_the_first_finding_with_an_interval_that_holds_0_and_more_than_a_point():
    assert verdicts({SELF: 0.02, LINEAGE: 0.01, FAMILY: 0.0}, spread=0.03)[0] == "inconclusive"


@pytest.mark.parametrize("gain, verdict", [(0.004, "not reproduced"), (0.03, "reproduced")])
def test_self_text_must_surely_help_by_more_than_next_to_nothing(gain, verdict):
    gains = {SELF: gain, LINEAGE: 0.003, RECIPE: 0.002, FAMILY: 0.001}
    assert verdicts(gains, spread=0.0)[0] == verdict


@pytest.mark.parametrize(
    "gain, lost, verdict",
    [
        (0.0, 0.99, "reproduced"),
        (-0.05, 0.99, "not reproduced"),
        (0.0, 0.8, "not reproduced"),
        (-0.02, 0.99, "inconclusive"),
        (0.01, 0.95, "inconclusive"),
    ],
)
def test_the_third_finding(gain, lost, verdict):
    found = analysis.analyse(study({SELF: gain, CONTROLS[0]: -0.1}, lost=lost, control=0.5), []).older_verdicts[2]
    assert found["verdict"] == verdict
    values = {row["name"]: row["value"] for row in found["evidence"]}
    assert values["self: held-out extraction lost"] == pytest.approx(100 * lost)
    assert values[f"{CONTROLS[0]}: held-out extraction lost"] == pytest.approx(50)
    assert values[f"{CONTROLS[0]}: capability after minus before"] == pytest.approx(-10)


def test_the_second_finding_is_judged_over_all_pairs():
    rows = many_pairs()
    opposite, useful = (
        analysis.analyse(rows, proxies_of(rows, {"nll": function})).older_verdicts[1]
        for function in (lambda u, i: u, lambda u, i: -u)
    )
    # Low likelihood loss goes with utility: the proxy works, so the finding that it fails is not reproduced.
    assert useful["verdict"] == "not reproduced" and "NLL" in useful["reason"]
    assert opposite["verdict"] == "reproduced"
    assert analysis.analyse(rows, []).older_verdicts[1]["verdict"] == "inconclusive"


def test_two_rules_were_changed_after_numbers_had_been_seen():
    """Version 0 is finding 1 before that: harm that is less than others' was open or a success, and so was next to no
    advantage."""
    for gains, first in (
        ({SELF: -0.03, LINEAGE: -0.04, RECIPE: -0.06, FAMILY: -0.08}, "reproduced"),
        ({SELF: 0.004, LINEAGE: 0.003, RECIPE: 0.002, FAMILY: 0.001}, "reproduced"),
        ({SELF: 0.001, LINEAGE: 0.001, RECIPE: 0.001, FAMILY: 0.001}, "not reproduced"),  # by both
    ):
        one, _, _, zero = analysis.analyse(study(gains, spread=0.0005), []).older_verdicts
        assert (one["rules"], one["verdict"]) == ("1 (2026-11-23)", "not reproduced")
        assert zero["rules"].startswith("0 ") and zero["finding"] == one["finding"] and zero["verdict"] == first


def test_one_seed_judges_no_proxy():
    rows = [row for row in many_pairs() if row["seed"] == 0]
    found = analysis.analyse(rows, proxies_of(rows, {"nll": lambda u, i: -u}))
    second = found.older_verdicts[1]
    assert second["verdict"] == "inconclusive" and "One seed" in second["reason"]
