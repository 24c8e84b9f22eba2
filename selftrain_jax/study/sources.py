"""Does a number known of a text tell which text helps? Rank correlations within students, with sources as replicates.

Pairs of source and student are not independent: a source writes for every student, and a student learns from every
source. So ranks are taken within student, condition and seed, and what is drawn, left out or permuted is a source with
all that it wrote (docs/rules.md has the simulations).
"""

from typing import Hashable, NamedTuple, Sequence

import numpy as np

NUM_PERMUTATIONS = 9_999


class Correlation(NamedTuple):
    rho: float | None  # Spearman's within groups, pooled; None where nothing varies
    sources: int  # that are ranked beside another one
    p_value: float  # that |rho| is no larger than of sources permuted jointly over the groups
    error: float | None  # standard error of artanh(rho); None below three sources

    def interval(self, confidence: float) -> tuple[float | None, float | None]:
        if self.rho is None or self.error is None:
            return None, None
        half = _quantile(confidence, self.sources) * self.error
        low, high = np.tanh([_z(self.rho) - half, _z(self.rho) + half])
        return float(min(low, self.rho)), float(max(high, self.rho))

    @property
    def detectable(self) -> float | None:
        """The |rho| that is told from 0 with a probability of 80 %, at 5 %."""
        if self.error is None:
            return None
        return float(np.tanh((_quantile(0.95, self.sources) + _quantile(0.6, self.sources)) * self.error))


def correlation(
    x: Sequence[float], y: Sequence[float], groups: Sequence[Hashable], sources: Sequence[Hashable], slots: Sequence
) -> Correlation:
    """Spearman's rank correlation of x [N] and y [N] within groups, with sources as the unit.

    Its error is the jackknife's, over sources and on Fisher's scale; Student's t with one degree less than sources
    (Miller, "The jackknife - a review", Biometrika 61, 1974). It is not taken below that of as many independent pairs.
    For the p-value whole sources change places, in every group at once, among those that stand in the same places.

    Args:
      groups, sources: of each item.
      slots: of each item: what tells items of one source within a group apart (a temperature).
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    group, source = (np.unique([str(v) for v in of], return_inverse=True)[1] for of in (groups, sources))
    ranked = _rank(x, y, group)
    alone = np.bincount(group)[group] < 2
    names = np.unique(source[~alone])
    rho = _pooled(*ranked)
    if rho is None:
        return Correlation(None, len(names), 1.0, None)
    places = [str(place) for place in zip(group.tolist(), slots)]
    p_value = _permuted(*ranked, source, np.unique(places, return_inverse=True)[1])
    if len(names) < 3:
        return Correlation(rho, len(names), p_value, None)
    without = [_pooled(*_rank(x[kept], y[kept], group[kept])) for kept in (source != name for name in names)]
    z = np.array([_z(value) for value in without if value is not None])
    error = np.sqrt((len(z) - 1) / len(z) * np.sum((z - z.mean()) ** 2)) if len(z) > 1 else 0.0
    degrees = max(np.sum(~alone) - len(np.unique(group[~alone])) - 1, 1)
    return Correlation(rho, len(names), p_value, float(max(error, 1 / np.sqrt(degrees))))


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Over all items alike; None where nothing varies."""
    return _pooled(*_rank(np.asarray(x, float), np.asarray(y, float), np.zeros(len(x), int)))


def _rank(x: np.ndarray, y: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranks within groups, ties averaged, less their mean."""
    from scipy.stats import rankdata

    ranks = np.zeros((2, len(x)))
    for g in np.unique(group):
        of = np.flatnonzero(group == g)
        ranks[:, of] = rankdata([x[of], y[of]], axis=1) - (len(of) + 1) / 2
    return ranks[0], ranks[1]


def _pooled(a: np.ndarray, b: np.ndarray) -> float | None:
    square = np.sum(a * a) * np.sum(b * b)
    return float(np.clip(np.sum(a * b) / np.sqrt(square), -1, 1)) if square > 0 else None


def _permuted(a: np.ndarray, b: np.ndarray, source: np.ndarray, place: np.ndarray) -> float:
    shape = source.max() + 1, place.max() + 1
    left, right, stands = np.zeros(shape), np.zeros(shape), np.zeros(shape, bool)
    left[source, place], right[source, place], stands[source, place] = a, b, True
    products = left @ right.T  # of source i's x with source j's y
    alike = np.unique(stands, axis=0, return_inverse=True)[1].ravel()
    rng = np.random.default_rng(0)
    chosen = np.zeros((NUM_PERMUTATIONS, shape[0]), int)
    for kind in np.unique(alike):
        members = np.flatnonzero(alike == kind)
        chosen[:, members] = rng.permuted(np.tile(members, (NUM_PERMUTATIONS, 1)), axis=1)
    found = np.abs(products[np.arange(shape[0]), chosen].sum(axis=1))
    return float((1 + np.sum(found >= np.abs(np.trace(products)) - 1e-9)) / (NUM_PERMUTATIONS + 1))


def _quantile(confidence: float, sources: int) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + confidence) / 2, sources - 1))


def _z(rho: float) -> float:
    return float(np.arctanh(np.clip(rho, -0.999, 0.999)))
