import math

import numpy as np
import pytest
from scipy import stats

from selftrain_jax.core.errors import InputError
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


@pytest.mark.parametrize("elements", [1, 900])
def test_a_ratio_is_resampled_in_bounded_memory_as_all_at_once(monkeypatch, elements):
    rng = np.random.default_rng(1)
    values, weights = rng.exponential(size=300), rng.integers(1, 99, 300)
    drawn = np.random.default_rng(0).integers(300, size=(2000, 300))
    expected = np.quantile(values[drawn].sum(1) / weights[drawn].sum(1), (0.025, 0.975))
    monkeypatch.setattr(statistics, "_CHUNK_ELEMENTS", elements)
    assert statistics.bootstrap_ratio(values, weights) == pytest.approx(tuple(expected), rel=1e-12)


def pairs(both, lost, gained, neither):
    return [1] * (both + lost) + [0] * (gained + neither), [1] * both + [0] * lost + [1] * gained + [0] * neither


def test_what_one_item_of_eight_says_about_a_difference():
    difference, low, high = statistics.paired_difference(*pairs(7, 1, 0, 0))
    assert difference == -0.125 and low < -0.3 and high > 0.1


@pytest.mark.parametrize("both, neither, half", [(8, 0, 0.33), (6, 2, 0.26), (500, 500, 0.002)])
def test_items_that_did_not_change_leave_the_width_of_their_number(both, neither, half):
    assert statistics.paired_difference(*pairs(both, 0, 0, neither)) == pytest.approx((0, -half, half), abs=0.01)


def test_pairing_cancels_what_the_items_share():
    _, low, high = statistics.paired_difference(*pairs(480, 20, 30, 470))
    apart = statistics.clopper_pearson(500, 1000)
    assert high - low < 0.5 * (apart[1] - apart[0])


def test_swapping_before_and_after_mirrors_the_difference():
    before, after = np.random.default_rng(0).integers(2, size=(2, 80))
    difference, low, high = statistics.paired_difference(before, after)
    assert statistics.paired_difference(after, before) == pytest.approx((-difference, -high, -low))


@pytest.mark.parametrize("shares", [(0.6, 0.2, 0.02), (0.3, 0.05, 0.3), (0.9, 0.05, 0.05), (0.05, 0.05, 0.0)])
def test_a_paired_interval_covers_the_true_difference(shares):
    draws = np.random.default_rng(0).multinomial(12, [*shares, 1 - sum(shares)], size=400)
    found = [statistics.paired_difference(*pairs(*draw)) for draw in draws]
    # 400 draws have a standard error of 0.011.
    assert np.mean([low <= shares[2] - shares[1] <= high for _, low, high in found]) >= 0.93


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


def test_holm_by_hand():
    assert statistics.holm([0.04, 0.01, 0.03, 0.005]) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert statistics.holm([0.7, 0.9]) == pytest.approx([1, 1])


def test_holm_keeps_the_probability_of_any_false_rejection():
    """Four tests that share half of their noise, one with a true effect; three true hypotheses at 5 %."""
    rng = np.random.default_rng(0)
    z = (rng.normal(size=(4000, 1)) + rng.normal(size=(4000, 4))) / np.sqrt(2) + [4, 0, 0, 0]
    rejected = np.array([statistics.holm(p) <= 0.05 for p in 2 * stats.norm.sf(np.abs(z))])
    # At most 0.05, here 0.047; 4,000 trials have a standard error of 0.003. Without Holm it is 0.12.
    assert 0.03 < rejected[:, 1:].any(1).mean() < 0.06 and rejected[:, 0].mean() > 0.9


@pytest.mark.parametrize("estimates", [[0.1, 0.3], [0.2, 0.5, 0.3], list(np.linspace(-1, 2, 11))])
def test_t_interval_equals_scipy(estimates):
    expected = stats.t.interval(0.9, len(estimates) - 1, np.mean(estimates), stats.sem(estimates))
    assert statistics.t_interval(estimates, 0.9) == pytest.approx(tuple(expected), rel=1e-12)


def test_t_interval_covers_the_mean_over_runs_where_an_interval_over_items_does_not():
    """Three runs whose true rates differ by more than 200 items can hide."""
    rng = np.random.default_rng(0)
    rates = np.clip(rng.normal(0.5, 0.1, size=(2000, 3)), 0, 1)
    hits = rng.binomial(200, rates)
    covers = [low <= 0.5 <= high for low, high in map(statistics.t_interval, hits / 200)]
    # Nominal 0.95; 2,000 trials have a standard error of 0.005.
    assert np.mean(covers) == pytest.approx(0.95, abs=0.015)
    pooled = [low <= 0.5 <= high for low, high in (statistics.clopper_pearson(k, 600) for k in hits[:300].sum(1))]
    assert np.mean(pooled) < 0.8


