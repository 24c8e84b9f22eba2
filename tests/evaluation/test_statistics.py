import math

import numpy as np
import pytest
from scipy import stats

from selftrain_jax.errors import InputError
from selftrain_jax.evaluation import statistics


@pytest.mark.parametrize("successes, n", [(0, 10), (1, 10), (7, 20), (20, 20), (13, 400)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_clopper_pearson_equals_scipy(successes, n, confidence):
    expected = stats.binomtest(successes, n).proportion_ci(confidence_level=confidence, method="exact")
    # scipy solves the tail equation by root finding, so it is only as exact as its solver (about 1e-9).
    assert statistics.clopper_pearson(successes, n, confidence) == pytest.approx(tuple(expected), abs=1e-7)


def test_clopper_pearson_without_hits_is_the_closed_form():
    # No hit among n: the upper end solves (1 - p)^n = 0.025.
    assert statistics.clopper_pearson(0, 100) == pytest.approx((0.0, 1 - 0.025 ** (1 / 100)))


def test_clopper_pearson_without_items_says_nothing():
    assert statistics.clopper_pearson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.97])
def test_clopper_pearson_covers_at_least_as_often_as_promised(p):
    n = 30
    intervals = [statistics.clopper_pearson(k, n) for k in range(n + 1)]
    coverage = sum(
        math.comb(n, k) * p**k * (1 - p) ** (n - k) for k, (low, high) in enumerate(intervals) if low <= p <= high
    )
    assert coverage >= 0.95


def test_bootstrap_mean_agrees_with_scipy():
    values = np.random.default_rng(3).exponential(size=200)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(1)
    ).confidence_interval
    # Both are Monte Carlo: a 2.5 % quantile of 10,000 resamples is good to about 0.04 standard errors.
    tolerance = 0.15 * values.std() / np.sqrt(len(values))
    assert statistics.bootstrap_mean(values) == pytest.approx(tuple(expected), abs=tolerance)


def test_bootstrap_mean_covers_the_true_mean():
    rng = np.random.default_rng(0)
    samples = rng.exponential(size=(300, 60))
    intervals = [statistics.bootstrap_mean(sample, num_resamples=400, seed=i) for i, sample in enumerate(samples)]
    coverage = np.mean([low <= 1.0 <= high for low, high in intervals])
    # Nominal 0.95; skewed data of this size cover about 0.92, and 300 trials have a standard error of 0.015.
    assert 0.87 <= coverage <= 0.985


def test_bootstrap_mean_is_reproducible_and_seeded():
    values = np.arange(50.0)
    assert statistics.bootstrap_mean(values, seed=4) == statistics.bootstrap_mean(values, seed=4)
    assert statistics.bootstrap_mean(values, seed=4) != statistics.bootstrap_mean(values, seed=5)


def test_bootstrap_mean_in_chunks_keeps_every_resample(monkeypatch):
    values = np.random.default_rng(2).normal(size=100)
    whole = statistics.bootstrap_mean(values, num_resamples=2000)
    monkeypatch.setattr(statistics, "_CHUNK_ELEMENTS", 700)
    # Independent draws of the same interval: equal up to Monte Carlo noise (as above, for 2,000 resamples).
    assert statistics.bootstrap_mean(values, num_resamples=2000) == pytest.approx(whole, abs=0.03)


def test_constant_values_have_an_interval_of_no_width():
    assert statistics.bootstrap_mean([0.25] * 7) == (0.25, 0.25)


def test_pairing_cancels_what_the_items_share():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(scale=10.0, size=100)
    before, after = difficulty, difficulty + 0.5 + rng.normal(scale=0.1, size=100)
    difference, low, high = statistics.paired_bootstrap_difference(before, after)
    assert difference == pytest.approx(np.mean(after) - np.mean(before))
    assert low < 0.5 < high and high - low < 0.1


def test_swapping_before_and_after_mirrors_the_difference():
    rng = np.random.default_rng(0)
    before, after = rng.integers(2, size=(2, 80))
    difference, low, high = statistics.paired_bootstrap_difference(before, after)
    mirrored, mirrored_low, mirrored_high = statistics.paired_bootstrap_difference(after, before)
    assert mirrored == -difference
    assert (-mirrored_high, -mirrored_low) == pytest.approx((low, high))


@pytest.mark.parametrize("gains, losses, kept, missed", [(0, 6, 4, 2), (3, 9, 0, 0), (5, 5, 1, 1), (1, 0, 0, 7)])
def test_mcnemar_sums_the_binomial_tail(gains, losses, kept, missed):
    before = [0] * gains + [1] * losses + [1] * kept + [0] * missed
    after = [1] * gains + [0] * losses + [1] * kept + [0] * missed
    n, k = gains + losses, min(gains, losses)
    expected = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
    assert statistics.mcnemar(before, after) == pytest.approx(expected)


def test_mcnemar_without_a_change_is_one():
    assert statistics.mcnemar([True, False, True], [True, False, True]) == 1.0


def test_mcnemar_rejects_a_true_null_no_more_often_than_its_level():
    rng = np.random.default_rng(0)
    hits = rng.integers(2, size=(400, 2, 40))
    rejected = np.mean([statistics.mcnemar(before, after) < 0.05 for before, after in hits])
    # Exact, hence conservative: at most 0.05, plus two standard errors of 400 trials.
    assert rejected <= 0.072


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: statistics.clopper_pearson(3, 2), "successes=3"),
        (lambda: statistics.clopper_pearson(1, 2, confidence=95), "confidence=95"),
        (lambda: statistics.bootstrap_mean([]), "at least one item"),
        (lambda: statistics.bootstrap_mean([0.1, float("nan")]), "1 non-finite"),
        (lambda: statistics.bootstrap_mean([0.1], num_resamples=0), "num_resamples=0"),
        (lambda: statistics.paired_bootstrap_difference([1, 2], [1]), "before has 2 items"),
        (lambda: statistics.mcnemar([0, 2], [0, 1]), "before_hits"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
