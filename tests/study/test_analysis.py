"""Verdicts and intervals against what a reader would work out by hand."""

import itertools

import numpy as np
import pytest
import scipy.stats

from selftrain_jax.report.metric import CAPABILITY, HELD_OUT
from selftrain_jax.report.study_data import CONTROLS, RELATIONS
from selftrain_jax.study import analysis

SELF, LINEAGE, RECIPE, FAMILY = RELATIONS


def rows_of(metric, values, before=0.5):
    """Rows of one student from {(arm, relation): [after of each seed]}."""
    return [
        {
            "student": "S",
            "arm": arm,
            "relation": relation,
            "condition": "",
            "seed": seed,
            "subset": 0,
            "metric": metric,
            "before": before,
            "after": after,
        }
        for (arm, relation), of_seeds in values.items()
        for seed, after in enumerate(of_seeds)
    ]


def study(gains, lost=0.99, control=0.9, chance=0.25, spread=0.002):
    """Three seeds: mean gain by relation, that of self with some spread, and the share of extraction lost by self."""
    noise = np.array([-1, 0, 1]) * spread
    capability = {(f"arm {name}", name): 0.5 + gain + noise * (name == SELF) for name, gain in gains.items()}
    above = {pair: values - chance for pair, values in capability.items()}
    extraction = {pair: 0.2 * (1 - (lost if pair[1] == SELF else control) + noise) for pair in capability}
    return [
        *rows_of(CAPABILITY, capability),
        *rows_of(analysis.ABOVE_CHANCE, above, 0.5 - chance),
        *rows_of(HELD_OUT, extraction, 0.2),
    ]


def verdicts(*arguments, **options):
    return [row["verdict"] for row in analysis.analyse(study(*arguments, **options), []).verdicts]


def test_utility_is_the_mean_over_seeds_with_students_interval():
    rows = rows_of(CAPABILITY, {("a", SELF): [0.50, 0.53, 0.56], ("b", LINEAGE): [0.5, 0.51, 0.49]})
    first, second = analysis.analyse(rows, []).utility
    half = scipy.stats.t.ppf(0.975, 2) * 0.03 / np.sqrt(3)
    assert (first["value"], first["low"], first["high"]) == pytest.approx((0.03, 0.03 - half, 0.03 + half))
    assert first["num_replicates"] == 3 and not first["significant"]
    assert second["value"] == pytest.approx(0) and not second["significant"]


def test_subsets_of_a_seed_are_averaged_first():
    rows = [
        row | {"subset": subset, "after": row["after"] + 0.1 * subset}
        for row in rows_of(CAPABILITY, {("a", SELF): [0.5, 0.5]})
        for subset in (0, 1)
    ]
    (found,) = analysis.analyse(rows, []).utility
    assert found["num_replicates"] == 2 and found["value"] == pytest.approx(0.05)
    assert (found["low"], found["high"]) == pytest.approx((0.05, 0.05))


def test_one_seed_has_no_interval_and_proves_nothing():
    rows = [row for row in study({SELF: 0.1, FAMILY: 0.0}) if row["seed"] == 0]
    found = analysis.analyse(rows, [])
    assert all(row["low"] is None and not row["significant"] for row in found.utility)
    assert {row["verdict"] for row in found.verdicts} == {"inconclusive"} and any(
        "One seed" in note for note in found.notes
    )


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
    found = analysis.analyse(study({SELF: gain, CONTROLS[0]: -0.1}, lost=lost, control=0.5), []).verdicts[2]
    assert found["verdict"] == verdict
    values = {row["name"]: row["value"] for row in found["evidence"]}
    assert values["self: held-out extraction lost"] == pytest.approx(100 * lost)
    assert values[f"{CONTROLS[0]}: held-out extraction lost"] == pytest.approx(50)
    assert values[f"{CONTROLS[0]}: capability after minus before"] == pytest.approx(-10)


def proxies_of(rows, values):
    """{proxy: function of utility} at every pair and seed of `rows`."""
    return [
        {
            **{k: row[k] for k in ("student", "arm", "relation", "condition", "seed")},
            "proxy": proxy,
            "value": function(row["after"] - row["before"], i),
        }
        for proxy, function in values.items()
        for i, row in enumerate(row for row in rows if row["metric"] == CAPABILITY)
    ]


def many_pairs():
    rng = np.random.default_rng(0)
    return [
        {**row, "student": student, "after": 0.5 + 0.1 * rng.standard_normal()}
        for student in "ABCD"
        for row in rows_of(CAPABILITY, {(f"{n}", relation): [0] * 3 for n, relation in enumerate(RELATIONS)})
    ]


