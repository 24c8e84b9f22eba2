"""Constructed studies with the verdict that a reader would give, and simulations of wrong verdicts and of power."""

import numpy as np
import pytest

from selftrain_jax.report.metric import CAPABILITY, Metric
from selftrain_jax.report.study_data import CONTROLS, RELATIONS
from selftrain_jax.study import analysis, rules, rules_1
from tests.study.made import FAMILY, LINEAGE, RECIPE, SELF, rows_of, study

REAL = CONTROLS[0]


def relational(gains, spread=0.001):
    return rules.relational(study(gains, spread=spread))


@pytest.mark.parametrize(
    "gains, verdict",
    [
        ({SELF: 0.05, LINEAGE: 0.02, RECIPE: 0.01, FAMILY: 0.0}, "reproduced"),
        ({SELF: 0.05, LINEAGE: 0.0, RECIPE: 0.01, FAMILY: -0.02}, "reproduced"),  # the order of the others is not asked
        (
            {SELF: 0.05, LINEAGE: 0.047, RECIPE: -0.1, FAMILY: -0.1},
            "not reproduced",
        ),  # above their mean, not above each
        ({SELF: 0.0, LINEAGE: 0.02, RECIPE: 0.02, FAMILY: 0.02}, "not reproduced"),
        ({SELF: 0.05, LINEAGE: 0.04, RECIPE: 0.01, FAMILY: 0.0}, "inconclusive"),
        ({SELF: 0.03}, "inconclusive"),
    ],
    ids=str,
)
def test_self_text_must_surely_be_a_point_above_each_other(gains, verdict):
    assert relational(gains)["verdict"] == verdict


def test_what_the_seeds_cannot_tell_is_said():
    found = relational({SELF: 0.05, LINEAGE: 0.02, FAMILY: 0.0}, spread=0.03)
    assert found["verdict"] == "cannot decide"
    # 3.26 standard deviations of 3 points each.
    assert found["evidence"][0]["detectable"] == pytest.approx(9.79, abs=0.01)
    assert found["evidence"][0]["num_replicates"] == 3


def test_self_text_that_does_least_harm_is_said_to_harm():
    found = relational({SELF: -0.03, LINEAGE: -0.08, FAMILY: -0.1})
    assert found["verdict"] == "reproduced" and found["reason"].endswith("surely lowers capability, too.")


def by_suite(gains, noise=0.0):
    """{suite: {relation: gain}} at three seeds of one student."""
    rng = np.random.default_rng(0)
    means = {(name, name): [0.5 + np.mean([suite[name] for suite in gains.values()])] * 3 for name in (SELF, FAMILY)}
    return rows_of(CAPABILITY, means) + [
        row
        for suite, of_suite in gains.items()
        for relation, gain in of_suite.items()
        for row in rows_of(Metric("capability", suite), {(relation, relation): 0.5 + gain + noise * rng.normal(size=3)})
    ]


def test_no_suite_decides_by_varying_most():
    """Three suites of four say that self text is best; the fourth varies ten times as much and says the reverse."""
    good, bad = {SELF: 0.06, FAMILY: 0.0}, {SELF: -0.3, FAMILY: 0.3}
    rows = by_suite({"a": good, "b": good, "c": good, "sums": bad}, noise=0.002)
    found = rules.relational(rows)
    assert found["verdict"] == "reproduced"
    row = found["evidence"][0]
    # Spreads 4.24 (three times) and 42.4 points: each suite counts as one difference of 13.8 sqrt(2), signs + + + -.
    assert row["value"] == pytest.approx((3 * 4.243 + 42.43) / 4 * np.sqrt(2) / 2, rel=0.02)
    left_out = [row["name"] for row in found["evidence"] if row["name"].startswith("without")]
    assert [name.split(":")[0] for name in left_out] == [f"without {suite}" for suite in ("a", "b", "c", "sums")]


def test_a_verdict_that_hangs_on_one_suite_says_so():
    rows = by_suite({"a": {SELF: 0.002, FAMILY: 0.0}, "sums": {SELF: 0.3, FAMILY: 0.0}}, noise=0.0002)
    found = rules.relational(rows)
    assert found["verdict"] == "reproduced" and "Without sums: not reproduced." in found["reason"]


