"""From measured rows to intervals, correlations and verdicts: pure functions of the rows of `data.StudyData`."""

import collections
import dataclasses
from typing import Any, Callable, Hashable, Iterable, Sequence

import numpy as np

from selftrain_jax.evaluation.statistics import rank_correlation, t_interval
from selftrain_jax.report.study_data import HELPFUL_SIGN, KINDS, MOST_UNKNOWN, NAMES, RELATIONS, VERDICTS, Row

Rows = list[dict[str, Any]]

# What the verdicts call a difference that matters; the page names them.
USEFUL_POINTS = 1.0  # self text that surely helps by less than this more than other text does not help most
ENOUGH_SEEDS = 2  # for an interval
LEAST_CAPABILITY, LEAST_EXTRACTION = (
    0.05,
    0.01,
)  # above chance, and of the probes: less than that cannot be lost by shares
KEPT_POINTS = 2.0  # capability counts as kept when it surely falls by less than this
EXTRACTION_LOST = 0.95  # the paper's "more than 95 %"
USEFUL_CORRELATION = 0.5  # a proxy surely below it does not predict which text helps


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


def _pair(row: Row) -> tuple[str, ...]:
    return row["student"], row["arm"], row["relation"], row["condition"]


def _group(rows: Iterable[Row], key: Callable[[Row], Hashable]) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = collections.defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def _seed_means(rows: Iterable[Row], value: Callable[[Row], float]) -> list[float]:
    """The mean of each seed, in order of seeds: one replicate each."""
    return [
        float(np.mean([value(row) for row in group])) for _, group in sorted(_group(rows, lambda r: r["seed"]).items())
    ]


def _change(row: Row) -> float:
    return row["after"] - row["before"]


def _interval(values: Sequence[float]) -> dict[str, Any]:
    low, high = t_interval(values) if len(values) > 1 else (None, None)
    return {"value": float(np.mean(values)), "low": low, "high": high, "num_replicates": len(values)}


def _of(results: Iterable[Row], metric: str) -> list[Row]:
    return [row for row in results if row["metric"] == metric]


def _utility(results: Sequence[Row]) -> Rows:
    rows = []
    for (student, arm, relation, condition), group in _group(_of(results, "capability"), _pair).items():
        found = _interval(_seed_means(group, _change))
        significant = found["low"] is not None and (found["low"] > 0 or found["high"] < 0)
        rows.append(
            {
                "student": student,
                "arm": arm,
                "relation": relation,
                "condition": condition,
                **found,
                "significant": significant,
            }
        )
    return rows


def _by_relation(results: Sequence[Row]) -> Rows:
    groups = _group(_of(results, "capability"), lambda row: row["relation"])
    order = [*RELATIONS, *(name for name in groups if name not in RELATIONS)]
    return [{"relation": n, **_interval(_seed_means(groups[n], _change))} for n in sorted(groups, key=order.index)]


def _join(proxies: Sequence[Row], results: Sequence[Row]) -> Rows:
    """Each proxy beside the utility of its text: one row per condition, for proxies do not depend on it."""
    groups = _group(_of(results, "capability"), lambda row: (row["student"], row["arm"], row["seed"]))
    rows = []
    for row in proxies:
        trained = _group(groups.get((row["student"], row["arm"], row["seed"]), []), lambda r: r["condition"])
        for condition, group in trained.items():
            rows.append({**row, "condition": condition, "utility": float(np.mean([_change(r) for r in group]))})
    return rows


