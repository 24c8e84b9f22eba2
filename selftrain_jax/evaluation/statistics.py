"""Intervals and tests over items (probes, questions, documents), over tasks, and over subsets and seeds.

All raise `InputError`, naming the argument, for settings out of range and for items that are missing, not finite, not
one-dimensional or not as many as they must be.
"""

import functools
from typing import Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike

from selftrain_jax.core.errors import InputError

_CHUNK_ELEMENTS = 1 << 22
"""Resampled items held in memory at once (32 MiB of indices)."""


@functools.lru_cache(maxsize=1 << 14)  # reports ask for the same counts again and again
def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval (low, high) of a binomial proportion; (0, 1) when `n` is 0.

    It covers the true proportion with probability at least `confidence`, whatever that proportion is (Clopper &
    Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial", Biometrika 26, 1934).
    """
    _check_settings(confidence)
    if not 0 <= successes <= n:
        raise InputError(f"successes={successes} must lie between 0 and n={n}")
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, n - successes + 1))
    high = 1.0 if successes == n else float(beta.ppf(1 - tail, successes + 1, n - successes))
    return low, high


def bootstrap_mean(
    values: ArrayLike, confidence: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile-bootstrap interval (low, high) of the mean of `values` [N], resampled item by item.

    The same arguments give the same interval (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13).
    """
    _check_settings(confidence, num_resamples)
    values = _items("values", values)
    means = [values[drawn].mean(axis=1) for drawn in _resamples(len(values), num_resamples, seed)]
    return _central(np.concatenate(means), confidence)


def bootstrap_ratio(
    values: ArrayLike, weights: ArrayLike, confidence: float = 0.95, num_resamples: int = 2_000, seed: int = 0
) -> tuple[float, float]:
    """The same for sum(values) / sum(weights), items [N] resampled together with their weights."""
    _check_settings(confidence, num_resamples)
    values, weights = _pairs(values, weights, ("values", "weights"))
    resamples = _resamples(len(values), num_resamples, seed)
    return _central(np.concatenate([values[drawn].sum(1) / weights[drawn].sum(1) for drawn in resamples]), confidence)


def _resamples(n: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """int `[R, n]`, items drawn with replacement, until there are `num_resamples` rows; R bounds the memory."""
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK_ELEMENTS // n)
    for start in range(0, num_resamples, rows):
        yield rng.integers(n, size=(min(rows, num_resamples - start), n))


def paired_difference(
    before_hits: ArrayLike, after_hits: ArrayLike, confidence: float = 0.95
) -> tuple[float, float, float]:
    """(difference, low, high) of the share of hits [N] (0 or 1, same items) after minus before.

    What both measurements share cancels, and where no item changed the interval still has the width that N leaves, of
    which a bootstrap knows nothing (Newcombe, "Improved confidence intervals for the difference between binomial
    proportions based on paired data", Statistics in Medicine 17, 1998, method 10).
    """
    _check_settings(confidence)
    before, after = _hits(before_hits, after_hits)
    n, p, q = len(before), float(after.mean()), float(before.mean())
    from scipy.stats import norm

    z = float(norm.ppf((1 + confidence) / 2))

    def wilson(share):
        middle, half = share + z * z / (2 * n), z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
        return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)

    covariance, spread = float(np.mean(before * after)) - p * q, np.sqrt(p * (1 - p) * q * (1 - q))
    if covariance > 0:  # with the method's correction for continuity
        covariance = max(covariance - 1 / (2 * n), 0.0)
    correlation = covariance / spread if spread else 0.0
    (p_low, p_high), (q_low, q_high) = wilson(p), wilson(q)

    def half(a, b):
        return float(np.sqrt(max(a * a - 2 * correlation * a * b + b * b, 0.0)))

    return p - q, max(p - q - half(p - p_low, q_high - q), -1.0), min(p - q + half(p_high - p, q - q_low), 1.0)


def paired_mean(
    before: ArrayLike, after: ArrayLike, weights: ArrayLike, span: float | None = None, confidence: float = 0.95
) -> tuple[float, float | None, float | None]:
    """(difference, low, high) of sum(weights * value) / sum(weights), values [N] of the same items after minus before.

    Student's t with the variance of a ratio estimator (Cochran, "Sampling techniques", 1977, section 6.3). Where few
    items change, that has too little width: of values within [0, `span`] two items of mean weight are added, one that
    loses `span` and one that gains it (as Agresti & Caffo, "Simple and effective confidence intervals for proportions",
    The American Statistician 54, 2000, add two of each kind for shares). In simulations of 16 to 384 items of which 1
    to 90 % lose all or a part, it covers 94 to 100 %; without them, 14 to 96 %. Without `span` the interval is None
    where no item changes.
    """
    _check_settings(confidence)
    before, after = _pairs(before, after, ("before", "after"))
    change, weights = _pairs(after - before, weights, ("after", "weights"))
    difference = float((weights * change).sum() / weights.sum())
    if span is not None:
        change, weights = np.append(change, [-span, span]), np.append(weights, [weights.mean()] * 2)
    n, middle = len(change), float((weights * change).sum() / weights.sum())
    residuals = weights * (change - middle)
    if n < 2 or not residuals.any():
        return difference, None, None
    from scipy.stats import t

    error = np.sqrt(n / (n - 1) * (residuals**2).sum()) / weights.sum()
    half = float(t.ppf((1 + confidence) / 2, n - 1) * error)
    low, high = min(middle - half, difference), max(middle + half, difference)
    return (difference, low, high) if span is None else (difference, max(low, -span), min(high, span))


def mcnemar(before_hits: ArrayLike, after_hits: ArrayLike) -> float:
    """Exact two-sided p-value that hits [N] (0 or 1, same items) are as frequent after as before; 1 without a change.

    Under the null hypothesis each item that changed is as likely to be a loss as a gain: a binomial test with p = 1/2
    on the discordant pairs (McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", Psychometrika 12, 1947).
    """
    before, after = _hits(before_hits, after_hits)
    gains, losses = int(np.sum(after > before)), int(np.sum(after < before))
    if gains + losses == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(gains, gains + losses, 0.5).pvalue)


