"""Unconditional sampling: waves of documents from the BOS token.

Sample i is a function of (key, i, weights, sampling settings) alone: which wave it rides in, how many rows the wave
has, how many devices share it and what finished before it make no difference. (Arithmetic in another batch shape may
differ in the last fp32 bit, so a draw that falls within about 1e-7 of the border between two tokens can go either way.)
"""

import functools
from typing import Iterator, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PRNGKeyArray

from selftrain_jax import parallel
from selftrain_jax.errors import InputError
from selftrain_jax.models.config import ModelConfig
from selftrain_jax.models.gpt_neox import GPTNeoX, KVCache, Params, default_unroll
from selftrain_jax.sampling.decode import FIRST_BUCKET, DecodeState, decode_bucket
from selftrain_jax.sampling.warp import SamplingConfig

_LEAST_ROWS = 8  # a wave is not compacted below this: smaller batches cost the same time per step


@flax.struct.dataclass
class Samples:
    """Documents in the order of the ids asked for; numpy arrays on the host."""

    ids: np.ndarray  # int64 [n]
    tokens: np.ndarray  # int32 [n, max_new_tokens]; EOS included where drawn, 0 beyond `lengths`
    log_probs: np.ndarray  # float32 [n, max_new_tokens], nats under the untempered, unfiltered model
    lengths: np.ndarray  # int32 [n], EOS counted
    stopped: np.ndarray  # bool [n]; True where EOS was drawn, False where max_new_tokens cut the document


def sample(
    params: Params,
    model_config: ModelConfig,
    sampling_config: SamplingConfig,
    key: PRNGKeyArray,
    ids: Sequence[int],
    *,
    mesh: Mesh | None = None,
    batch_size: int = 64,
    vocab_limit: int | None = None,
    dtype=jnp.float32,
) -> Samples:
    """Draws the documents with these ids.

    Args:
      params: the model's weights, on the host or on the devices of `mesh`.
      model_config, sampling_config: what is sampled, and how.
      key: the corpus's random key (`jax.random.key(seed)`).
      ids: sample ids, non-negative and below 2^32.
      mesh: devices over which the rows of a wave are spread.
      batch_size: rows per wave.
      vocab_limit: only token ids below it are emitted (the tokenizer's size; embeddings are padded beyond it).
      dtype: compute and cache dtype.

    Raises:
      InputError: no ids, `batch_size` below 1, more new tokens than the context holds, or `vocab_limit` out of range.
    """
    waves = sample_waves(
        params, model_config, sampling_config, key, ids,
        mesh=mesh, batch_size=batch_size, vocab_limit=vocab_limit, dtype=dtype,
    )  # fmt: skip
    return jax.tree.map(lambda *parts: np.concatenate(parts), *waves)


def sample_waves(
    params: Params,
    model_config: ModelConfig,
    sampling_config: SamplingConfig,
    key: PRNGKeyArray,
    ids: Sequence[int],
    *,
    mesh: Mesh | None = None,
    batch_size: int = 64,
    vocab_limit: int | None = None,
    dtype=jnp.float32,
) -> Iterator[Samples]:
    """Like `sample`, one wave of at most `batch_size` documents at a time."""
    check(model_config, sampling_config, batch_size, vocab_limit)
    ids = np.asarray(ids)
    if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= 2**32:
        raise InputError("sample ids must be a non-empty list of integers in [0, 2^32)")
    model = GPTNeoX(model_config, dtype=dtype, unroll=default_unroll(model_config))
    allowed = jnp.arange(model_config.vocab_size) < (vocab_limit or model_config.vocab_size)
    if dtype != jnp.float32:
        params = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, params)

    def waves():
        for start in range(0, len(ids), batch_size):
            yield _wave(model, sampling_config, params, key, ids[start : start + batch_size], batch_size, allowed, mesh)

    return waves()


