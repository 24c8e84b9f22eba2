"""Greedy decoding of many prefixes at once, and what is measured on what the model writes when nobody corrects it.

Exact match needs none of this (see `memorization.extract`): up to the first miss, teacher forcing and free running are the
same. Behind it they part, and measures that look there must decode.
"""

import functools
from typing import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from selftrain_jax import parallel
from selftrain_jax.evaluation.memorization import Probe, probe_sequences
from selftrain_jax.evaluation.score import check_sequences, exact_matmuls
from selftrain_jax.models.config import ModelConfig
from selftrain_jax.models.gpt_neox import GPTNeoX, KVCache, Params, continue_cached, unstack_layers
from selftrain_jax.sampling.sampler import padded_rows, state_shardings

_ROUND = 16  # lengths are rounded to it: few shapes to compile


def continue_greedily(
    params: Params,
    config: ModelConfig,
    probes: Sequence[Probe],
    *,
    bos_token_id: int | None = None,
    mesh: Mesh | None = None,
    batch_size: int = 64,
    dtype=jnp.float32,
) -> list[np.ndarray]:
    """What greedy decoding writes after each prefix, as many tokens as the suffix has: int32 arrays, in order.

    The lowest id wins ties, and EOS does not stop. Lengths may differ: rows of a batch start together, and each is fed
    its own prefix before its own choices.

    Args:
      params, config: the model.
      probes: prefixes, and how much to write; the suffixes' tokens are not looked at.
      bos_token_id: put before every prefix when given.
      mesh: devices over which the rows of a batch are spread.
      batch_size: rows decoded at once.
      dtype: compute dtype; logits are fp32 always.

    Raises:
      InputError: a probe with an empty part, longer than the context, or with ids outside the vocabulary.
    """
    sequences, starts = probe_sequences(probes, bos_token_id)
    check_sequences(sequences, starts, config)
    model = GPTNeoX(config, dtype=dtype)
    rows = padded_rows(batch_size, mesh)
    order = sorted(range(len(probes)), key=lambda i: (starts[i], len(sequences[i])))
    results: list[np.ndarray | None] = [None] * len(probes)
    for begin in range(0, len(order), rows):
        chosen = order[begin : begin + rows]
        longest = max(len(sequences[i]) for i in chosen)
        width = min(-(-longest // _ROUND) * _ROUND, config.max_position + 1)
        shortest = min(starts[i] for i in chosen)
        first = shortest // _ROUND * _ROUND or 1
        tokens, lengths = np.zeros((rows, width), np.int32), np.full(rows, width, np.int32)
        for row, i in enumerate(chosen):
            lengths[row] = starts[i]
            tokens[row, : starts[i]] = sequences[i][: starts[i]]
        if mesh is not None:
            tokens, lengths = parallel.to_global(mesh, (tokens, lengths), (parallel.batch_sharding(mesh),) * 2)
        with exact_matmuls(dtype):
            written = np.asarray(_continue(model, params, tokens, lengths, first, mesh))
        for row, i in enumerate(chosen):
            results[i] = written[row, starts[i] - first : len(sequences[i]) - first]
    return results


@functools.partial(jax.jit, static_argnames=("model", "first", "mesh"))
def _continue(model: GPTNeoX, params: Params, tokens, lengths, first: int, mesh: Mesh | None):
    """Tokens `first ... W-1` of every row `[B, W]`: given below `lengths`, the argmax from there on."""
    params = unstack_layers(params)
    rows, width = tokens.shape
    cache = KVCache.zeros(model.config, rows, width, model.dtype)
    if mesh is not None:
        cache = jax.lax.with_sharding_constraint(cache, state_shardings(model, mesh).cache)

    def choose(logits, position):
        given = jax.lax.dynamic_index_in_dim(tokens, position, axis=1, keepdims=False)
        return jnp.where(position < lengths, given, jnp.argmax(logits, axis=-1).astype(jnp.int32))

    def step(carry, position):
        token, cache = carry
        logits, cache = continue_cached(model, params, token[:, None], cache, position)
        following = choose(logits, position + 1)
        return (following, cache), following

    logits, cache = continue_cached(model, params, tokens[:, :first], cache, 0)
    token = choose(logits, first)
    _, rest = jax.lax.scan(step, (token, cache), first + jnp.arange(width - first - 1))
    return jnp.concatenate([token[:, None], rest.T], axis=1)


def graded_score(probes: Sequence[Probe], continuations: Sequence[np.ndarray]) -> np.ndarray:
    """float64 `[n]`: EleutherAI's memorization score, the share of suffix tokens that free greedy decoding gets right.

    score(M, N) = (1 / N) sum_i [s_i = g_i], with s the N true tokens behind M tokens of context and g the N tokens that the
    model writes after that context (Biderman et al. 2023, arXiv 2304.11158; there M = N = 32). Positions are
    compared one by one: a continuation that slips by one token scores almost nothing. 1 is exact match.
    """
    return np.array([np.mean(p.suffix == c) for p, c in zip(probes, continuations, strict=True)], np.float64)