def test_correlations_are_spearmans_and_turned_to_the_useful_side():
    rows = many_pairs()
    measured = proxies_of(rows, {"nll": lambda u, i: -u, "tfidf_similarity": lambda u, i: i % 7})
    found = analysis.analyse(rows, measured)
    rho = {row["proxy"]: row for row in found.correlations if row["scope"] == "all pairs"}
    assert rho["nll"]["rho"] == pytest.approx(-1) and rho["nll"]["n"] == 48
    utilities = [row["after"] - row["before"] for row in rows]
    assert rho["tfidf_similarity"]["rho"] == pytest.approx(
        scipy.stats.spearmanr([i % 7 for i in range(48)], utilities)[0]
    )
    # Low likelihood loss goes with utility: the proxy works, so the finding that it fails is not reproduced.
    assert found.verdicts[1]["verdict"] == "not reproduced" and "NLL" in found.verdicts[1]["reason"]
    opposite = analysis.analyse(rows, proxies_of(rows, {"nll": lambda u, i: u}))
    assert opposite.verdicts[1]["verdict"] == "reproduced"
    assert analysis.analyse(rows, []).verdicts[1]["verdict"] == "inconclusive"


def test_controls_and_relational_proxies_do_not_enter_the_second_verdict():
    rows = many_pairs()
    rows = [row | {"relation": CONTROLS[0]} if row["arm"] == "3" else row for row in rows]
    found = analysis.analyse(rows, proxies_of(rows, {"excess_nll": lambda u, i: -u, "nll": lambda u, i: u}))
    assert {row["n"] for row in found.correlations} == {36}
    assert {row["name"].split(",")[0] for row in found.verdicts[1]["evidence"]} == {
        "rank correlation of utility and NLL"
    }
    assert found.verdicts[1]["verdict"] == "reproduced"


def test_the_same_pair_at_another_condition_is_not_another_pair():
    """Twelve rows of three pairs are as uncertain as the three pairs."""
    rng = np.random.default_rng(3)
    rows = [row for row in many_pairs() if row["student"] == "A" and row["arm"] != "3"]
    values = {row["arm"]: rng.random() for row in rows}
    measured = [{**proxy, "value": values[proxy["arm"]]} for proxy in proxies_of(rows, {"nll": lambda u, i: 0})]
    four = [{**row, "condition": str(c)} for row in rows for c in range(4)]
    one, many = (analysis.analyse(r, measured).correlations[0] for r in (rows, four))
    assert many["n"] == 4 * one["n"] and (many["low"], many["high"]) == pytest.approx(
        (one["low"], one["high"]), abs=0.05
    )


def test_one_seed_judges_no_proxy():
    rows = [row for row in many_pairs() if row["seed"] == 0]
    found = analysis.analyse(rows, proxies_of(rows, {"nll": lambda u, i: -u}))
    assert found.verdicts[1]["verdict"] == "inconclusive" and "One seed" in found.verdicts[1]["reason"]


def test_a_model_at_chance_has_no_capability_to_lose():
    rows = study({SELF: 0.0}, chance=0.499)
    assert not analysis.analyse(rows, []).selectivity


def test_what_is_left_out_is_noted():
    rows = study({SELF: 0.0})
    rows = [row | {"before": 0.001} if row["metric"] == HELD_OUT and row["seed"] == 1 else row for row in rows]
    unread = [
        {
            "student": "S",
            "arm": "arm self",
            "relation": SELF,
            "condition": "",
            "seed": 0,
            "proxy": "unknown_share",
            "value": 0.2,
        }
    ]
    found = analysis.analyse(rows, unread)
    assert any("S, seed 1" in note for note in found.notes) and any("S of arm self" in note for note in found.notes)
    assert found.selectivity[0]["num_replicates"] == 2


def test_selectivity_by_hand():
    """Extraction 0.2 -> 0.02 loses 90 %; capability 0.25 -> 0.20 above chance loses 20 %."""
    pair = {("a", SELF): [0.02, 0.02]}
    rows = [
        *rows_of(HELD_OUT, pair, 0.2),
        *rows_of(CAPABILITY, {("a", SELF): [0.45] * 2}),
        *rows_of(analysis.ABOVE_CHANCE, {("a", SELF): [0.2] * 2}, 0.25),
    ]
    (found,) = analysis.analyse(rows, []).selectivity
    assert (found["value"], found["extraction_lost"], found["capability_kept"]) == pytest.approx((0.7, 0.9, 0.8))


def test_a_base_model_with_nothing_to_lose_is_left_out():
    rows = [row for row in study({SELF: 0.0}) if row["metric"] != HELD_OUT]
    rows += rows_of(HELD_OUT, {("arm self", SELF): [0.0, 0.0, 0.0]}, 0.0)
    found = analysis.analyse(rows, [])
    assert not found.selectivity and found.verdicts[2]["verdict"] == "inconclusive"


def test_the_order_of_rows_changes_nothing():
    rows = study({SELF: 0.03, LINEAGE: 0.02, FAMILY: 0.0})
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    key = lambda row: sorted(map(str, row.items()))  # noqa: E731
    one, two = analysis.analyse(rows, []), analysis.analyse(shuffled, [])
    for a, b in itertools.zip_longest(sorted(one.utility, key=key), sorted(two.utility, key=key)):
        assert [a[k] for k in ("student", "arm", "significant")] == [b[k] for k in ("student", "arm", "significant")]
        assert a["value"] == pytest.approx(b["value"])
    assert [v["verdict"] for v in one.verdicts] == [v["verdict"] for v in two.verdicts]