def proxies(function, sources=8, seeds=3):
    """(results, proxies) of three students with effects of their own; `function` of utility and a random number."""
    rng = np.random.default_rng(0)
    results, measured = [], []
    for student in "ABC":
        effect = rng.normal()
        for source, seed in np.ndindex(sources, seeds):
            place = {"student": student, "arm": f"m{source}", "relation": FAMILY, "condition": "", "seed": seed}
            utility = 0.05 * rng.normal()
            row = {"subset": 0, "metric": CAPABILITY, "before": 0.5, "after": 0.5 + utility + 0.3 * effect}
            results.append(place | row)
            value = effect + function(utility, rng.normal())
            measured.append(place | {"proxy": "tfidf_similarity", "value": value})
    return results, measured


def test_a_proxy_that_tells_within_students_predicts():
    for sign in (1, -1):  # in which direction is told by the evidence
        found = analysis.analyse(*proxies(lambda utility, noise: sign * utility)).verdicts[1]
        assert found["verdict"] == "not reproduced" and "TF-IDF similarity surely tells" in found["reason"]
        assert found["evidence"][0]["value"] == pytest.approx(sign)


def test_a_proxy_that_tells_students_apart_alone_does_not_predict():
    """Over all pairs it does, so that the first rules said so."""
    found = analysis.analyse(*proxies(lambda utility, noise: 0.1 * noise, sources=24))
    assert found.verdicts[1]["verdict"] == "reproduced"
    assert found.older_verdicts[1]["verdict"] == "not reproduced"


def test_few_sources_or_one_seed_tell_nothing_of_proxies():
    few = analysis.analyse(*proxies(lambda utility, noise: utility, sources=7)).verdicts[1]
    assert few["verdict"] == "cannot decide" and "7 sources" in few["reason"]
    one = analysis.analyse(*proxies(lambda utility, noise: utility, seeds=1)).verdicts[1]
    assert one["verdict"] == "inconclusive" and "One seed" in one["reason"]


def test_proxies_of_one_seed_alone_decide_nothing_however_many_seeds_were_trained():
    results, measured = proxies(lambda utility, noise: utility)
    found = analysis.analyse(results, [row for row in measured if row["seed"] == 0]).verdicts[1]
    assert (found["verdict"], found["reason"]) == ("inconclusive", "One seed alone.")


def test_likelihood_enters_as_bits_per_byte_and_relational_proxies_not_at_all():
    results, measured = proxies(lambda utility, noise: utility)
    kinds = ("nll", "excess_nll", "unknown_share", "bits_per_byte")
    rows = [row | {"proxy": kind, "value": row["value"] / 1e4} for kind in kinds for row in measured]
    found = analysis.analyse(results, rows).verdicts[1]
    assert [row["name"] for row in found["evidence"]] == [
        "rank correlation of utility and bits per byte, 90 % interval"
    ]


def memory_of(relation, lost, token_share, log_prob=-3.0, extracted=60, spread=1):
    """Three seeds, or as many as `lost` has."""
    return [
        {"student": "S", "arm": relation, "relation": relation, "condition": "", "seed": seed, "subset": 0}
        | {"extracted": extracted, "lost": n, "token_share_before": 1.0, "log_prob_before": -0.1}
        | {"token_share_after": token_share + 0.01 * spread * (seed - 1)}
        | {"log_prob_after": log_prob + 0.1 * spread * (seed - 1)}
        for seed, n in enumerate(lost)
    ]


def decoupling(gain=0.0, lost=(60, 60, 60), token_share=0.1, real=0.5, log_prob=-3.0, **options):
    memory = memory_of(SELF, lost, token_share, log_prob, **options)
    if real is not None:
        memory += memory_of(REAL, [50] * len(lost), real, log_prob=-3.0, spread=0)
    return rules.decoupling(study({SELF: gain, REAL: 0.0}), memory)