def _correlations(rows: Sequence[Row]) -> Rows:
    """Over the texts that models wrote; resampled are pairs of source and student, with all their seeds, conditions and
    temperatures."""
    found = []
    for proxy, group in _group((row for row in rows if row["relation"] in RELATIONS), lambda row: row["proxy"]).items():
        x, y = [row["value"] for row in group], [row["utility"] for row in group]
        pairs = [(row["student"], row["arm"].partition(" t=")[0]) for row in group]
        within = [(row["student"], row["condition"], row["seed"]) for row in group]
        for scope, groups in (("all pairs", None), ("within students", within)):
            if len(set(pairs)) < 3 or (groups and len(set(groups)) == len(groups)):
                continue
            rho, low, high = rank_correlation(x, y, groups=groups, cluster=pairs)
            found.append(
                {
                    "proxy": proxy,
                    "kind": KINDS[proxy],
                    "scope": scope,
                    "n": len(group),
                    "rho": rho,
                    "low": low,
                    "high": high,
                }
            )
    return found


def _selectivity(results: Sequence[Row]) -> Rows:
    """Extraction lost minus capability lost, each as a share of what the base model had (of capability: above chance).

    1: everything verbatim is forgotten and nothing else; 0: the untouched model, or one that lost both alike. (A ratio
    of the two would be undefined for a model that lost nothing.)"""
    rows = []
    capability = _group(_of(results, "capability above chance"), _pair)
    for pair, extraction in _group(_of(results, "extraction/held_out"), _pair).items():
        lost = _shares_lost(extraction, LEAST_EXTRACTION)
        gone = _shares_lost(capability.get(pair, []), LEAST_CAPABILITY)
        seeds = sorted(lost.keys() & gone.keys())
        if not seeds:
            continue
        index = _interval([lost[seed] - gone[seed] for seed in seeds])
        student, arm, relation, condition = pair
        rows.append(
            {
                "student": student,
                "arm": arm,
                "relation": relation,
                "condition": condition,
                **index,
                "capability_kept": 1 - float(np.mean([gone[seed] for seed in seeds])),
                "extraction_lost": float(np.mean([lost[seed] for seed in seeds])),
            }
        )
    return rows


def _shares_lost(rows: Iterable[Row], least: float) -> dict[int, float]:
    """Seed -> the share of the base model's value that is gone; seeds where the base model has less than `least` to
    lose are left out."""
    shares = {}
    for seed, group in _group(rows, lambda row: row["seed"]).items():
        before, after = (float(np.mean([row[name] for row in group])) for name in ("before", "after"))
        if before >= least:
            shares[seed] = 1 - after / before
    return shares


def _without_extraction(results: Sequence[Row]) -> list[str]:
    """Students and seeds of which `_shares_lost` leaves out the extraction."""
    groups = _group(_of(results, "extraction/held_out"), lambda row: (row["student"], row["seed"]))
    return [
        f"{student}, seed {seed}"
        for (student, seed), rows in sorted(groups.items())
        if np.mean([row["before"] for row in rows]) < LEAST_EXTRACTION
    ]


# The findings. Each verdict follows from an interval by a rule that was written down before the numbers were there.


def _verdict(finding: str, claim: str, verdict: str, reason: str, evidence: Rows) -> dict[str, Any]:
    assert verdict in VERDICTS
    return {"finding": finding, "claim": claim, "verdict": verdict, "reason": reason, "evidence": evidence}


def _evidence(name: str, found: dict[str, Any], scale: float, unit: str) -> dict[str, Any]:
    numbers = {k: None if found[k] is None else scale * found[k] for k in ("value", "low", "high")}
    return {"name": name, "unit": unit, **numbers}


