import jax
import numpy as np
import pytest

from selftrain_jax.core.randomness import seed_key
from selftrain_jax.evaluation.statistics import t_interval, variance_components
from selftrain_jax.report.metric import CAPABILITY, DRIFT, HELD_OUT, Metric
from selftrain_jax.report.study_data import UNTRAINED
from selftrain_jax.study import comparisons
from selftrain_jax.study.noise import moved_at_random
from tests.shapes import NARROW, initial
from tests.study.made import SELF, rows_of


def curve(arm, relation, seed, points):
    """Rows of one training: (drift, capability, extraction) at steps 0, 1, ..."""
    place = {"student": "A", "arm": arm, "relation": relation, "condition": "", "seed": seed, "subset": 0}
    return [
        {**place, "step": step, "metric": metric, "value": value}
        for step, values in enumerate(points)
        for metric, value in zip((DRIFT, CAPABILITY, HELD_OUT), values)
    ]


def test_arms_are_compared_where_they_have_moved_equally_far():
    """Real text moves the model twice as far; half of its way it has lost no more than the model's own text."""
    rows = []
    for seed in (0, 1):
        rows += curve("A", "self", seed, [(0.0, 0.5, 1.0), (0.1, 0.5, 0.8), (0.2, 0.4, 0.6)])
        rows += curve("real", "real text", seed, [(0.0, 0.5, 1.0), (0.1, 0.6, 0.9), (0.4, 0.9, 0.0)])
    found = {(row["arm"], row["metric"]): row for row in comparisons.at_equal_drift(rows)}
    assert {row["drift"] for row in found.values()} == {0.2}
    assert {row["num_replicates"] for row in found.values()} == {2}
    expected = {("A", CAPABILITY): -0.1, ("A", HELD_OUT): -0.4, ("real", CAPABILITY): 0.2, ("real", HELD_OUT): -0.4}
    assert {key: row["value"] for key, row in found.items()} == pytest.approx(expected)
    assert comparisons.at_equal_drift([row for row in rows if row["arm"] == "A"]) == []
    assert comparisons.at_equal_drift([row for row in rows if row["metric"] != DRIFT]) == []


def test_an_arm_that_comes_back_is_taken_as_far_as_it_is_in_the_end():
    """The model's own text moves it by 0.4 and back to 0.2: there both are compared, each when it first came so far."""
    rows = curve("A", "self", 0, [(0.0, 0.5, 1.0), (0.4, 0.3, 0.2), (0.2, 0.4, 0.6)])
    rows += curve("real", "real text", 0, [(0.0, 0.5, 1.0), (0.3, 0.6, 0.4), (0.6, 0.9, 0.0)])
    found = {(row["arm"], row["metric"]): row for row in comparisons.at_equal_drift(rows)}
    assert {row["drift"] for row in found.values()} == {0.2}
    expected = {("A", CAPABILITY): -0.1, ("A", HELD_OUT): -0.4, ("real", CAPABILITY): 0.2 / 3, ("real", HELD_OUT): -0.4}
    assert {key: row["value"] for key, row in found.items()} == pytest.approx(expected)


def test_each_seed_of_the_loop_is_compared_with_its_own_start():
    """Levels lie 20 points apart between seeds; the loop costs 4 and 6 of them, and its corpora begin at 1."""
    nll, place = Metric("source_nll"), {"student": "A", "mode": "replace"}
    levels = {0: (0.5, 0.48, 0.46), 1: (0.7, 0.69, 0.64)}
    rows = [
        {**place, "generation": g, "seed": seed, "metric": CAPABILITY, "value": value}
        for seed, values in levels.items()
        for g, value in enumerate(values)
    ]
    rows += [{**place, "generation": g, "seed": 0, "metric": nll, "value": 2.0 - g} for g in (1, 2)]
    rows += [{**place, "generation": g, "seed": 0, "metric": HELD_OUT, "value": None} for g in (0, 1)]
    found = {(row["metric"], row["generation"]): row for row in comparisons.over_generations(rows[::-1])}
    assert set(found) == {(CAPABILITY, 1), (CAPABILITY, 2), (nll, 2)}
    last = found[CAPABILITY, 2]
    low, high = t_interval([-0.04, -0.06])
    assert [last[name] for name in ("level", "value", "low", "high")] == pytest.approx([0.55, -0.05, low, high])
    assert last["num_replicates"] == 2 and found[nll, 2]["value"] == -1.0 and found[nll, 2]["low"] is None


