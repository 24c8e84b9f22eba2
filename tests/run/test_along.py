"""Strips along texts, against a loop over their probes."""

import numpy as np
import pytest

from selftrain_jax.evaluation.items import Items
from selftrain_jax.run.along import LEAST_PROBES, along_texts


def measured(seed, texts, groups=("prefix=4", "prefix=8")):
    """Probes at every third token of each text (text -> number of places), in every group."""
    rng = np.random.default_rng(seed)
    rows = [(text, 8 + 3 * i, group) for text, count in texts.items() for i in range(count) for group in groups]
    cluster, places, group = map(np.array, zip(*rows))
    count = len(rows)
    columns = {"cluster": cluster, "suffix_at": places, "group": group, "length": np.full(count, 5)}
    return Items(probes=columns | {"exact": rng.random(count) < 0.4, "log_prob": -9 * rng.random(count)})


def test_cells_hold_the_probes_that_begin_in_them():
    texts = {3: 200, 9: LEAST_PROBES, 11: LEAST_PROBES // 2 - 1}
    models = {"base": [measured(0, texts)], "self": [measured(1, texts), measured(2, texts)]}
    rows = along_texts(models)
    assert [(row["model"], row["text"], row["group"]) for row in rows] == [
        (model, text, group) for text in (1, 2) for model in models for group in ("prefix=4", "prefix=8")
    ]
    for row in rows:
        probes = [items.probes for items in models[row["model"]]]
        edges, cluster, at = row["edges"], (3, 9)[row["text"] - 1], probes[0]["suffix_at"]
        assert edges[0] == 8 and edges[-1] == 8 + 3 * (texts[cluster] - 1) + 5
        assert len(edges) - 1 == min(texts[cluster], 120)
        of_text = (probes[0]["cluster"] == cluster) & (probes[0]["group"] == row["group"])
        for begin, end, extracted, likelihood in zip(edges, edges[1:], row["extraction"], row["likelihood"]):
            chosen = of_text & (begin <= at) & (at < end)
            if not chosen.any():
                assert extracted is likelihood is None
                continue
            assert extracted == pytest.approx(np.mean([p["exact"][chosen] for p in probes]))
            per_token = np.mean([p["log_prob"][chosen] / 5 for p in probes])
            assert likelihood == pytest.approx(np.exp(per_token)) and 0 < likelihood < 1


def test_a_text_keeps_its_number_where_an_earlier_one_has_too_few_probes():
    rows = along_texts({"base": [measured(0, {2: 3, 5: 20, 30: LEAST_PROBES // 2 - 1, 41: 9})]})
    assert [row["text"] for row in rows[::2]] == [2, 4]


def test_nothing_is_drawn_where_places_or_texts_are_not_known():
    items = measured(0, {1: 20})
    assert along_texts({"base": [items]})
    for missing in ("cluster", "suffix_at"):
        columns = {name: values for name, values in items.probes.items() if name != missing}
        assert along_texts({"base": [Items(probes=columns)]}) == []
    unknown = items.probes | {"suffix_at": np.full(40, -1)}
    assert along_texts({"base": [Items(probes=unknown)]}) == along_texts({"base": [Items()]}) == []


def test_probes_at_one_place_are_no_strip():
    """Those of planted passages: each counts from the beginning of its own sequence, not of the text."""
    planted = measured(0, {1: 20}).probes | {"suffix_at": np.full(40, 6)}
    assert along_texts({"base": [Items(probes=planted)]}) == []
