"""Exposure: how far a planted canary stands out among what could have been planted (Carlini 2019, arXiv 1802.08232)."""

from typing import Sequence

import numpy as np
from numpy.typing import ArrayLike

from selftrain_jax.core.errors import InputError
from selftrain_jax.evaluation import statistics
from selftrain_jax.evaluation.likelihood import Scorer, summed_log_probs
from selftrain_jax.evaluation.memorization import Probe, probe_sequences


def exposure(log_prob: float, alternative_log_probs: ArrayLike) -> float:
    """Exposure in bits of a canary among sampled alternatives [N]: `log2 |R| - log2 rank` (Carlini et al. 2019).

    R is the canary with its alternatives, so `|R|` = N + 1, and the rank is 1 for the most likely of them; alternatives
    that are exactly as likely stand before it. 0 bits: the least likely of all; log2(N + 1) bits: more likely than
    every alternative, the most that N alternatives can show. With alternatives drawn from a larger space this estimates
    the exposure in it, up to that ceiling.
    """
    alternatives = np.asarray(alternative_log_probs, np.float64)
    if not alternatives.size:
        raise InputError("exposure needs at least one alternative to the canary")
    if np.isnan(log_prob) or np.isnan(alternatives).any():
        raise InputError("exposure of log-probabilities that are not numbers: the model is damaged or has diverged")
    rank = 1 + int(np.sum(alternatives >= log_prob))
    return float(np.log2(alternatives.size + 1) - np.log2(rank))


def group_exposures(log_probs: ArrayLike, lengths: ArrayLike, members: ArrayLike) -> np.ndarray:
    """float64 `[n]`: `exposure` of each member's suffix among the non-members, in bits; NaN for these, and where none
    is as long.

    Right where chance decided which sequences of one kind are members: then the non-members are a sample of R, each
    behind its own prefix, and a model that never saw a member ranks it anywhere among them.

    Args:
      log_probs: nats of every suffix given its prefix.
      lengths: tokens of every suffix; only equal ones are compared.
      members: bool `[n]`.
    """
    log_probs, lengths, members = np.asarray(log_probs, np.float64), np.asarray(lengths), np.asarray(members, bool)
    if np.isnan(log_probs).any():
        raise InputError("exposure of log-probabilities that are not numbers: the model is damaged or has diverged")
    found = np.full(len(log_probs), np.nan)
    for length in np.unique(lengths[~members]):
        rivals = np.sort(log_probs[~members & (lengths == length)])
        canaries = members & (lengths == length)
        above = len(rivals) - np.searchsorted(rivals, log_probs[canaries], "left")
        found[canaries] = np.log2(len(rivals) + 1) - np.log2(1 + above)
    return found


def mean_exposure(
    log_probs: ArrayLike,
    lengths: ArrayLike,
    members: ArrayLike,
    chosen: ArrayLike,
    cluster: ArrayLike | None = None,
    before: ArrayLike | None = None,
    confidence: float = 0.95,
) -> tuple[float, float, float, int]:
    """(mean, low, high, n) of the `group_exposures` of the `chosen` members [n] that have one; with `before`, the
    log-probabilities under another model, of the change against them.

    Two samples meet in it. The canaries have the interval of `statistics.weighted_mean`, the non-members their
    jackknife variance (Efron & Stein, "The jackknife estimate of variance", Annals of Statistics 9, 1981), by `cluster`
    where a label per item is given; the two are joined as in `roc.paired_auc`. In simulations of 8 to 500 canaries
    among 8 to 900 non-members it covers 85 to 100 %, least where many canaries stand out among few non-members;
    without the jackknife, 35 to 96 %.
    """
    members, chosen = np.asarray(members, bool), np.asarray(chosen, bool)
    bits = group_exposures(log_probs, lengths, members)
    chosen = chosen & ~np.isnan(bits)
    if not chosen.any():
        raise InputError("exposure of no canary: none of the chosen has a non-member of its length")
    pulls, lengths = _pulls(log_probs, lengths, members, chosen), np.asarray(lengths)
    rivals = lengths[~members & np.isin(lengths, lengths[chosen])]
    ceiling = float(np.log2(1 + np.unique(rivals, return_counts=True)[1].max()))
    if before is not None:
        bits = bits - group_exposures(before, lengths, members)
        pulls = pulls - _pulls(before, lengths, members, chosen)
    labels = np.arange(len(bits)) if cluster is None else np.unique(cluster, return_inverse=True)[1]
    units = len(np.unique(labels[~members]))
    lowest = 0.0 if before is None else -ceiling
    own = None if cluster is None else labels[chosen]
    mean, low, high = statistics.weighted_mean(bits[chosen], None, (lowest, ceiling), own, confidence)
    if units < 2:
        return mean, lowest, ceiling, int(chosen.sum())
    from scipy.stats import t

    half = t.ppf((1 + confidence) / 2, units - 1) * np.sqrt((np.bincount(labels, pulls) ** 2).sum())
    low, high = mean - np.hypot(mean - low, half), mean + np.hypot(high - mean, half)
    return mean, max(float(low), lowest), min(float(high), ceiling), int(chosen.sum())