@pytest.mark.parametrize(
    "options, verdict",
    [
        ({}, "reproduced"),
        ({"real": 0.1}, "not specific"),
        ({"token_share": 0.6, "real": 0.1}, "not specific"),
        ({"real": 0.1, "log_prob": -6.0}, "reproduced"),  # token share or log-probability
        ({"real": None}, "inconclusive"),
        ({"gain": -0.05}, "not reproduced"),
        ({"gain": -0.02}, "inconclusive"),
        ({"lost": (40, 41, 40)}, "not reproduced"),
        ({"lost": (58, 58, 58)}, "inconclusive"),  # 97 %, but 174 of 180 is not surely above 95 %
        ({"lost": (3, 3, 3), "extracted": 3}, "cannot decide"),  # all of nine probes
        ({"lost": (19, 19, 19), "extracted": 19}, "cannot decide"),  # all of 57
        ({"lost": (20, 20, 20), "extracted": 20}, "reproduced"),  # all of 60
    ],
    ids=str,
)
def test_capability_and_memory_must_come_apart_by_ones_own_text(options, verdict):
    assert decoupling(**options)["verdict"] == verdict


def test_a_suite_that_no_text_changes_does_not_shrink_the_others():
    """Four points on one of two suites are two in the mean, as of accuracy itself; they were one."""
    gains = {("own", SELF): [0.55, 0.54, 0.53], ("x", FAMILY): [0.51, 0.50, 0.49]}
    moved, still = Metric("capability", "moved"), Metric("capability", "still")
    rows = rows_of(moved, gains) + rows_of(still, {pair: [0.5] * 3 for pair in gains})
    (values,) = rules._steps(rows, [moved, still]).values()
    assert values == pytest.approx([0.02] * 3)


def test_seeds_that_do_not_differ_decide_nothing():
    """Three that gained the same are no proof that every one would: p was 0."""
    rows = study({SELF: 0.1, FAMILY: 0.0}, spread=0)
    found = rules.relational(rows)
    assert found["verdict"] == "cannot decide" and found["evidence"][0]["p_value"] == 1
    memory = memory_of(SELF, (60,) * 3, 0.1) + memory_of(REAL, (50,) * 3, 0.5, spread=0)
    assert rules.decoupling(rows, memory)["verdict"] == "cannot decide"
    assert {row["verdict"] for row in rules_1.judge(rows, [])} == {"reproduced", "inconclusive"}, "as they were"


def test_probes_that_count_again_at_another_condition_are_no_other_probes():
    memory = memory_of(SELF, (19, 19, 19), 0.1, extracted=19)
    memory += [row | {"condition": "lr 1e-5"} for row in memory]
    assert (rules.Lost(memory).extracted, rules.Lost(memory).lost) == (57, 57)


def test_a_probe_that_one_subset_keeps_is_not_rounded_away():
    """9 of 10 probes lost, and in another subset 9 of 9: that is not 9 of 9."""
    row, other = (memory_of(SELF, (9,), 0.1, extracted=number)[0] for number in (10, 9))
    found = rules.Lost([row, other | {"subset": 1}]).evidence("self")
    assert found["name"] == "self: held-out extraction lost, 9 of 9.5 probes"
    assert found["value"] == pytest.approx(100 * 18 / 19) and found["high"] < 100


def test_the_bound_of_what_is_lost_is_exact_and_knows_that_seeds_differ():
    found = rules.Lost(memory_of(SELF, (60,), 0.1, extracted=60))
    assert found.bounds == pytest.approx((0.05 ** (1 / 60), 1))  # of 59 it is 0.9505
    unlike = rules.Lost(memory_of(SELF, (200, 200, 188), 0.1, extracted=200)).bounds
    assert 0.96 < 588 / 600 and unlike[0] < 0.95, "one seed of three lost 94 %"


def test_verdicts_carry_the_version_of_the_rules_and_the_number_of_seeds():
    found = analysis.analyse(study({SELF: 0.0, REAL: 0.0}), [], memory_of(SELF, (60, 60, 60), 0.1)).verdicts
    assert {(row["rules"], row["seeds"]) for row in found} == {(rules.VERSION, 3)}


# Simulations. docs/rules.md holds what they print.


