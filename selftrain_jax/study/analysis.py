"""From measured rows to intervals, correlations and verdicts: pure functions of the rows of `data.StudyData`."""

import collections
import dataclasses
import functools
from typing import Any, Callable, Iterable, Sequence

import numpy as np

from selftrain_jax.evaluation.statistics import rank_correlation, t_interval
from selftrain_jax.report.metric import CAPABILITY, HELD_OUT, Metric, Row, grouped
from selftrain_jax.report.study_data import MOST_UNKNOWN, PROXIES, RELATIONS, in_order

Rows = list[dict[str, Any]]

# What the verdicts call a difference that matters; the page names them.
USEFUL_POINTS = 1.0  # self text that surely helps by less than this more than other text does not help most
ENOUGH_SEEDS = 2  # for an interval
LEAST_CAPABILITY = 0.05  # above chance: less than that cannot be lost by shares
LEAST_EXTRACTION = 0.01  # of the probes, likewise
KEPT_POINTS = 2.0  # capability counts as kept when it surely falls by less than this
EXTRACTION_LOST = 0.95  # the paper's "more than 95 %"
USEFUL_CORRELATION = 0.5  # a proxy surely below it does not predict which text helps

ABOVE_CHANCE = Metric("capability above chance")
"""The mean over the suites of accuracy, less that of guessing."""


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Fields as in `StudyData`."""

    utility: Rows
    by_relation: Rows
    proxies: Rows
    correlations: Rows
    selectivity: Rows
    verdicts: Rows
    notes: list[str]


def analyse(results: Sequence[Row], proxies: Sequence[Row]) -> Analysis:
    """Everything that follows from the measured rows; intervals are over seeds, Student's t with the seeds' means."""
    utility = _utility(results)
    by_relation = _by_relation(results)
    joined = _join(proxies, results)
    correlations = _correlations(joined)
    selectivity = _selectivity(results)
    notes = []
    if utility and max(row["num_replicates"] for row in utility) < 2:
        notes.append("One seed alone: there are no intervals over seeds, and no finding can be told from chance.")
    if len({row["num_replicates"] for row in utility}) > 1:
        notes.append("Some pairs lack seeds: means over pairs are then over different pairs in different seeds.")
    unread = {
        f"{row['student']} of {row['arm']}"
        for row in joined
        if row["proxy"] == "unknown_share" and row["value"] > MOST_UNKNOWN
    }
    if unread:
        notes.append(
            f"More than {MOST_UNKNOWN:.0%} of the tokens are unknown to the reader: {', '.join(sorted(unread))}. Its "
            "likelihood is then not that of the text, and the excess over the source's is left out."
        )
    if lacking := _without_extraction(results):
        notes.append(
            f"Too little held-out extraction to lose, left out of selectivity and of finding 3: {', '.join(lacking)}."
        )
    if len({row["condition"] for row in utility}) > 1:
        notes.append("Findings are judged over all conditions together.")
    seeds = {row["seed"] for row in results}
    verdicts = [_relational(results), _proxies_fail(correlations, len(seeds)), _decoupling(results)] if utility else []
    return Analysis(utility, by_relation, joined, correlations, selectivity, verdicts, notes)


_PAIR = ("student", "arm", "relation", "condition")


def _seed_means(rows: Iterable[Row], value: Callable[[Row], float]) -> list[float]:
    """The mean of each seed, in order of seeds: one replicate each."""
    return [float(np.mean([value(row) for row in group])) for _, group in sorted(grouped(rows, "seed").items())]


def _change(row: Row) -> float:
    return row["after"] - row["before"]


def _interval(values: Sequence[float]) -> dict[str, Any]:
    low, high = t_interval(values) if len(values) > 1 else (None, None)
    return {"value": float(np.mean(values)), "low": low, "high": high, "num_replicates": len(values)}


def _of(results: Iterable[Row], metric: Metric) -> list[Row]:
    return [row for row in results if row["metric"] == metric]


def _utility(results: Sequence[Row]) -> Rows:
    rows = []
    for pair, group in grouped(_of(results, CAPABILITY), *_PAIR).items():
        found = _interval(_seed_means(group, _change))
        significant = found["low"] is not None and (found["low"] > 0 or found["high"] < 0)
        rows.append({**dict(zip(_PAIR, pair)), **found, "significant": significant})
    return rows


def _by_relation(results: Sequence[Row]) -> Rows:
    groups = {name: rows for (name,), rows in grouped(in_order(_of(results, CAPABILITY)), "relation").items()}
    return [{"relation": name, **_interval(_seed_means(rows, _change))} for name, rows in groups.items()]


def _join(proxies: Sequence[Row], results: Sequence[Row]) -> Rows:
    """Each proxy beside the utility of its text: one row per condition, for proxies do not depend on it."""
    groups = grouped(_of(results, CAPABILITY), "student", "arm", "seed")
    rows = []
    for row in proxies:
        trained = groups.get((row["student"], row["arm"], row["seed"]), [])
        for (condition,), group in grouped(trained, "condition").items():
            rows.append({**row, "condition": condition, "utility": float(np.mean([_change(r) for r in group]))})
    return rows


def _correlations(rows: Sequence[Row]) -> Rows:
    """Over the texts that models wrote; resampled are pairs of source and student, with all their seeds, conditions and
    temperatures."""
    found = []
    for (proxy,), group in grouped((row for row in rows if row["relation"] in RELATIONS), "proxy").items():
        x, y = [row["value"] for row in group], [row["utility"] for row in group]
        pairs = [(row["student"], row["arm"].partition(" t=")[0]) for row in group]
        within = [(row["student"], row["condition"], row["seed"]) for row in group]
        for scope, groups in (("all pairs", None), ("within students", within)):
            if len(set(pairs)) >= 3 and not (groups and len(set(groups)) == len(groups)):
                about = {"proxy": proxy, "kind": PROXIES[proxy].kind, "scope": scope, "n": len(group)}
                rho, low, high = rank_correlation(x, y, groups=groups, cluster=pairs)
                found.append({**about, "rho": rho, "low": low, "high": high})
    return found


def _selectivity(results: Sequence[Row]) -> Rows:
    """Extraction lost minus capability lost, each as a share of what the base model had (of capability: above chance).

    1: everything verbatim is forgotten and nothing else; 0: the untouched model, or one that lost both alike. (A ratio
    of the two would be undefined for a model that lost nothing.)"""
    rows = []
    capability = grouped(_of(results, ABOVE_CHANCE), *_PAIR)
    for pair, extraction in grouped(_of(results, HELD_OUT), *_PAIR).items():
        lost = _shares_lost(extraction, LEAST_EXTRACTION)
        gone = _shares_lost(capability.get(pair, []), LEAST_CAPABILITY)
        seeds = sorted(lost.keys() & gone.keys())
        if seeds:
            index = _interval([lost[seed] - gone[seed] for seed in seeds])
            kept = 1 - float(np.mean([gone[seed] for seed in seeds]))
            shares = {"capability_kept": kept, "extraction_lost": float(np.mean([lost[seed] for seed in seeds]))}
            rows.append({**dict(zip(_PAIR, pair)), **index, **shares})
    return rows


def _shares_lost(rows: Iterable[Row], least: float) -> dict[int, float]:
    """Seed -> the share of the base model's value that is gone; seeds where the base model has less than `least` to
    lose are left out."""
    shares = {}
    for (seed,), group in grouped(rows, "seed").items():
        before, after = (float(np.mean([row[name] for row in group])) for name in ("before", "after"))
        if before >= least:
            shares[seed] = 1 - after / before
    return shares


def _without_extraction(results: Sequence[Row]) -> list[str]:
    """Students and seeds of which `_shares_lost` leaves out the extraction."""
    groups = grouped(_of(results, HELD_OUT), "student", "seed")
    return [
        f"{student}, seed {seed}"
        for (student, seed), rows in sorted(groups.items())
        if np.mean([row["before"] for row in rows]) < LEAST_EXTRACTION
    ]


# The findings. Each verdict follows from an interval by a rule that was written down before the numbers were there.


def _verdict(finding: str, claim: str, evidence: Rows, verdict: str, reason: str) -> dict[str, Any]:
    return {"finding": finding, "claim": claim, "verdict": verdict, "reason": reason, "evidence": evidence}


def _evidence(name: str, values: Sequence[float], unit: str) -> dict[str, Any]:
    """The mean and interval of shares, times 100."""
    found = _interval(values)
    numbers = {k: None if found[k] is None else 100 * found[k] for k in ("value", "low", "high")}
    return {"name": name, "unit": unit, **numbers}


def _relational(results: Sequence[Row]) -> dict[str, Any]:
    rows = [row for row in _of(results, CAPABILITY) if row["relation"] in RELATIONS]
    names = [name for name in RELATIONS if any(row["relation"] == name for row in rows)]
    contrasts = [("self", names[1:], "self minus all others")]
    contrasts += [(a, [b], f"{a} minus {b}") for a, b in zip(names, names[1:])]
    # Differences within a student and a seed: what is easy for one student says nothing about sources.
    steps = {name: _contrast(rows, nearer, farther) for nearer, farther, name in contrasts}
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
    of_self = _seed_means((row for row in rows if row["relation"] == "self"), _change)
    own = _evidence("self: capability after minus before", of_self, "points")
    evidence.append(own)
    if first["low"] is None:
        return verdict("inconclusive", "One seed gives no interval.")
    if own["high"] < 0:
        less = "less than the others do" if first["low"] > 0 else "and not surely less than the others do"
        return verdict("not reproduced", f"Self-generated text surely lowers capability, {less}.")
    if first["high"] < 0:
        return verdict("not reproduced", "Self surely helps less than the others.")
    if first["high"] < USEFUL_POINTS:  # evidence is in points
        more = f"less than {USEFUL_POINTS:g} point more than the others"
        return verdict("not reproduced", f"Self surely helps by {more}.")
    if first["low"] <= 0:
        return verdict("inconclusive", "The interval of self minus the others holds 0.")
    if ordered:
        return verdict("reproduced", "Self surely helps more than the others, and the means fall with distance.")
    return verdict("inconclusive", "Self surely helps more than the others, but the means do not fall with distance.")


def _contrast(rows: Sequence[Row], nearer: str, farther: Sequence[str]) -> list[float]:
    """For every seed: the mean over students (and conditions) that have both of mean utility of one minus the
    others.
    """
    by_seed = []
    for _, of_seed in sorted(grouped(rows, "seed").items()):
        differences = []
        for group in grouped(of_seed, "student", "condition").values():
            near = [_change(row) for row in group if row["relation"] == nearer]
            far = [_change(row) for row in group if row["relation"] in farther]
            if near and far:
                differences.append(np.mean(near) - np.mean(far))
        if differences:
            by_seed.append(float(np.mean(differences)))
    return by_seed


def _proxies_fail(correlations: Sequence[Row], num_seeds: int) -> dict[str, Any]:
    intrinsic = [row for row in correlations if row["kind"] == "intrinsic" and row["low"] is not None]
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
    if not _of(of_self, CAPABILITY) or not _lost_by_seed(of_self):
        return verdict("inconclusive", "No self-trained student with extraction to lose was measured.")
    for relation in ("self", *dict.fromkeys(r["relation"] for r in results if r["relation"] not in RELATIONS)):
        trained = [row for row in results if row["relation"] == relation]
        changes = _seed_means(_of(trained, CAPABILITY), _change)
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
    for group in grouped(_of(results, HELD_OUT), "student", "arm", "condition").values():
        for seed, share in _shares_lost(group, LEAST_EXTRACTION).items():
            by_seed[seed].append(share)
    return [float(np.mean(by_seed[seed])) for seed in sorted(by_seed)]
