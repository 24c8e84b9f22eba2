"""Parameters of another model: Flax reads what it knows of them, and leaves the rest out without a word."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.randomness import seed_key
from selftrain_jax.evaluation.proxies import mean_hidden
from selftrain_jax.evaluation.score import score
from selftrain_jax.models.checks import check_params
from selftrain_jax.models.config import DecoderConfig, Layer, Rotary
from selftrain_jax.models.decoder import Decoder, init_params, unstack_layers
from selftrain_jax.models.hf import save_pretrained
from selftrain_jax.sampling.continuation import continue_prompts
from selftrain_jax.sampling.sampler import sample
from selftrain_jax.sampling.settings import SamplingConfig
from selftrain_jax.training.step import next_token_loss

PLAIN = DecoderConfig(96, 16, 4, 2, 32, max_position=16)
LAYERS = (Layer(Rotary(0.5)), Layer(Rotary(0.5), window=4))
DEEP = dataclasses.replace(PLAIN, pattern=LAYERS)
OTHERS = [
    (PLAIN, dataclasses.replace(PLAIN, tie_embeddings=True), r"\['head'\]\['kernel'\]"),
    (dataclasses.replace(PLAIN, qk_norm="head"), PLAIN, "k_norm"),
    (DEEP, dataclasses.replace(DEEP, num_layers=2), "layers"),
    (DEEP, dataclasses.replace(DEEP, num_layers=6), "layers"),
]
initial = functools.lru_cache(lambda config: init_params(config, jax.random.key(0)))


def use(name, params, config, directory):
    if name == "score":
        score(params, config, [[1, 2, 3]])
    elif name == "hidden":
        mean_hidden(params, config, [[1, 2, 3]])
    elif name == "loss":
        next_token_loss(Decoder(config))(params, {"tokens": jnp.ones((2, 5), jnp.int32)})
    elif name == "sample":
        sample(params, config, SamplingConfig(max_new_tokens=2), seed_key(0), [0])
    elif name == "prepared":
        sample(unstack_layers(params), config, SamplingConfig(max_new_tokens=2), seed_key(0), [0])
    elif name == "continue":
        continue_prompts(unstack_layers(params), config, [[1]], 2)
    else:
        save_pretrained(directory / "model", config, params)


@pytest.mark.parametrize("of, config, word", OTHERS, ids=["untied", "norms", "deeper", "shallower"])
@pytest.mark.parametrize("name", ["score", "hidden", "loss", "sample", "prepared", "continue", "save"])
def test_parameters_of_another_model_are_refused(tmp_path, name, of, config, word):
    word = word if name != "save" or word[0] != "\\" else "head/kernel"
    with pytest.raises(InputError, match=f"params .*{word}"):
        use(name, initial(of), config, tmp_path)


def test_its_own_parameters_are_taken_in_any_form():
    params = initial(DEEP)
    for form in (params, jax.tree.map(np.asarray, params), jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)):
        check_params(form, DEEP)
    boxed = Decoder(PLAIN).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32), method="init_all")["params"]
    assert any(
        isinstance(x, nn.LogicallyPartitioned) for x in jax.tree.leaves(boxed, is_leaf=lambda x: hasattr(x, "names"))
    )
    check_params(boxed, PLAIN)
    check_params(unstack_layers(params), DEEP, unstacked=True)
    with pytest.raises(InputError, match="not those of a Decoder"):
        check_params(unstack_layers(params), DEEP)
