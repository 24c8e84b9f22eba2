"""The largest wave is found by calculation, and the calculation is right."""

import dataclasses

import jax
import numpy as np
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.distributed.mesh import make_mesh
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.decoder import Decoder
from selftrain_jax.sampling import memory, placement
from selftrain_jax.sampling.settings import SamplingConfig
from tests.shapes import initial

CONFIG = DecoderConfig(
    vocab_size=512, hidden_size=64, num_layers=2, num_heads=4, intermediate_size=128, max_position=256
)
MODEL = Decoder(CONFIG)
SETTINGS = SamplingConfig(min_new_tokens=200, max_new_tokens=200)
CACHE = 2 * 2 * 64 * 256 * 4  # bytes per row: keys and values, layers, width, positions of the last bucket, fp32


@pytest.fixture(scope="module")
def weights():
    return placement.prepare(initial(CONFIG), CONFIG)


def test_a_wave_needs_its_cache_and_some_logits(weights):
    logits = 512 * 4
    for rows in (8, 64):
        found = memory.wave_bytes(weights, MODEL, SETTINGS, rows)
        assert rows * (CACHE + logits) < found < rows * (CACHE + 10 * logits) + 500_000


def test_a_wave_holds_its_start_too(weights):
    """With it, 299 tokens are fed, for which there is a bucket of 384."""
    cache, logits = CACHE * 384 // 256, 512 * 4
    found = memory.wave_bytes(weights, MODEL, dataclasses.replace(SETTINGS, start=(1,) * 100), 64)
    assert 64 * (cache + logits) < found < 64 * (cache + 10 * logits) + 500_000


def test_devices_share_the_rows(weights):
    mesh = make_mesh(MeshConfig(8, 1, 1))
    spread = placement.prepare(weights | {"layers": _stacked(weights)}, CONFIG, mesh=mesh)
    one, eight = (
        memory.wave_bytes(weights, MODEL, SETTINGS, 8),
        memory.wave_bytes(spread, MODEL, SETTINGS, 64, mesh=mesh),
    )
    assert eight == pytest.approx(one, rel=0.1)


def _stacked(weights):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *weights["layers"])


@pytest.mark.parametrize("budget_rows", [30, 100, 213])
def test_the_largest_wave_fills_the_memory_and_no_more(weights, monkeypatch, budget_rows):
    budget = memory.wave_bytes(weights, MODEL, SETTINGS, budget_rows)
    monkeypatch.setattr(memory, "free_bytes", lambda mesh: budget / memory.HEADROOM)
    rows = memory.largest_wave(weights, MODEL, SETTINGS, 10_000)
    assert rows % 8 == 0 and budget_rows - 16 <= rows <= budget_rows


def test_no_more_rows_than_samples(weights):
    assert memory.largest_wave(weights, MODEL, SETTINGS, 17) == 17
    assert memory.largest_wave(weights, MODEL, SETTINGS, 10**6) == memory.MOST_ROWS_ON_CPU
    mesh = make_mesh(MeshConfig(8, 1, 1))
    spread = placement.prepare(weights | {"layers": _stacked(weights)}, CONFIG, mesh=mesh)
    assert memory.largest_wave(spread, MODEL, SETTINGS, 17, mesh=mesh) == 24


def test_a_model_that_leaves_no_room_is_refused(weights, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda mesh: 4 * CACHE)
    with pytest.raises(InputError, match=r"8 rows of 200 tokens.*mesh.tensor"):
        memory.largest_wave(weights, MODEL, SETTINGS, 100)


@pytest.mark.parametrize("ways", [3, 5, 6])
def test_any_number_of_devices_can_share_a_wave(weights, monkeypatch, ways):
    mesh = make_mesh(MeshConfig(ways, 1, 1), jax.devices()[:ways])
    spread = placement.prepare(weights | {"layers": _stacked(weights)}, CONFIG, mesh=mesh)
    rows = memory.largest_wave(spread, MODEL, SETTINGS, 100, mesh=mesh)
    assert rows % ways == 0 and 100 <= rows < 100 + ways
