"""Shapes that cannot be are refused by name; the presets have the published sizes."""

import dataclasses
import math

import jax
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.models import decoder
from selftrain_jax.models.config import PRESETS, DecoderConfig, preset

GOOD = DecoderConfig(vocab_size=100, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=128)
# "Total params" and "non-embedding params" of the Pythia model cards.
PUBLISHED = {
    "pythia-70m": (70_426_624, 18_915_328),
    "pythia-160m": (162_322_944, 85_056_000),
    "pythia-410m": (405_334_016, 302_311_424),
    "pythia-1b": (1_011_781_632, 805_736_448),
    "pythia-1.4b": (1_414_647_808, 1_208_602_624),
    "pythia-2.8b": (2_775_208_960, 2_517_652_480),
    "pythia-6.9b": (6_857_302_016, 6_444_163_072),
    "pythia-12b": (11_846_072_320, 11_327_027_200),
}


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": 0},
        {"hidden_size": -4},
        {"num_layers": 0},
        {"num_heads": 0},
        {"num_heads": 3},
        {"intermediate_size": 0},
        {"max_position": 0},
        {"rotary_pct": 1.5},
        {"rotary_pct": -0.25},
        {"rotary_pct": 0.375},  # 3 of 8 dimensions
        {"bos_token_id": 100},
        {"eos_token_id": -1},
    ],
    ids=str,
)
def test_bad_shapes_are_refused_by_name(change):
    ((name, value),) = change.items()
    with pytest.raises(InputError, match=f"{name}={value}"):
        dataclasses.replace(GOOD, **change)


@pytest.mark.parametrize("rotary_pct, expected", [(0.0, 0), (0.25, 2), (1.0, 8)])
def test_a_share_of_each_head_is_rotated(rotary_pct, expected):
    assert dataclasses.replace(GOOD, rotary_pct=rotary_pct).rotary_dim == expected


@pytest.mark.parametrize("tied", [False, True])
def test_num_params_counts_the_parameters(tied):
    config = dataclasses.replace(GOOD, tie_embeddings=tied)
    shapes = decoder.param_shapes(config)
    assert config.num_params == sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_sizes(name):
    config = preset(name)
    embeddings = 2 * config.vocab_size * config.hidden_size
    assert (config.num_params, config.num_params - embeddings) == PUBLISHED[name]


def test_every_preset_is_a_pythia():
    for config in PRESETS.values():
        assert config.rotary_pct == 0.25 and config.parallel_residual and not config.tie_embeddings
        assert config.bos_token_id == config.eos_token_id == 0 and config.max_position == 2048
        assert config.vocab_size >= 50_277  # ids of the Pythia tokenizer


def test_unknown_presets_are_refused_with_the_list():
    with pytest.raises(InputError, match="pythia-71m.*pythia-70m"):
        preset("pythia-71m")
