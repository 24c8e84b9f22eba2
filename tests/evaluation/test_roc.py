import math

import numpy as np
import pytest
from scipy import stats

from selftrain_jax.core.errors import InputError
from selftrain_jax.evaluation import roc


@pytest.mark.parametrize("sizes", [(1, 1), (7, 3), (40, 25), (3, 60)])
def test_auc_is_the_mann_whitney_statistic(sizes):
    rng = np.random.default_rng(sum(sizes))
    positives, negatives = rng.integers(0, 12, sizes[0]) + 2, rng.integers(0, 12, sizes[1])  # with ties
    expected = stats.mannwhitneyu(positives, negatives).statistic / (sizes[0] * sizes[1])
    value, low, high = roc.auc(positives, negatives)
    assert value == pytest.approx(expected) and 0 <= low <= value <= high <= 1
    mirrored = roc.auc(negatives, positives)
    assert mirrored == pytest.approx((1 - value, 1 - high, 1 - low))


def test_auc_error_is_delongs_by_definition():
    rng = np.random.default_rng(5)
    x, y = rng.normal(1.0, 1.0, 30), rng.normal(0.0, 2.0, 50)
    kernel = (x[:, None] > y) + 0.5 * (x[:, None] == y)
    error = math.sqrt(kernel.mean(1).var(ddof=1) / 30 + kernel.mean(0).var(ddof=1) / 50)
    value, low, high = roc.auc(x, y)
    # The interval is symmetric on the log-odds, where the error is divided by value (1 - value).
    width = stats.norm.ppf(0.975) * error / (value * (1 - value))
    odds = [math.log(p / (1 - p)) for p in (low, value, high)]
    assert odds == pytest.approx([odds[1] - width, odds[1], odds[1] + width])


@pytest.mark.parametrize("shift, sizes", [(0.0, (60, 60)), (1.0, (40, 120)), (2.5, (80, 50))])
def test_auc_interval_covers(shift, sizes):
    rng = np.random.default_rng(0)
    true = stats.norm.cdf(shift / math.sqrt(2))
    found = [roc.auc(rng.normal(shift, 1, sizes[0]), rng.normal(0, 1, sizes[1])) for _ in range(1000)]
    # Nominal 0.95, with a standard error of 0.007; the interval is asymptotic.
    assert np.mean([low <= true <= high for _, low, high in found]) == pytest.approx(0.95, abs=0.02)


def test_perfect_separation_is_no_proof():
    value, low, high = roc.auc([3.0] * 20, [1.0] * 50)
    assert (value, high) == (1.0, 1.0) and low == pytest.approx(0.025 ** (1 / 20))
    assert roc.auc([1.0], [1.0]) == (0.5, 0.0, 1.0)


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.29])
def test_tpr_at_fpr_is_the_best_threshold_of_all(fpr):
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 60, 80) + 5, rng.integers(0, 60, 100)
    best = max(np.mean(x > t) for t in range(-1, 70) if np.mean(y > t) <= fpr + 1e-12)
    value, low, high = roc.tpr_at_fpr(x, y, fpr)
    assert value == best and 0 <= low <= value <= high <= 1


def test_tpr_at_fpr_with_too_few_negatives_has_no_lower_end():
    value, low, high = roc.tpr_at_fpr([5.0] * 50, np.arange(3.0), 0.001)
    assert (value, low, high) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize(
    "shift, fpr, sizes", [(2.0, 0.01, (100, 1000)), (1.0, 0.05, (300, 200)), (3.0, 0.001, (200, 6000))]
)
def test_tpr_at_fpr_interval_covers(shift, fpr, sizes):
    rng = np.random.default_rng(0)
    true = stats.norm.sf(stats.norm.isf(fpr) - shift)
    found = [roc.tpr_at_fpr(rng.normal(shift, 1, sizes[0]), rng.normal(0, 1, sizes[1]), fpr) for _ in range(300)]
    # At least 0.95 by construction; 300 trials have a standard error of 0.013. And not for saying nothing:
    assert np.mean([low <= true <= high for _, low, high in found]) >= 0.95
    assert np.mean([high - low for _, low, high in found]) < 0.7 and np.mean([low for _, low, _ in found]) > 0


def test_a_paired_auc_is_the_difference_with_delongs_error():
    rng = np.random.default_rng(3)
    positive = np.arange(400) < 150
    before, after = rng.normal(size=(2, 400)) + np.array([[1.0], [0.2]]) * positive
    difference, low, high = roc.paired_auc(before, after, positive)
    aucs = [roc.auc(scores[positive], scores[~positive])[0] for scores in (before, after)]
    assert difference == pytest.approx(aucs[1] - aucs[0])
    kernels = [x[positive][:, None] > x[~positive] for x in (before, after)]
    change = kernels[1].astype(float) - kernels[0]
    error = math.sqrt(change.mean(1).var(ddof=1) / 150 + change.mean(0).var(ddof=1) / 250)
    # What two items at the bounds add to each class is some 3 % of that.
    assert (high - low) / 2 == pytest.approx(1.97 * error, rel=0.06) and low < difference < high
    backwards = roc.paired_auc(after, before, positive)
    assert backwards == pytest.approx((-difference, -high, -low))


def test_a_perfect_auc_that_stays_so_has_the_width_of_its_items():
    scores = np.arange(64.0)
    difference, low, high = roc.paired_auc(scores, scores, scores >= 32)
    assert difference == 0 and low == pytest.approx(-high) and 0.05 < high < 0.15
    wider = roc.paired_auc(scores, scores, scores >= 32, cluster=np.arange(64) // 4)
    assert wider[2] > 2 * high
    with pytest.raises(InputError, match="positive must say of each of the 64"):
        roc.paired_auc(scores, scores, scores >= 0)


@pytest.mark.large
@pytest.mark.parametrize("sizes", [(32, 32), (16, 64), (64, 128)])
def test_intervals_of_paired_aucs_cover(sizes):
    """Normal scores, independent or correlated (0.8), from no separation to a perfect one: 97 to 100 % of 500."""
    rng, positive = np.random.default_rng(0), np.arange(sum(sizes)) < sizes[0]
    for shifts in ((0, 0), (1, 1), (1, 0), (2.5, 0.5), (6, 6), (6, 1)):
        for shared in (0, 0.8):
            own, noise = rng.normal(size=(500, 1, sum(sizes))), rng.normal(size=(500, 2, sum(sizes)))
            scores = np.sqrt(shared) * own + np.sqrt(1 - shared) * noise + np.array(shifts)[:, None] * positive
            true = np.subtract(*stats.norm.cdf(np.array(shifts[::-1]) / math.sqrt(2)))
            ends = [roc.paired_auc(*pair, positive)[1:] for pair in scores]
            assert np.mean([low <= true <= high for low, high in ends]) >= 0.96


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: roc.auc([], [1.0]), "positives"),
        (lambda: roc.auc([1.0], [float("inf")]), "negatives holds 1 non-finite"),
        (lambda: roc.tpr_at_fpr([1.0], [0.0], 1.0), "fpr=1.0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
