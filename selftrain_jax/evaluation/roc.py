"""How well scores tell positives from negatives: the area under the ROC curve, and its far end.

All raise `InputError`, naming the argument, as `statistics` does.
"""

from typing import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from selftrain_jax.core.errors import InputError
from selftrain_jax.evaluation.statistics import check_items, check_pairs, check_settings, clopper_pearson, weighted_mean


def auc(positives: ArrayLike, negatives: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """(AUC, low, high): the probability that a positive scores above a negative, ties counting half, and an interval.

    The variance is that of DeLong et al. ("Comparing the areas under two or more correlated ROC curves", Biometrics 44,
    1988), the interval is built on the log-odds, which keeps it inside (0, 1). Where that variance is zero (classes
    that do not overlap, scores that are all equal) the interval is the exact binomial one of min(P, N) independent
    pairs; with a single positive or negative it says nothing, (0, 1), unless all pairs came out alike.
    """
    check_settings(confidence)
    x, y = check_items("positives", positives), check_items("negatives", negatives)
    above, below = _placements(x, y)
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


def _placements(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The share of `y` below each of `x`, and of `x` above each of `y`, ties half; the mean of either is the AUC."""
    ranked_x, ranked_y = np.sort(x), np.sort(y)
    above = (np.searchsorted(ranked_y, x, "left") + np.searchsorted(ranked_y, x, "right")) / (2 * len(y))
    below = 1 - (np.searchsorted(ranked_x, y, "left") + np.searchsorted(ranked_x, y, "right")) / (2 * len(x))
    return above, below


def paired_auc(
    before: ArrayLike,
    after: ArrayLike,
    positive: ArrayLike,
    confidence: float = 0.95,
    cluster: Sequence[Hashable] | None = None,
) -> tuple[float, float, float]:
    """(difference, low, high) of the AUC of scores [N] of the same items after minus before; `positive` is bool [N].

    The variance is DeLong's of two correlated curves: that of the changes of an item's placement, in each class (with
    `cluster`, a label per item, of clusters within a class: Obuchowski, "Nonparametric analysis of clustered ROC curve
    data", Biometrics 53, 1997). Each class has the interval of `weighted_mean`, which is never without width, and the
    two are joined as Newcombe joins those of two shares. In
    simulations of 16 to 128 items of a class it covers 97 to 100 %.
    """
    before, after = check_pairs(before, after)
    positive = np.asarray(positive, bool)
    if positive.shape != before.shape or positive.all() or not positive.any():
        raise InputError(f"positive must say of each of the {before.size} items which class it is of, and name both")
    labels = None if cluster is None else np.asarray(cluster)
    (above, below), (old_above, old_below) = (_placements(x[positive], x[~positive]) for x in (after, before))
    difference = float((above - old_above).mean())
    halves = [
        [
            abs(end - difference)
            for end in weighted_mean(change, None, (-1, 1), None if labels is None else labels[of], confidence)[1:]
        ]
        for change, of in ((above - old_above, positive), (below - old_below, ~positive))
    ]
    low, high = np.hypot(*halves)
    return difference, max(difference - float(low), -1.0), min(difference + float(high), 1.0)


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
    check_settings(confidence)
    if not 0 < fpr < 1:
        raise InputError(f"fpr={fpr} must lie between 0 and 1, for example 0.01")
    x, y = check_items("positives", positives), np.sort(check_items("negatives", negatives))[::-1]
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
