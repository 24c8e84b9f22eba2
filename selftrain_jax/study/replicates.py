"""Rows reduced to one number a seed, the study's replicate, and what seeds can tell: intervals, tests and power."""

import functools
from typing import Any, Callable, Collection, Iterable, Mapping, Sequence

import numpy as np

from selftrain_jax.evaluation.statistics import clopper_pearson, t_interval
from selftrain_jax.report.metric import Metric, Row, grouped

Rows = list[dict[str, Any]]

PAIR = ("student", "arm", "relation", "condition")
LEAST_CAPABILITY = 0.05  # above chance: less than that cannot be lost by shares
LEAST_EXTRACTION = 0.01  # of the probes, likewise

ABOVE_CHANCE = Metric("capability above chance")
"""The mean over the suites of accuracy, less that of guessing."""


def of(results: Iterable[Row], metric: Metric) -> list[Row]:
    return [row for row in results if row["metric"] == metric]


def change(row: Row) -> float:
    return row["after"] - row["before"]


def seed_means(rows: Iterable[Row], value: Callable[[Row], float] = change) -> dict[Any, float]:
    """{seed: mean of its rows}, in order of seeds: one replicate each."""
    return {
        seed: float(np.mean([value(row) for row in rows])) for (seed,), rows in sorted(grouped(rows, "seed").items())
    }


def contrast(
    rows: Sequence[Row], nearer: str, farther: Collection[str], value: Callable[[Row], float] = change
) -> dict[Any, float]:
    """{seed: mean, over students (and conditions) that have both, of the mean of a relation minus that of others}.

    What is easy for one student says nothing of sources, so students are never compared with each other.
    """
    by_seed = {}
    for (seed,), of_seed in sorted(grouped(rows, "seed").items()):
        differences = []
        for group in grouped(of_seed, "student", "condition").values():
            near, far = ([value(row) for row in group if row["relation"] in names] for names in ((nearer,), farther))
            if near and far:
                differences.append(np.mean(near) - np.mean(far))
        if differences:
            by_seed[seed] = float(np.mean(differences))
    return by_seed


def _deviation(values: Sequence[float]) -> float | None:
    """The standard deviation; None where values do not differ, of which Student's t knows nothing."""
    found = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return found if found > 1e-12 else None


def estimate(values: Mapping[Any, float] | Sequence[float]) -> dict[str, Any]:
    """ "value", "low" and "high" (95 %, Student's t), "num_replicates"; no bounds of a single replicate, nor where all
    are the same: three seeds that gain one item each do not say that a fourth would."""
    values = list(values.values()) if isinstance(values, Mapping) else list(values)
    low, high = t_interval(values) if _deviation(values) else (None, None)
    return {"value": float(np.mean(values)), "low": low, "high": high, "num_replicates": len(values)}


def tails(values: Sequence[float], bound: float) -> tuple[float, float]:
    """One-sided p-values of Student's t: that the mean is at most `bound`, that it is at least `bound`; 1 where values
    do not differ."""
    from scipy.stats import t

    if (deviation := _deviation(values)) is None:
        return 1.0, 1.0
    distance = (float(np.mean(values)) - bound) * np.sqrt(len(values)) / deviation
    return tuple(float(tail(distance, len(values) - 1)) for tail in (t.sf, t.cdf))


def detectable(values: Sequence[float]) -> float | None:
    """The mean that a two-sided t test at 5 %, over as many replicates of the same spread, tells from 0 in four of five
    studies: 3.26, 1.68 and 1.00 standard deviations at 3, 5 and 10 replicates; None where they do not differ.

    The half-width of the interval is less (2.48, 1.24 and 0.72): an effect of that size is found by 61, 56 and 52 %.
    """
    return float(deviation * _detectable(len(values))) if (deviation := _deviation(values)) else None


@functools.lru_cache
def _detectable(n: int) -> float:
    """In standard deviations: the noncentral t distribution, integrated over quantiles of the chi distribution (Cohen,
    "Statistical power analysis for the behavioral sciences", 1988, ch. 2)."""
    from scipy.optimize import brentq
    from scipy.stats import chi2, norm, t

    critical = t.ppf(0.975, n - 1)
    spreads = np.sqrt(chi2.ppf((np.arange(2000) + 0.5) / 2000, n - 1) / (n - 1))
    return brentq(lambda shift: norm.cdf(shift - critical * spreads).mean() - 0.8, 0, 4 * critical) / np.sqrt(n)


def shares_lost(rows: Iterable[Row], least: float) -> dict[int, float]:
    """Seed -> the share of the base model's value that is gone; seeds where the base model has less than `least` to
    lose are left out."""
    shares = {}
    for (seed,), group in grouped(rows, "seed").items():
        before, after = (float(np.mean([row[name] for row in group])) for name in ("before", "after"))
        if before >= least:
            shares[seed] = 1 - after / before
    return shares


def exact_share_lost(rows: Sequence[Row]) -> tuple[float, float] | None:
    """(low, high), 95 %: the share lost of all items that the base models have right, over seeds together (Clopper &
    Pearson); None where a row does not say of how many items it is. Where all seeds lost nearly all, they differ too
    little for Student's t."""
    if not all(row.get("n") for row in rows):
        return None
    # The same items at another subset are no other items: their mean counts once.
    seeds = grouped(rows, "seed").values()
    before, after = (sum(np.mean([row[x] * row["n"] for row in of]) for of in seeds) for x in ("before", "after"))
    return clopper_pearson(min(max(before - after, 0.0), before), before)
