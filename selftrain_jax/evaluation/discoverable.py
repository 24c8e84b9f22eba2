"""Extraction by sampling: (n, p)-discoverable extraction, from one teacher-forced pass, without drawing a sample."""

from typing import Sequence

import numpy as np
from numpy.typing import ArrayLike

from selftrain_jax.core.errors import InputError
from selftrain_jax.evaluation.likelihood import Scorer
from selftrain_jax.evaluation.memorization import Probe, probe_sequences
from selftrain_jax.sampling.settings import SamplingConfig


def sampled_suffix_log_probs(
    scorer: Scorer, probes: Sequence[Probe], sampling: SamplingConfig, *, bos_token_id: int | None = None
) -> np.ndarray:
    """float64 `[n]`: log p_z, the log-probability (nats) that one sampled continuation of the prefix is the suffix.

    p_z = prod_t q(z_t | prefix, z_<t), where q is the model's distribution under `sampling`'s temperature, top-k and
    top-p: zero outside the top-k, renormalized inside (Hayes et al. 2024, arXiv 2410.19482). Minus infinity: no sample
    is ever the suffix. The limits on length in `sampling` are ignored and EOS does not stop; `top_k=1` gives 0 or minus
    infinity, that is greedy extraction.
    """
    scores = scorer(*probe_sequences(probes, bos_token_id), sampling=sampling)
    return np.array([s.sampled_log_probs.sum(dtype=np.float64) for s in scores])


def queries_needed(log_probs: ArrayLike, p: float) -> np.ndarray:
    """float64 `[n]`: the least number of samples of which, with probability p, at least one is the suffix.

    n >= log(1 - p) / log(1 - p_z), solved from 1 - (1 - p_z)^n >= p (Hayes et al. 2024, arXiv 2410.19482).
    Infinite where p_z is 0 or the number does not fit in a double.

    Args:
      log_probs: log p_z of every probe, from `sampled_suffix_log_probs`.
      p: probability of success, in (0, 1).
    """
    if not 0 < p < 1:
        raise InputError(f"p={p} must lie between 0 and 1, for example 0.5")
    # As a quotient of logarithms of logarithms: p_z itself underflows below e^-745, log(1 - p_z) long before.
    with np.errstate(over="ignore"):
        needed = np.exp(np.log(-np.log1p(-p)) - _log_failure(log_probs))
    # A quotient that is a whole number may come out a rounding above it.
    return np.maximum(np.ceil(needed * (1 - 1e-12)), 1.0)


def success_probability(log_probs: ArrayLike, n: float) -> np.ndarray:
    """float64 `[n]`: probability that at least one of n samples is the suffix, 1 - (1 - p_z)^n.

    Args:
      log_probs: log p_z of every probe, from `sampled_suffix_log_probs`.
      n: number of samples, at least 1.
    """
    _check_samples(n)
    with np.errstate(over="ignore"):
        return -np.expm1(-n * np.exp(_log_failure(log_probs)))


def discoverable(log_probs: ArrayLike, n: float, p: float) -> np.ndarray:
    """bool `[n]`: (n, p)-discoverably extractable: n samples suffice for probability p (see `queries_needed`)."""
    _check_samples(n)
    return queries_needed(log_probs, p) <= n


def _log_failure(log_probs: ArrayLike) -> np.ndarray:
    """log(-log(1 - p_z)) for log p_z: equal to log p_z for tiny p_z, infinite for p_z = 1."""
    log_probs = np.minimum(np.asarray(log_probs, np.float64), 0.0)  # a certain suffix may sum to a rounding above 0
    if np.isnan(log_probs).any():
        raise InputError("log-probabilities that are not numbers: the model is damaged or has diverged")
    with np.errstate(divide="ignore"):
        # 1 - p_z from log p_z without cancellation on either side of p_z = 1/2.
        high = np.log(-np.expm1(log_probs))
        exact = np.log(-np.where(log_probs > -np.log(2), high, np.log1p(-np.exp(log_probs))))
    return np.where(log_probs < -40, log_probs, exact)  # e^-40 is below half the spacing of doubles at 1


def _check_samples(n: float) -> None:
    if not 1 <= n < np.inf:
        raise InputError(f"n={n} samples: the number must be at least 1, and finite")
