"""From results by item to figures."""

import numpy as np
import pytest

from selftrain_jax.evaluation.items import Items
from selftrain_jax.report.metric import HELD_OUT, Metric
from selftrain_jax.run import summary
from selftrain_jax.run.summary import mean_capability


@pytest.mark.parametrize("rules, mean", [(("acc_norm",), 0.5), (("acc_norm", "acc"), 0.75), (("acc",), 0.75)])
def test_every_suite_counts_once_in_the_mean_whatever_rules_judge_it(rules, mean):
    hits = {"acc": np.array([True, True]), "acc_norm": np.array([True, False])}
    pairs = np.array([True, False])
    items = Items({**{("questions", rule): hits[rule] for rule in rules}, ("pairs", "acc"): pairs})
    assert mean_capability(items) == mean


def test_p_values_of_suites_are_adjusted_over_all_arms_of_a_subset():
    """Four tests of one subset: suites of two arms. Probes stand for themselves, and so does another subset."""
    suites, p_values = [Metric("capability", name) for name in "ab"], (0.02, 0.4, 0.01, 0.03)
    rows = [
        {"model": model, "metric": suite, "seed": 0, "p_value": p, "unadjusted_p_value": p}
        for (model, suite), p in zip([(m, s) for m in ("self", "control:real") for s in suites], p_values)
    ]
    rows += [rows[0] | {"seed": 1}, rows[0] | {"metric": HELD_OUT}]
    summary._adjust(rows)
    assert [row["p_value"] for row in rows] == pytest.approx([0.06, 0.4, 0.04, 0.06, 0.02, 0.02])
    assert [row["unadjusted_p_value"] for row in rows] == [*p_values, 0.02, 0.02]
