"""The jitted decode loop with its KV cache.

All rows start at the BOS token and stay in step, so there is one write position and no prefill. Time is cut into
buckets (32, 64, 128, ...): inside a bucket the whole loop runs on the device against a cache of the bucket's length,
and between buckets the host looks at which rows are done, drops them and grows the cache. Attention thus never reads
far beyond what is filled, and the set of compiled shapes is small and known.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from selftrain_jax.models.gpt_neox import GPTNeoX, KVCache, Params
from selftrain_jax.sampling import warp
from selftrain_jax.sampling.warp import SamplingConfig

FIRST_BUCKET = 32


@flax.struct.dataclass
class DecodeState:
    """What one bucket hands to the next, for B rows."""

    cache: KVCache  # filled up to `position`
    position: Int[Array, ""]  # tokens fed so far; also the index t of the next drawn token
    last: Int[Array, "B"]  # the token to feed next
    done: Bool[Array, "B"]  # EOS was drawn, or the row is filler
    keys: Key[Array, "B"]  # one key per sample, fold_in(key, sample id)

    @classmethod
    def start(cls, model: GPTNeoX, keys: Key[Array, "B"], done: Bool[Array, "B"]) -> "DecodeState":
        """Every row at BOS, with the cache of the first bucket."""
        rows = keys.shape[0]
        bos = jnp.full((rows,), model.config.bos_token_id, jnp.int32)
        return cls(KVCache.zeros(model.config, rows, FIRST_BUCKET, model.dtype), jnp.int32(0), bos, done, keys)

    def take(self, rows: Int[Array, "R"], length: int) -> "DecodeState":
        """Rows `rows` alone, with a cache of `length` positions."""
        cache = jax.tree.map(lambda x: x[:, rows], self.cache).grow(length)
        return DecodeState(cache, self.position, self.last[rows], self.done[rows], self.keys[rows])


@functools.partial(jax.jit, static_argnames=("model", "config", "num_steps"), donate_argnames="state")
def decode_bucket(
    model: GPTNeoX, config: SamplingConfig, params: Params, state: DecodeState, allowed: Bool[Array, "V"], num_steps: int
) -> tuple[DecodeState, Int[Array, "K B"], Float[Array, "K B"]]:
    """Draws up to `num_steps` further tokens per row; stops early once every row is done.

    Returns the state, the tokens drawn and their log-probabilities (nats) under the untempered, unfiltered model, both
    `[num_steps, B]`. Entries of a row after its EOS are meaningless.
    """
    rows = state.last.shape[0]
    first = state.position

    def unfinished(carry):
        state, _, _ = carry
        return (state.position < first + num_steps) & ~jnp.all(state.done)

    def step(carry):
        state, tokens, log_probs = carry
        hidden, cache = model.apply(
            {"params": params}, state.last[:, None], cache=state.cache, position=state.position
        )
        logits = model.apply({"params": params}, hidden[:, 0], method="logits")
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
    model: GPTNeoX, params: Params, prompts: Int[Array, "B T"], num_tokens: int, vocab_limit: int | None = None
) -> Int[Array, "B K"]:
    """The `num_tokens` most likely next tokens after each prompt, one by one (the lowest id wins ties; EOS does not
    stop). Only ids below `vocab_limit` are emitted."""
    rows, length = prompts.shape
    cache = KVCache.zeros(model.config, rows, length + num_tokens, model.dtype)

    def advance(tokens, cache, position):
        hidden, cache = model.apply({"params": params}, tokens, cache=cache, position=position)
        logits = model.apply({"params": params}, hidden[:, -1], method="logits")
        return jnp.argmax(logits[:, :vocab_limit], axis=-1).astype(jnp.int32), cache

    def step(carry, position):
        last, cache = carry
        following, cache = advance(last[:, None], cache, position)
        return (following, cache), last

    first, cache = advance(prompts, cache, 0)
    (last, _), tokens = jax.lax.scan(step, (first, cache), length + jnp.arange(num_tokens - 1))
    return jnp.concatenate([tokens.T, last[:, None]], axis=1)
