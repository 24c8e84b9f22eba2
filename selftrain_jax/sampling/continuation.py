"""Continues ragged prompts, token by token, until each row is done: greedily or by drawing.

Rows of a batch share one write position and no mask. What the shortest prompt covers is read in blocks; after that
every step feeds each row either the next token of its prompt or the token it chose itself. The numbers are those of the
row alone, whatever stands beside it."""

import dataclasses
import functools
from typing import Any, Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, Key

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.randomness import check_keys, pinned, seed_key
from selftrain_jax.distributed.mesh import RULES, batch_sharding, padded_rows, standard_mesh, to_global
from selftrain_jax.models.checks import check_finite
from selftrain_jax.models.config import DecoderConfig, check_token_ids
from selftrain_jax.models.decoder import Decoder, Params, continue_cached
from selftrain_jax.sampling import placement, warp
from selftrain_jax.sampling.decode import DecodeState, bucket_ends, decode, draw_token, resize, start, state_shardings
from selftrain_jax.sampling.settings import SamplingConfig

STEPS = 32  # tokens between two looks of the host; bucket ends are multiples of it
_BLOCK = 128  # prompt tokens read at once
_NONE = -1  # in the place of a token where logits are no numbers


@pinned()
def continue_prompts(
    params: Params,
    config: DecoderConfig,
    prompts: Sequence[np.ndarray],
    max_new_tokens: int | Sequence[int],
    *,
    sampling: SamplingConfig | None = None,
    stop_at_eos: bool = True,
    keys: Key[Array, "B"] | None = None,
    finished: Callable[[int, list[int]], bool] | None = None,
    mesh: Mesh | None = None,
    rules: dict = RULES,
    rows: int | None = None,
    allowed: Bool[np.ndarray, "V"] | None = None,
    dtype: Any = jnp.float32,
) -> list[list[int]]:
    """What follows each prompt: at most `max_new_tokens` token ids (one number, or one per prompt), without the stop
    token that ends it.

    Args:
      params: stacked, or what `placement.prepare` made of them (for many calls).
      prompts: one batch of non-empty int arrays, best of similar length.
      sampling: how tokens are drawn, of which temperature, top_k and top_p count; None is greedy (the lowest id wins
        ties).
      stop_at_eos: False takes the model's stop tokens for tokens like others.
      keys: one per prompt, for drawing: token t of a row uses `fold_in(key, t)`.
      finished: asked every `STEPS` tokens with a prompt's index and its tokens so far; True ends the row.
      mesh, rules: devices over which the rows are spread, as in `sampler.sample`.
      rows: the batch is filled up to this size, so that a short last one compiles nothing new.
      allowed: only these ids are emitted; None: all.

    Raises:
      InputError: an empty prompt, ids outside the vocabulary, keys of another kind or number, or prompt and new tokens
        together exceed the context, an unusable `allowed`, or parameters of another model. And a model that gives no
        finite numbers.
    """
    prompts = [np.asarray(prompt) for prompt in prompts]
    lengths = np.array([len(prompt) for prompt in prompts])
    limits = np.broadcast_to(np.asarray(max_new_tokens), lengths.shape)
    # The last new token is not fed, so it may lie one behind the context.
    if limits.min() < 1 or lengths.min() < 1 or (lengths + limits).max() > config.max_position + 1:
        raise InputError(
            f"prompts of {lengths.min()} to {lengths.max()} tokens and max_new_tokens={max_new_tokens} must be at "
            f"least 1 and fit the model's context of {config.max_position} together; shorten one of them"
        )
    for i, prompt in enumerate(prompts):
        check_token_ids(f"prompt {i}", prompt, config)
    if sampling is not None:
        if keys is None:
            raise InputError("drawing tokens needs a random key for each prompt (keys)")
        check_keys("keys for drawing tokens, one for each prompt,", keys, (len(prompts),))
        sampling = dataclasses.replace(sampling, min_new_tokens=0)
    allowed = jnp.asarray(placement.usable_ids(config, allowed))
    model, mesh = Decoder(config, dtype=dtype), standard_mesh(mesh, rules)
    count, rows = len(prompts), padded_rows(max(rows or 0, len(prompts)), mesh)
    longest = int(lengths.max())
    table = np.zeros((rows, longest + 2 * STEPS), np.int32)
    for row, prompt in enumerate(prompts):
        table[row, : len(prompt)] = prompt
    starts, most = np.ones(rows, np.int32), np.ones(rows, np.int32)
    starts[:count], most[:count] = lengths, limits
    if keys is None:  # greedy, so none is used
        keys = jax.random.split(seed_key(0), count)
    keys = keys[jnp.minimum(jnp.arange(rows), count - 1)]
    weights = placement.prepare(params, config, mesh=mesh, dtype=dtype)
    done = np.arange(rows) >= count
    heads = None if mesh is None else state_shardings(model, mesh).cache.keys[0]

    def put(x):
        return jnp.asarray(x) if mesh is None else to_global(mesh, x, batch_sharding(mesh))

    starts, most = put(starts), put(most)
    keys = jax.random.wrap_key_data(put(np.asarray(jax.random.key_data(keys))), impl=jax.random.key_impl(keys))
    ends = bucket_ends(int((lengths + limits).max()) + STEPS)
    begin = (int(lengths.min()) - 1) // STEPS * STEPS  # at least one token of every prompt is left to feed
    state = start(model, keys, put(done), next(end for end in ends if end >= max(begin, STEPS)), mesh)
    at = 0
    while at < begin:
        width = _BLOCK if begin - at >= _BLOCK else STEPS
        state = _read_block(model, weights, put(table[:, at : at + width]), state)
        at += width
    state = state.replace(last=put(table[:, begin]))

    chosen: list[list[int]] = [[] for _ in prompts]
    while not done.all():
        end = next(end for end in ends if end >= at + STEPS)
        if end > state.cache.length:
            old, state = [state.cache], state.replace(cache=None)
            state = state.replace(cache=resize(old, end, None, heads))
        coming = table[:, at + 1 : at + 1 + STEPS] if at < longest else np.zeros((rows, STEPS), np.int32)
        state, new = _advance(model, sampling, stop_at_eos, weights, state, put(coming), starts, allowed, most)
        new, ended = np.asarray(new), np.array(state.done)
        for row in np.flatnonzero(~done[:count]):
            begin = max(lengths[row] - at - 1, 0)  # new[k] stands at index at + k + 1
            fresh = new[begin:, row].tolist()[: limits[row] - len(chosen[row])]
            check_finite(f"logits behind prompt {row}", np.where(np.array(fresh) == _NONE, np.nan, 0))
            stops = np.flatnonzero(np.isin(fresh, config.stop_ids)) if stop_at_eos else []
            if len(stops):
                fresh, ended[row] = fresh[: stops[0]], True
            chosen[row] += fresh
            ended[row] |= len(chosen[row]) >= limits[row]
            if fresh and not ended[row] and finished is not None:
                ended[row] = finished(row, chosen[row])
        at += STEPS
        done = ended
        state = state.replace(done=put(done))
    return chosen


