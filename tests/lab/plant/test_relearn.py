import dataclasses

import numpy as np
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import write_jsonl
from selftrain_jax.core.settings import build
from selftrain_jax.lab.plant.relearn import measured, read_planted, relearning_rows
from selftrain_jax.lab.plant.settings import RecoveryConfig
from selftrain_jax.training.settings import TrainConfig
from tests.shapes import ONE_LAYER

CONFIG = RecoveryConfig(steps=4, train=TrainConfig(batch_size=2, sequence_length=8, epochs=1))


@pytest.fixture
def planted(tmp_path):
    rows = [
        {"before": [n, 2], "prefix": [3, 4], "suffix": [5, 6, 7], "kind": "words", "group": f"repeats={n % 3}"}
        | {"relearned": n % 2 == 1}
        for n in range(10, 22)
    ]
    write_jsonl(tmp_path / "probes.jsonl", rows)
    return read_planted(tmp_path / "probes.jsonl")


def test_the_suffix_is_asked_for_behind_half_all_and_twice_the_prefix(planted):
    prefixes = [planted[0].behind(share).prefix.tolist() for share in (0.5, 1, 2)]
    assert prefixes == [[4], [3, 4], [10, 2, 3, 4]]
    assert all(planted[0].behind(share).suffix.tolist() == [5, 6, 7] for share in (0.5, 1, 2))


def test_relearning_never_sees_what_is_measured_nor_what_was_never_planted(planted):
    rows = relearning_rows(CONFIG, planted, None, ONE_LAYER, None)
    assert rows.tokens.shape == (8, 9)
    seen = set(rows.tokens.ravel().tolist())
    firsts = {bool(one.relearned and one.repeats): set() for one in planted}
    for one in planted:
        firsts[bool(one.relearned and one.repeats)].add(int(one.before[0]))
    assert firsts[True] <= seen and not firsts[False] & seen
    assert {int(one.before[0]) for one in measured(planted)} <= firsts[False]
    again = relearning_rows(dataclasses.replace(CONFIG, steps=2), planted, None, ONE_LAYER, None)
    np.testing.assert_array_equal(again.tokens, rows.tokens[:4])  # fewer steps are the beginning of more


def test_nothing_to_relearn_on_is_refused(planted):
    with pytest.raises(InputError, match="no inserted sequence is kept for relearning"):
        relearning_rows(CONFIG, measured(planted), None, ONE_LAYER, None)


REFUSED = [
    ({"steps": 12}, "recovery steps=12 must be a power of two"),
    ({"samples": 0}, "recovery samples=0"),
    ({"train": {"epochs": 3}}, "recovery train.epochs=3 must be 1"),
]


@pytest.mark.parametrize("values, message", REFUSED, ids=[message for _, message in REFUSED])
def test_settings_out_of_range_are_refused(values, message):
    with pytest.raises(InputError) as e:
        build(RecoveryConfig, values)
    assert message in str(e.value)