def check(config: ModelConfig, sampling: SamplingConfig, batch_size: int, vocab_limit: int | None) -> None:
    """Raises `InputError` for settings that cannot be sampled, before any device work."""
    if batch_size < 1:
        raise InputError(f"sample batch_size={batch_size} must be at least 1")
    if sampling.max_new_tokens > config.max_position:
        raise InputError(
            f"max_new_tokens={sampling.max_new_tokens} exceeds the model's context of {config.max_position} tokens; "
            "lower it"
        )
    if vocab_limit is not None and not 0 < vocab_limit <= config.vocab_size:
        raise InputError(f"vocab_limit={vocab_limit} must lie in [1, {config.vocab_size}]")


def _bucket_ends(max_new_tokens: int) -> list[int]:
    ends = [FIRST_BUCKET]
    while ends[-1] < max_new_tokens:
        ends.append(2 * ends[-1])
    return ends


def _wave(model, sampling, params, key, ids, batch_size, allowed, mesh) -> Samples:
    """One wave. Rows are always padded to the same count, so a short last wave compiles nothing new."""
    ways = parallel.batch_ways(mesh) if mesh is not None else 1
    rows = -(-batch_size // ways) * ways
    n, limit = len(ids), sampling.max_new_tokens
    tokens = np.zeros((n, limit), np.int32)
    log_probs = np.zeros((n, limit), np.float32)
    lengths = np.full(n, limit, np.int32)
    stopped = np.zeros(n, bool)

    owner = np.full(rows, -1)  # which sample of the wave each row carries; -1 for filler
    owner[:n] = np.arange(n)
    padded = np.zeros(rows, np.uint32)
    padded[:n] = ids
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(padded))
    state = _spread(DecodeState.start(model, keys, jnp.asarray(owner < 0)), mesh)
    begin = 0
    for end in _bucket_ends(limit):
        steps = min(end, limit) - begin
        if begin:
            alive = np.flatnonzero(~np.asarray(state.done))
            if not alive.size:
                break
            # Finished rows are dropped by halving the batch: few shapes to compile, and a row costs less than a compile.
            while rows // 2 >= max(alive.size, _LEAST_ROWS) and (rows // 2) % ways == 0:
                rows //= 2
            chosen = np.concatenate([alive, np.flatnonzero(np.asarray(state.done))])[:rows]
            owner = owner[chosen]
            state = _spread(_take(state, jnp.asarray(chosen), end), mesh)
        was_done = np.asarray(state.done)
        state, new_tokens, new_log_probs = decode_bucket(model, sampling, params, state, allowed, steps)
        new_tokens, new_log_probs = np.asarray(new_tokens).T, np.asarray(new_log_probs).T
        for row in np.flatnonzero(~was_done):
            at = np.flatnonzero(new_tokens[row] == model.config.eos_token_id)
            count = at[0] + 1 if at.size else steps
            who = owner[row]
            tokens[who, begin : begin + count] = new_tokens[row, :count]
            log_probs[who, begin : begin + count] = new_log_probs[row, :count]
            if at.size:
                lengths[who], stopped[who] = begin + count, True
        begin += steps
    return Samples(ids.astype(np.int64), tokens, log_probs, lengths, stopped)


@functools.partial(jax.jit, static_argnames="length")
def _take(state: DecodeState, rows, length: int) -> DecodeState:
    return state.take(rows, length)


def _spread(state: DecodeState, mesh: Mesh | None) -> DecodeState:
    """Rows over the batch axes of the mesh, heads of the cache over its tensor axis where they divide."""
    if mesh is None:
        return state
    batch = parallel.RULES["batch"]
    rows = NamedSharding(mesh, PartitionSpec(batch))
    heads = "tensor" if state.cache.keys.shape[2] % mesh.shape["tensor"] == 0 else None
    cache = NamedSharding(mesh, PartitionSpec(None, batch, heads))
    everywhere = parallel.replicated(mesh)
    return jax.device_put(
        state, DecodeState(KVCache(cache, cache), position=everywhere, last=rows, done=rows, keys=rows)
    )
