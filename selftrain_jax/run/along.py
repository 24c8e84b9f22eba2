"""Extraction along the texts that probes were cut from, for the pictures of the report."""

from typing import Any, Mapping, Sequence

import numpy as np

from selftrain_jax.evaluation.items import Items

LEAST_PROBES = 8
"""Probes that a text must have to be drawn."""
MAX_TEXTS = 40
_MAX_CELLS = 800
"""Of one picture; more are no longer told apart, and make the page large."""


def along_texts(models: Mapping[str, Sequence[Items]]) -> list[dict[str, Any]]:
    """Rows {"model", "text", "group", "edges", "extraction", "likelihood"}: of each text (numbered from 1 in the order
    of the probes, those that are not drawn included) a strip of equal cells, with token counts as their edges [C + 1];
    the share of its probes that is extracted [C], and the probability per token of their suffixes, exp(mean
    log-probability) [C]. A probe is where its suffix begins; None where there is none. Probes that all begin at one
    place, as those of planted passages, whose offset is not one in the passage's text, are no strip.

    Args:
      models: the items of each model, one of each subset, of which the mean is taken.
    """
    base = next(iter(models.values()))[0].probes
    if "cluster" not in base or "suffix_at" not in base:
        return []
    known = base["suffix_at"] >= 0
    texts, sizes = np.unique(base["cluster"][known], return_counts=True)
    places = np.unique(np.stack([base["cluster"], base["suffix_at"]])[:, known], axis=1)[0]
    several = np.isin(texts, places[1:][places[1:] == places[:-1]])
    drawn = texts[(sizes >= LEAST_PROBES) & several][:MAX_TEXTS]
    groups = list(dict.fromkeys(base["group"].tolist()))
    # Of one text every group and model has a strip in the same picture.
    strips = len(drawn) if len(drawn) > 1 else len(groups) * len(models)
    most = max(min(_MAX_CELLS // max(strips, 1), 120), 10)
    rows = []
    for number, text in zip((np.searchsorted(texts, drawn) + 1).tolist(), drawn):
        of_text = (base["cluster"] == text) & (base["suffix_at"] >= 0)
        places, ends = base["suffix_at"][of_text], (base["suffix_at"] + base["length"])[of_text]
        count = min(most, len(set(places.tolist())))
        edges = np.linspace(places.min(), ends.max(), count + 1)
        for (model, found), group in ((pair, group) for pair in models.items() for group in groups):
            chosen = of_text & (base["group"] == group)
            cell = np.minimum(np.searchsorted(edges, base["suffix_at"][chosen], "right") - 1, count - 1)
            exact = [items.probes["exact"][chosen].astype(float) for items in found]
            per_token = [(items.probes["log_prob"] / items.probes["length"])[chosen] for items in found]
            strip = {"extraction": _means(cell, exact, count), "likelihood": _means(cell, per_token, count, np.exp)}
            rows.append({"model": model, "text": number, "group": group, "edges": edges.tolist(), **strip})
    return rows


def _means(cell: np.ndarray, values: Sequence[np.ndarray], count: int, change=lambda x: x) -> list[float | None]:
    sizes = np.bincount(cell, minlength=count)
    totals = np.bincount(cell, np.mean(values, axis=0), count)
    return [float(change(total / size)) if size else None for total, size in zip(totals, sizes)]