def _relational(results: Sequence[Row]) -> dict[str, Any]:
    claim = (
        "Self-generated text helps most, that of the same lineage comes next, that of another recipe helps less, that "
        "of another family least."
    )
    finding = "1. Utility is relational"
    rows = [row for row in _of(results, "capability") if row["relation"] in RELATIONS]
    # Differences within a student and a seed: what is easy for one student says nothing about sources.
    steps: dict[str, list[float]] = {}
    names = [name for name in RELATIONS if any(row["relation"] == name for row in rows)]
    contrasts = [("self", names[1:], "self minus all others")]
    contrasts += [(a, [b], f"{a} minus {b}") for a, b in zip(names, names[1:])]
    for nearer, farther, name in contrasts:
        steps[name] = _contrast(rows, nearer, farther)
    evidence = [_evidence(name, _interval(values), 100, "points") for name, values in steps.items() if values]
    if "self" not in names or len(names) < 2 or not evidence:
        return _verdict(
            finding, claim, "inconclusive", "The study has no self-trained student beside others.", evidence
        )
    first = evidence[0]
    ordered = all(row["value"] > 0 for row in evidence[1:])
    of_self = _interval(_seed_means((row for row in rows if row["relation"] == "self"), _change))
    own = _evidence("self: capability after minus before", of_self, 100, "points")
    evidence.append(own)
    if first["low"] is None:
        verdict, reason = "inconclusive", "One seed gives no interval."
    elif own["high"] < 0:
        less = "less than the others do" if first["low"] > 0 else "and not surely less than the others do"
        verdict, reason = "not reproduced", f"Self-generated text surely lowers capability, {less}."
    elif first["high"] < 0:
        verdict, reason = "not reproduced", "Self surely helps less than the others."
    elif first["high"] < USEFUL_POINTS:  # evidence is in points
        verdict, reason = (
            "not reproduced",
            f"Self surely helps by less than {USEFUL_POINTS:g} point more than the others.",
        )
    elif first["low"] > 0 and ordered:
        verdict, reason = "reproduced", "Self surely helps more than the others, and the means fall with distance."
    elif first["low"] > 0:
        verdict, reason = (
            "inconclusive",
            "Self surely helps more than the others, but the means do not fall with distance.",
        )
    else:
        verdict, reason = "inconclusive", "The interval of self minus the others holds 0."
    return _verdict(finding, claim, verdict, reason, evidence)


def _contrast(rows: Sequence[Row], nearer: str, farther: Sequence[str]) -> list[float]:
    """For every seed: the mean over students (and conditions) that have both of mean utility of one minus the
    others.
    """
    by_seed = []
    for _, of_seed in sorted(_group(rows, lambda row: row["seed"]).items()):
        differences = []
        for group in _group(of_seed, lambda row: (row["student"], row["condition"])).values():
            near = [_change(row) for row in group if row["relation"] == nearer]
            far = [_change(row) for row in group if row["relation"] in farther]
            if near and far:
                differences.append(np.mean(near) - np.mean(far))
        if differences:
            by_seed.append(float(np.mean(differences)))
    return by_seed


def _proxies_fail(correlations: Sequence[Row], num_seeds: int) -> dict[str, Any]:
    claim = (
        "Neither the similarity of corpus and benchmark nor the corpus's likelihood under the student predicts which "
        "corpus helps."
    )
    finding = "2. Simple proxies fail"
    intrinsic = [row for row in correlations if row["kind"] == "intrinsic" and row["low"] is not None]
    evidence = [
        {
            "name": f"rank correlation of utility and {NAMES[row['proxy']]}, {row['scope']}",
            "unit": "",
            "value": row["rho"],
            "low": row["low"],
            "high": row["high"],
        }
        for row in intrinsic
    ]
    rows = [row for row in intrinsic if row["scope"] == "all pairs"]
    if not rows:
        return _verdict(finding, claim, "inconclusive", "Too few pairs for a rank correlation.", [])
    if num_seeds < ENOUGH_SEEDS:
        return _verdict(finding, claim, "inconclusive", "One seed alone.", evidence)
    # Towards the side on which the proxy would speak for a text.
    helpful = [(NAMES[row["proxy"]], *_turned(row)) for row in rows]
    predicts = [name for name, low, _ in helpful if low > 0]
    fails = [name for name, _, high in helpful if high < USEFUL_CORRELATION]
    if predicts:
        tell = "tell" if len(predicts) > 1 else "tells"
        verdict, reason = (
            "not reproduced",
            f"Over all pairs, {' and '.join(predicts)} surely {tell} which text helps more.",
        )
    elif len(fails) == len(helpful):
        verdict, reason = (
            "reproduced",
            (f"Over all pairs, the rank correlation of every intrinsic proxy is surely below {USEFUL_CORRELATION}."),
        )
    else:
        left = " and ".join(name for name, _, high in helpful if high >= USEFUL_CORRELATION)
        verdict, reason = (
            "inconclusive",
            (
                f"No intrinsic proxy surely predicts utility, but a rank correlation above {USEFUL_CORRELATION} is "
                "not ruled "
                f"out for {left}."
            ),
        )
    return _verdict(finding, claim, verdict, reason, evidence)


