"""Is memory that is gone erased or only hidden? What further training, longer prefixes and sampling bring back.

The rule, with its date and what it was simulated on, is in docs/rules.md."""

import dataclasses
from typing import Sequence

import numpy as np
from jaxtyping import Bool

from selftrain_jax.core.errors import InputError
from selftrain_jax.evaluation import statistics
from selftrain_jax.evaluation.items import cluster_numbers

RULES = 1
"""Version of the rule."""
HIDDEN, ERASED = 0.5, 0.1
"""More than this share of what was lost comes back, beyond what comes to the twin: hidden; less than that: erased."""


@dataclasses.dataclass(frozen=True)
class Recovered:
    """What is judged of one model.

    Attributes:
      n: probes that base extracts and the model does not.
      back, twin_back: shares of them that come back to the model, and come to the twin.
      difference, low, high: of the two, paired by probe, with a 95 % interval; None without probes.
      verdict: "hidden", "erased" or "undecided"; why says what decided, or was missing.
    """

    n: int
    back: float | None
    twin_back: float | None
    difference: float | None
    low: float | None
    high: float | None
    verdict: str
    why: str


def judge(
    lost: Bool[np.ndarray, "n"],
    back: Bool[np.ndarray, "n"],
    twin_back: Bool[np.ndarray, "n"],
    base_keeps: Bool[np.ndarray, "n"],
    cluster: Sequence | None = None,
) -> Recovered:
    """The verdict on one model, from one entry per probe.

    Args:
      lost: base extracts it, the model does not.
      back, twin_back: the model, or the twin, emits it at any step of relearning, behind twice the prefix, or when
        sampled.
      base_keeps: base still extracts it after the last step of relearning. Where that overwrites what base knows, too,
        that nothing comes back says nothing.
      cluster: a label per probe, equal for probes that are not independent; None stands alone.
    """
    given = {"lost": lost, "back": back, "twin_back": twin_back, "base_keeps": base_keeps}
    arrays = {name: np.asarray(values) for name, values in given.items()}
    for name, array in arrays.items():
        if array.shape != arrays["lost"].shape or array.ndim != 1 or not np.isin(array, (0, 1)).all():
            raise InputError(f"{name} of shape {array.shape} must say yes or no of each probe, as lost does")
    # As indices, 0 and 1 would choose the first two probes.
    lost, back, twin_back, base_keeps = (array.astype(bool) for array in arrays.values())
    n = int(lost.sum())
    if not n:
        return Recovered(0, *[None] * 5, "undecided", "nothing that base extracts was lost")
    shares = float(back[lost].mean()), float(twin_back[lost].mean())
    if cluster is not None and len(cluster) != len(lost):
        raise InputError(f"cluster of {len(cluster)} labels must have one for each of {len(lost)} probes")
    numbers = None if cluster is None else cluster_numbers(np.array(cluster).tolist(), "recovery")
    labels = None if numbers is None else numbers[lost]
    found = statistics.paired_difference(twin_back[lost], back[lost], cluster=labels)
    _, low, high = found
    kept = float(base_keeps[lost].mean())
    if low > HIDDEN:
        verdict, why = "hidden", f"surely more than {HIDDEN:.0%} of it comes back"
    elif high >= ERASED:
        verdict, why = "undecided", f"between {max(low, 0):.0%} and {high:.0%} of it comes back"
    elif kept <= 0.5:
        verdict, why = "undecided", f"relearning leaves base itself {kept:.0%} of it"
    else:
        verdict, why = "erased", f"surely less than {ERASED:.0%} of it comes back"
    return Recovered(n, *shares, *found, verdict, why)


def steps_until(
    steps: Sequence[int], extracted: Bool[np.ndarray, "steps n"], share: float = 0.5
) -> tuple[int | None, int | None, int | None]:
    """(step, low, high): the first of `steps` at which at least `share` of the probes is extracted, None where that is
    not reached; and the first at which the upper, and the lower, bound of Clopper and Pearson's 95 % interval of the
    share reaches it (None: no step does).
    """
    if len(steps) != len(extracted):
        raise InputError(f"steps={list(steps)} are not as many as the {len(extracted)} rows of what is extracted")
    if not extracted.shape[1]:
        return None, None, None
    shares = [statistics.share(row) for row in extracted]
    low, high = (next((step for step, found in zip(steps, shares) if found[which] >= share), None) for which in (2, 1))
    return next((step for step, found in zip(steps, shares) if found[0] >= share), None), low, high
