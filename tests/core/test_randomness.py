"""Every seed has draws of its own, which no flag of JAX changes."""

import jax
import numpy as np
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.randomness import seed_key
from selftrain_jax.data.settings import SubsetConfig
from selftrain_jax.evaluation.probes import window_probes
from selftrain_jax.lab.settings import PretrainConfig, TextWorldConfig, WorldConfig
from selftrain_jax.models.decoder import init_params
from selftrain_jax.sampling.continuation import continue_prompts
from selftrain_jax.sampling.sampler import sample
from selftrain_jax.sampling.settings import SampleSettings, SamplingConfig
from selftrain_jax.study.settings import ModelSettings, StudyConfig
from selftrain_jax.training.settings import TrainConfig
from tests.shapes import ONE_LAYER

SEEDED = [
    SampleSettings,
    SubsetConfig,
    TrainConfig,
    PretrainConfig,
    WorldConfig,
    TextWorldConfig,
    lambda seed: StudyConfig(models={"a": ModelSettings("a")}, students=("a",), sources=("a",), seeds=(0, seed)),
    lambda seed: window_probes("missing", "missing", "out", seed=seed),
    seed_key,
]


@pytest.mark.parametrize("seeded", SEEDED, ids=lambda x: x.__name__)
@pytest.mark.parametrize("seed", [-1, -(2**32), 2**63, True, 1.0])
def test_a_seed_is_a_whole_number_from_0_to_2_to_the_63(seeded, seed):
    with pytest.raises(InputError, match="seed=.* must be a whole number from 0 to 9223372036854775807"):
        seeded(seed=seed)


@pytest.mark.everywhere
def test_seeds_have_different_keys_which_are_those_of_jax_where_it_has_them():
    seeds = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63 - 1]
    keys = [jax.random.key_data(seed_key(seed)).tolist() for seed in seeds]
    assert len({*map(tuple, keys)}) == len(seeds)
    assert keys[:5] == [jax.random.key_data(jax.random.key(seed, impl="threefry2x32")).tolist() for seed in seeds[:5]]


def draws():
    params = init_params(ONE_LAYER, seed_key(3))
    settings = SamplingConfig(min_new_tokens=0, max_new_tokens=8)
    drawn = sample(params, ONE_LAYER, settings, seed_key(1), [0, 5], batch_size=2)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(seed_key(2), np.arange(2, dtype=np.uint32))
    continued = continue_prompts(params, ONE_LAYER, [np.array([1]), np.array([2])], 6, sampling=settings, keys=keys)
    return jax.tree.map(np.asarray, (params, drawn.tokens, drawn.log_probs, continued))


@pytest.fixture(scope="module")
def expected():
    return draws()


@pytest.mark.everywhere
@pytest.mark.parametrize(
    "flag, value",
    [
        ("jax_enable_x64", True),
        ("jax_default_prng_impl", "rbg"),
        ("jax_threefry_partitionable", False),
        ("jax_random_seed_offset", 1),
        ("jax_numpy_rank_promotion", "raise"),
    ],
)
def test_draws_follow_from_the_key_whatever_the_flags_of_jax(expected, flag, value):
    before = getattr(jax.config, flag)
    jax.config.update(flag, value)
    try:
        found = draws()
    finally:
        jax.config.update(flag, before)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, expected)
