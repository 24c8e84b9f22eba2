"""From logits to a drawn token: pure functions on `[B, V]` fp32 logits."""

from typing import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from selftrain_jax.sampling.settings import SamplingConfig

_BLOCK = 128  # entries whose weights are summed first: two short searches replace one pass of `[B, V]` random bits


def warp(
    logits: Float[Array, "B V"], config: SamplingConfig, allowed: Array, forbid_stop: Array, stop_ids: Sequence[int]
) -> Float[Array, "B V"]:
    """Tempered and filtered logits; tokens that must not be drawn are -inf.

    Args:
      logits: the model's own.
      config: static settings.
      allowed: bool `[V]`; False for the ids that name no token.
      forbid_stop: bool, one for all rows or `[B, 1]`; True while fewer than `min_new_tokens` are out.
      stop_ids: the tokens that `forbid_stop` forbids.
    """
    stops = is_one_of(jnp.arange(logits.shape[-1]), stop_ids)
    logits = jnp.where(allowed & ~(stops & forbid_stop), logits, -jnp.inf) / config.temperature
    if 0 < config.top_k < logits.shape[-1]:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p < 1:
        logits = keep_top_p(logits, config.top_p)
    return logits


def is_one_of(tokens: Int[Array, "*B"], ids: Sequence[int]) -> Bool[Array, "*B"]:
    """Which of `tokens` are among the few `ids`."""
    return jnp.any(tokens[..., None] == jnp.array(ids, jnp.int32), axis=-1)


def keep_top_k(logits: Float[Array, "B V"], k: int) -> Float[Array, "B V"]:
    """Exactly k tokens stay in every row; among equal logits the lower id stays."""
    _, kept = jax.lax.top_k(logits, k)
    rows = jnp.arange(logits.shape[0])[:, None]
    mask = jnp.zeros(logits.shape, bool).at[rows, kept].set(True)
    return jnp.where(mask, logits, -jnp.inf)


def keep_top_p(logits: Float[Array, "B V"], p: float) -> Float[Array, "B V"]:
    """The nucleus stays: every token at least as likely as the last one needed to reach probability p.

    The threshold is found by bisection over the bit patterns of fp32 probabilities, which order like integers: 31
    passes over the row give the exact value, several times cheaper than sorting a large vocabulary.
    """
    probs = jax.nn.softmax(logits, axis=-1)
    bits = jax.lax.bitcast_convert_type(probs, jnp.int32)

    def halve(_, bounds):  # the mass of {bits >= low} reaches p, that of {bits >= high} does not
        low, high = bounds
        middle = low + (high - low) // 2
        reaches = jnp.sum(jnp.where(bits >= middle[:, None], probs, 0.0), axis=-1) >= p
        return jnp.where(reaches, middle, low), jnp.where(reaches, high, middle)

    low = jnp.zeros(logits.shape[0], jnp.int32)
    high = jnp.full(logits.shape[0], 0x3F800001, jnp.int32)  # just above the bit pattern of 1.0
    low, _ = jax.lax.fori_loop(0, 31, halve, (low, high))
    # Rounding can leave a threshold above every entry's reach only if p rounds past the total: the top token stays.
    keep = (bits >= low[:, None]) | (bits == jnp.max(bits, axis=-1, keepdims=True))
    return jnp.where(keep, logits, -jnp.inf)


def draw(logits: Float[Array, "B V"], uniforms: Float[Array, "B 2"]) -> Int[Array, "B"]:
    """One token per row from softmax(logits), by inverting the cumulative distribution at two uniforms in [0, 1).

    The first picks a block of 128 entries, the second an entry of it: one fp32 uniform has only 2^-24 steps, too
    coarse for the tail of a vocabulary of 50,000, and two need no `[B, V]` of random bits.
    """
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.pad(weights, ((0, 0), (0, -weights.shape[1] % _BLOCK)))
    weights = weights.reshape(weights.shape[0], -1, _BLOCK)
    block = _invert(jnp.sum(weights, axis=-1), uniforms[:, 0])
    inside = jnp.take_along_axis(weights, block[:, None, None], axis=1)[:, 0]
    return (block * _BLOCK + _invert(inside, uniforms[:, 1])).astype(jnp.int32)


def _invert(weights: Float[Array, "B K"], uniform: Float[Array, "B"]) -> Int[Array, "B"]:
    """The first index of positive weight whose cumulative weight exceeds uniform x total.

    Weights of zero are looked at because a parallel prefix sum rounds every entry its own way: past some 128 entries it
    can rise by a rounding where nothing was added.
    """
    cumulative = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), 0.0)
    total = jnp.max(cumulative, axis=-1)
    target = jnp.minimum(uniform * total, jnp.nextafter(total, 0.0))
    return jnp.argmax(cumulative > target[:, None], axis=-1)
