"""The rule for erased and hidden: its verdicts, and how often it errs."""

import numpy as np
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.evaluation.recovery import ERASED, HIDDEN, judge, steps_until


def of(n, *counts):
    """bool arrays `[n]` of which the first so many are true."""
    return [np.arange(n) < count for count in counts]


CASES = [
    ((60, 60, 55, 0, 60), "hidden", "surely more than 50%"),
    ((60, 60, 0, 0, 60), "erased", "surely less than 10%"),
    ((60, 60, 55, 50, 60), "undecided", "between 0% and"),  # the twin learns it as fast
    ((60, 60, 20, 0, 60), "undecided", "between"),
    ((60, 60, 0, 0, 20), "undecided", "relearning leaves base itself 33%"),
    ((60, 34, 0, 0, 60), "undecided", "between 0% and 10%"),  # too few to say less than a tenth
    ((60, 35, 0, 0, 60), "erased", "surely less than 10% of it"),
    ((60, 0, 60, 0, 60), "undecided", "nothing that base extracts was lost"),
]


@pytest.mark.parametrize("counts, verdict, why", CASES, ids=[why for *_, why in CASES])
def test_the_verdict_follows_the_rule(counts, verdict, why):
    n, *others = counts
    found = judge(*of(n, *others))
    assert found.verdict == verdict and why in found.why and found.n == others[0]


def test_only_what_was_lost_counts():
    lost, back = of(80, 40, 40)
    found = judge(lost, ~back, ~back, np.ones(80, bool))
    assert (found.back, found.twin_back, found.verdict) == (0, 0, "erased")


def test_ones_and_zeros_are_truth_values_and_no_indices():
    truths = of(60, 30, 60, 0, 60)
    truths[1] = ~of(60, 2)[0]
    assert judge(*(x.astype(int) for x in truths)) == judge(*truths)
    assert judge(*(x.tolist() for x in truths)) == judge(*truths)


@pytest.mark.parametrize("back", [np.full(60, 0.5), np.ones(59, bool), np.full(60, np.nan), np.ones((60, 1), bool)])
def test_what_says_neither_yes_nor_no_of_each_probe_is_refused(back):
    lost, twin, keeps = of(60, 60, 0, 60)
    with pytest.raises(InputError, match="^back of shape"):
        judge(lost, back, twin, keeps)


def test_windows_of_one_text_are_one_witness():
    lost, back, twin, keeps = of(60, 60, 55, 0, 60)
    assert judge(lost, back, twin, keeps, cluster=np.arange(60) // 30).verdict == "undecided"
    assert judge(lost, back, twin, keeps, cluster=[None] * 60) == judge(lost, back, twin, keeps)
    with pytest.raises(InputError, match="cluster of 3 labels must have one for each of 60 probes"):
        judge(lost, back, twin, keeps, cluster=[1, 2, 3])


def test_steps_until_half_have_an_interval():
    steps = (0, 1, 2, 4)
    extracted = np.stack(of(20, 0, 8, 12, 20))
    assert steps_until(steps, extracted) == (2, 1, 4)
    assert steps_until(steps[:2], extracted[:2]) == (None, 1, None)
    assert steps_until(steps, extracted[:, :0]) == (None, None, None)
    with pytest.raises(InputError, match="not as many as the 4 rows"):
        steps_until((0, 1), extracted)


STUDIES = 1000


def verdicts(n, back, twin, rng):
    """Shares of (hidden, erased) of simulated models in which a lost probe comes back with such a chance."""
    ones, found = np.ones(n, bool), []
    for _ in range(STUDIES):
        found.append(judge(ones, rng.random(n) < back, rng.random(n) < twin, ones).verdict)
    return [found.count(verdict) / len(found) for verdict in ("hidden", "erased")]


@pytest.mark.large
@pytest.mark.parametrize("n", [20, 40, 60, 100])
def test_the_rule_errs_seldom(n, capsys):
    """At the edge of either verdict it is given to one model in forty or fewer, up to the noise of the simulation."""
    rng = np.random.default_rng(n)
    table = {
        (back, twin): verdicts(n, back, twin, rng)
        for back, twin in [(0, 0), (0.02, 0), (ERASED, 0), (0.15, 0.05), (0.3, 0), (HIDDEN, 0), (0.55, 0.05), (0.7, 0)]
        + [(0.8, 0), (0.9, 0)]
    }
    with capsys.disabled():
        print(f"\nn={n}: " + "; ".join(f"{k}: hidden {h:.1%} erased {e:.1%}" for k, (h, e) in table.items()))
    for (back, twin), (hidden, erased) in table.items():
        if back - twin <= HIDDEN:
            assert hidden <= 0.035
        if back - twin >= ERASED - 1e-9:
            assert erased <= 0.035


@pytest.mark.large
@pytest.mark.parametrize("n", [20, 60, 200])
def test_the_interval_of_steps_covers(n, capsys):
    rng, steps = np.random.default_rng(n), (0, 1, 2, 4, 8, 16, 32)
    low_missed = high_missed = 0
    chances = np.array([0.0, 0.1, 0.3, 0.45, 0.52, 0.7, 0.9])  # half is reached at step 8
    for _ in range(STUDIES):
        extracted = rng.random(n) < chances[:, None]
        _, low, high = steps_until(steps, extracted)
        low_missed += low is None or low > 8
        high_missed += high is not None and high < 8
    with capsys.disabled():
        print(f"\nn={n}: low misses {low_missed / STUDIES:.1%}, high misses {high_missed / STUDIES:.1%}")
    assert low_missed <= 0.035 * STUDIES and high_missed <= 0.035 * STUDIES