def _turned(row: Row) -> tuple[float, float]:
    low, high = row["low"], row["high"]
    return (-high, -low) if HELPFUL_SIGN.get(row["proxy"], 1) < 0 else (low, high)


def _decoupling(results: Sequence[Row]) -> dict[str, Any]:
    claim = "After self-training, capability is kept or better while held-out extraction falls by more than 95 %."
    finding = "3. Capability and verbatim memorization come apart"
    of_self = [row for row in results if row["relation"] == "self"]
    capability = _seed_means(_of(of_self, "capability"), _change)
    lost = _lost_by_seed(_of(of_self, "extraction/held_out"))
    if not capability or not lost:
        return _verdict(
            finding, claim, "inconclusive", "No self-trained student with extraction to lose was measured.", []
        )
    kept, gone = _interval(capability), _interval(lost)
    evidence = [
        _evidence("self: capability after minus before", kept, 100, "points"),
        _evidence("self: held-out extraction lost", gone, 100, "%"),
    ]
    for relation in dict.fromkeys(row["relation"] for row in results if row["relation"] not in RELATIONS):
        control = [row for row in results if row["relation"] == relation]
        evidence.append(
            _evidence(
                f"{relation}: capability after minus before",
                _interval(_seed_means(_of(control, "capability"), _change)),
                100,
                "points",
            )
        )
        if values := _lost_by_seed(_of(control, "extraction/held_out")):
            evidence.append(_evidence(f"{relation}: held-out extraction lost", _interval(values), 100, "%"))
    if kept["low"] is None or gone["low"] is None:
        return _verdict(finding, claim, "inconclusive", "One seed gives no interval.", evidence)
    margin = KEPT_POINTS / 100
    if kept["low"] > -margin and gone["low"] > EXTRACTION_LOST:
        verdict, reason = (
            "reproduced",
            (f"Capability surely falls by less than {KEPT_POINTS:g} points, and extraction surely by more than 95 %."),
        )
    elif kept["high"] < -margin:
        verdict, reason = "not reproduced", f"Capability surely falls by more than {KEPT_POINTS:g} points."
    elif gone["high"] < EXTRACTION_LOST:
        verdict, reason = "not reproduced", "Extraction surely falls by less than 95 %."
    else:
        left = [f"capability falls by less than {KEPT_POINTS:g} points"] * (kept["low"] <= -margin)
        left += ["extraction falls by more than 95 %"] * (gone["low"] <= EXTRACTION_LOST)
        verdict, reason = "inconclusive", f"The intervals leave open whether {' and whether '.join(left)}."
    return _verdict(finding, claim, verdict, reason, evidence)


def _lost_by_seed(rows: Sequence[Row]) -> list[float]:
    """For every seed: the mean over students of the share of extraction lost."""
    by_seed: dict[int, list[float]] = collections.defaultdict(list)
    for group in _group(rows, lambda row: (row["student"], row["arm"], row["condition"])).values():
        for seed, share in _shares_lost(group, LEAST_EXTRACTION).items():
            by_seed[seed].append(share)
    return [float(np.mean(by_seed[seed])) for seed in sorted(by_seed)]
