"""The first rules, kept so that their verdicts can be set beside those of `rules`: version 1 of 2026-11-23, and version
0, finding 1 as it was written down before the first study's numbers were seen (docs/rules.md says what was wrong)."""

import collections
import functools
from typing import Any, Iterable, Sequence

import numpy as np

from selftrain_jax.evaluation.statistics import rank_correlation, t_interval
from selftrain_jax.report.metric import CAPABILITY, HELD_OUT, Row, grouped
from selftrain_jax.report.study_data import PROXIES, RELATIONS
from selftrain_jax.study.replicates import LEAST_EXTRACTION, Rows, contrast, estimate, of, seed_means, shares_lost

USEFUL_POINTS = 1.0  # self text that surely helps by less than this more than other text does not help most
ENOUGH_SEEDS = 2  # for an interval
KEPT_POINTS = 2.0  # capability counts as kept when it surely falls by less than this
EXTRACTION_LOST = 0.95  # the paper's "more than 95 %"
USEFUL_CORRELATION = 0.5  # a proxy surely below it does not predict which text helps
JUDGED = ("nll", "hidden_similarity", "tfidf_similarity", "sentence_similarity")


def judge(results: Sequence[Row], joined: Sequence[Row]) -> Rows:
    """Verdicts on the three findings, and of version 0 on the first; `joined`: each proxy beside its text's utility."""
    seeds = {row["seed"] for row in results}
    found = [_relational(results), _proxies_fail(_correlations(joined), len(seeds)), _decoupling(results)]
    first = _relational(results, as_first_written=True)
    return [*(row | {"rules": "1 (2026-11-23)"} for row in found), first | {"rules": "0 (before the first numbers)"}]


def _verdict(finding: str, claim: str, evidence: Rows, verdict: str, reason: str) -> dict[str, Any]:
    return {"finding": finding, "claim": claim, "verdict": verdict, "reason": reason, "evidence": evidence}


def _evidence(name: str, values: Iterable[float], unit: str) -> dict[str, Any]:
    """The mean and interval of shares, times 100; an interval without width where they are the same."""
    values = [100 * value for value in values]
    low, high = t_interval(values) if len(values) > 1 else (None, None)
    return {"name": name, "unit": unit, **estimate(values), "low": low, "high": high}


def _relational(results: Sequence[Row], as_first_written: bool = False) -> dict[str, Any]:
    rows = [row for row in of(results, CAPABILITY) if row["relation"] in RELATIONS]
    names = [name for name in RELATIONS if any(row["relation"] == name for row in rows)]
    contrasts = [("self", names[1:], "self minus all others")]
    contrasts += [(a, [b], f"{a} minus {b}") for a, b in zip(names, names[1:])]
    # Differences within a student and a seed: what is easy for one student says nothing about sources.
    steps = {name: contrast(rows, nearer, farther).values() for nearer, farther, name in contrasts}
    evidence = [_evidence(name, values, "points") for name, values in steps.items() if values]
    verdict = functools.partial(
        _verdict,
        "1. Utility is relational",
        "Self-generated text helps most, that of the same lineage comes next, that of another recipe helps less, that "
        "of another family least.",
        evidence,
    )
    if "self" not in names or len(names) < 2 or not evidence:
        return verdict("inconclusive", "The study has no self-trained student beside others.")
    first = evidence[0]
    ordered = all(row["value"] > 0 for row in evidence[1:])
    of_self = seed_means(row for row in rows if row["relation"] == "self").values()
    own = _evidence("self: capability after minus before", of_self, "points")
    evidence.append(own)
    if first["low"] is None:
        return verdict("inconclusive", "One seed gives no interval.")
    if own["high"] < 0 and not as_first_written:
        less = "less than the others do" if first["low"] > 0 else "and not surely less than the others do"
        return verdict("not reproduced", f"Self-generated text surely lowers capability, {less}.")
    if first["high"] < 0:
        return verdict("not reproduced", "Self surely helps less than the others.")
    if first["high"] < USEFUL_POINTS and not (as_first_written and first["low"] > 0):  # evidence is in points
        more = f"less than {USEFUL_POINTS:g} point more than the others"
        return verdict("not reproduced", f"Self surely helps by {more}.")
    if first["low"] <= 0:
        return verdict("inconclusive", "The interval of self minus the others holds 0.")
    if ordered:
        return verdict("reproduced", "Self surely helps more than the others, and the means fall with distance.")
    return verdict("inconclusive", "Self surely helps more than the others, but the means do not fall with distance.")