@pytest.mark.large
def test_without_effect_students_of_their_own_level_make_no_proxy_predict(capsys):
    """Three students, eight sources, three proxies, 100 studies in which no proxy tells anything within a student: the
    first rules say that one predicts in 41 %, these in 3 %."""
    rng = np.random.default_rng(0)
    wrong = np.zeros((100, 2), bool)
    for i in range(len(wrong)):
        results, measured = [], []
        students = rng.normal(size=(3, 4))
        for s, source, seed in np.ndindex(3, 8, 3):
            place = {"student": f"S{s}", "arm": f"m{source}", "relation": FAMILY, "condition": "", "seed": seed}
            utility = 0.05 * (students[s, 0] + rng.normal())
            results.append(place | {"subset": 0, "metric": CAPABILITY, "before": 0.5, "after": 0.5 + utility})
            for p, names in enumerate((("nll", "bits_per_byte"), ("hidden_similarity",), ("tfidf_similarity",)), 1):
                value = students[s, p] + rng.normal()
                measured += [place | {"proxy": name, "value": value} for name in names]
        found = analysis.analyse(results, measured)
        wrong[i] = [rows[1]["verdict"] == "not reproduced" for rows in (found.verdicts, found.older_verdicts)]
    with capsys.disabled():
        print("predicts, without effect: new, first rules", wrong.mean(0))
    assert wrong[:, 0].mean() <= 0.05 and wrong[:, 1].mean() > 0.3


def _relational_power(rng, num_seeds, advantage, trials=400):
    """Share of each verdict where self is so many points above each of three others and seeds vary by one point."""
    found = []
    for _ in range(trials):
        steps = (advantage + (rng.normal(size=(1, num_seeds)) - rng.normal(size=(3, num_seeds))) / np.sqrt(2)) / 100
        found.append(rules._of_steps(dict(zip(RELATIONS[1:], steps))))
    return {verdict: found.count(verdict) / trials for verdict in (rules.REPRODUCED, rules.REFUTED, rules.CANNOT)}


@pytest.mark.large
def test_the_first_verdict_errs_in_one_of_forty_and_its_power(capsys):
    rng = np.random.default_rng(0)
    with capsys.disabled():
        for seeds in (3, 5, 10):
            for advantage in (0.0, 1.0, 2.0, 3.0, 5.0):
                print("finding 1:", seeds, advantage, _relational_power(rng, seeds, advantage))
    for seeds in (3, 10):
        at_margin = _relational_power(rng, seeds, 1.0, trials=1000)
        assert at_margin[rules.REPRODUCED] < 0.04 and at_margin[rules.REFUTED] < 0.04
        nearest = _relational_power(rng, seeds, np.array([[1.0], [9.0], [9.0]]), trials=1000)
        assert nearest[rules.REPRODUCED] < 0.04  # 0.025 and two standard errors: one relation at the margin
    assert _relational_power(rng, 10, 3.0)[rules.REPRODUCED] > 0.95


def _decoupling_power(rng, num_seeds, share, likeness, extracted=60, trials=400):
    """Share of studies called reproduced whose seeds truly lose `share` on average, correlated by `likeness` within a
    seed, at a capability that changes by nothing, with a spread of one point."""
    found = []
    for _ in range(trials):
        scale = 1 / likeness - 1 if likeness else np.inf
        rates = rng.beta(share * scale, (1 - share) * scale, num_seeds) if likeness else np.full(num_seeds, share)
        memory = memory_of(SELF, rng.binomial(extracted, rates).tolist(), 0.1, extracted=extracted)
        memory += memory_of(REAL, [0] * num_seeds, 0.6, spread=0)  # seeds that do not differ prove nothing
        rows = rows_of(CAPABILITY, {("a", SELF): 0.5 + 0.01 * rng.normal(size=num_seeds)})
        found.append(rules.decoupling(rows, memory)["verdict"] == rules.REPRODUCED)
    return np.mean(found)


@pytest.mark.large
def test_the_third_verdict_does_not_call_a_false_claim_reproduced_and_its_power(capsys):
    """True loss 92 % at three seeds: the first rules said reproduced in 15 %."""
    rng = np.random.default_rng(0)
    with capsys.disabled():
        for seeds in (3, 5, 10):
            for share in (0.92, 0.95, 0.99, 0.995):
                shares = [_decoupling_power(rng, seeds, share, likeness) for likeness in (0, 0.02, 0.1)]
                print("finding 3:", seeds, share, shares)
    assert _decoupling_power(rng, 3, 0.92, 0.1) < 0.05 and _decoupling_power(rng, 3, 0.95, 0) < 0.05
    assert _decoupling_power(rng, 10, 0.99, 0) > 0.95
