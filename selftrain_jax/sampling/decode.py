"""THE decode loop with its KV cache: `decode`. Sampling and the continuation of prompts differ in what they feed.

All rows stay in step, so there is one write position. Time is cut into buckets (`bucket_ends`): inside a bucket the
whole loop runs on the device against a cache of the bucket's length, and between buckets the host looks at which rows
are done, drops them and grows the cache. Attention thus never reads far beyond what is filled, and the set of compiled
shapes is small and known.
"""

import functools
from typing import Any, Callable

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from selftrain_jax.distributed.mesh import RULES, batch_sharding, replicated
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
    """What one call of the loop hands to the next, for B rows."""

    cache: KVCache  # filled up to `position`
    position: Int[Array, ""]  # tokens fed so far
    last: Int[Array, "B"]  # the token to feed next
    done: Bool[Array, "B"]  # nothing more is asked of the row, or it is filler
    keys: Key[Array, "B"]  # one key per row, from which all its draws come


def state_shardings(model: Decoder, mesh: Mesh) -> DecodeState:
    """Rows over the batch axes of the mesh, heads of the cache over its tensor axis where they divide."""
    rows = batch_sharding(mesh)
    heads = "tensor" if model.config.num_kv_heads % mesh.shape["tensor"] == 0 else None
    layers = (NamedSharding(mesh, PartitionSpec(RULES["batch"], heads)),) * model.config.num_layers
    return DecodeState(KVCache(layers, layers), position=replicated(mesh), last=rows, done=rows, keys=rows)


@functools.partial(jax.jit, static_argnames=("model", "length", "mesh"))
def start(
    model: Decoder, keys: Key[Array, "B"], done: Bool[Array, "B"], length: int = FIRST_BUCKET, mesh: Mesh | None = None
) -> DecodeState:
    """Every row at BOS, with an empty cache for `length` tokens."""
    rows = keys.shape[0]
    bos = jnp.full((rows,), model.config.bos_token_id, jnp.int32)
    state = DecodeState(KVCache.zeros(model.config, rows, length, model.dtype), jnp.int32(0), bos, done, keys)
    return state if mesh is None else jax.lax.with_sharding_constraint(state, state_shardings(model, mesh))


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


def decode(
    model: Decoder,
    params: Params,
    state: DecodeState,
    outputs: tuple[Array, ...],
    choose: Callable[[Float[Array, "B V"], DecodeState], tuple[tuple[Array, ...], Bool[Array, "B"]]],
) -> tuple[DecodeState, tuple[Array, ...]]:
    """The loop, inside a jitted function that donates `state`; it stops early once every row is done.

    Args:
      outputs: arrays `[K, B]` for what up to K steps give; those that are not taken leave theirs as it is.
      choose: from the logits behind the tokens fed, and the state in which they were fed, one entry `[B]` for each of
        `outputs`, the first of which is fed next; and which rows end with it.
    """
    params = unstack_layers(params)
    first, num_steps = state.position, outputs[0].shape[0]

    def unfinished(carry):
        state, _ = carry
        return (state.position < first + num_steps) & ~jnp.all(state.done)

    def step(carry):
        state, outputs = carry
        logits, cache = continue_cached(model, params, state.last[:, None], state.cache, state.position)
        chosen, ends = choose(logits, state)
        at = state.position - first
        outputs = tuple(output.at[at].set(new) for output, new in zip(outputs, chosen, strict=True))
        return DecodeState(cache, state.position + 1, chosen[0], state.done | ends, state.keys), outputs

    return jax.lax.while_loop(unfinished, step, (state, outputs))


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
    eos, shape = model.config.eos_token_id, (num_steps, state.last.shape[0])

    def choose(logits, state):
        drawn = draw_token(logits, config, allowed, state.keys, state.position, eos)
        log_prob = jnp.take_along_axis(logits, drawn[:, None], axis=1)[:, 0] - jax.nn.logsumexp(logits, axis=1)
        return (drawn, log_prob), drawn == eos

    outputs = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)
    state, (tokens, log_probs) = decode(model, params, state, outputs, choose)
    return state, tokens, log_probs


def draw_token(
    logits: Float[Array, "B V"],
    config: SamplingConfig,
    allowed: Bool[Array, "V"],
    keys: Key[Array, "B"],
    t: Int[Array, "*B"],
    eos_token_id: int,
) -> Int[Array, "B"]:
    """New token t of every row, from its warped logits and `fold_in(key, t)` alone; t is one number, or one per row."""
    warped = warp.warp(logits, config, allowed, t[..., None] < config.min_new_tokens, eos_token_id)
    turns = jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(t, keys.shape))
    return warp.draw(warped, jax.vmap(lambda key: jax.random.uniform(key, (2,)))(turns))