def _correlations(rows: Sequence[Row]) -> Rows:
    """Over the texts that models wrote; resampled are pairs of source and student, with all their seeds, conditions and
    temperatures."""
    found = []
    for (proxy,), group in grouped((row for row in rows if row["relation"] in RELATIONS), "proxy").items():
        x, y = [row["value"] for row in group], [row["utility"] for row in group]
        pairs = [(row["student"], row["arm"].partition(" t=")[0]) for row in group]
        within = [(row["student"], row["condition"], row["seed"]) for row in group]
        for scope, groups in (("all pairs", None), ("within students", within)):
            if proxy in JUDGED and len(set(pairs)) >= 3 and not (groups and len(set(groups)) == len(groups)):
                rho, low, high = rank_correlation(x, y, groups=groups, cluster=pairs)
                found.append({"proxy": proxy, "scope": scope, "rho": rho, "low": low, "high": high})
    return found


def _proxies_fail(correlations: Sequence[Row], num_seeds: int) -> dict[str, Any]:
    intrinsic = [row for row in correlations if row["low"] is not None]
    rows = [row for row in intrinsic if row["scope"] == "all pairs"]
    evidence = [
        {"name": f"rank correlation of utility and {PROXIES[row['proxy']].words}, {row['scope']}", "unit": ""}
        | {"value": row["rho"], "low": row["low"], "high": row["high"]}
        for row in intrinsic
        if rows
    ]
    verdict = functools.partial(
        _verdict,
        "2. Simple proxies fail",
        "Neither the similarity of corpus and benchmark nor the corpus's likelihood under the student predicts which "
        "corpus helps.",
        evidence,
    )
    if not rows:
        return verdict("inconclusive", "Too few pairs for a rank correlation.")
    if num_seeds < ENOUGH_SEEDS:
        return verdict("inconclusive", "One seed alone.")
    # Towards the side on which the proxy would speak for a text.
    helpful = {}
    for row in rows:
        proxy = PROXIES[row["proxy"]]
        helpful[proxy.words] = sorted(proxy.helpful_sign * row[end] for end in ("low", "high"))
    if predicts := [name for name, (low, _) in helpful.items() if low > 0]:
        tell = "tell" if len(predicts) > 1 else "tells"
        reason = f"Over all pairs, {' and '.join(predicts)} surely {tell} which text helps more."
        return verdict("not reproduced", reason)
    if left := [name for name, (_, high) in helpful.items() if high >= USEFUL_CORRELATION]:
        return verdict(
            "inconclusive",
            f"No intrinsic proxy surely predicts utility, but a rank correlation above {USEFUL_CORRELATION} is not "
            f"ruled out for {' and '.join(left)}.",
        )
    below = f"surely below {USEFUL_CORRELATION}"
    return verdict("reproduced", f"Over all pairs, the rank correlation of every intrinsic proxy is {below}.")


def _decoupling(results: Sequence[Row]) -> dict[str, Any]:
    evidence = []
    verdict = functools.partial(
        _verdict,
        "3. Capability and verbatim memorization come apart",
        "After self-training, capability is kept or better while held-out extraction falls by more than 95 %.",
        evidence,
    )
    of_self = [row for row in results if row["relation"] == "self"]
    if not of(of_self, CAPABILITY) or not _lost_by_seed(of_self):
        return verdict("inconclusive", "No self-trained student with extraction to lose was measured.")
    for relation in ("self", *dict.fromkeys(r["relation"] for r in results if r["relation"] not in RELATIONS)):
        trained = [row for row in results if row["relation"] == relation]
        changes = seed_means(of(trained, CAPABILITY)).values()
        evidence.append(_evidence(f"{relation}: capability after minus before", changes, "points"))
        if lost := _lost_by_seed(trained):
            evidence.append(_evidence(f"{relation}: held-out extraction lost", lost, "%"))
    kept, gone = evidence[:2]
    if kept["low"] is None or gone["low"] is None:
        return verdict("inconclusive", "One seed gives no interval.")
    lost_percent = 100 * EXTRACTION_LOST
    if kept["low"] > -KEPT_POINTS and gone["low"] > lost_percent:
        points = f"less than {KEPT_POINTS:g} points"
        return verdict("reproduced", f"Capability surely falls by {points}, and extraction surely by more than 95 %.")
    if kept["high"] < -KEPT_POINTS:
        return verdict("not reproduced", f"Capability surely falls by more than {KEPT_POINTS:g} points.")
    if gone["high"] < lost_percent:
        return verdict("not reproduced", "Extraction surely falls by less than 95 %.")
    left = [f"capability falls by less than {KEPT_POINTS:g} points"] * (kept["low"] <= -KEPT_POINTS)
    left += ["extraction falls by more than 95 %"] * (gone["low"] <= lost_percent)
    return verdict("inconclusive", f"The intervals leave open whether {' and whether '.join(left)}.")


def _lost_by_seed(results: Sequence[Row]) -> list[float]:
    """For every seed: the mean over students of the share of held-out extraction that is lost."""
    by_seed: dict[int, list[float]] = collections.defaultdict(list)
    for group in grouped(of(results, HELD_OUT), "student", "arm", "condition").values():
        for seed, share in shares_lost(group, LEAST_EXTRACTION).items():
            by_seed[seed].append(share)
    return [float(np.mean(by_seed[seed])) for seed in sorted(by_seed)]
