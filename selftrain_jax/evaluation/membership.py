"""Was this sequence in the training text? Scores of the classic attacks, and how well they tell members from others."""

import dataclasses
import zlib
from typing import Sequence

import numpy as np

from selftrain_jax.core.errors import InputError
from selftrain_jax.evaluation import roc
from selftrain_jax.evaluation.likelihood import Scorer, after_bos

ATTACKS = ("loss", "zlib", "min_k", "min_k_plus", "reference")


def membership_scores(
    scorer: Scorer,
    sequences: Sequence[np.ndarray],
    *,
    texts: Sequence[str] | None = None,
    reference: Scorer | None = None,
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
    - "reference": mean of l_t - l'_t, the log of the likelihood ratio per token to a model that did not see the members
      (Carlini et al. 2021; Mireshghallah et al. 2022, arXiv 2203.03929); needs `reference`.

    Args:
      texts: the sequences' text.
      reference: another model with the same tokenizer.
      share: the k of Min-k%, in (0, 1]; of T tokens the max(1, floor(share * T)) lowest count.
      bos_token_id: put before every sequence when given; otherwise the first token is not scored.

    Raises:
      InputError: a share out of range, as many texts as not sequences, or a sequence that `score` cannot score.
    """
    if not 0 < share <= 1:
        raise InputError(f"share={share} must lie in (0, 1], for example 0.2")
    if texts is not None and len(texts) != len(sequences):
        raise InputError(f"{len(texts)} texts for {len(sequences)} sequences: give one each")
    sequences = after_bos(sequences, bos_token_id)
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
    the far end of the curve (Carlini et al. 2022, arXiv 2112.03570). `members` is bool `[n]`.
    """
    members = np.asarray(members, bool)
    found = {}
    for attack, values in scores.items():
        pair = values[members], values[~members]
        found[attack] = MembershipResult(
            auc=roc.auc(*pair),
            tpr_at_1_percent=roc.tpr_at_fpr(*pair, fpr=0.01),
            tpr_at_01_percent=roc.tpr_at_fpr(*pair, fpr=0.001),
        )
    return found