def test_suites_are_shown_on_items_that_stand_in_the_training_text_and_on_the_others():
    """Two trainings a seed: 20 items in the text gain 10 and 30 points, 80 others none; seed 1 has too few."""
    place = {"student": "A", "arm": "A", "relation": "self", "condition": "", "metric": Metric("capability", "recall")}

    def half(seed, inside, n, gain):
        return {**place, "seed": seed, "in_training_text": inside, "n": n} | (
            {"before": 0.5, "after": 0.5 + gain} if n else {}
        )

    rows = [half(0, True, 20, 0.1), half(0, True, 20, 0.3), half(0, False, 80, 0), half(0, False, 80, 0)]
    rows += [half(1, True, 0, 0), half(1, True, 8, 1.0), half(1, False, 100, -0.2), half(1, False, 92, -0.2)]
    inside, others = comparisons.by_contamination(rows)
    assert (inside["n"], inside["num_replicates"], inside["low"]) == (12, 1, None)
    assert inside["value"] == pytest.approx(0.2)
    assert (others["n"], others["num_replicates"], others["value"]) == (88, 2, pytest.approx(-0.1))
    assert others["low"] < -0.1 < others["high"]
    assert comparisons.by_contamination([half(0, True, 0, 0), half(0, False, 100, 0.1)]) == []
    (few, _) = comparisons.by_contamination([half(0, True, 9, 0.5), half(0, False, 91, 0.1)])
    assert few["n"] == 9 and few["value"] is None and few["num_replicates"] == 0


def test_components_of_variance():
    """Two groups {0, 2} and {10, 12}: within 2; the means 1 and 11 differ by 50 - 2 / 2 = 49."""
    assert variance_components([[0, 2], [10, 12]]) == pytest.approx((49, 2))
    assert variance_components([[0, 2], [1, 1]]) == pytest.approx((-0.5, 1))
    rng = np.random.default_rng(0)
    groups = [rng.normal(rng.normal(0, 3), 1, size=size) for size in rng.integers(1, 4, size=4000)]
    assert variance_components(groups) == pytest.approx((9, 1), rel=0.06)


def test_seeds_that_do_not_differ_have_no_spread_between_them():
    """600 pairs, three seeds, two trainings each, of one distribution: truncated by pair, "between" was 0.5."""
    noise = np.random.default_rng(0).normal(size=(600, 3, 2))
    places = ({"student": f"{i}", "seed": j, "after": noise[i, j, k]} for i, j, k in np.ndindex(noise.shape))
    (row,) = rows_of(CAPABILITY, {("a", SELF): [0]}, before=0)
    (found,) = comparisons.components([row | place for place in places])
    assert found["within"] == pytest.approx(1, abs=0.1) and found["between"] < 0.25


def test_components_are_pooled_over_pairs_and_need_two_trainings_of_a_seed():
    def rows(student, values):
        place = {"student": student, "arm": "A", "relation": "self", "condition": "", "metric": CAPABILITY}
        return [
            {**place, "seed": seed, "subset": subset, "before": 0.5, "after": 0.5 + value / 100}
            for seed, of_seed in enumerate(values)
            for subset, value in enumerate(of_seed)
        ]

    [found] = comparisons.components(rows("A", [[0, 2], [10, 12]]) + rows("B", [[0, 0], [0, 0]]))
    assert found["between"] == pytest.approx(np.sqrt(49 / 2) / 100)
    assert found["within"] == pytest.approx(np.sqrt(2 / 2) / 100)
    assert (found["relation"], found["metric"], found["num_cells"], found["num_values"]) == ("self", CAPABILITY, 2, 8)
    assert comparisons.components(rows("A", [[0], [10]])) == []
    untouched = [row | {"relation": UNTRAINED[0]} for row in rows("A", [[0, 0], [1, 1]])]
    assert comparisons.components(untouched) == [], "one evaluation, shown beside both subsets"


def test_weights_moved_at_random_are_as_far_away_as_trained_ones():
    base = initial(NARROW, 0)
    trained = jax.tree.map(lambda x: x * 1.1, base)
    moved = moved_at_random(base, trained, seed_key(0))
    for x, y, z in zip(*map(jax.tree.leaves, (base, trained, moved))):
        assert np.linalg.norm(z - x) == pytest.approx(np.linalg.norm(y - x), rel=1e-5)
    x, y, z = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)]) for tree in (base, trained, moved))
    assert abs(np.corrcoef(z - x, y - x)[0, 1]) < 0.1
