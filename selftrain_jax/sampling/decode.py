"""The jitted decode loop with its KV cache.

All rows start at the BOS token and stay in step, so there is one write position and no prefill. Time is cut into
buckets (`bucket_ends`): inside a bucket the whole loop runs on the device against a cache of the bucket's length, and
between buckets the host looks at which rows are done, drops them and grows the cache. Attention thus never reads far
beyond what is filled, and the set of compiled shapes is small and known.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from selftrain_jax.models.decoder import Decoder, KVCache, Params, continue_cached, unstack_layers
from selftrain_jax.sampling import warp
from selftrain_jax.sampling.settings import SamplingConfig

FIRST_BUCKET = 32
_BUCKET_STEP = 128


def bucket_ends(max_new_tokens: int) -> list[int]:
    """Cache lengths: doubling from 32 to 256, then in steps of 128.

    A bucket's steps read its whole cache, filled or not. Doubling on would read a third more than what is filled over
    1,024 tokens, these steps a tenth; finer ones cost more in compilation than they save."""
    ends = [FIRST_BUCKET]
    while ends[-1] < max_new_tokens:
        ends.append(ends[-1] + min(ends[-1], _BUCKET_STEP))
    return ends


@flax.struct.dataclass
class DecodeState:
    """What one bucket hands to the next, for B rows."""

    cache: KVCache  # filled up to `position`
    position: Int[Array, ""]  # tokens fed so far; also the index t of the next drawn token
    last: Int[Array, "B"]  # the token to feed next
    done: Bool[Array, "B"]  # EOS was drawn, or the row is filler
    keys: Key[Array, "B"]  # one key per sample, fold_in(key, sample id)

    @classmethod
    def start(cls, model: Decoder, keys: Key[Array, "B"], done: Bool[Array, "B"]) -> "DecodeState":
        """Every row at BOS, with the cache of the first bucket."""
        rows = keys.shape[0]
        bos = jnp.full((rows,), model.config.bos_token_id, jnp.int32)
        return cls(KVCache.zeros(model.config, rows, FIRST_BUCKET, model.dtype), jnp.int32(0), bos, done, keys)


def resize(cache: list[KVCache], length: int, rows: Int[Array, "R"] | None, sharding: Any = None) -> KVCache:
    """The cache in the list `cache`, which is emptied, with room for `length` positions, and of `rows` alone if given.

    It goes layer by layer, and lets go of each layer before it makes the next: two caches never exist side by side, as
    long as the list holds the only reference to the old one.
    """
    old = cache.pop()
    keys, values = list(old.keys), list(old.values)
    del old
    for arrays in (keys, values):
        for i in range(len(arrays)):
            arrays[i] = _resize_layer(arrays[i], length, rows, sharding)
    return KVCache(tuple(keys), tuple(values))


@functools.partial(jax.jit, static_argnames=("length", "sharding"))
def _resize_layer(array, length: int, rows, sharding):
    kept = array if rows is None else array[rows]
    longer = jnp.pad(kept, [(0, 0), (0, 0), (0, length - array.shape[2]), (0, 0)])
    return longer if sharding is None else jax.lax.with_sharding_constraint(longer, sharding)


@functools.partial(jax.jit, static_argnames=("model", "config", "num_steps"), donate_argnames="state")
def decode_bucket(
    model: Decoder,
    config: SamplingConfig,
    params: Params,
    state: DecodeState,
    allowed: Bool[Array, "V"],
    num_steps: int,
) -> tuple[DecodeState, Int[Array, "K B"], Float[Array, "K B"]]:
    """Draws up to `num_steps` further tokens per row; stops early once every row is done.

    Returns the state, the tokens drawn and their log-probabilities (nats) under the untempered, unfiltered model, both
    `[num_steps, B]`. Entries of a row after its EOS are meaningless.
    """
    params = unstack_layers(params)
    rows = state.last.shape[0]
    first = state.position

    def unfinished(carry):
        state, _, _ = carry
        return (state.position < first + num_steps) & ~jnp.all(state.done)

    def step(carry):
        state, tokens, log_probs = carry
        logits, cache = continue_cached(model, params, state.last[:, None], state.cache, state.position)
        drawn = draw_token(logits, config, allowed, state.keys, state.position, model.config.eos_token_id)
        log_prob = jnp.take_along_axis(logits, drawn[:, None], axis=1)[:, 0] - jax.nn.logsumexp(logits, axis=1)
        at = state.position - first
        tokens, log_probs = tokens.at[at].set(drawn), log_probs.at[at].set(log_prob)
        done = state.done | (drawn == model.config.eos_token_id)
        return DecodeState(cache, state.position + 1, drawn, done, state.keys), tokens, log_probs

    empty = jnp.zeros((num_steps, rows), jnp.int32), jnp.zeros((num_steps, rows), jnp.float32)
    return jax.lax.while_loop(unfinished, step, (state, *empty))


def draw_token(logits, config: SamplingConfig, allowed, keys, t, eos_token_id: int) -> Int[Array, "B"]:
    """Token t of every sample, from the warped logits and `fold_in(sample key, t)` alone."""
    warped = warp.warp(logits, config, allowed, t < config.min_new_tokens, eos_token_id)
    uniforms = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, t), (2,)))(keys)
    return warp.draw(warped, uniforms)


@functools.partial(jax.jit, static_argnames=("model", "num_tokens", "vocab_limit"))
def greedy_continue(
    model: Decoder, params: Params, prompts: Int[Array, "B T"], num_tokens: int, vocab_limit: int | None = None
) -> Int[Array, "B K"]:
    """The `num_tokens` most likely next tokens after each prompt, one by one (the lowest id wins ties; EOS does not
    stop). Only ids below `vocab_limit` are emitted."""
    rows, length = prompts.shape
    params = unstack_layers(params)
    cache = KVCache.zeros(model.config, rows, length + num_tokens, model.dtype)

    def advance(tokens, cache, position):
        logits, cache = continue_cached(model, params, tokens, cache, position)
        return jnp.argmax(logits[:, :vocab_limit], axis=-1).astype(jnp.int32), cache

    def step(carry, position):
        last, cache = carry
        following, cache = advance(last[:, None], cache, position)
        return (following, cache), last

    first, cache = advance(prompts, cache, 0)
    (last, _), tokens = jax.lax.scan(step, (first, cache), length + jnp.arange(num_tokens - 1))
    return jnp.concatenate([tokens.T, last[:, None]], axis=1)
