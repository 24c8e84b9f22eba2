"""Unconditional sampling: waves of documents from the BOS token, or another start that all share.

Sample i is a function of (key, i, weights, sampling settings) alone: which wave it rides in, how many rows the wave
has, how many devices share it and what finished before it make no difference. (Arithmetic in another batch shape may
differ in the last fp32 bit, so a draw that falls within about 1e-7 of the border between two tokens can go either way.
In bfloat16 a tensor axis rounds partial sums, so documents there belong to that number of tensor devices.)

Finished rows are dropped between buckets of the decode loop, and no new ones take their places: all rows of a wave are
at the same position, which is what makes the loop fast (one write position, one length, no prefill).
"""

import functools
from typing import Any, Iterator, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, PRNGKeyArray

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.randomness import check_keys, pinned
from selftrain_jax.distributed.mesh import RULES, exact_matmuls, padded_rows, standard_mesh, within
from selftrain_jax.models.checks import check_finite, check_params
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.decoder import Decoder, KVCache, Params
from selftrain_jax.sampling.decode import DecodeState, bucket_ends, decode_bucket, resize, start, state_shardings
from selftrain_jax.sampling.memory import largest_wave
from selftrain_jax.sampling.placement import default_dtype, prepare, usable_ids
from selftrain_jax.sampling.settings import SamplingConfig

_LEAST_ROWS = 8  # a wave is not compacted below this: smaller batches cost the same time per step


@flax.struct.dataclass
class Samples:
    """Documents in the order of the ids asked for; numpy arrays on the host."""

    ids: np.ndarray  # int64 [n]
    tokens: np.ndarray  # int32 [n, max_new_tokens]; the stop token included where drawn, 0 beyond `lengths`
    log_probs: np.ndarray  # float32 [n, max_new_tokens], nats under the untempered, unfiltered model
    lengths: np.ndarray  # int32 [n], the stop token counted
    stopped: np.ndarray  # bool [n]; True where a stop token was drawn, False where max_new_tokens cut the document


def sample(
    params: Params,
    model_config: DecoderConfig,
    sampling_config: SamplingConfig,
    key: PRNGKeyArray,
    ids: Sequence[int],
    *,
    mesh: Mesh | None = None,
    rules: dict = RULES,
    batch_size: int | str = 64,
    allowed: Bool[np.ndarray, "V"] | None = None,
    dtype: Any = None,
) -> Samples:
    """Draws the documents with these ids.

    Args:
      params: the model's weights, on the host or on the devices of `mesh`; or what `prepare` made of them.
      model_config, sampling_config: what is sampled, and how; a `start` other than "auto" is given as ids.
      key: the corpus's random key (`core.randomness.seed_key(seed)`).
      ids: sample ids, non-negative and below 2^32.
      mesh: devices over which the rows of a wave are spread, on axes of any names and type.
      rules: the sharding table; the mesh axes that it names for "heads" divide the weights, all others the rows.
      batch_size: rows per wave; "auto" takes as many as the device memory holds (`memory.largest_wave`).
      allowed: only these token ids are emitted (those that the tokenizer has, `models.files.tokenizer.known_ids`);
        None: all, padded rows of the embedding among them.
      dtype: of weights, compute and cache; None is `default_dtype(mesh)`. Logits and log-probabilities are fp32.

    Raises:
      InputError: no ids, a key of another kind, `batch_size` below 1, more tokens than the context holds, an unusable
        `start` or `allowed`, or parameters of another model. And a model that gives no finite numbers.
    """
    waves = sample_waves(
        params,
        model_config,
        sampling_config,
        key,
        ids,
        mesh=mesh,
        rules=rules,
        batch_size=batch_size,
        allowed=allowed,
        dtype=dtype,
    )
    return jax.tree.map(lambda *parts: np.concatenate(parts), *waves)


def sample_waves(
    params: Params,
    model_config: DecoderConfig,
    sampling_config: SamplingConfig,
    key: PRNGKeyArray,
    ids: Sequence[int],
    *,
    mesh: Mesh | None = None,
    rules: dict = RULES,
    batch_size: int | str = 64,
    allowed: Bool[np.ndarray, "V"] | None = None,
    dtype: Any = None,
) -> Iterator[Samples]:
    """Like `sample`, one wave of at most `batch_size` documents at a time."""
    check(model_config, sampling_config, batch_size, allowed)
    ids = np.asarray(ids)
    if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= 2**32:
        raise InputError("sample ids must be a non-empty list of integers in [0, 2^32)")
    check_keys("sample key", key)
    check_params(params, model_config, unstacked=True)
    mesh = standard_mesh(mesh, rules)
    if dtype is None and isinstance(params["layers"], list):
        dtype = params["embed"]["embedding"].dtype
    dtype = jnp.dtype(default_dtype(mesh) if dtype is None else dtype)
    model = Decoder(model_config, dtype=dtype)
    bits = np.asarray(jax.random.key_data(key))

    def waves():
        with within(mesh), exact_matmuls(dtype):
            weights = prepare(params, model_config, mesh=mesh, dtype=dtype)
            usable = jnp.asarray(usable_ids(model_config, allowed))
            root, rows = jax.random.wrap_key_data(bits, impl="threefry2x32"), batch_size
            if rows == "auto":
                rows = largest_wave(weights, model, sampling_config, len(ids), mesh=mesh)
        for begin in range(0, len(ids), rows):
            with within(mesh), exact_matmuls(dtype):
                wave = _wave(model, sampling_config, weights, root, ids[begin : begin + rows], rows, usable, mesh)
            yield wave

    return waves()


