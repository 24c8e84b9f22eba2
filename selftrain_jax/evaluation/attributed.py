"""Memory that planting caused: what a model shows of planted sequences less what its twin, which never read them, does,
paired by sequence and by how often it was inserted."""

from typing import Any, Iterator, Mapping

import numpy as np
from jaxtyping import Int

from selftrain_jax.evaluation import roc, statistics
from selftrain_jax.evaluation.discoverable import discoverable
from selftrain_jax.evaluation.exposure import mean_exposure

SAMPLES, CHANCE = 100, 0.5
MEASURES = {
    "extraction": "share of suffixes that greedy decoding emits",
    "discoverable": f"share of suffixes that {SAMPLES} samples at temperature 1 hold with probability {CHANCE:g}",
    "exposure": "bits by which a suffix stands out among those of its kind that were never inserted",
    "log_prob": "nats per token of the suffix",
    "membership": "AUC of the suffix's log-probability per token, inserted against never inserted",
}
"""Measure -> what it is. Definitions: `memorization.extract`, `discoverable.discoverable`, `exposure.mean_exposure`
with the suffixes of group 0 of the kind as the alternatives, and `roc.auc`."""


def planted_minus_twin(
    probes: Mapping[str, np.ndarray],
    twin: Mapping[str, np.ndarray],
    repeats: Int[np.ndarray, "n"],
    kinds: np.ndarray,
    attacks: Mapping[str, tuple[np.ndarray, np.ndarray]] = {},
) -> Iterator[dict[str, Any]]:
    """Rows {"measure", "repeats", "value", "twin", "difference", "low", "high", "n"}, rising in `repeats`.

    The 95 % interval is of the difference, over sequences, or over clusters where there is "cluster".

    Args:
      probes, twin: "exact", "log_prob" (nats of the suffix) and "length" (tokens) `[n]` of a model and of the twin.
      repeats: how often each sequence was inserted; exposure and membership need some of group 0, of each kind.
      kinds: label of each sequence's kind.
      attacks: membership attack -> scores `[n]` of the model and of the twin, beside that by log-probability; NaN: not
        told.
    """
    both = (probes, twin)
    exact = [of["exact"].astype(float) for of in both]
    sampled = [discoverable(of["log_prob"], SAMPLES, CHANCE).astype(float) for of in both]
    per_token = [of["log_prob"] / of["length"] for of in both]
    inserted, (_, numbers) = repeats > 0, np.unique(kinds, return_inverse=True)
    scores = {"membership": tuple(per_token)} | {f"membership {name}": pair for name, pair in attacks.items()}
    clusters = probes.get("cluster")
    for count in sorted(set(repeats.tolist())):
        chosen = repeats == count
        labels = None if clusters is None else clusters[chosen]

        def row(measure: str, ours: float, theirs: float, difference: float, low, high, n: int) -> dict[str, Any]:
            values = {"value": ours, "twin": theirs, "difference": difference, "low": low, "high": high, "n": n}
            return {"measure": measure, "repeats": count, **values}

        def compared(measure: str, pair: list[np.ndarray], share: bool) -> dict[str, Any]:
            ours, theirs = (values[chosen] for values in pair)
            if share:
                found = statistics.paired_difference(theirs, ours, cluster=labels)
            else:
                found = statistics.paired_mean(theirs, ours, np.ones(len(ours)), cluster=labels)
            return row(measure, float(ours.mean()), float(theirs.mean()), *found, len(ours))

        yield compared("extraction", exact, True)
        yield compared("discoverable", sampled, True)
        yield compared("log_prob", per_token, False)
        if count and np.isin(kinds[chosen], kinds[~inserted]).any():
            columns = numbers, inserted, chosen, clusters  # of one kind as of one length
            bits = [mean_exposure(of["log_prob"], *columns)[0] for of in both]
            yield row("exposure", *bits, *mean_exposure(probes["log_prob"], *columns, before=twin["log_prob"]))
            for name, (ours, theirs) in scores.items():
                pair = (chosen | (repeats == 0)) & ~np.isnan(ours + theirs)  # an attack may leave some out
                labels_of_pair = None if clusters is None else clusters[pair]
                ours, theirs, positive = ours[pair], theirs[pair], chosen[pair]
                if not positive.any() or positive.all():
                    continue
                values = [roc.auc(of[positive], of[~positive])[0] for of in (ours, theirs)]
                found = roc.paired_auc(theirs, ours, positive, cluster=labels_of_pair)
                yield row(name, *values, *found, int(pair.sum()))
