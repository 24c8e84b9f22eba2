"""Whether two figures are of the same items."""

import types

import numpy as np
import pytest

from selftrain_jax.evaluation.items import Items
from selftrain_jax.evaluation.settings import EvaluateSettings
from selftrain_jax.report.metric import EXTRACTION, HELD_OUT, Metric, group_extraction
from selftrain_jax.run import item_sets

NLL, SUITE, GROUP = Metric("nll", "wiki"), Metric("capability", "sciq"), group_extraction("repeats=8")
LEFT, ATTACK = Metric("left_tokens", held_out="run"), Metric("membership_auc", "loss")
EXPOSURE = Metric("exposure", group=GROUP.group, repeats=GROUP.repeats)
SETTINGS = {"texts": {"wiki": "w.txt"}, "multiple_choice": {"sciq": "s.jsonl"}, "probes": "p.jsonl"}
HELD = np.array([True, True, False, True])


@pytest.fixture
def items(monkeypatch):
    """`items(**changed)`: metric name -> fingerprint."""

    def found(held=(HELD,), exact=(1, 0, 1, 1), tokenizer="t", inputs=(), **settings):
        evaluate = EvaluateSettings(**SETTINGS | settings)
        monkeypatch.setattr(item_sets, "tokenizer_fingerprint", lambda path: tokenizer)
        files = {"texts.wiki": "w", "multiple_choice.sciq": "s", "probes": "p", **dict(inputs)}
        monkeypatch.setattr(item_sets, "read_manifest", lambda *_: {"inputs": files})
        run = types.SimpleNamespace(
            config=types.SimpleNamespace(evaluate=evaluate),
            workdir=None,
            student="s",
            model_path=str,
            lab_stages=lambda path: ["lab/world"] if path.startswith("lab:") else [],
        )
        masks = [
            {EXTRACTION: np.ones(4, bool), HELD_OUT: mask, GROUP: np.arange(4) > 1} for mask in map(np.asarray, held)
        ]
        base = Items(probes={"index": np.arange(4), "exact": np.array(exact, bool)})
        metrics = [NLL, SUITE, EXTRACTION, HELD_OUT, GROUP, LEFT, ATTACK, EXPOSURE, NLL]
        return {name: about["items"] for name, about in item_sets.item_sets(run, metrics, masks, base).items()}

    return found


@pytest.mark.parametrize(
    "change, differ",
    [
        ({}, set()),
        ({"held": (HELD, HELD)}, set()),  # a second subset that holds out the same
        ({"batch_size": 7, "suffix_lengths": (2,), "dtype": "bfloat16"}, set()),
        ({"held": ([True] * 4,)}, {HELD_OUT, LEFT}),
        ({"held": (HELD, [True] * 4)}, {HELD_OUT, LEFT}),
        ({"exact": (1, 1, 1, 1)}, {LEFT}),
        ({"exact": (1, 0, 0, 1)}, set()),  # that one is not held out
        ({"tokenizer": "u"}, {NLL, EXTRACTION, HELD_OUT, GROUP, LEFT, ATTACK, EXPOSURE}),
        ({"limit": 10}, {SUITE}),
        ({"max_chars": 10}, {NLL}),
        ({"nonmembers": "repeats=0"}, {ATTACK, EXPOSURE}),  # whose rank is one among these
        ({"inputs": {"multiple_choice.sciq": "s2"}.items()}, {SUITE}),
        ({"inputs": {"lab/world": "other"}.items()}, set()),
        ({"inputs": {"probes": "p2"}.items()}, {EXTRACTION, HELD_OUT, GROUP, LEFT, ATTACK, EXPOSURE}),
    ],
)
def test_the_fingerprint_changes_with_the_items_and_with_nothing_else(items, change, differ):
    before, after = items(), items(**change)
    assert {name for name in before if before[name] != after[name]} == {metric.name for metric in differ}


def test_a_file_of_the_lab_is_that_of_its_world(items):
    of = {"texts": {"wiki": "lab:wiki.jsonl"}}
    worlds = [items(inputs={"lab/world": world, "texts.wiki": None}.items(), **of) for world in ("1", "1", "2")]
    assert worlds[0] == worlds[1]
    assert {name for name in worlds[0] if worlds[0][name] != worlds[2][name]} == {NLL.name}
