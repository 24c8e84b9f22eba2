import itertools
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
        (lambda: statistics.weighted_mean([]), "at least one item"),
        (lambda: statistics.weighted_mean([0.1, float("nan")]), "1 non-finite"),
        (lambda: statistics.mcnemar([0, 1], [0, 1], [7]), "cluster has 1 labels for 2"),
        (lambda: statistics.paired_difference([1, 0], [1]), "before has 2 items"),
        (lambda: statistics.mcnemar([0, 2], [0, 1]), "before_hits"),
        (lambda: statistics.holm([0.5, 1.5]), "p_values lie in .*1.5"),
        (lambda: statistics.holm([]), "at least one item"),
        (lambda: statistics.t_interval([0.5]), "at least 2"),
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


@pytest.mark.large
@pytest.mark.parametrize("n", [16, 64, 384])
def test_intervals_of_means_cover(n):
    """A figure of every item is 1 but for 1 to 90 % of them, which are 0 or between; nominal 95 %, 94 to 100 % of
    2,000. A percentile bootstrap covers 13 to 96 %."""
    rng, trials = np.random.default_rng(n), 2_000
    for lose in (0.01, 0.05, 0.2, 0.5, 0.9):
        for part in (False, True):
            values = np.where(rng.random((trials, n)) < lose, rng.random((trials, n)) if part else 0.0, 1.0)
            ends = [statistics.weighted_mean(row, bounds=(0, 1))[1:] for row in values]
            assert np.mean([low <= 1 - lose * (0.5 if part else 1) <= high for low, high in ends]) >= 0.93


def test_a_mean_of_values_that_are_all_alike_has_the_width_of_their_number():
    mean, low, high = statistics.weighted_mean([1.0] * 59, bounds=(0, 1))
    assert (mean, high) == (1, 1) and 0.93 < low < 0.96  # exact, of hits: 0.939
    assert statistics.weighted_mean([2.5] * 7) == (2.5, None, None)


def test_clusters_of_a_mean_are_its_items():
    rng = np.random.default_rng(0)
    values, weights, cluster = rng.normal(size=60), rng.integers(1, 9, 60), rng.integers(0, 12, 60)
    sizes = np.bincount(cluster, weights)
    whole = statistics.weighted_mean(np.bincount(cluster, weights * values) / sizes, sizes)
    assert statistics.weighted_mean(values, weights, cluster=cluster) == pytest.approx(whole)
    assert statistics.weighted_mean(values, weights, cluster=range(60)) == statistics.weighted_mean(values, weights)
    # Cochran's ratio estimator by its definition.
    residuals = sizes * (np.bincount(cluster, weights * values) / sizes - whole[0])
    half = stats.t.ppf(0.975, 11) * np.sqrt(12 / 11 * (residuals**2).sum()) / sizes.sum()
    assert whole[1:] == pytest.approx((whole[0] - half, whole[0] + half))


def test_items_that_are_copies_of_each_other_say_no_more_than_one():
    """Each of 40 items eight times: as many hits and changes as items say."""
    before, after = np.random.default_rng(1).integers(2, size=(2, 40))
    cluster = np.repeat(np.arange(40), 8)
    copies = np.repeat(before, 8), np.repeat(after, 8)
    assert statistics.mcnemar(*copies, cluster) == pytest.approx(statistics.mcnemar(before, after))
    apart = statistics.paired_mean(before, after, np.ones(40), span=1.0)
    assert statistics.paired_difference(*copies, cluster=cluster) == pytest.approx(apart)
    value, low, high = statistics.share(copies[0], cluster)
    exact = statistics.clopper_pearson(int(before.sum()), 40)
    assert value == before.mean() and (low, high) == pytest.approx(exact, abs=0.02)
    assert statistics.share(np.ones(320), cluster)[1] == pytest.approx(statistics.clopper_pearson(40, 40)[0], abs=0.02)
    assert statistics.share([1, 1, 0, 0], [5, 5, 5, 5]) == (0.5, 0, 1)


def test_signs_of_clusters_are_counted_one_by_one():
    net = np.array([3, -1, 2, 2, 0])  # gains less losses of five clusters
    cluster = np.repeat(np.arange(5), 3)
    after = np.concatenate([[1, 1, 1], [0, 0, 0], [1, 1, 0], [1, 1, 0], [0, 0, 0]])
    before = np.concatenate([[0, 0, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]])
    signs = np.array(list(itertools.product((-1, 1), repeat=5)))
    expected = np.mean(np.abs(signs @ net) >= abs(net.sum()))
    assert statistics.mcnemar(before, after, cluster) == pytest.approx(expected)


def correlated(rng, num_clusters, size, rho, share, trials=400):
    """Hits before and after [trials, n] of the same share: an item is right where half its cluster's own level, half
    the cluster's of that measurement, and noise are low together; rho is the part that is not noise."""
    own, noise = rng.normal(size=(trials, num_clusters, 1)), rng.normal(size=(2, trials, num_clusters, size))
    level = np.sqrt(0.5) * (own + rng.normal(size=(2, trials, num_clusters, 1)))
    return (np.sqrt(rho) * level + np.sqrt(1 - rho) * noise < stats.norm.ppf(share)).reshape(2, trials, -1)


@pytest.mark.large
@pytest.mark.parametrize("num_clusters, size", [(24, 2), (24, 3), (24, 16), (60, 2), (60, 3), (60, 16)])
def test_clusters_keep_the_errors_that_items_do_not(num_clusters, size):
    """No change in truth. Over clusters 0 to 5 % are rejected at 5 %, and 95 % intervals cover 97 to 100 % (changes)
    and 94 to 100 % (shares). Over items up to 58 % are rejected, and 41 to 99 % and 38 to 98 % covered."""
    rng, cluster = np.random.default_rng(size), np.repeat(np.arange(num_clusters), size)
    for rho, share in itertools.product((0.5, 0.95), (0.8, 0.97)):
        pairs = list(zip(*correlated(rng, num_clusters, size, rho, share)))
        assert np.mean([statistics.mcnemar(*pair, cluster) < 0.05 for pair in pairs]) < 0.075
        changes = [statistics.paired_difference(*pair, cluster=cluster)[1:] for pair in pairs]
        assert np.mean([low <= 0 <= high for low, high in changes]) >= 0.945
        shares = [statistics.share(before, cluster)[1:] for before, _ in pairs]
        assert np.mean([low <= share <= high for low, high in shares]) >= 0.925
    if size == 16:
        assert np.mean([statistics.mcnemar(*pair) < 0.05 for pair in pairs]) > 0.4
