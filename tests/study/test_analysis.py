"""Tables against what a reader would work out by hand."""

import itertools

import numpy as np
import pytest
import scipy.stats

from selftrain_jax.report.metric import CAPABILITY, HELD_OUT
from selftrain_jax.report.study_data import CONTROLS, UNTRAINED
from selftrain_jax.study import analysis
from selftrain_jax.study.replicates import ABOVE_CHANCE
from tests.study.made import FAMILY, LINEAGE, SELF, many_pairs, proxies_of, rows_of, study


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
    assert (found["low"], found["p_value"], found["significant"]) == (None, 1, False), "the seeds do not differ"


def test_one_seed_has_no_interval_and_proves_nothing():
    rows = [row for row in study({SELF: 0.1, FAMILY: 0.0}) if row["seed"] == 0]
    found = analysis.analyse(rows, [])
    assert all(row["low"] is None and not row["significant"] for row in found.utility)
    assert {row["verdict"] for row in found.verdicts} == {"inconclusive"} and any(
        "One seed" in note for note in found.notes
    )


def test_pairs_of_other_seeds_are_told_though_each_has_as_many():
    """Two pairs, each done in one seed: the mean of their relation has an interval, over different pairs."""
    rows = rows_of(CAPABILITY, {("a", FAMILY): [0.6, 0.5], ("b", FAMILY): [0.5, 0.7]})
    rows = [row for row in rows if (row["arm"], row["seed"]) in (("a", 0), ("b", 1))]
    found = analysis.analyse(rows, [])
    assert [row["num_replicates"] for row in found.utility] == [1, 1] and found.by_relation[0]["low"] is not None
    assert [note.split(":")[0] for note in found.notes] == ["Some pairs lack seeds"]


def test_a_star_stands_for_all_arms_together():
    """One arm of twelve at p = 0.02 is what chance gives; at p < 0.004 it is marked."""
    values = {(f"{i}", FAMILY): [0.5 - x, 0.5, 0.5 + x] for i, x in enumerate(np.linspace(0.01, 0.02, 11))}
    for gain, marked in ((0.04, False), (0.16, True)):
        rows = rows_of(CAPABILITY, values | {("a", SELF): 0.5 + gain + np.array([-0.01, 0, 0.01])})
        found = {row["arm"]: row for row in analysis.analyse(rows, []).utility}
        alone = scipy.stats.ttest_1samp([gain - 0.01, gain, gain + 0.01], 0).pvalue
        assert alone < 0.025 and found["a"]["low"] > 0
        assert found["a"]["p_value"] == pytest.approx(12 * alone) and found["a"]["significant"] is marked
        assert [row["significant"] for row in found.values()].count(True) == marked


def test_relations_are_compared_within_students():
    """Lineage is 2 points above family for each student that has both; the means over all pairs say 4 points below,
    because the easy student has no lineage."""
    gains = {"A": {SELF: 0.0, LINEAGE: -0.08, FAMILY: -0.1}, "B": {SELF: 0.06, FAMILY: 0.02}}
    rows = [
        row | {"student": student}
        for student, of_student in gains.items()
        for row in rows_of(
            CAPABILITY, {(n, n): [0.5 + gain + e for e in (-0.01, 0, 0.01)] for n, gain in of_student.items()}
        )
    ]
    found = analysis.analyse(rows, [])
    means = {row["relation"]: row["value"] for row in found.by_relation}
    assert means[LINEAGE] - means[FAMILY] == pytest.approx(-0.04)
    values = {(row["relation"], row["minus"], row["student"]): row["value"] for row in found.contrasts}
    assert values == pytest.approx(
        {
            (SELF, LINEAGE, ""): 0.08,
            (SELF, LINEAGE, "A"): 0.08,
            (SELF, FAMILY, ""): 0.07,
            (SELF, FAMILY, "A"): 0.1,
            (SELF, FAMILY, "B"): 0.04,
            (LINEAGE, FAMILY, ""): 0.02,
            (LINEAGE, FAMILY, "A"): 0.02,
        }
    )
    assert all(row["num_replicates"] == 3 for row in found.contrasts)