def holm(p_values: ArrayLike) -> np.ndarray:
    """float64 `[N]`: p-values adjusted for N tests, in their order; rejecting where they are <= a keeps the probability
    of any false rejection at or below a, however the tests depend on each other.

    adjusted_(i) = max over j <= i of min(1, p_(j) (N - j + 1)) (Holm, "A simple sequentially rejective multiple test
    procedure", Scandinavian Journal of Statistics 6, 1979).
    """
    p = _items("p_values", p_values)
    if p.min() < 0 or p.max() > 1:
        raise InputError(f"p_values lie in [{p.min()}, {p.max()}]: each must lie in [0, 1]")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(np.minimum(p[order] * np.arange(len(p), 0, -1), 1.0))
    return adjusted


def t_interval(estimates: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) for the mean over subsets or seeds, from one estimate [K] of each: mean +- t_(K-1) s / sqrt(K).

    It speaks of another subset or seed, where an interval over items speaks of other items for the same models.
    Student's t over the K means is used rather than a hierarchical bootstrap because K is small: with three runs a
    bootstrap draws from ten combinations and covers far too little. What the items add is already in the spread of the
    K means. It supposes that estimates of different runs are about normal ("Student", Biometrika 6, 1908).
    """
    _check_settings(confidence)
    values = _items("estimates", estimates)
    if len(values) < 2:
        raise InputError("estimates: an interval over subsets or seeds needs at least 2 of them")
    from scipy.stats import t

    half = float(t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean()) - half, float(values.mean()) + half


def variance_components(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """(between, within): variances of the groups' effects and of values within a group, by the analysis of variance.

    within = sum_ij (y_ij - mean_i)^2 / (N - a); between = (MSB - within) / n_0, or 0 where that is negative, with
    n_0 = (N - sum n_i^2 / N) / (a - 1), for a groups of n_i values, N in all (Searle, Casella & McCulloch, "Variance
    components", 1992, section 3.6). Needs two groups, and two values in one of them.
    """
    groups = [_items("groups", group) for group in groups]
    sizes = np.array([len(group) for group in groups])
    a, total = len(groups), sizes.sum()
    if a < 2 or total == a:
        raise InputError("groups: components of variance need two groups, and two values in one of them")
    means = np.array([group.mean() for group in groups])
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in groups) / (total - a)
    mean = (sizes * means).sum() / total
    of_means = float((sizes * (means - mean) ** 2).sum()) / (a - 1)
    return max((of_means - within) / float((total - (sizes**2).sum() / total) / (a - 1)), 0.0), within


def auc(positives: ArrayLike, negatives: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """(AUC, low, high): the probability that a positive scores above a negative, ties counting half, and an interval.

    The variance is that of DeLong et al. ("Comparing the areas under two or more correlated ROC curves", Biometrics 44,
    1988), the interval is built on the log-odds, which keeps it inside (0, 1). Where that variance is zero (classes
    that do not overlap, scores that are all equal) the interval is the exact binomial one of min(P, N) independent
    pairs; with a single positive or negative it says nothing, (0, 1), unless all pairs came out alike.
    """
    _check_settings(confidence)
    x, y = _items("positives", positives), _items("negatives", negatives)
    ranked_x, ranked_y = np.sort(x), np.sort(y)
    # Share of the other class below each score, ties half: the "placements".
    above = (np.searchsorted(ranked_y, x, "left") + np.searchsorted(ranked_y, x, "right")) / (2 * len(y))
    below = 1 - (np.searchsorted(ranked_x, y, "left") + np.searchsorted(ranked_x, y, "right")) / (2 * len(x))
    value = float(above.mean())
    pairs = min(len(x), len(y))
    if pairs < 2 and 0 < value < 1:
        return value, 0.0, 1.0
    error = np.sqrt(above.var(ddof=1) / len(x) + below.var(ddof=1) / len(y)) if pairs > 1 else 0.0
    if error == 0:
        low, high = clopper_pearson(round(value * pairs), pairs, confidence)
        return value, min(low, value), max(high, value)
    from scipy.special import expit, logit
    from scipy.stats import norm

    half = norm.ppf((1 + confidence) / 2) * error / (value * (1 - value))
    return value, float(expit(logit(value) - half)), float(expit(logit(value) + half))


def tpr_at_fpr(
    positives: ArrayLike, negatives: ArrayLike, fpr: float, confidence: float = 0.95
) -> tuple[float, float, float]:
    """(TPR, low, high): the share of positives found when at most the share `fpr` of the negatives is accused.

    Accused is who scores above the threshold, the lowest that accuses floor(fpr N) negatives or fewer; with fewer than
    1 / fpr negatives that is the highest of them. Below some 4.4 / fpr negatives `low` is 0 (at 95 %): so few cannot
    tell how far out the threshold truly lies.

    The interval is for the population's rate at the population's threshold and holds for any distribution of scores:
    half of the allowed error goes to the threshold, which lies between two order statistics of the negatives
    (binomial), half to the share of positives above each of them (Clopper-Pearson). It is wider than a bootstrap's,
    which misses the far tail.
    """
    _check_settings(confidence)
    if not 0 < fpr < 1:
        raise InputError(f"fpr={fpr} must lie between 0 and 1, for example 0.01")
    x, y = _items("positives", positives), np.sort(_items("negatives", negatives))[::-1]
    from scipy.stats import binom

    tail = (1 - confidence) / 2
    inner = 1 - tail  # confidence of each half: two errors of (1 - confidence) / 2 add up

    def above(accused: int) -> int:  # positives that score above all but `accused` negatives
        return int(np.sum(x > y[accused])) if accused < len(y) else len(x)

    allowed = int(fpr * len(y) * (1 + 1e-12))  # 0.01 * 100 is a rounding below 1 on some paths
    fewest, most = int(binom.ppf(tail / 2, len(y), fpr)), int(binom.ppf(1 - tail / 2, len(y), fpr))
    low = clopper_pearson(above(fewest - 1), len(x), inner)[0] if fewest > 0 else 0.0
    high = clopper_pearson(above(most), len(x), inner)[1]
    value = above(allowed) / len(x)
    return value, min(low, value), max(high, value)


def rank_correlation(
    x: ArrayLike,
    y: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
    *,
    cluster: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> tuple[float | None, float | None, float | None]:
    """(rho, low, high): Spearman's rank correlation of `x` [N] and `y` [N], ties averaged, and a percentile bootstrap.

    With `groups` it is the pooled correlation within them: items are ranked inside their own group, each rank less the
    group's mean rank, and all groups enter one Pearson correlation. What differs between groups then counts for
    nothing, an item alone in its group neither, and a group of n items weighs as n^3 - n (its sum of squared ranks,
    without ties).

    The bootstrap draws N items with replacement, within each group as many as it has, and ranks anew (Efron &
    Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13). Items that are not independent, as pairs of models
    from one seed, need `cluster`: then whole clusters are drawn, whatever the groups. With some five clusters or fewer
    the interval is too narrow, as any percentile interval of so few draws is. Memory grows with N^2: meant for at most
    some thousands.

    Args:
      x, y: one finite number per item.
      groups, cluster: a label per item.
      num_resamples: of the bootstrap; those in which `x` or `y` does not vary are left out.
      seed: of the bootstrap; the same arguments give the same interval.

    Returns:
      (None, None, None) where `x` or `y` does not vary (within any group): there is nothing to rank. (rho, None, None)
      where there is a single cluster, or no resample varies.
    """
    _check_settings(confidence, num_resamples)
    x, y = _pairs(x, y, ("x", "y"))
    if len(x) < 3:
        raise InputError(f"x has {len(x)} items: a rank correlation needs at least 3")
    group, unit = _labels("groups", groups, len(x)), _labels("cluster", cluster, len(x))
    same = np.ones((len(x), len(x)), bool) if group is None else group[:, None] == group
    # Twice an item's rank less the mean rank is the number of items below it minus that above it.
    above_x, above_y = (np.sign(v - v[:, None]) * same for v in (x, y))

    def correlations(weights):  # [R, N], how often each item was drawn
        a, b = weights @ above_x, weights @ above_y
        square = (weights * a * a).sum(1) * (weights * b * b).sum(1)
        varies = square > 0  # exactly, since all are sums of whole numbers
        return (weights * a * b).sum(1)[varies] / np.sqrt(square[varies])

    whole = correlations(np.ones((1, len(x))))
    if not whole.size:
        return None, None, None
    rho = float(np.clip(whole[0], -1, 1))
    rng = np.random.default_rng(seed)
    if unit is not None:
        strata = [np.arange(len(x))]
    else:
        unit = np.arange(len(x))
        strata = [unit] if group is None else [np.flatnonzero(group == g) for g in range(group.max() + 1)]
    found = []
    rows = max(1, _CHUNK_ELEMENTS // len(x))
    for start in range(0, num_resamples, rows):
        weights = np.zeros((min(rows, num_resamples - start), len(x)))
        for items in strata:
            units, at = np.unique(unit[items], return_inverse=True)
            drawn = rng.multinomial(len(units), np.full(len(units), 1 / len(units)), size=len(weights))
            weights[:, items] = drawn[:, at]
        found.append(correlations(weights))
    found = np.concatenate(found)
    if not found.size or (cluster is not None and unit.max() == 0):
        return rho, None, None
    low, high = _central(found, confidence)
    return rho, max(low, -1.0), min(high, 1.0)


def _central(samples: np.ndarray, confidence: float) -> tuple[float, float]:
    """The percentile interval of a bootstrap."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, (tail, 1 - tail))
    return float(low), float(high)


def _labels(name: str, labels: Sequence[Hashable] | None, n: int) -> np.ndarray | None:
    if labels is None:
        return None
    numbers = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    if len(labels) != n:
        raise InputError(f"{name} has {len(labels)} labels for {n} items: give one each")
    return np.array([numbers[label] for label in labels])


def _check_settings(confidence: float, num_resamples: int = 1) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence} must lie between 0 and 1, for example 0.95")
    if num_resamples < 1:
        raise InputError(f"num_resamples={num_resamples} must be at least 1")


def _items(name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise InputError(f"{name} has shape {array.shape}: give one number per item, and at least one item")
    if not np.isfinite(array).all():
        raise InputError(f"{name} holds {np.sum(~np.isfinite(array))} non-finite value(s); leave those items out")
    return array


def _pairs(before: ArrayLike, after: ArrayLike, names=("before", "after")) -> tuple[np.ndarray, np.ndarray]:
    before, after = _items(names[0], before), _items(names[1], after)
    if before.shape != after.shape:
        raise InputError(
            f"{names[0]} has {before.size} items and {names[1]} has {after.size}: pair the same items in order"
        )
    return before, after


def _hits(before: ArrayLike, after: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    before, after = _pairs(before, after)
    for name, hits in (("before_hits", before), ("after_hits", after)):
        if not np.isin(hits, (0, 1)).all():
            raise InputError(f"{name} must hold only 0 and 1 (or booleans)")
    return before, after
