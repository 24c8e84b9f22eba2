"""Measured rows of studies that never were."""

import numpy as np

from selftrain_jax.report.metric import CAPABILITY, HELD_OUT
from selftrain_jax.report.study_data import RELATIONS
from selftrain_jax.study.replicates import ABOVE_CHANCE

SELF, LINEAGE, RECIPE, FAMILY = RELATIONS


def rows_of(metric, values, before=0.5):
    """Rows of one student from {(arm, relation): [after of each seed]}."""
    return [
        {
            "student": "S",
            "arm": arm,
            "relation": relation,
            "condition": "",
            "seed": seed,
            "subset": 0,
            "metric": metric,
            "before": before,
            "after": after,
        }
        for (arm, relation), of_seeds in values.items()
        for seed, after in enumerate(of_seeds)
    ]


def study(gains, lost=0.99, control=0.9, chance=0.25, spread=0.002):
    """Three seeds: mean gain by relation, that of self with some spread, and the share of extraction lost by self."""
    noise = np.array([-1, 0, 1]) * spread
    capability = {(f"arm {name}", name): 0.5 + gain + noise * (name == SELF) for name, gain in gains.items()}
    above = {pair: values - chance for pair, values in capability.items()}
    extraction = {pair: 0.2 * (1 - (lost if pair[1] == SELF else control) + noise) for pair in capability}
    return [
        *rows_of(CAPABILITY, capability),
        *rows_of(ABOVE_CHANCE, above, 0.5 - chance),
        *rows_of(HELD_OUT, extraction, 0.2),
    ]


def proxies_of(rows, values):
    """{proxy: function of utility} at every pair and seed of `rows`."""
    return [
        {
            **{k: row[k] for k in ("student", "arm", "relation", "condition", "seed")},
            "proxy": proxy,
            "value": function(row["after"] - row["before"], i),
        }
        for proxy, function in values.items()
        for i, row in enumerate(row for row in rows if row["metric"] == CAPABILITY)
    ]


def many_pairs():
    rng = np.random.default_rng(0)
    return [
        {**row, "student": student, "after": 0.5 + 0.1 * rng.standard_normal()}
        for student in "ABCD"
        for row in rows_of(CAPABILITY, {(f"{n}", relation): [0] * 3 for n, relation in enumerate(RELATIONS)})
    ]
