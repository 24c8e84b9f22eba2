"""Was this sequence in the training text? Scores of the classic attacks, and how well they tell members from others."""

import dataclasses
import zlib
from typing import Sequence

import numpy as np

from selftrain_jax.core.errors import InputError
from selftrain_jax.evaluation import roc
from selftrain_jax.evaluation.likelihood import Scorer, after_bos

ATTACKS = ("loss", "zlib", "min_k", "min_k_plus", "dc_pdd", "recall", "reference")
_HIGHEST_DIVERGENCE = 0.01
"""The upper bound that DC-PDD sets to the divergence of one token, as its authors choose it."""


def membership_scores(
    scorer: Scorer,
    sequences: Sequence[np.ndarray],
    *,
    texts: Sequence[str] | None = None,
    reference: Scorer | None = None,
    counts: np.ndarray | None = None,
    shots: Sequence[int] = (),
    share: float = 0.2,
    bos_token_id: int | None = None,
) -> dict[str, np.ndarray]:
    """Attack -> float64 `[n]`, higher where a sequence looks more like a member. With l_t the log-prob of token t
    (nats):

    - "loss": mean of l_t (Yeom et al. 2018, arXiv 1709.01604).
    - "zlib": mean of l_t / bytes of the zlib-compressed text (Carlini et al. 2021, arXiv 2012.07805); needs `texts`.
    - "min_k": mean of the smallest `share` of the l_t (Min-k%, Shi et al. 2024, arXiv 2310.16789).
    - "min_k_plus": the same of (l_t - mu_t) / sigma_t, with mu_t and sigma_t the mean and standard deviation of the
      log-prob under the model's next-token distribution (Min-k%++, Zhang et al. 2025, arXiv 2404.02936).
    - "dc_pdd": mean over the different tokens of the sequence, each where it stands first, of min(-p_t log f_t, 0.01),
      with p_t = exp(l_t) and f_t = (count of the token + 1) / (tokens + vocabulary) its frequency in other text (Zhang
      et al. 2024, arXiv 2409.14781); needs `counts`.
    - "recall": L(x | P) / L(x), with L the mean of l_t and P non-members before the sequence (ReCaLL, Xie et al. 2024,
      arXiv 2406.15968); needs `shots`, which have none (NaN).
    - "reference": mean of l_t - l'_t, the log of the likelihood ratio per token to a model that did not see the members
      (Carlini et al. 2021; Mireshghallah et al. 2022, arXiv 2203.03929); needs `reference`.

    Args:
      texts: the sequences' text.
      reference: another model with the same tokenizer.
      counts: int `[V]`, how often each token stands in text that is like the training text.
      shots: which of the sequences are P, all non-members, in that order.
      share: the k of Min-k%, in (0, 1]; of T tokens the max(1, floor(share * T)) lowest count.
      bos_token_id: put before every sequence when given; otherwise the first token is not scored.

    Raises:
      InputError: a share out of range, as many texts as not sequences, or a sequence that `score` cannot score.
    """
    if not 0 < share <= 1:
        raise InputError(f"share={share} must lie in (0, 1], for example 0.2")
    if texts is not None and len(texts) != len(sequences):
        raise InputError(f"{len(texts)} texts for {len(sequences)} sequences: give one each")
    plain, sequences = sequences, after_bos(sequences, bos_token_id)
    starts = [1] * len(sequences)
    scores = scorer(sequences, starts, moments=True)
    losses = [s.log_probs.astype(np.float64) for s in scores]
    found = {"loss": _means(losses), "min_k": _means([_lowest(x, share) for x in losses])}
    found["min_k_plus"] = _means(
        [
            # A distribution on one token has no spread: there its only token is as expected as can be, 0.
            _lowest((x - s.means) / np.sqrt(np.maximum(s.variances, 1e-12)), share)
            for x, s in zip(losses, scores)
        ]
    )
    if texts is not None:
        found["zlib"] = found["loss"] / [len(zlib.compress(text.encode("utf-8", "surrogatepass"))) for text in texts]
    if counts is not None:
        frequencies = (counts + 1) / (counts.sum() + len(counts))
        found["dc_pdd"] = _means([_divergence(s[1:], x, frequencies) for s, x in zip(sequences, losses)])
    if len(shots):
        before = np.concatenate([plain[i] for i in shots])
        head = int(bos_token_id is not None)
        longer = [np.concatenate([s[:head], before, s[head:]]).astype(np.int32) for s in sequences]
        given = scorer(longer, [len(before) + 1] * len(longer))
        found["recall"] = _means([s.log_probs.astype(np.float64) for s in given]) / found["loss"]
        found["recall"][list(shots)] = np.nan
    if reference is not None:
        others = [s.log_probs.astype(np.float64) for s in reference(sequences, starts)]
        found["reference"] = _means([x - y for x, y in zip(losses, others)])
    return found


def _means(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([part.mean() for part in parts])


def _lowest(values: np.ndarray, share: float) -> np.ndarray:
    # The rounding keeps 0.3 * 10 from being 2.9999999999999996.
    count = max(1, int(round(share * len(values), 9)))
    return np.partition(values, count - 1)[:count]


def _divergence(tokens: np.ndarray, log_probs: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """min(-p log f, 0.01) of each different token, where it stands first."""
    first = np.unique(tokens, return_index=True)[1]
    return np.minimum(-np.exp(log_probs[first]) * np.log(frequencies[tokens[first]]), _HIGHEST_DIVERGENCE)


@dataclasses.dataclass(frozen=True)
class MembershipResult:
    """How well one attack tells members from non-members; each figure as (value, low, high), a 95 % interval."""

    auc: tuple[float, float, float]  # probability that a member scores above a non-member
    tpr_at_1_percent: tuple[float, float, float]  # members found when 1 % of the non-members are accused
    tpr_at_01_percent: tuple[float, float, float]  # the same at 0.1 %


def membership_results(scores: dict[str, np.ndarray], members: np.ndarray) -> dict[str, MembershipResult]:
    """Attack -> AUC and true-positive rate at false-positive rates of 1 % and 0.1 %, for scores from
    `membership_scores`.

    An attack that is right about a few sequences with near certainty matters more than its average: hence the rates at
    the far end of the curve (Carlini et al. 2022, arXiv 2112.03570). `members` is bool `[n]`; what an attack leaves
    out (NaN) does not count.
    """
    members = np.asarray(members, bool)
    found = {}
    for attack, values in scores.items():
        known = ~np.isnan(values)
        pair = values[members & known], values[~members & known]
        found[attack] = MembershipResult(
            auc=roc.auc(*pair),
            tpr_at_1_percent=roc.tpr_at_fpr(*pair, fpr=0.01),
            tpr_at_01_percent=roc.tpr_at_fpr(*pair, fpr=0.001),
        )
    return found
