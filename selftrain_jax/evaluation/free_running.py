"""Greedy decoding of many prefixes at once, and what is measured on what the model writes when nobody corrects it.

Exact match needs none of this (see `memorization.extract`): up to the first miss, teacher forcing and free running are
the same. Behind it they part, and measures that look there must decode."""

from typing import Sequence

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from selftrain_jax.core.errors import InputError
from selftrain_jax.evaluation.batches import check_batch_size, in_batches
from selftrain_jax.evaluation.memorization import Probe, probe_sequences
from selftrain_jax.evaluation.score import check_sequences
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.decoder import Params
from selftrain_jax.sampling import continuation, placement


def continue_greedily(
    params: Params,
    config: DecoderConfig,
    probes: Sequence[Probe],
    *,
    bos_token_id: int | None = None,
    mesh: Mesh | None = None,
    batch_size: int = 64,
    dtype=jnp.float32,
) -> list[np.ndarray]:
    """What greedy decoding writes after each prefix, as many tokens as the suffix has: int32 arrays, in order.

    The lowest id wins ties, and EOS does not stop. Lengths may differ.

    Args:
      probes: prefixes, and how much to write; the suffixes' tokens are not looked at.
      bos_token_id: put before every prefix when given.
      mesh: devices over which the rows of a batch are spread.
      batch_size: rows decoded at once.
      dtype: compute dtype; logits are fp32 always.
    """
    sequences, starts = probe_sequences(probes, bos_token_id)
    check_sequences(sequences, starts, config)
    check_batch_size(batch_size)
    params = placement.prepare(params, config, mesh=mesh, dtype=dtype)

    def compute(chosen):
        prefixes = [sequences[i][: starts[i]] for i in chosen]
        wanted = [len(sequences[i]) - starts[i] for i in chosen]
        return continuation.continue_prompts(
            params, config, prefixes, wanted, stop_at_eos=False, mesh=mesh, rows=batch_size, dtype=dtype
        )

    order = [(start, len(sequence)) for start, sequence in zip(starts, sequences)]
    return in_batches(compute, order, batch_size, dtype=dtype, finish=lambda _, ids: np.array(ids, np.int32))


def graded_score(probes: Sequence[Probe], continuations: Sequence[np.ndarray]) -> np.ndarray:
    """float64 `[n]`: EleutherAI's memorization score, the share of suffix tokens that free greedy decoding gets right.

    score(M, N) = (1 / N) sum_i [s_i = g_i], with s the N true tokens behind M tokens of context and g the N tokens that
    the model writes after that context (Biderman et al. 2023, arXiv 2304.11158; there M = N = 32). Positions are
    compared one by one: a continuation that slips by one token scores almost nothing. 1 is exact match."""
    found = []
    for i, (probe, written) in enumerate(zip(probes, continuations, strict=True)):
        true, written = np.asarray(probe.suffix), np.asarray(written)
        if true.shape != written.shape or true.ndim != 1 or not true.size:
            raise InputError(
                f"continuation {i} has shape {written.shape} and its suffix {true.shape}: both must be vectors of as "
                "many tokens, as `continue_greedily` writes them"
            )
        found.append(np.mean(true == written))
    return np.array(found, np.float64)


def padded(continuations: Sequence[np.ndarray]) -> np.ndarray:
    """int32 `[n, longest]`: the continuations as one array, with -1 behind the shorter ones."""
    found = np.full((len(continuations), max(map(len, continuations))), -1, np.int32)
    for row, ids in zip(found, continuations):
        row[: len(ids)] = ids
    return found
