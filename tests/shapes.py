"""The few model shapes that tests share, and parameters for them: what is compiled once serves them all.

A test that needs another shape says why. Parameters are made by one compiled program and by numpy: written as plain
`jax.numpy`, every step of every leaf would be a program of its own.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from selftrain_jax.models.config import DecoderConfig, Layer, Rotary
from selftrain_jax.models.decoder import init_params

ONE_LAYER = DecoderConfig(
    vocab_size=64, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32, max_position=16
)  # where the arithmetic around the model is tested
NARROW = DecoderConfig(
    vocab_size=64,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    intermediate_size=32,
    max_position=32,
    pattern=(Layer(Rotary(0.5)),),
)  # where the model is trained
SMALL = DecoderConfig(  # where the model itself is tested: heads enough for a tensor axis, and a partial rotation
    vocab_size=96,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    intermediate_size=64,
    max_position=64,
    pattern=(Layer(Rotary(0.5)),),
)
GROUPED = DecoderConfig(  # two heads of keys and values for four of queries, and a pattern that is cut off at the end
    vocab_size=96,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    kv_heads=2,
    intermediate_size=64,
    max_position=64,
    pattern=(Layer(window=5), Layer(Rotary(base=1e6))),
    norm="rms_norm",
    norm_places="after",
    qk_norm="projection",
    parallel_residual=False,
    fused_qkv=False,
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    activation="silu",
    gated=True,
    family="olmo3",
)


@functools.cache
def _initial(config, seed):
    return jax.tree.map(np.asarray, jax.jit(init_params, static_argnums=0)(config, jax.random.key(seed)))


def initial(config, seed=0):
    """The parameters that a training starts from, as numpy arrays."""
    return jax.tree.map(np.copy, _initial(config, seed))


def wandering(config, embedding=1.0):
    """Parameters far from their initialization, so that greedy decoding wanders and biases are not zero.

    Args:
      embedding: what the embedding is multiplied by; with 1, what attention adds drowns the last token.
    """
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), initial(config))
    params["embed"]["embedding"] *= embedding
    return jax.tree.map(jnp.asarray, params)