@functools.partial(jax.jit, static_argnames="model", donate_argnames="state")
def _read_block(model: Decoder, params: Params, tokens: Int[Array, "B T"], state: DecodeState) -> DecodeState:
    _, cache = continue_cached(model, params, tokens, state.cache, state.position)
    return state.replace(cache=cache, position=state.position + tokens.shape[1])


@functools.partial(jax.jit, static_argnames=("model", "sampling", "stop_at_eos"), donate_argnames="state")
def _advance(
    model: Decoder,
    sampling: SamplingConfig | None,
    stop_at_eos: bool,
    params: Params,
    state: DecodeState,
    coming: Int[Array, "B K"],  # what the prompts hold after the token that is fed next
    starts: Int[Array, "B"],  # index of each row's first new token
    allowed: Bool[Array, "V"],
    max_new_tokens: Int[Array, "B"],
) -> tuple[DecodeState, Int[Array, "K B"]]:
    """Up to `STEPS` further tokens per row, those of the prompt included; stops early once every row is done."""
    first, stops = state.position, model.config.stop_ids

    def choose(logits, state):
        t = state.position + 1 - starts  # which new token this is; below 0, it is still the prompt's
        if sampling is None:
            new = jnp.argmax(jnp.where(allowed, logits, -jnp.inf), axis=-1).astype(jnp.int32)
        else:
            new = draw_token(logits, sampling, allowed, state.keys, jnp.maximum(t, 0), stops)
        new = jnp.where(jnp.isfinite(jnp.max(logits, axis=-1)), new, _NONE)  # the maximum of NaN is NaN
        known = jax.lax.dynamic_index_in_dim(coming, state.position - first, axis=1, keepdims=False)
        stopped = warp.is_one_of(new, stops) & stop_at_eos | (new == _NONE)
        ends = (t >= 0) & (stopped | (t + 1 >= max_new_tokens))
        return (jnp.where(t < 0, known, new),), ends

    state, (tokens,) = decode(model, params, state, (jnp.zeros((STEPS, starts.shape[0]), jnp.int32),), choose)
    return state, tokens
