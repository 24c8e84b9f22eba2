"""Comparisons beyond the means over seeds: arms at the same distance from the untouched student, items that stand in
the training text and those that do not, the loop and where it began, and what part of a result changes with the seed
and what part with the draw and order of training.
"""

import itertools
from typing import Any, Iterator, Sequence

import numpy as np

from selftrain_jax.evaluation.statistics import variance_components
from selftrain_jax.report.metric import CAPABILITY, DRIFT, HELD_OUT, Row, grouped
from selftrain_jax.report.study_data import UNTRAINED, in_order
from selftrain_jax.run.summary import LEAST_ITEMS
from selftrain_jax.study.replicates import PAIR, Rows, change, estimate, of, seed_means

NOTHING = {"value": None, "low": None, "high": None, "num_replicates": 0}


def at_equal_drift(curves: Sequence[Row]) -> Rows:
    """What each arm has gained and lost when it has moved as far as the one that moves least in the end.

    A learning rate and a number of steps move a model further on one text than on another, so that at equal steps the
    strength of the treatment and its kind are mixed up. Between two measured steps values are interpolated in the
    drift.

    Args:
      curves: rows of `StudyData.curves`; arms without a drift are left out.

    Returns:
      Rows {"student", "arm", "relation", "condition", "metric", "drift", "value", "low", "high", "num_replicates"};
      "value" is after minus before, a share; over seeds, each the mean of its trainings.
    """
    found = []
    for _, group in grouped(curves, "student", "condition", "seed", "subset").items():
        found += _matched(group)
    rows = []
    for place, group in grouped(in_order(found), *PAIR, "metric").items():
        drift = float(np.mean([row["drift"] for row in group]))
        means = seed_means(group, lambda row: row["value"])
        rows.append({**dict(zip((*PAIR, "metric"), place)), "drift": drift, **estimate(means)})
    return rows


def _matched(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    arms = {}
    for place, of_arm in grouped(rows, *PAIR, "seed").items():
        curves = {
            metric: dict(sorted((row["step"], row["value"]) for row in of_metric))
            for (metric,), of_metric in grouped(of_arm, "metric").items()
            if metric in (DRIFT, CAPABILITY, HELD_OUT)
        }
        if len(curves.get(DRIFT, ())) > 1:
            arms[place] = curves
    if len(arms) < 2:
        return
    common = min(curves[DRIFT][max(curves[DRIFT])] for curves in arms.values())
    for place, curves in arms.items():
        steps, drift = zip(*curves[DRIFT].items())
        after = next(i for i, moved in enumerate(drift) if moved >= common)
        before = max(after - 1, 0)
        part = (common - drift[before]) / (drift[after] - drift[before]) if drift[after] > drift[before] else 1.0
        for metric in (CAPABILITY, HELD_OUT):
            values = curves.get(metric, {})
            if all(steps[i] in values for i in (0, before, after)):
                value = (1 - part) * values[steps[before]] + part * values[steps[after]] - values[steps[0]]
                yield dict(zip((*PAIR, "seed"), place)) | {"metric": metric, "drift": common, "value": value}


def by_contamination(found: Sequence[Row]) -> Rows:
    """Each suite on the items whose question and right answer stand in the training text, and on the others.

    Args:
      found: {*PAIR, "seed", "metric", "in_training_text", "n", "before", "after"} of each training, rates as shares,
        None without items.

    Returns:
      Rows {*PAIR, "metric", "in_training_text", "n", "value", "low", "high", "num_replicates"}: "n" is the mean number
      of items over all trainings, "value" after minus before, a share, over the seeds with `LEAST_ITEMS` of them in
      each training; None without any. None of it where no training has an item in its text.
    """
    rows = []
    for place, group in grouped(in_order(found), *PAIR, "metric", "in_training_text").items():
        enough = [of for of in grouped(group, "seed").values() if min(row["n"] for row in of) >= LEAST_ITEMS]
        over = estimate(seed_means(itertools.chain(*enough))) if enough else NOTHING
        about = dict(zip((*PAIR, "metric", "in_training_text"), place))
        rows.append({**about, "n": float(np.mean([row["n"] for row in group])), **over})
    return rows if any(row["in_training_text"] and row["n"] for row in rows) else []


def over_generations(generations: Sequence[Row]) -> Rows:
    """How far the loop has brought each student from where it began, in every seed alike.

    Args:
      generations: rows of `StudyData.generations`.

    Returns:
      Rows {"student", "mode", "generation", "metric", "level", "value", "low", "high", "num_replicates"}: "level" is
      the mean over seeds, "value" that of its change since the first generation that has the metric (0 is before
      training, of a corpus 1), which has no row of its own; over seeds, each compared with itself.
    """
    rows, series = [], ("student", "mode", "metric", "seed")
    known = sorted((row for row in generations if row["value"] is not None), key=lambda row: row["generation"])
    first = {place: group[0] for place, group in grouped(known, *series).items()}

    def since(row: Row) -> float:
        return row["value"] - first[tuple(row[name] for name in series)]["value"]

    for place, group in grouped(known, "student", "mode", "generation", "metric").items():
        later = [row for row in group if row is not first[tuple(row[name] for name in series)]]
        if later:
            level = float(np.mean([row["value"] for row in later]))
            about = dict(zip(("student", "mode", "generation", "metric"), place))
            rows.append({**about, "level": level, **estimate(seed_means(later, since))})
    return rows


def components(results: Sequence[Row]) -> Rows:
    """How much capability and held-out extraction of equal arms differ between seeds, and within one.

    Within a seed trainings differ by their draw of documents and their order; between seeds of a lab also by world,
    models and samples. A standard deviation is pooled over the pairs of student and text of a relation.

    Returns:
      Rows {"relation", "metric", "between", "within", "num_cells", "num_values"}, standard deviations of shares; none
      where no arm was trained twice in two seeds, as students that no text has trained never are.
    """
    rows, trained = [], [row for row in results if row["relation"] not in UNTRAINED]
    for metric in (CAPABILITY, HELD_OUT):
        for (relation,), group in grouped(in_order(of(trained, metric)), "relation").items():
            cells = [
                [list(map(change, of_seed)) for of_seed in grouped(cell, "seed").values()]
                for cell in grouped(group, *PAIR).values()
            ]
            cells = [cell for cell in cells if len(cell) > 1 and max(map(len, cell)) > 1]
            if cells:
                # Negative estimates count until all are averaged: without them there would always be some spread.
                pooled = np.mean([variance_components(cell) for cell in cells], axis=0)
                between, within = np.sqrt(np.maximum(pooled, 0))
                about = {"num_cells": len(cells), "num_values": sum(len(values) for cell in cells for values in cell)}
                found = {"between": float(between), "within": float(within)}
                rows.append({"relation": relation, "metric": metric, **found, **about})
    return rows
