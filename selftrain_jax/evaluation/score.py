"""THE jitted scorer: one teacher-forced pass gives, for every scored token, all that the evaluators reduce.

Likelihood, multiple choice, minimal pairs and greedy extraction are reductions of its output. Sequences are padded on
the right, where a causal model cannot look.
"""

import functools
import itertools
from typing import Callable, NamedTuple, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from selftrain_jax.core.errors import InputError
from selftrain_jax.distributed.mesh import padded_rows, target_device, with_mesh
from selftrain_jax.evaluation.batches import check_batch_size, in_batches, padded_batch, rounded_length
from selftrain_jax.evaluation.fans import fans
from selftrain_jax.models.checks import check_finite, check_params
from selftrain_jax.models.config import DecoderConfig, check_token_ids
from selftrain_jax.models.decoder import Decoder, Params, project
from selftrain_jax.models.ops import attention_implementation
from selftrain_jax.sampling.settings import SamplingConfig
from selftrain_jax.sampling.warp import warp

_LOGIT_BYTES = 128 << 20  # the logits that exist at once take at most this much of each device, whatever the batch
_LOGIT_BYTES_ON_CPU = 4 << 20  # what its caches hold
_ROW = 512  # tokens that sequences which begin alike fill together, where none is longer by itself
_TILE_ON_CPU = 512  # columns of the output layer that are multiplied at once there


@flax.struct.dataclass
class TokenScores:
    """One entry per scored token of one sequence (or `[B, K]` inside jit); None where it was not asked for."""

    log_probs: Float[Array, "K"]  # nats
    hits: Bool[Array, "K"]  # whether greedy decoding emits it (the lowest id wins ties)
    margins: Float[Array, "K"]  # logit of the most likely token minus that of the runner-up, >= 0
    means: Float[Array, "K"] | None = None  # nats; expected log-prob of a token drawn from the model here (-entropy)
    variances: Float[Array, "K"] | None = None  # nats^2; variance of the same
    sampled_log_probs: Float[Array, "K"] | None = None  # nats; under temperature, top-k and top-p; -inf: never drawn


