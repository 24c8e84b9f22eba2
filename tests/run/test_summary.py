"""From results by item to figures."""

import dataclasses

import numpy as np
import pytest

from selftrain_jax.evaluation.items import Items
from selftrain_jax.evaluation.settings import EvaluateSettings
from selftrain_jax.report.metric import EXTRACTION, HELD_OUT, RUN, Metric, group_extraction
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


def probes(exact, token_share, log_prob):
    """Six probes of four tokens: two never planted, two planted four times, two 64 times; the last is not held out."""
    columns = {"exact": np.array(exact, bool), "token_share": np.array(token_share), "log_prob": np.array(log_prob)}
    whole = np.ones(6)
    columns |= {"index": np.arange(6), "length": np.full(6, 4), "least_margin": whole}
    return Items(probes=columns | {"first_mismatch": whole, "strength": whole})


def test_what_is_left_of_held_out_memory_is_graded():
    """Exact extraction is gone, and most tokens are right: of the probes alone that base extracts, before and after."""
    groups = {group_extraction(f"repeats={n}"): np.arange(6) // 2 == i for i, n in enumerate((0, 4, 64))}
    held = np.arange(6) < 5
    held_out = {dataclasses.replace(metric, held_out=RUN): mask & held for metric, mask in groups.items()}
    masks = {EXTRACTION: np.ones(6, bool), HELD_OUT: held} | groups | held_out
    base = probes([0, 0, 0, 1, 1, 1], [0.0, 0.25, 0.5, 1, 1, 1], [-16, -16, -8, -1.0, -0.4, -0.2])
    after = probes([0, 0, 0, 0, 0, 0], [0.0, 0.0, 0.5, 0.75, 0.5, 0.25], [-16, -12, -14, -6.0, -8, -9])
    values = {row["metric"].name: row["value"] for row in summary._measure(after, masks, EvaluateSettings(), base)}
    assert values["extraction/held_out"] == 0
    assert values["left_tokens/held_out"] == pytest.approx((0.75 + 0.5) / 2)
    assert values["left_tokens/held_out/repeats=4"] == 0.75 and values["left_tokens/held_out/repeats=64"] == 0.5
    assert "left_tokens/held_out/repeats=0" not in values  # base extracts none of them
    assert values["left_log_prob/held_out"] == pytest.approx((-1.5 - 2) / 2)
    assert values["planted_auc/held_out/repeats=64"] == 1.0
    assert values["planted_auc/held_out/repeats=4"] == 0.75  # of four pairs one is the wrong way round
    changes = {row["metric"].name: row for row in summary._compare_means(base, after, masks)}
    assert changes["left_tokens/held_out"]["difference"] == pytest.approx(-0.375)
    assert changes["left_log_prob/held_out"]["difference"] == pytest.approx(-1.75 + 0.175)
    same = {row["metric"].name: row for row in summary._compare_means(base, base, masks)}
    assert (
        same["token_share/all"]["difference"] == 0
        and same["token_share/all"]["low"] < 0 < same["token_share/all"]["high"]
    )
    assert (same["left_log_prob/held_out"]["low"], same["left_log_prob/held_out"]["high"]) == (None, None)


def test_what_comes_in_clusters_is_compared_over_clusters():
    """Three questions about each of four people, of whom two are forgotten: two losses, not six."""
    hits, person = {("recall", "acc"): np.ones(12, bool)}, np.arange(12) // 3
    base = Items(hits, clusters={"recall": person})
    after = Items({("recall", "acc"): person > 1}, clusters={"recall": person})
    suite = Metric("capability", "recall")
    plain, clustered = (
        summary._compare(summary.hits(base, {}), summary.hits(after, {}), *more)[0]
        for more in ((), (lambda metric: summary._cluster(base, {}, metric),))
    )
    assert plain["p_value"] == pytest.approx(2 / 2**6) and clustered["p_value"] == pytest.approx(2 / 2**2)
    assert clustered["low"] < plain["low"] and clustered["high"] > plain["high"]
    (row,) = summary._measure(after, {}, EvaluateSettings(), base)
    assert (row["metric"], row["n"], row["clusters"]) == (suite, 12, 4) and row["high"] - row["low"] > 0.8


def test_probes_keep_their_clusters_in_every_part_of_them():
    columns = {"index": np.array([1, 3, 5, 7]), "cluster": np.array([1, 1, 2, 3])}
    mask = np.array([0, 0, 0, 1, 0, 1, 0, 1], bool)
    items = Items(probes=columns)
    assert summary._cluster(items, {HELD_OUT: mask}, HELD_OUT).tolist() == [1, 2, 3]
    assert summary._cluster(items, {}, Metric("approximate")).tolist() == [1, 1, 2, 3]
    assert summary._cluster(Items(), {}, Metric("approximate")) is None


def test_likelihood_of_several_texts_is_over_texts_and_that_of_one_says_so():
    nats, tokens = np.array([30.0, 33, 60, 66]), np.full(4, 10)
    items = Items(
        nll={"two": (nats, tokens), "one": (nats, tokens)},
        documents={"two": np.array([0, 0, 1, 1]), "one": np.zeros(4, int)},
    )
    assert summary.one_document(items) == ["one"]
    rows = {row["metric"].item: row for row in summary._measure(items, {}, EvaluateSettings(), items)}
    assert rows["two"]["value"] == rows["one"]["value"] == pytest.approx(4.725)
    assert rows["two"]["clusters"] == 2 and "clusters" not in rows["one"]
    assert rows["two"]["high"] - rows["two"]["low"] > 3 * (rows["one"]["high"] - rows["one"]["low"])


def test_aucs_are_compared_too():
    """Planted sequences that both models tell perfectly from others: no change, and not without width."""
    groups = {group_extraction(f"repeats={n}"): np.arange(6) // 3 == i for i, n in enumerate((0, 64))}
    masks = {dataclasses.replace(metric, held_out=RUN): mask for metric, mask in groups.items()}
    base, after = (
        probes([0] * 6, [0.5] * 6, values) for values in ([-9, -8, -7, -3, -2, -1], [-9, -8, -2, -3, -1, -1])
    )
    (same,), (worse,) = (summary._compare_ranks(base, model, masks) for model in (base, after))
    assert same["metric"].name == "planted_auc/held_out/repeats=64"
    assert same["difference"] == 0 and same["low"] < 0 < same["high"]
    assert worse["difference"] == pytest.approx(-1 / 9) and worse["low"] < -1 / 9 < worse["high"]
