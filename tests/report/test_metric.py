"""The names that files hold, and the words that people read, of every kind of key."""

import dataclasses
import re

import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.report.metric import (
    CAPABILITY,
    EXTRACTION,
    HELD_OUT,
    KINDS,
    RUN,
    UNKNOWN_OFFSET,
    Kind,
    Metric,
    check_distinct,
    group_extraction,
    grouped,
)


def held_out(metric):
    return dataclasses.replace(metric, held_out=RUN)


CASES = [
    (EXTRACTION, "extraction/all", "all probes"),
    (HELD_OUT, "extraction/held_out", "held-out"),
    (Metric("extraction", held_out=13), "extraction/held_out=13", "held-out, 13 words"),
    (Metric("extraction", held_out="suffix"), "extraction/held_out=suffix", "held-out, suffix"),
    (Metric("extraction", suffix=8), "extraction/suffix=8", "first 8 tokens"),
    (Metric("extraction", offset=(0, 63)), "extraction/offset=0-63", "offset 0-63"),
    (Metric("extraction", offset=(512, None)), "extraction/offset=512+", "offset 512+"),
    (Metric("extraction", offset=UNKNOWN_OFFSET), "extraction/offset=unknown", "offset unknown"),
    (group_extraction("repeats=1"), "extraction/repeats=1", "1 repeat"),
    (group_extraction("repeats=64"), "extraction/repeats=64", "64 repeats"),
    (group_extraction("poems"), "extraction/poems", "poems"),
    (held_out(group_extraction("repeats=64")), "extraction/held_out/repeats=64", "held-out, 64 repeats"),
    (Metric("capability", "recall"), "capability/recall", "recall"),
    (Metric("capability", "recall", rule="acc_norm"), "capability/recall:acc_norm", "recall:acc_norm"),
    (CAPABILITY, "capability", ""),
    (Metric("nll", "wiki"), "nll/wiki", "wiki"),
    (Metric("ambiguous"), "ambiguous/all", "all probes"),
    (Metric("tpr_at_fpr_0.01", "zlib"), "tpr_at_fpr_0.01/zlib", "zlib"),
    (Metric("distinct_2"), "distinct_2", ""),
]


@pytest.mark.parametrize("metric, name, words", CASES, ids=[name for _, name, _ in CASES])
def test_a_metric_has_one_name_and_one_wording(metric, name, words):
    assert (metric.name, str(metric), metric.words) == (name, name, words)


@pytest.mark.parametrize(
    "group",
    ["all", "", "held_out", "held_out=13", "held_out/poems", "offset=512+", "suffix=8", "held-out", "repeats=064"],
)
def test_two_metrics_of_one_name_or_wording_are_refused_by_name(group):
    metrics = [metric for metric, _, _ in CASES] + [held_out(group_extraction("poems"))]
    check_distinct(metrics)
    if group_extraction(group) not in metrics:
        with pytest.raises(InputError, match=f"would stand for two figures: give another name to.*{re.escape(group)}"):
            check_distinct([*metrics, group_extraction(group)])


def test_titles_name_the_kind_first():
    titles = [metric.title for metric in (CAPABILITY, HELD_OUT, Metric("nll", "wiki"), Metric("distinct_2"))]
    assert titles == ["capability", "extraction, held-out", "NLL, wiki", "distinct 2"]


def test_rates_are_shown_in_percent_and_likelihoods_are_not():
    assert [metric.scale for metric in (EXTRACTION, CAPABILITY, Metric("nll", "wiki"))] == [100, 100, 1]


def test_metrics_are_read_from_all_probes_to_the_held_out_ones_by_rising_repetitions():
    few, many = group_extraction("repeats=4"), group_extraction("repeats=16")
    weaker = Metric("extraction", held_out=13)
    expected = [EXTRACTION, HELD_OUT, weaker, few, many, held_out(few), held_out(many), CAPABILITY, Metric("x")]
    assert sorted(reversed(expected), key=lambda metric: metric.order) == expected


def test_rows_are_grouped_in_order_of_appearance():
    rows = [{"a": 2, "b": 1}, {"a": 1, "b": 1}, {"a": 2, "b": 3}]
    assert list(grouped(rows, "a").items()) == [((2,), [rows[0], rows[2]]), ((1,), [rows[1]])]


def test_a_kind_that_is_added_says_what_its_whole_is(monkeypatch):
    for name, of_probes, named, words in (("run", True, "run/all", "all probes"), ("cost", False, "cost", "")):
        monkeypatch.setitem(KINDS, name, Kind("tokens", of_probes=of_probes))
        assert (Metric(name).name, Metric(name).words) == (named, words)