def _pulls(log_probs: ArrayLike, lengths: ArrayLike, members: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """float64 `[n]`: by how much the mean exposure of `chosen` differs without each non-member, scaled so that the sum
    of squares is the jackknife variance; 0 for members."""
    log_probs, lengths, found = np.asarray(log_probs, np.float64), np.asarray(lengths), np.zeros(len(members))
    for length in np.unique(lengths[chosen]):
        rivals = ~members & (lengths == length)
        canaries, others = np.sort(log_probs[chosen & (lengths == length)]), log_probs[rivals]
        above = len(others) - np.searchsorted(np.sort(others), canaries, "left")
        gains = np.log2(1 + above) - np.log2(np.maximum(above, 1))  # of a canary, when one above it is left out
        lost = np.append(0, np.cumsum(gains))[np.searchsorted(canaries, others, "right")]
        found[rivals] = np.sqrt((len(others) - 1) / len(others)) * (lost - lost.mean()) / chosen.sum()
    return found


def canary_exposures(
    scorer: Scorer,
    canaries: Sequence[Probe],
    alphabet: ArrayLike,
    *,
    num_alternatives: int = 1023,
    seed: int = 0,
    bos_token_id: int | None = None,
) -> np.ndarray:
    """float64 `[n]`: the exposure of each canary's suffix after its prefix, in bits.

    Alternatives are random sequences of the suffix's length over `alphabet`, behind the same prefix, drawn anew for
    every canary (which is not among them, whatever is drawn).

    Args:
      canaries: format (the prefix) and secret (the suffix).
      alphabet: the token ids that secrets were drawn from.
      num_alternatives: per canary; exposure can reach log2(num_alternatives + 1) bits.
      seed: of the draw; canary i uses (seed, i), so that a canary's figure does not depend on the others.
      bos_token_id: put before every prefix when given.
    """
    alphabet = np.unique(np.asarray(alphabet))
    if alphabet.size < 2:
        raise InputError(f"alphabet holds {alphabet.size} token id(s): a secret needs at least 2 to choose from")
    if num_alternatives < 1:
        raise InputError(f"num_alternatives={num_alternatives} must be at least 1")
    found = []
    for i, canary in enumerate(canaries):
        rng = np.random.default_rng((seed, i))
        drawn = alphabet[rng.integers(alphabet.size, size=(num_alternatives, len(canary.suffix)))]
        same = (drawn == canary.suffix).all(axis=1)
        # Chance may draw the secret itself; the next one in order takes its place.
        drawn[same, -1] = alphabet[(np.searchsorted(alphabet, drawn[same, -1]) + 1) % alphabet.size]
        rivals = [Probe(canary.prefix, suffix) for suffix in drawn]
        scores = scorer(*probe_sequences([canary, *rivals], bos_token_id))
        own, *others = summed_log_probs(scores)
        found.append(exposure(own, others))
    return np.array(found)
