"""What the report says that is no measurement."""

import sys

import numpy as np
import optax  # noqa: F401
import pytest

from selftrain_jax import __version__
from selftrain_jax.data.packing import pack, steps_per_epoch
from selftrain_jax.data.training_set import write_rows
from selftrain_jax.run import facts
from selftrain_jax.training.settings import TrainConfig


@pytest.mark.parametrize("apart", [False, True])
def test_tokens_trained_on_are_targets(tmp_path, apart):
    """The first token of a document that is kept apart is none; rows that sit an epoch out have none."""
    rng = np.random.default_rng(0)
    rows = pack([rng.integers(1, 9, n) for n in range(30)], bos_token_id=0, sequence_length=8)
    write_rows(rows, tmp_path / "subset" / "self-2")
    train = TrainConfig(batch_size=4, sequence_length=8, epochs=3, seed=5, document_boundaries=apart)
    per_epoch, targets = steps_per_epoch(num_rows=len(rows.tokens), batch_size=4), 0
    for epoch in range(3):
        bits = np.random.Philox(np.random.SeedSequence(5 + 2, spawn_key=(1, epoch))).random_raw(len(rows.tokens))
        for row in np.argsort(bits, kind="stable")[: 4 * per_epoch]:
            of = rows.segment_ids[row].tolist()
            targets += sum(not apart or new == old for old, new in zip(of, of[1:]))
    assert len(rows.tokens) % 4 and facts.tokens("train/self-2", {"step": 3 * per_epoch}, train, tmp_path) == targets


def test_versions_are_those_that_stages_were_done_with_not_those_of_who_writes_the_report(monkeypatch):
    now = facts.software()
    assert now["selftrain_jax"].startswith(f"{__version__} (")  # not of what is installed beside it
    monkeypatch.setattr(sys.modules["optax"], "__version__", "9.9")  # a checkout that shadows what is installed
    assert facts.software()["optax"] == "9.9"
    before = now | {"jax": "0.9.0", "devices": "4 x GPU"}
    manifests = [{"seconds": 1800, "software": [before]}, {"seconds": 3600, "software": [before, now]}]
    monkeypatch.undo()
    found = facts.versions(manifests)
    assert found["jax"] == f"0.9.0, {now['jax']}" and found["devices"] == f"4 x GPU, {now['devices']}"
    assert found["numpy"] == now["numpy"] and f"numpy {now['numpy']}" in found[facts.WRITER]
    assert facts.device_hours(manifests) == 0.5 * 4 + int(now["devices"].split()[0])
    assert facts.versions([{"seconds": 1}])["jax"] == "not noted" and facts.device_hours([{"seconds": 1}]) is None
