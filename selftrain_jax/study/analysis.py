"""From measured rows to intervals, correlations and verdicts: pure functions of the rows of `StudyData`."""

import dataclasses
import itertools
from typing import Mapping, Sequence

import numpy as np

from selftrain_jax.evaluation.statistics import holm
from selftrain_jax.report.metric import CAPABILITY, HELD_OUT, Row, grouped
from selftrain_jax.report.study_data import CONTROLS, MOST_UNKNOWN, PROXIES, RELATIONS, UNTRAINED, in_order
from selftrain_jax.study import rules, rules_1
from selftrain_jax.study.replicates import (
    ABOVE_CHANCE,
    LEAST_CAPABILITY,
    LEAST_EXTRACTION,
    PAIR,
    Rows,
    change,
    contrast,
    estimate,
    exact_share_lost,
    of,
    seed_means,
    shares_lost,
    tails,
)
from selftrain_jax.study.sources import Correlation, correlation, spearman


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Fields as in `StudyData`."""

    utility: Rows
    by_relation: Rows
    contrasts: Rows
    proxies: Rows
    correlations: Rows
    selectivity: Rows
    verdicts: Rows
    older_verdicts: Rows
    notes: list[str]


def analyse(results: Sequence[Row], proxies: Sequence[Row], memory: Sequence[Row] = ()) -> Analysis:
    """Everything that follows from the measured rows; intervals are over seeds, Student's t with the seeds' means."""
    utility = _utility(results)
    joined = _join(proxies, results)
    unread = {(row["student"], row["arm"], row["seed"]) for row in joined if _is_unread(row)}
    read = [row for row in joined if (row["student"], row["arm"], row["seed"]) not in unread]
    correlations = _within(read)
    notes = []
    seeds = [{row["seed"] for row in pair} for pair in grouped(of(results, CAPABILITY), *PAIR).values()]
    if seeds and len(set.union(*seeds)) < 2:
        notes.append("One seed alone: there are no intervals over seeds, and no finding can be told from chance.")
    if any(found != seeds[0] for found in seeds):
        notes.append("Some pairs lack seeds: means over pairs are then over different pairs in different seeds.")
    if _temperatures_differ(results):
        notes.append(
            "Some sources lack temperatures that others have: relations are then compared over different temperatures."
        )
    if _conditions_differ(results):
        notes.append("Some texts lack conditions that others have: means by relation are over different ones.")
    if unread:
        pairs = sorted({f"{student} of {arm}" for student, arm, _ in unread})
        notes.append(
            f"More than {MOST_UNKNOWN:.0%} of the tokens are unknown to the reader: {', '.join(pairs)}. "
            "These texts are in no correlation."
        )
    if "nll" in correlations and "bits_per_byte" not in correlations:
        notes.append(
            "An earlier version measured the proxies, without bits per byte: finding 2 knows nothing of likelihood. "
            "Remove the study's folder proxies to have them measured anew."
        )
    if lacking := _without_extraction(results):
        notes.append(f"Too little held-out extraction to lose, left out of selectivity: {', '.join(lacking)}.")
    if len({row["condition"] for row in utility}) > 1:
        notes.append("Findings are judged over all conditions together.")
    return Analysis(
        utility=utility,
        by_relation=_by_relation(results),
        contrasts=_contrasts(results),
        proxies=joined,
        correlations=_correlations(read, correlations),
        selectivity=_selectivity(results),
        verdicts=rules.judge(results, correlations, memory, read) if utility else [],
        older_verdicts=rules_1.judge(results, joined) if utility else [],
        notes=notes,
    )


def _temperatures_differ(results: Sequence[Row]) -> bool:
    """Whether, of the texts that a student was trained on, those of one source are of other temperatures."""
    found: dict[tuple, dict[str, set[str]]] = {}
    for row in of(results, CAPABILITY):
        source, _, temperature = row["arm"].partition(" t=")
        if temperature and row["relation"] in RELATIONS:
            place = row["student"], row["condition"], row["seed"]
            found.setdefault(place, {}).setdefault(source, set()).add(temperature)
    return any(other != one for one, *others in map(dict.values, found.values()) for other in others)


def _conditions_differ(results: Sequence[Row]) -> bool:
    """Whether a student was trained on one text at other conditions than on another."""
    trained = [row for row in of(results, CAPABILITY) if row["relation"] not in UNTRAINED]
    by_student = [grouped(rows, "arm").values() for rows in grouped(trained, "student").values()]
    found = [[{row["condition"] for row in rows} for rows in texts] for texts in by_student]
    return any(conditions != texts[0] for texts in found for conditions in texts)


def _utility(results: Sequence[Row]) -> Rows:
    """ "significant" is by a test over seeds that Holm adjusts for all rows but those of no training."""
    rows, p_values = [], {}
    for pair, group in grouped(of(results, CAPABILITY), *PAIR).items():
        values = seed_means(group)
        if len(values) > 1 and group[0]["relation"] != UNTRAINED[0]:
            p_values[len(rows)] = min(1.0, 2 * min(tails(list(values.values()), 0.0)))
        rows.append({**dict(zip(PAIR, pair)), **estimate(values), "p_value": None, "significant": False})
    if p_values:
        for i, p_value in zip(p_values, holm(list(p_values.values()))):
            rows[i] |= {"p_value": float(p_value), "significant": bool(p_value < 0.05)}
    return rows


def _by_relation(results: Sequence[Row]) -> Rows:
    groups = {name: rows for (name,), rows in grouped(in_order(of(results, CAPABILITY)), "relation").items()}
    return [{"relation": name, **estimate(seed_means(rows))} for name, rows in groups.items()]


def _contrasts(results: Sequence[Row]) -> Rows:
    """Utility of a relation minus that of another, over the students that have both, and of each of these ("student";
    "" is all of them)."""
    rows = [row for row in of(results, CAPABILITY) if row["relation"] in (*RELATIONS, CONTROLS[0])]
    students = dict.fromkeys(row["student"] for row in rows)
    found = []
    for nearer, farther in itertools.combinations((*RELATIONS, CONTROLS[0]), 2):
        about = {"relation": nearer, "minus": farther}
        if values := contrast(rows, nearer, (farther,)):
            found.append({**about, "student": "", **estimate(values)})
        for student in students:
            own = [row for row in rows if row["student"] == student]
            if values := contrast(own, nearer, (farther,)):
                found.append({**about, "student": student, **estimate(values)})
    return found


def _join(proxies: Sequence[Row], results: Sequence[Row]) -> Rows:
    """Each proxy beside the utility of its text at its condition; it was measured once for all of these.

    Utilities are rounded: one that is reached by other sums must tie, and ranks tell apart what differs at all."""
    names = "student", "arm", "seed", "condition"
    groups = grouped(of(results, CAPABILITY), *names)
    trained = ((row, groups.get(tuple(row[name] for name in names))) for row in proxies)
    return [{**row, "utility": round(float(np.mean([*map(change, group)])), 12)} for row, group in trained if group]


def _is_unread(row: Row) -> bool:
    return row["proxy"] == "unknown_share" and row["value"] > MOST_UNKNOWN


def _within(rows: Sequence[Row]) -> dict[str, Correlation]:
    """Of each proxy, over the texts that models wrote, within student, condition and seed."""
    found = {}
    for (proxy,), group in grouped((row for row in rows if row["relation"] in RELATIONS), "proxy").items():
        sources, _, temperatures = zip(*(row["arm"].partition(" t=") for row in group))
        places = [(row["student"], row["condition"], row["seed"]) for row in group]
        values = ([row[name] for row in group] for name in ("value", "utility"))
        found[proxy] = correlation(*values, places, sources, temperatures)
    return found


def _correlations(rows: Sequence[Row], within: Mapping[str, Correlation]) -> Rows:
    """Those of `within`, each with that over all pairs, which has no interval: it mixes students and tokenizers, and
    pairs of one student or source are not independent."""
    found = []
    for proxy, of_proxy in within.items():
        group = [row for row in rows if row["proxy"] == proxy and row["relation"] in RELATIONS]
        low, high = of_proxy.interval(0.95)
        about = {"proxy": proxy, "kind": PROXIES[proxy].kind, "n": len(group), "sources": of_proxy.sources}
        bounds = {
            "rho": of_proxy.rho,
            "low": low,
            "high": high,
            "p_value": None if of_proxy.rho is None else of_proxy.p_value,
        }
        found.append({**about, "scope": "within students", **bounds})
        # Of two pairs it is 1 or -1 whatever they are.
        whole = spearman(*([row[name] for row in group] for name in ("value", "utility"))) if len(group) > 2 else None
        found.append({**about, "scope": "all pairs", "rho": whole, "low": None, "high": None, "p_value": None})
    return found


def _selectivity(results: Sequence[Row]) -> Rows:
    """Extraction lost minus capability lost, each as a share of what the base model had (of capability: above chance).

    1: everything verbatim is forgotten and nothing else; 0: the untouched model, or one that lost both alike. (A ratio
    of the two would be undefined for a model that lost nothing.) The interval is the wider, to each side, of Student's
    t over seeds and of `exact_share_lost`."""
    rows = []
    capability = grouped(of(results, ABOVE_CHANCE), *PAIR)
    for pair, extraction in grouped(of(results, HELD_OUT), *PAIR).items():
        lost = shares_lost(extraction, LEAST_EXTRACTION)
        gone = shares_lost(capability.get(pair, []), LEAST_CAPABILITY)
        seeds = sorted(lost.keys() & gone.keys())
        if seeds:
            index = estimate([lost[seed] - gone[seed] for seed in seeds])
            exact = exact_share_lost([row for row in extraction if row["seed"] in seeds])
            if exact and len(seeds) > 1:
                share = float(np.mean([lost[seed] for seed in seeds]))
                ends = {"low": index["value"] - max(share - exact[0], 0.0)}
                ends["high"] = index["value"] + max(exact[1] - share, 0.0)
                for end, wider in (("low", min), ("high", max)):
                    index[end] = ends[end] if index[end] is None else wider(index[end], ends[end])
            kept = 1 - float(np.mean([gone[seed] for seed in seeds]))
            shares = {"capability_kept": kept, "extraction_lost": float(np.mean([lost[seed] for seed in seeds]))}
            rows.append({**dict(zip(PAIR, pair)), **index, **shares})
    return rows


def _without_extraction(results: Sequence[Row]) -> list[str]:
    """Students and seeds of which `shares_lost` leaves out the extraction."""
    groups = grouped(of(results, HELD_OUT), "student", "seed")
    return [
        f"{student}, seed {seed}"
        for (student, seed), rows in sorted(groups.items())
        if np.mean([row["before"] for row in rows]) < LEAST_EXTRACTION
    ]