@pytest.mark.parametrize("sizes", [(1, 1), (7, 3), (40, 25), (3, 60)])
def test_auc_is_the_mann_whitney_statistic(sizes):
    rng = np.random.default_rng(sum(sizes))
    positives, negatives = rng.integers(0, 12, sizes[0]) + 2, rng.integers(0, 12, sizes[1])  # with ties
    expected = stats.mannwhitneyu(positives, negatives).statistic / (sizes[0] * sizes[1])
    value, low, high = statistics.auc(positives, negatives)
    assert value == pytest.approx(expected) and 0 <= low <= value <= high <= 1
    mirrored = statistics.auc(negatives, positives)
    assert mirrored == pytest.approx((1 - value, 1 - high, 1 - low))


def test_auc_error_is_delongs_by_definition():
    rng = np.random.default_rng(5)
    x, y = rng.normal(1.0, 1.0, 30), rng.normal(0.0, 2.0, 50)
    kernel = (x[:, None] > y) + 0.5 * (x[:, None] == y)
    error = math.sqrt(kernel.mean(1).var(ddof=1) / 30 + kernel.mean(0).var(ddof=1) / 50)
    value, low, high = statistics.auc(x, y)
    # The interval is symmetric on the log-odds, where the error is divided by value (1 - value).
    width = stats.norm.ppf(0.975) * error / (value * (1 - value))
    odds = [math.log(p / (1 - p)) for p in (low, value, high)]
    assert odds == pytest.approx([odds[1] - width, odds[1], odds[1] + width])


@pytest.mark.parametrize("shift, sizes", [(0.0, (60, 60)), (1.0, (40, 120)), (2.5, (80, 50))])
def test_auc_interval_covers(shift, sizes):
    rng = np.random.default_rng(0)
    true = stats.norm.cdf(shift / math.sqrt(2))
    found = [statistics.auc(rng.normal(shift, 1, sizes[0]), rng.normal(0, 1, sizes[1])) for _ in range(1000)]
    # Nominal 0.95, with a standard error of 0.007; the interval is asymptotic.
    assert np.mean([low <= true <= high for _, low, high in found]) == pytest.approx(0.95, abs=0.02)


def test_perfect_separation_is_no_proof():
    value, low, high = statistics.auc([3.0] * 20, [1.0] * 50)
    assert (value, high) == (1.0, 1.0) and low == pytest.approx(0.025 ** (1 / 20))
    assert statistics.auc([1.0], [1.0]) == (0.5, 0.0, 1.0)


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.29])
def test_tpr_at_fpr_is_the_best_threshold_of_all(fpr):
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 60, 80) + 5, rng.integers(0, 60, 100)
    best = max(np.mean(x > t) for t in range(-1, 70) if np.mean(y > t) <= fpr + 1e-12)
    value, low, high = statistics.tpr_at_fpr(x, y, fpr)
    assert value == best and 0 <= low <= value <= high <= 1


def test_tpr_at_fpr_with_too_few_negatives_has_no_lower_end():
    value, low, high = statistics.tpr_at_fpr([5.0] * 50, np.arange(3.0), 0.001)
    assert (value, low, high) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize(
    "shift, fpr, sizes", [(2.0, 0.01, (100, 1000)), (1.0, 0.05, (300, 200)), (3.0, 0.001, (200, 6000))]
)
def test_tpr_at_fpr_interval_covers(shift, fpr, sizes):
    rng = np.random.default_rng(0)
    true = stats.norm.sf(stats.norm.isf(fpr) - shift)
    found = [statistics.tpr_at_fpr(rng.normal(shift, 1, sizes[0]), rng.normal(0, 1, sizes[1]), fpr) for _ in range(300)]
    # At least 0.95 by construction; 300 trials have a standard error of 0.013. And not for saying nothing:
    assert np.mean([low <= true <= high for _, low, high in found]) >= 0.95
    assert np.mean([high - low for _, low, high in found]) < 0.7 and np.mean([low for _, low, _ in found]) > 0


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlation_is_spearmans(ties):
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    y = 0.5 * x + rng.normal(size=40)
    if ties:
        x, y = np.round(x), np.round(2 * y)
    rho, low, high = statistics.rank_correlation(x, y)
    assert rho == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12) and -1 <= low < rho < high <= 1
    # Only ranks count.
    assert statistics.rank_correlation(np.exp(x), y**3) == (rho, low, high)
    assert statistics.rank_correlation(x, -y)[0] == -rho