def test_correlations_are_within_students_and_over_all_pairs():
    rows = many_pairs()
    measured = proxies_of(rows, {"nll": lambda u, i: -u, "tfidf_similarity": lambda u, i: i % 7})
    found = {(row["proxy"], row["scope"]): row for row in analysis.analyse(rows, measured).correlations}
    assert found["nll", "within students"]["rho"] == pytest.approx(-1) and found["nll", "all pairs"]["n"] == 48
    assert {row["sources"] for row in found.values()} == {4}
    utilities = [row["after"] - row["before"] for row in rows]
    whole = found["tfidf_similarity", "all pairs"]
    assert whole["rho"] == pytest.approx(scipy.stats.spearmanr([i % 7 for i in range(48)], utilities)[0])
    assert (whole["low"], whole["high"], whole["p_value"]) == (None, None, None), "pairs are not independent"


def test_texts_that_a_student_cannot_read_are_in_no_correlation():
    rows = many_pairs()
    measured = proxies_of(rows, {"tfidf_similarity": lambda u, i: u, "unknown_share": lambda u, i: 0.0})
    unread = [
        row | {"value": 0.2} if row["proxy"] == "unknown_share" and (row["student"], row["arm"]) == ("A", "2") else row
        for row in measured
    ]
    found = analysis.analyse(rows, unread)
    assert {row["n"] for row in found.correlations} == {45} and "A of 2" in " ".join(found.notes)
    assert {row["n"] for row in analysis.analyse(rows, measured).correlations} == {48}


def test_a_likelihood_that_finding_2_cannot_use_is_noted():
    rows = many_pairs()
    for proxies, noted in (("nll",), True), (("nll", "bits_per_byte"), False):
        found = analysis.analyse(rows, proxies_of(rows, dict.fromkeys(proxies, lambda u, i: -u)))
        assert any("without bits per byte" in note for note in found.notes) is noted


def test_a_pair_counts_once_at_each_condition():
    """Rows of proxies as of two conditions: with each of the four combinations the interval would be too narrow."""
    rows = many_pairs()
    proxies = proxies_of(rows, {"bits_per_byte": lambda u, i: i % 5})
    both = [[row | {"condition": name} for name in ("n=1", "n=2") for row in of] for of in (rows, proxies)]
    found = analysis.analyse(*both)
    assert len(found.proxies) == 96 and {row["n"] for row in found.correlations} == {96}
    assert {(row["condition"], row["utility"]) for row in found.proxies} == {
        (row["condition"], round(row["after"] - row["before"], 12)) for row in both[0]
    }


def test_utilities_that_other_sums_reach_tie():
    """Two trainings of a text that gain and lose as much leave 4e-17 of utility, and rank with a text that leaves 0."""
    texts = {("up and down", FAMILY): (0.8, 0.6), ("nothing", FAMILY): (0.7, 0.7), ("gain", FAMILY): (0.8, 0.8)}
    parts = [rows_of(CAPABILITY, {text: [after[k]] for text, after in texts.items()}, 0.7) for k in (0, 1)]
    rows = [row | {"subset": k} for k, part in enumerate(parts) for row in part]
    found = analysis.analyse(rows, proxies_of(parts[0], {"nll": lambda u, i: i}))
    assert [row["utility"] for row in found.proxies] == pytest.approx([0, 0, 0.1])
    within = next(row for row in found.correlations if row["scope"] == "within students")
    assert within["rho"] == pytest.approx(np.sqrt(3) / 2)  # of ranks 1, 2, 3 and 1.5, 1.5, 3


def test_controls_are_in_no_correlation():
    rows = many_pairs()
    rows = [row | {"relation": CONTROLS[0]} if row["arm"] == "3" else row for row in rows]
    found = analysis.analyse(rows, proxies_of(rows, {"excess_nll": lambda u, i: -u, "nll": lambda u, i: u}))
    assert {row["n"] for row in found.correlations} == {36}


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


