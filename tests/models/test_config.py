"""Shapes that cannot be are refused by name; the presets have the published sizes."""

import dataclasses
import math

import jax
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.models import decoder
from selftrain_jax.models.config import DecoderConfig, Layer, Rotary, YarnScaling
from selftrain_jax.models.families import preset

TOTALS = {  # of the files on the hub
    "smollm2-135m": 134_515_008,
    "llama-3.2-1b": 1_235_814_400,
    "tinyllama-1.1b": 1_100_048_384,
    "mistral-7b-v0.1": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b-base": 596_049_920,
    "qwen3-8b-base": 8_190_735_360,
    "olmo-2-0425-1b": 1_484_916_736,
    "gemma-2-2b": 2_614_341_888,
    "gemma-3-270m": 268_098_176,
    "gpt2": 124_439_808,
    "smollm3-3b-base": 3_075_098_624,
}
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
        {"kv_heads": 3},
        {"head_size": 0},
        {"norm": "batch_norm"},
        {"bos_token_id": 100},
        {"eos_token_id": -1},
    ],
    ids=str,
)
def test_bad_shapes_are_refused_by_name(change):
    ((name, value),) = change.items()
    with pytest.raises(InputError, match=f"{name}={value!r}"):
        dataclasses.replace(GOOD, **change)


@pytest.mark.parametrize(
    "pattern, named",
    [
        ((Layer(Rotary(0.375)),), "rotates 3 of 8"),
        ((Layer(window=0),), "window=0"),
        ((), "pattern has 0"),
        ((Layer(),) * 3, "pattern has 3"),
    ],
)
def test_bad_layers_are_refused(pattern, named):
    with pytest.raises(InputError, match=named):
        dataclasses.replace(GOOD, pattern=pattern)


@pytest.mark.parametrize("fraction, expected", [(0.0, 0), (0.25, 2), (1.0, 8)])
def test_a_share_of_each_head_is_rotated(fraction, expected):
    assert GOOD.rotary_dim(Rotary(fraction)) == expected


YARN = YarnScaling(factor=2.0, original_max_position_embeddings=64)


@pytest.mark.parametrize(
    "wrong", [{"fraction": 1.5}, {"fraction": -0.25}, {"base": 0.0}, {"base": 1.0, "scaling": YARN}]
)
def test_rotary_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Rotary(**wrong)


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


@pytest.mark.parametrize("name, count", TOTALS.items())
def test_presets_have_as_many_parameters_as_the_published_weights(name, count):
    assert preset(name).num_params == count


def test_what_is_the_default_anyhow_is_said_in_one_way():
    said = dataclasses.replace(GOOD, kv_heads=4, head_size=8)
    assert said == GOOD and (said.num_kv_heads, said.head_dim) == (4, 8)
    assert dataclasses.replace(said, num_heads=2).head_dim == 16


def test_a_window_saves_operations():
    windowed = dataclasses.replace(GOOD, pattern=(Layer(window=16), Layer()))
    whole, less = GOOD.train_flops_per_token(64), windowed.train_flops_per_token(64)
    assert whole - less == 6 * 32 * (64 - (2 * 16 - 16 * 16 // 64))  # one of two layers sees 16 instead of up to 64


def test_unknown_presets_are_refused_with_the_list():
    with pytest.raises(InputError, match="pythia-71m.*pythia-70m"):
        preset("pythia-71m")