@functools.partial(jax.jit, static_argnames=("model", "moments", "sampling", "ways"))
def score_batch(
    model: Decoder,
    params: Params,
    tokens: Int[Array, "B T"],
    at: Int[Array, "B K"],
    targets: Int[Array, "B K"],
    *,
    branch: Int[Array, "B T"] | None = None,
    positions: Int[Array, "B T"] | None = None,
    moments: bool = False,
    sampling: SamplingConfig | None = None,
    ways: int = 1,
) -> TokenScores:
    """Scores `targets` as what comes next after the tokens `at` of their rows; fields are `[B, K]`.

    `branch` and `positions` are those of `Decoder`. Only the scored positions are projected to the vocabulary, in fp32,
    and only so many at a time that their logits fit in `_LOGIT_BYTES` on each of the `ways` devices that share the rows
    (a divisor of B). On a CPU only some columns at a time, too: a matrix product with few rows and all of the
    vocabulary would spend its time on reading the vocabulary."""
    hidden = model.apply({"params": params}, tokens, positions=positions, branch=branch)
    hidden = jnp.take_along_axis(hidden, at[..., None], axis=1)
    count = at.shape[1]
    rows = tokens.shape[0]
    per_device = rows * count // ways
    vocab_size, cap = model.config.vocab_size, model.config.logit_softcap
    on_cpu = target_device().platform == "cpu"
    whole = moments or sampling is not None or not on_cpu  # all of the vocabulary at once
    tile = vocab_size if whole else min(_TILE_ON_CPU, vocab_size)
    budget = min(_LOGIT_BYTES, _LOGIT_BYTES_ON_CPU) if on_cpu else _LOGIT_BYTES
    num_chunks = -(-per_device // max(budget // (4 * tile), 1))
    chunk = -(-per_device // num_chunks)

    # Rows and positions in one axis would tear rows from their device: a leading axis keeps the devices apart.
    def split(x):  # [B, K, ...] -> [chunks, ways, positions, ...]
        x = x.reshape(ways, per_device, *x.shape[2:])
        x = jnp.pad(x, [(0, 0), (0, num_chunks * chunk - per_device)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(ways, num_chunks, chunk, *x.shape[2:]), 1, 0)

    def join(x):
        return jnp.moveaxis(x, 0, 1).reshape(ways, -1)[:, :per_device].reshape(rows, count)

    def some_logits(h, begin, width):
        columns = model.apply({"params": params}, begin, width, method="output_columns")
        return project(h, columns, cap)

    def one_chunk(xs):
        h, target = xs
        if not whole:
            return _finish(_reduce_tiles(functools.partial(some_logits, h), target, vocab_size, tile), target)
        logits = some_logits(h, 0, vocab_size)
        scores = _finish(_reduce(logits, target), target)
        return _add_moments_and_samples(scores, logits, target, moments, sampling)

    return jax.tree.map(join, jax.lax.map(one_chunk, (split(hidden), split(targets))))


class _Reduced(NamedTuple):
    """What is kept of the logits of some of the vocabulary; fields are `[..., C]`."""

    best: Array
    best_id: Array  # the lowest of those that have it
    runner_up: Array
    total: Array  # sum of exp(logit - best)
    picked: Array  # the target's logit, -inf where the target is not among them


def _reduce(logits, target, first_id: int | Array = 0) -> _Reduced:
    """Of logits `[..., C, W]` of the tokens from `first_id` on, and targets `[..., C]`."""
    width = logits.shape[-1]
    ids = jnp.arange(width)
    # Comparing with the maximum instead of asking for its index: argmax is ten times slower than max on a CPU.
    best = jnp.max(logits, axis=-1, keepdims=True)
    best_id = jnp.min(jnp.where(logits == best, ids, width), axis=-1, keepdims=True)
    at = target - first_id
    picked = jnp.take_along_axis(logits, jnp.clip(at, 0, width - 1)[..., None], axis=-1)[..., 0]
    return _Reduced(
        best=best[..., 0],
        best_id=best_id[..., 0] + first_id,
        runner_up=jnp.max(jnp.where(ids == best_id, -jnp.inf, logits), axis=-1),
        total=jnp.sum(jnp.exp(logits - best), axis=-1),
        picked=jnp.where((at >= 0) & (at < width), picked, -jnp.inf),
    )


def _merge(a: _Reduced, b: _Reduced) -> _Reduced:
    """Of two parts of the vocabulary, the lower ids in `a`."""
    best = jnp.maximum(a.best, b.best)
    return _Reduced(
        best=best,
        best_id=jnp.where(b.best > a.best, b.best_id, a.best_id),
        runner_up=jnp.maximum(jnp.minimum(a.best, b.best), jnp.maximum(a.runner_up, b.runner_up)),
        total=a.total * jnp.exp(a.best - best) + b.total * jnp.exp(b.best - best),
        picked=jnp.maximum(a.picked, b.picked),
    )


def _reduce_tiles(logits: Callable[[int | Array, int], Array], target, vocab_size: int, width: int) -> _Reduced:
    """The same as of all logits, which never exist: `logits(begin, width)` gives `width` of them at a time."""

    def of(begin, width):
        return _reduce(logits(begin, width), target, begin)

    count, rest = divmod(vocab_size, width)
    found = jax.lax.fori_loop(1, count, lambda i, found: _merge(found, of(i * width, width)), of(0, width))
    return _merge(found, of(count * width, rest)) if rest else found


def _finish(reduced: _Reduced, target) -> TokenScores:
    return TokenScores(
        log_probs=reduced.picked - reduced.best - jnp.log(reduced.total),
        hits=reduced.best_id == target,
        margins=reduced.best - reduced.runner_up,
    )


def _add_moments_and_samples(scores, logits, target, moments: bool, sampling: SamplingConfig | None) -> TokenScores:
    if moments:
        # The mean first, then squares of what is left: the difference of two large moments would lose fp32's digits.
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        probs = jnp.exp(log_probs)
        means = jnp.sum(probs * log_probs, axis=-1)
        variances = jnp.sum(probs * jnp.square(log_probs - means[..., None]), axis=-1)
        scores = scores.replace(means=means, variances=variances)
    if sampling is not None:
        flat = logits.reshape(-1, logits.shape[-1])
        # Nothing is forbidden here: with min_new_tokens=0 even EOS is a token like others.
        warped = warp(flat, sampling, jnp.array(True), jnp.array(False), ()).reshape(logits.shape)
        chosen = jnp.take_along_axis(warped, target[..., None], axis=-1)[..., 0]
        scores = scores.replace(sampled_log_probs=chosen - jax.nn.logsumexp(warped, axis=-1))
    return scores


def score(
    params: Params,
    config: DecoderConfig,
    sequences: Sequence[np.ndarray],
    starts: Sequence[int] | None = None,
    *,
    mesh: Mesh | None = None,
    batch_size: int = 64,
    dtype=jnp.float32,
    moments: bool = False,
    sampling: SamplingConfig | None = None,
) -> list[TokenScores]:
    """Scores token `starts[i]` and all after it of every sequence i, given the tokens before.

    Args:
      params, config: the model.
      sequences: int arrays of at least two tokens.
      starts: index of the first scored token, at least 1; default 1 everywhere.
      mesh: devices over which the rows of a batch are spread.
      batch_size: rows per pass.
      dtype: compute dtype of the forward pass; the projection and the results are fp32 always.
      moments: also fill in `means` and `variances`, which costs two more passes over the logits.
      sampling: also fill in `sampled_log_probs`, the log-probabilities under its temperature, top-k and top-p (its
        limits on length are ignored: no token is forbidden, and EOS does not stop).

    Returns:
      `TokenScores` of numpy arrays `[len(sequence) - start]`, in the order of `sequences`; equal sequences have equal
      bits, so that what a tokenizer cannot tell apart is a tie and not decided by rounding.

    Raises:
      InputError: a sequence that is too short, longer than the context, scored from nowhere, or holds anything but ids
        of the vocabulary, a bad `batch_size`, or parameters of another model: before any device work. And a model that
        gives no finite numbers.
    """
    sequences = [np.asarray(s) for s in sequences]
    starts = [1] * len(sequences) if starts is None else list(starts)
    check_sequences(sequences, starts, config)
    check_batch_size(batch_size)
    check_params(params, config)
    every, first = [(s.astype(np.int32).tobytes(), start) for s, start in zip(sequences, starts)], {}
    for i, key in enumerate(every):
        first.setdefault(key, i)
    numbers = list(first.values())
    sequences, starts = [sequences[i] for i in numbers], [starts[i] for i in numbers]

    model, rows, ways = Decoder(config, dtype=dtype), padded_rows(batch_size, mesh), padded_rows(1, mesh)
    kernel = attention_implementation(
        model.attention, dtype, config.head_dim, False, config.attention_softcap is not None, target_device(mesh)
    )
    longest = min(max([_ROW, *map(len, sequences)]), config.max_position) if kernel == "xla" else 0
    laid_out = fans(sequences, starts, longest)
    shared = any(len(fan.members) > 1 for fan in laid_out)

    def compute(chosen):
        def padded(name, width):
            return padded_batch(mesh, rows, width, [getattr(laid_out[i], name) for i in chosen])[0]

        count, length = (max(rounded_length(laid_out[i].shape[axis]) for i in chosen) for axis in (0, 1))
        length = min(length, config.max_position)
        apart = {name: padded(name, length) for name in ("branch", "positions") if shared}
        arrays = padded("tokens", length), padded("at", count), padded("targets", count)
        with with_mesh(mesh):
            return score_batch(model, params, *arrays, **apart, moments=moments, sampling=sampling, ways=ways)

    def finish(i, scores):
        found, begin = [], 0
        for m in laid_out[i].members:
            end = begin + len(sequences[m]) - starts[m]
            found.append(jax.tree.map(lambda x: x[begin:end], scores))  # noqa: B023
            check_finite(f"log-probabilities of sequence {numbers[m]}", found[-1].log_probs)
            begin = end
        return found

    # Neighbours share their number of scored tokens first: long contexts of a few scored tokens are the common case.
    order = [(rounded_length(len(fan.targets)), len(fan.tokens)) for fan in laid_out]
    scored = dict(zip(first, itertools.chain(*in_batches(compute, order, rows, dtype=dtype, finish=finish))))
    return [scored[key] for key in every]


def check_sequences(sequences: Sequence[np.ndarray], starts: Sequence[int], config: DecoderConfig) -> None:
    """Raises the `InputError`s of `score` for token arrays that are to be scored or continued from `starts`."""
    for i, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
        if not 1 <= start < len(sequence):
            raise InputError(
                f"sequence {i}: cannot score from token {start} of {len(sequence)}: each scored token needs a "
                "predecessor, and there must be one to score"
            )
        if len(sequence) - 1 > config.max_position:
            raise InputError(
                f"sequence {i} has {len(sequence)} tokens, too many for the model's context of {config.max_position}: "
                "shorten it"
            )
        check_token_ids(f"sequence {i}", sequence, config)