def test_rank_correlation_bootstrap_ranks_every_resample_anew():
    rng = np.random.default_rng(1)
    x, y = rng.integers(6, size=12), rng.integers(6, size=12)
    draws = rng.integers(12, size=(4000, 12))
    ranked = [stats.rankdata(v[draws], axis=1) for v in (x, y)]
    a, b = (r - r.mean(1, keepdims=True) for r in ranked)
    direct = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    _, low, high = statistics.rank_correlation(x, y, num_resamples=4000)
    # Two Monte Carlo quantiles of a statistic whose standard deviation is 0.3: about 0.015 each.
    assert (low, high) == pytest.approx(tuple(np.quantile(direct, (0.025, 0.975))), abs=0.06)


def test_rank_correlation_within_groups_by_hand():
    # Ranks less their mean: a (-1, 0, 1) against (0, -1, 1), b (-0.5, 0.5) against (0.5, -0.5), c alone: nothing.
    x, y = [1, 2, 3, 100, 200, 7], [50, 40, 60, 2, 1, 9]
    expected = (0 + 0 + 1 - 0.25 - 0.25) / (2 + 0.5)
    found = statistics.rank_correlation(x, y, list("aaabbc"))
    assert found[0] == pytest.approx(expected, abs=1e-12) and found[1] <= found[0] <= found[2]
    # Equal to the pooled one when there is one group, and blind to what sets groups apart.
    assert statistics.rank_correlation(x, y, ["a"] * 6) == statistics.rank_correlation(x, y)
    shifted = np.array(x) + 1000 * np.array([0, 0, 0, 1, 1, 2])
    assert statistics.rank_correlation(shifted, y, list("aaabbc")) == found


def test_groups_undo_what_lies_between_them():
    """Simpson's paradox: y rises with x over the groups, and falls within each."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(4), 8)
    inside = rng.normal(size=32)
    x, y = 10 * group + inside, 10 * group - inside
    assert statistics.rank_correlation(x, y)[1] > 0.5
    assert statistics.rank_correlation(x, y, group)[0] == -1


def test_rank_correlation_covers():
    """Bivariate normal with correlation r: Spearman's rho is 6 / pi asin(r / 2)."""
    rng = np.random.default_rng(0)
    r = 0.5
    x = rng.normal(size=(300, 50))
    y = r * x + np.sqrt(1 - r * r) * rng.normal(size=(300, 50))
    found = [statistics.rank_correlation(a, b, num_resamples=300, seed=i) for i, (a, b) in enumerate(zip(x, y))]
    # Nominal 0.95 with a standard error of 0.013; a percentile interval of 50 items covers a little less.
    assert 0.89 <= np.mean([low <= 6 / np.pi * np.arcsin(r / 2) <= high for _, low, high in found]) <= 0.985


def test_clusters_widen_the_interval_to_what_is_independent():
    """Ten clusters of eight items alike: an interval over items claims eighty observations, where there are ten."""
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(10), 8)
    covers = {"items": [], "clusters": []}
    for seed in range(150):
        x, y = (rng.normal(size=10)[cluster] + 0.1 * rng.normal(size=80) for _ in range(2))
        for name, labels in (("items", None), ("clusters", cluster)):
            rho, low, high = statistics.rank_correlation(x, y, num_resamples=200, seed=seed, cluster=labels)
            covers[name].append(low <= 0 <= high)
    # x and y are independent. Standard errors of 0.03; ten clusters are few for a percentile interval.
    assert np.mean(covers["clusters"]) >= 0.85 and np.mean(covers["items"]) < 0.7


def test_whole_clusters_are_drawn_and_ranked_within_groups():
    rng = np.random.default_rng(2)
    group, cluster = np.tile([0, 1, 1], 8), np.repeat(np.arange(8), 3)
    x, y = rng.normal(size=(2, 24)) + 0.7 * rng.normal(size=24) + group

    def direct(items):
        centred = [[], []]
        for g in (0, 1):
            for found, v in zip(centred, (x, y)):
                ranks = stats.rankdata(v[items][group[items] == g])
                found.append(ranks - ranks.mean())
        return np.corrcoef(*map(np.concatenate, centred))[0, 1]

    draws = [np.concatenate([np.flatnonzero(cluster == c) for c in rng.integers(8, size=8)]) for _ in range(1000)]
    rho, low, high = statistics.rank_correlation(x, y, group, cluster=cluster)
    assert rho == pytest.approx(direct(np.arange(24)), abs=1e-12)
    # Monte Carlo quantiles of a statistic whose standard deviation is 0.2: about 0.02 for 1,000 draws.
    assert (low, high) == pytest.approx(tuple(np.quantile([direct(d) for d in draws], (0.025, 0.975))), abs=0.08)


def test_clusters_of_one_item_are_items():
    x, y = np.random.default_rng(0).normal(size=(2, 20))
    assert statistics.rank_correlation(x, y, cluster=range(20)) == statistics.rank_correlation(x, y)


