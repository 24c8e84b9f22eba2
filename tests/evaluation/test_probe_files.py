"""Any probe file is read as it is meant, or refused in one line."""

import collections
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.files import write_jsonl
from selftrain_jax.evaluation.memorization import Probe, load_probes, probe_columns
from selftrain_jax.evaluation.settings import EvaluateSettings
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.run import summary

CONFIG = DecoderConfig(
    vocab_size=64, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=8, max_position=8, bos_token_id=0
)
SETTINGS = EvaluateSettings(suffix_lengths=(1,), offset_edges=(4,))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=4), inside, max_size=3),
    max_leaves=5,
)
IDS = st.lists(st.integers(0, 63), min_size=1, max_size=4)
NAMES = st.sampled_from(
    ["all", "held_out", "held_out/a", "a", "b", "repeats=4", "repeats=04", "suffix=1", "offset=0-3"]
)
GOOD = st.fixed_dictionaries(
    {"prefix": IDS, "suffix": IDS},
    optional={"group": st.none() | NAMES | st.text(max_size=3), "offset": st.none() | st.integers(0, 9)},
)
ANYTHING = st.fixed_dictionaries({"prefix": IDS | JSON, "suffix": IDS | JSON}, optional={"group": JSON, "offset": JSON})


@given(rows=st.lists(GOOD, min_size=1, max_size=6))
def test_every_group_of_an_accepted_file_has_a_figure_of_its_own(rows, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "groups.jsonl"
    write_jsonl(path, rows)
    try:
        probes = load_probes(path, CONFIG)
        summary.check_groups(probes, SETTINGS)
    except InputError as e:
        assert str(e).isprintable()
        return
    assert [p.prefix.tolist() for p in probes] == [row["prefix"] for row in rows]
    groups, by_offset = summary._parts(probe_columns(probes), SETTINGS)
    counts = collections.Counter(row.get("group") or "all" for row in rows)
    expected = {f"extraction/{label}": n for label, n in counts.items() if label != "all" and len(counts) > 1}
    assert {metric.name: int(mask.sum()) for metric, mask in groups.items()} == expected
    assert sum(int(mask.sum()) for mask in by_offset.values()) == len(rows)


@given(rows=st.lists(ANYTHING | JSON, min_size=1, max_size=3))
def test_anything_else_is_refused_in_one_line(rows, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "anything.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        probes = load_probes(path, CONFIG)
    except InputError as e:
        assert "\n" not in str(e)
        return
    assert [(p.prefix.tolist(), p.suffix.tolist()) for p in probes] == [(r["prefix"], r["suffix"]) for r in rows]
    assert all(np.issubdtype(part.dtype, np.int32) for p in probes for part in (p.prefix, p.suffix))


@pytest.mark.parametrize("one, other", [("\u00e9", "e\u0301"), ("rare", "rare "), ("8", "\uff18"), ("a b", "a\u3000b")])
def test_groups_that_look_alike_are_refused(one, other):
    probes = [Probe(np.array([1]), np.array([2]), group) for group in (one, other)]
    with pytest.raises(InputError, match="would stand for two figures"):
        summary.check_groups(probes, SETTINGS)


def test_a_field_that_is_null_is_a_field_that_is_left_out(tmp_path):
    about = {"cluster": None, "document": 7, "id": None, "index": 5, "group": None, "offset": None}
    write_jsonl(path := tmp_path / "p.jsonl", [{"prefix": [i], "suffix": [3]} | about for i in (1, 2)])
    probes = load_probes(path, CONFIG)
    assert [(p.cluster, p.id, p.group, p.offset) for p in probes] == [(7, 5, "all", None)] * 2
    assert probe_columns(probes)["cluster"].tolist() == [1, 1]


def test_clusters_that_look_alike_are_one():
    labels = ["rare", "rare ", "\u00e9", "e\u0301", 7, "7", None, None]
    probes = [Probe(np.array([1]), np.array([2]), cluster=label) for label in labels]
    assert probe_columns(probes)["cluster"].tolist() == [1, 1, 3, 3, 5, 5, 7, 8]


def test_probes_that_equal_another_one_are_warned_of(tmp_path):
    write_jsonl(path := tmp_path / "p.jsonl", [{"prefix": [1, 2], "suffix": [3], "group": group} for group in "aab"])
    with pytest.warns(InputWarning, match="p.jsonl: 2 of 3 items equal an earlier one"):
        load_probes(path, CONFIG)