def check(
    config: DecoderConfig, sampling: SamplingConfig, batch_size: int | str, allowed: Bool[np.ndarray, "V"] | None
) -> None:
    """Raises `InputError` for settings that cannot be sampled, before any device work."""
    is_number = isinstance(batch_size, (int, np.integer)) and not isinstance(batch_size, bool)
    if batch_size != "auto" and not (is_number and batch_size >= 1):
        raise InputError(f"sample batch_size={batch_size!r} must be a whole number from 1 on, or 'auto'")
    if sampling.start != "auto" and not all(isinstance(i, int) and i < config.vocab_size for i in sampling.start):
        raise InputError(
            f"sample start={sampling.start!r} must be ids of the model's vocabulary of {config.vocab_size}; "
            "models.files.tokenizer.start_ids makes ids of texts"
        )
    check_length(sampling, config.max_position)
    usable = usable_ids(config, allowed)
    if sampling.min_new_tokens and not set(np.flatnonzero(usable).tolist()) - {*config.stop_ids}:
        raise InputError(
            f"min_new_tokens={sampling.min_new_tokens} needs a token that does not end the document; there is none"
        )


def check_length(sampling: SamplingConfig, context: int) -> None:
    """Raises `InputError` for documents that the model's context cannot hold."""
    if sampling.num_fed > context:
        start = f"sample start of {sampling.start_length} tokens and " if sampling.start_length > 1 else ""
        raise InputError(
            f"{start}max_new_tokens={sampling.max_new_tokens} exceeds the model's context of {context} tokens; lower it"
            f"{' or shorten start' if start else ''}"
        )


def _fewer_rows(rows: int, alive: int, mesh: Mesh | None) -> int:
    """The smallest of rows, 3/4 rows, 1/2 rows, 3/8 rows, ... that holds the rows still alive.

    Few shapes, since each is compiled: at most a third of the rows is idle after this, a sixth on average.
    """
    ways, least = padded_rows(1, mesh), max(alive, _LEAST_ROWS)
    sizes = [size for n in range(rows.bit_length()) for size in (rows >> n, (rows >> n) * 3 // 4)]
    return min((size for size in sizes if size >= least and size % ways == 0), default=rows)


@pinned()
def _wave(model, sampling, params, key, ids, batch_size, allowed, mesh) -> Samples:
    """One wave. Rows are always padded to the same count, so a short last wave compiles nothing new."""
    rows = padded_rows(batch_size, mesh)
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
    # Bucket ends count what is fed, `begin` what is drawn.
    read, begin = sampling.start_length - 1, 0
    ends = [end for end in bucket_ends(sampling.num_fed) if end > read]
    first = None if sampling.start == "auto" else jnp.array(sampling.start, jnp.int32)
    state = start(model, keys, jnp.asarray(owner < 0), ends[0], mesh, first, params if read else None)
    for end in ends:
        steps = min(end - read, limit) - begin
        if begin:
            done = np.asarray(state.done)
            if done.all():
                break
            fewer = _fewer_rows(rows, int((~done).sum()), mesh)
            chosen = None
            if fewer < rows:
                chosen = np.concatenate([np.flatnonzero(~done), np.flatnonzero(done)])[:fewer]
                owner, rows = owner[chosen], fewer
            cache, state = [state.cache], state.replace(cache=None)  # no second reference to the old cache
            state = _next_bucket(model, state, cache, end, chosen, mesh)
        was_done = np.asarray(state.done)
        state, new_tokens, new_log_probs = decode_bucket(model, sampling, params, state, allowed, steps)
        new_tokens, new_log_probs = jax.device_get((new_tokens, new_log_probs))
        for row in np.flatnonzero(~was_done):
            drawn = new_tokens[:, row]
            at = np.flatnonzero(np.isin(drawn, model.config.stop_ids))
            count = at[0] + 1 if at.size else steps
            who = owner[row]
            check_finite(f"log-probabilities of sample {ids[who]}", new_log_probs[:count, row])
            tokens[who, begin : begin + count] = drawn[:count]
            log_probs[who, begin : begin + count] = new_log_probs[:count, row]
            if at.size:
                lengths[who], stopped[who] = begin + count, True
        begin += steps
    return Samples(ids.astype(np.int64), tokens, log_probs, lengths, stopped)


def _next_bucket(model, state: DecodeState, cache: list[KVCache], length: int, rows, mesh) -> DecodeState:
    """`state`, with a longer cache and only `rows` if given."""
    placed = None if mesh is None else state_shardings(model, mesh)
    longer = resize(cache, length, rows, placed and placed.cache.keys[0])
    if rows is not None:
        last, done, keys = _take((state.last, state.done, state.keys), rows, placed and placed.last)
        state = state.replace(last=last, done=done, keys=keys)
    return state.replace(cache=longer)


@functools.partial(jax.jit, static_argnames="sharding")
def _take(values, rows, sharding):
    taken = jax.tree.map(lambda x: x[rows], values)
    return taken if sharding is None else jax.lax.with_sharding_constraint(taken, (sharding,) * len(taken))
