"""From results by item to figures."""

import numpy as np
import pytest

from selftrain_jax.evaluation.items import Items
from selftrain_jax.run.summary import mean_capability


@pytest.mark.parametrize("rules, mean", [(("acc_norm",), 0.5), (("acc_norm", "acc"), 0.75), (("acc",), 0.75)])
def test_every_suite_counts_once_in_the_mean_whatever_rules_judge_it(rules, mean):
    hits = {"acc": np.array([True, True]), "acc_norm": np.array([True, False])}
    pairs = np.array([True, False])
    items = Items({**{("questions", rule): hits[rule] for rule in rules}, ("pairs", "acc"): pairs})
    assert mean_capability(items) == mean