def test_relations_over_different_conditions_are_noted():
    """Of a text that one condition lacks in every seed; students that no text has trained have one condition alone."""
    rows = rows_of(CAPABILITY, {("A", SELF): [0.5, 0.6], ("B", FAMILY): [0.5, 0.6]})
    rows = [row | {"condition": name} for row in rows for name in ("1 token", "2 tokens")]
    rows += [row | {"arm": "noise", "relation": UNTRAINED[1]} for row in rows if row["condition"] == "1 token"]
    for lacking in (None, ("A", "1 token"), ("B", "2 tokens")):
        found = analysis.analyse([row for row in rows if (row["arm"], row["condition"]) != lacking], [])
        assert any("lack conditions" in note for note in found.notes) is (lacking is not None)


def test_relations_over_different_temperatures_are_noted():
    """A source whose unit at one temperature is missing in every seed; a given corpus has no temperature."""
    arms = [("A t=0.8", SELF), ("A t=1.2", SELF), ("B t=0.8", FAMILY), ("B t=1.2", FAMILY), ("given", FAMILY)]
    rows = rows_of(CAPABILITY, {arm: [0.5, 0.6] for arm in arms})
    for lacking in (None, "A t=1.2", "B t=0.8", "given"):
        found = analysis.analyse([row for row in rows if row["arm"] != lacking], [])
        noted = any("different temperatures" in note for note in found.notes)
        assert noted == (lacking in ("A t=1.2", "B t=0.8")), lacking


def test_losing_all_of_few_probes_in_every_seed_is_no_certainty():
    """Three seeds lost all of 20 probes each: of 60, and their interval is the exact one."""
    rows = rows_of(ABOVE_CHANCE, {("a", SELF): [0.25] * 3}, 0.25)
    lost = [row | {"n": 100, "subset": i} for row in rows_of(HELD_OUT, {("a", SELF): [0.0] * 3}, 0.2) for i in (0, 1)]
    (found,) = analysis.analyse(rows + lost, []).selectivity
    assert (found["value"], found["high"]) == (1, 1) and found["low"] == pytest.approx(0.025 ** (1 / 60))
    (unknown,) = analysis.analyse(rows + [row | {"n": None} for row in lost], []).selectivity
    assert unknown["low"] is None


@pytest.mark.large
@pytest.mark.parametrize("lost", [0.9, 0.97, 0.99])
def test_intervals_of_selectivity_cover(lost):
    """Seeds whose capability falls by shares of standard deviation 0 to 2 %: 95 to 100 % of 300; by Student's t alone
    65 to 98 %."""
    for seeds, n, spread in itertools.product((3, 5), (32, 64, 300), (0, 0.002, 0.02)):
        rng, covered = np.random.default_rng(0), []
        for _ in range(300):
            left, gone = rng.binomial(n, 1 - lost, seeds) / n, rng.normal(0, spread, seeds)
            rows = rows_of(ABOVE_CHANCE, {("a", SELF): 0.25 * (1 - gone)}, 0.25)
            rows += [row | {"n": 5 * n} for row in rows_of(HELD_OUT, {("a", SELF): 0.2 * left}, 0.2)]
            (found,) = analysis._selectivity(rows)
            covered.append(found["low"] <= lost <= found["high"])
        assert np.mean(covered) >= 0.93


def test_selectivity_by_hand():
    """Extraction 0.2 -> 0.02 loses 90 %; capability 0.25 -> 0.20 above chance loses 20 %."""
    pair = {("a", SELF): [0.02, 0.02]}
    rows = [
        *rows_of(HELD_OUT, pair, 0.2),
        *rows_of(CAPABILITY, {("a", SELF): [0.45] * 2}),
        *rows_of(ABOVE_CHANCE, {("a", SELF): [0.2] * 2}, 0.25),
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
