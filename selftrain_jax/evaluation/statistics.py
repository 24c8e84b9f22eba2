"""Intervals and paired tests over items (probes, questions, documents)."""

import numpy as np
from numpy.typing import ArrayLike

from selftrain_jax.errors import InputError

_CHUNK_ELEMENTS = 1 << 22
"""Resampled items held in memory at once (32 MiB of indices)."""


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval (low, high) of a binomial proportion; (0, 1) when `n` is 0.

    It covers the true proportion with probability at least `confidence`, whatever that proportion is (Clopper &
    Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial", Biometrika 26, 1934).

    Raises:
      InputError: unless 0 <= successes <= n and 0 < confidence < 1.
    """
    _check_confidence(confidence)
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

    Raises:
      InputError: `values` is empty, not one-dimensional or not finite, or a setting is out of range.
    """
    _check_confidence(confidence)
    if num_resamples < 1:
        raise InputError(f"num_resamples={num_resamples} must be at least 1")
    values = _items("values", values)
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK_ELEMENTS // len(values))
    means = np.concatenate([
        values[rng.integers(len(values), size=(min(rows, num_resamples - start), len(values)))].mean(axis=1)
        for start in range(0, num_resamples, rows)
    ])
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)


def paired_bootstrap_difference(
    before: ArrayLike, after: ArrayLike, confidence: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """(difference, low, high) of mean(after) - mean(before), both measured on the same items [N].

    Items are resampled as pairs, so variation between items that both measurements share cancels.

    Raises:
      InputError: the lengths differ, or for the reasons of `bootstrap_mean`.
    """
    before, after = _pairs(before, after)
    differences = after - before
    low, high = bootstrap_mean(differences, confidence, num_resamples, seed)
    return float(differences.mean()), low, high


def mcnemar(before_hits: ArrayLike, after_hits: ArrayLike) -> float:
    """Exact two-sided p-value that hits [N] (0 or 1, same items) are as frequent after as before; 1 without a change.

    Under the null hypothesis each item that changed is as likely to be a loss as a gain: a binomial test with p = 1/2
    on the discordant pairs (McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", Psychometrika 12, 1947).

    Raises:
      InputError: the lengths differ, there are no items, or a value is neither 0 nor 1.
    """
    before, after = _pairs(before_hits, after_hits)
    for name, hits in (("before_hits", before), ("after_hits", after)):
        if not np.isin(hits, (0, 1)).all():
            raise InputError(f"{name} must hold only 0 and 1 (or booleans)")
    gains, losses = int(np.sum(after > before)), int(np.sum(after < before))
    if gains + losses == 0:
        return 1.0
    from scipy.stats import binomtest
    return float(binomtest(gains, gains + losses, 0.5).pvalue)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence} must lie between 0 and 1, for example 0.95")


def _items(name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise InputError(f"{name} has shape {array.shape}: give one number per item, and at least one item")
    if not np.isfinite(array).all():
        raise InputError(f"{name} holds {np.sum(~np.isfinite(array))} non-finite value(s); leave those items out")
    return array


def _pairs(before: ArrayLike, after: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    before, after = _items("before", before), _items("after", after)
    if before.shape != after.shape:
        raise InputError(f"before has {before.size} items and after has {after.size}: pair the same items in order")
    return before, after