def test_rank_correlation_is_reproducible_and_whole_in_chunks(monkeypatch):
    x, y = np.random.default_rng(0).normal(size=(2, 20))
    whole = statistics.rank_correlation(x, y, seed=3)
    assert whole == statistics.rank_correlation(x, y, seed=3) != statistics.rank_correlation(x, y, seed=4)
    monkeypatch.setattr(statistics, "_CHUNK_ELEMENTS", 700)
    assert statistics.rank_correlation(x, y, seed=3) == whole  # one stream of draws


def test_what_does_not_vary_has_no_rank_correlation():
    assert statistics.rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]) == (None, None, None)
    assert statistics.rank_correlation([1, 1, 2, 2], [1, 2, 3, 4], list("aabb")) == (None, None, None)
    assert statistics.rank_correlation([1, 2, 3], [1, 3, 2], cluster=[0, 0, 0]) == (0.5, None, None)
    # Half of the resamples of three items that rank alike are constant in part; none makes a NaN.
    assert statistics.rank_correlation([1, 2, 3], [1, 2, 3]) == (1, 1, 1)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: statistics.clopper_pearson(3, 2), "successes=3"),
        (lambda: statistics.clopper_pearson(1, 2, confidence=95), "confidence=95"),
        (lambda: statistics.bootstrap_mean([]), "at least one item"),
        (lambda: statistics.bootstrap_mean([0.1, float("nan")]), "1 non-finite"),
        (lambda: statistics.bootstrap_mean([0.1], num_resamples=0), "num_resamples=0"),
        (lambda: statistics.paired_difference([1, 0], [1]), "before has 2 items"),
        (lambda: statistics.mcnemar([0, 2], [0, 1]), "before_hits"),
        (lambda: statistics.holm([0.5, 1.5]), "p_values lie in .*1.5"),
        (lambda: statistics.holm([]), "at least one item"),
        (lambda: statistics.t_interval([0.5]), "at least 2"),
        (lambda: statistics.auc([], [1.0]), "positives"),
        (lambda: statistics.auc([1.0], [float("inf")]), "negatives holds 1 non-finite"),
        (lambda: statistics.tpr_at_fpr([1.0], [0.0], 1.0), "fpr=1.0"),
        (lambda: statistics.rank_correlation([1, 2], [1, 2]), "x has 2 items.*at least 3"),
        (lambda: statistics.rank_correlation([1, 2, 3], [1, 2]), "x has 3 items and y has 2"),
        (lambda: statistics.rank_correlation([1, 2, 3], [1, 2, float("nan")]), "y holds 1 non-finite"),
        (lambda: statistics.rank_correlation([1, 2, 3], [1, 2, 3], ["a"]), "groups has 1 labels for 3"),
        (lambda: statistics.rank_correlation([1, 2, 3], [1, 2, 3], cluster=["a"]), "cluster has 1 labels for 3"),
        (lambda: statistics.rank_correlation([1, 2, 3], [1, 2, 3], num_resamples=0), "num_resamples=0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_paired_mean_is_the_weighted_one_and_never_without_width():
    difference, low, high = statistics.paired_mean([0.5, 1.0], [0.0, 1.0], [3, 1], span=1.0)
    assert difference == pytest.approx(-0.375) and -1 <= low < difference < high
    difference, low, high = statistics.paired_mean(np.ones(400), np.ones(400), np.ones(400), span=1.0)
    assert difference == 0 and -0.01 < low < 0 < high < 0.01
    assert statistics.paired_mean([1.0, 2.0], [1.0, 2.0], [1, 1]) == (0.0, None, None)
    rng = np.random.default_rng(0)
    x, change = rng.normal(size=50), rng.normal(size=50)
    found = statistics.paired_mean(x, x + change, np.ones(50))
    assert found == pytest.approx((change.mean(), *stats.ttest_1samp(change, 0).confidence_interval(0.95)))


@pytest.mark.large
@pytest.mark.parametrize("n", [16, 32, 64, 384])
def test_intervals_of_paired_means_cover(n):
    """Items lose or gain all or a part of what they have; nominal 95 %, at least 93.5 % of 2,000 everywhere."""
    rng, trials = np.random.default_rng(n), 2_000
    for lose, gain in ((0.01, 0), (0.01, 0.01), (0.03, 0.03), (0.05, 0), (0.2, 0.05), (0.5, 0), (0.9, 0)):
        for part in (False, True):
            u = rng.random((trials, n))
            change = np.where(u < lose, -1.0, np.where(u < lose + gain, 1.0, 0.0))
            change = change * rng.random((trials, n)) if part else change
            true = (gain - lose) * (0.5 if part else 1)
            ends = [statistics.paired_mean(np.zeros(n), row, np.ones(n), span=1.0)[1:] for row in change]
            assert np.mean([low <= true <= high for low, high in ends]) >= 0.935
