"""THE jitted scorer: one teacher-forced pass gives, for every scored token, all that the evaluators reduce.

Likelihood, multiple choice, minimal pairs and greedy extraction are reductions of its output. Sequences are ragged:
they are sorted by length, batched, and padded on the right, where a causal model cannot look.
"""

import functools
from typing import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from selftrain_jax import parallel
from selftrain_jax.errors import InputError
from selftrain_jax.models.config import ModelConfig
from selftrain_jax.models.gpt_neox import GPTNeoX, Params

_CHUNK = 64  # time steps whose logits exist at once
_ROUND = 16  # sequence lengths and first scored positions are rounded to it at least: few shapes to compile


@flax.struct.dataclass
class TokenScores:
    """One entry per scored token of one sequence (or `[B, K]` inside jit)."""

    log_probs: Float[Array, "K"]  # nats
    ranks: Int[Array, "K"]  # tokens ahead of it; 0 = greedy decoding emits it (the lowest id wins ties)
    margins: Float[Array, "K"]  # logit of the most likely token minus that of the runner-up, >= 0

    @property
    def hits(self):
        return self.ranks == 0


@functools.partial(jax.jit, static_argnames=("model", "start"))
def score_batch(model: GPTNeoX, params: Params, tokens: Int[Array, "B T"], start: int = 1) -> TokenScores:
    """Scores tokens `start ... T-1` of every row given those before them; fields are `[B, T - start]`.

    Only the scored positions are projected to the vocabulary, `_CHUNK` of them at a time, in fp32.
    """
    hidden = model.apply({"params": params}, tokens[:, :-1])[:, start - 1 :]
    targets = tokens[:, start:]
    count = targets.shape[1]
    chunk = min(_CHUNK, count)
    extra = -count % chunk

    def split(x):
        x = jnp.pad(x, [(0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    def one_chunk(xs):
        h, target = xs
        logits = model.apply({"params": params}, h, method="logits")
        ids = jnp.arange(logits.shape[-1])
        picked = jnp.take_along_axis(logits, target[..., None], axis=-1)
        ahead = (logits > picked) | ((logits == picked) & (ids < target[..., None]))
        # Comparing with the maximum instead of asking for its index: argmax is ten times slower than max on a CPU.
        best = jnp.max(logits, axis=-1, keepdims=True)
        is_best = logits == best
        runner_up = jnp.max(jnp.where(is_best, -jnp.inf, logits), axis=-1)
        tied = jnp.sum(is_best, axis=-1) > 1
        return TokenScores(
            log_probs=picked[..., 0] - jax.nn.logsumexp(logits, axis=-1),
            ranks=jnp.sum(ahead, axis=-1, dtype=jnp.int32),
            margins=jnp.where(tied, 0.0, best[..., 0] - runner_up),
        )

    scores = jax.lax.map(one_chunk, (split(hidden), split(targets)))

    def join(x):
        return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)[:, :count]

    return jax.tree.map(join, scores)


def score(
    params: Params,
    config: ModelConfig,
    sequences: Sequence[np.ndarray],
    starts: Sequence[int] | None = None,
    *,
    mesh: Mesh | None = None,
    batch_size: int = 64,
    dtype=jnp.float32,
) -> list[TokenScores]:
    """Scores token `starts[i]` and all after it of every sequence i, given the tokens before.

    Args:
      params, config: the model.
      sequences: int arrays of at least two tokens.
      starts: index of the first scored token, at least 1; default 1 everywhere.
      mesh: devices over which the rows of a batch are spread.
      batch_size: rows per pass.
      dtype: compute dtype of the forward pass; the projection and the results are fp32 always.

    Returns:
      `TokenScores` of numpy arrays `[len(sequence) - start]`, in the order of `sequences`.

    Raises:
      InputError: a sequence that is too short, longer than the context, scored from nowhere, or holds anything but ids
        of the vocabulary. Raised before any device work.
    """
    sequences = [np.asarray(s) for s in sequences]
    starts = [1] * len(sequences) if starts is None else list(starts)
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
        if sequence.dtype.kind not in "iu":
            raise InputError(f"sequence {i} must hold token ids, that is integers, not {sequence.dtype}")
        if sequence.min() < 0 or sequence.max() >= config.vocab_size:
            raise InputError(f"sequence {i} holds token ids outside the model's vocabulary of {config.vocab_size}")

    model = GPTNeoX(config, dtype=dtype)
    rows = batch_size
    if mesh is not None:
        ways = parallel.batch_ways(mesh)
        rows = -(-batch_size // ways) * ways
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), starts[i]))
    results: list[TokenScores | None] = [None] * len(sequences)
    pending = []
    for begin in range(0, len(order), rows):
        chosen = order[begin : begin + rows]
        longest = max(len(sequences[i]) for i in chosen)
        # One more than a multiple: T inputs make T scored tokens. Long sequences are rounded to an eighth of their length.
        unit = max(_ROUND, 1 << max((longest - 1).bit_length() - 4, 0))
        width = min(-(-(longest - 1) // unit) * unit, config.max_position) + 1
        first = max((min(starts[i] for i in chosen) - 1) // _ROUND * _ROUND + 1, 1)
        tokens = np.zeros((rows, width), np.int32)
        for row, i in enumerate(chosen):
            tokens[row, : len(sequences[i])] = sequences[i]
        if mesh is not None:
            tokens = parallel.to_global(mesh, tokens, parallel.batch_sharding(mesh))
        pending.append((chosen, first, score_batch(model, params, tokens, first)))
        if len(pending) > 2:  # keep the device busy while the host unpacks
            _unpack(*pending.pop(0), sequences, starts, results)
    for item in pending:
        _unpack(*item, sequences, starts, results)
    return results


def _unpack(chosen, first, scores, sequences, starts, results):
    scores = jax.tree.map(np.asarray, scores)
    for row, i in enumerate(chosen):
        part = slice(starts[i] - first, len(sequences[i]) - first)
        results[i] = jax.tree.map(lambda x: x[row, part], scores)
