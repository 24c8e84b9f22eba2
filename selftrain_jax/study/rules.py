"""The rules by which a study judges the paper's three findings. docs/rules.md gives them in words, with the simulations
behind them; whoever changes one raises `VERSION` and keeps the old one, as `rules_1` is kept."""

import functools
from typing import Any, Callable, Iterable, Mapping, Sequence

import numpy as np

from selftrain_jax.evaluation.statistics import clopper_pearson, holm
from selftrain_jax.report.metric import CAPABILITY, Metric, Row, each_suite, grouped
from selftrain_jax.report.study_data import CONTROLS, PROXIES, RELATIONS
from selftrain_jax.study.replicates import Rows, change, contrast, detectable, estimate, of, seed_means, tails
from selftrain_jax.study.sources import Correlation

VERSION = "2 (2026-11-26)"

MARGIN = 0.01  # finding 1: self text helps most if by more than this share of the items
KEPT = 0.02  # finding 3: capability is kept if it falls by less
EXTRACTION_LOST = 0.95  # the paper's "more than 95 %"
ENOUGH_PROBES = 59  # all of them lost put the exact bound above 95 %: 0.95^59 < 0.05
ENOUGH_SOURCES = 8  # below, finding 2 is undecided
USEFUL_CORRELATION = 0.5  # a proxy surely below it does not predict which text helps
LEVEL = 0.025  # of one-sided tests: the side of a 95 % interval
JUDGED = ("bits_per_byte", "hidden_similarity", "tfidf_similarity", "sentence_similarity")

REPRODUCED, REFUTED, UNDECIDED, CANNOT = "reproduced", "not reproduced", "inconclusive", "cannot decide"
NOT_SPECIFIC = "not specific"


def judge(
    results: Sequence[Row], correlations: Mapping[str, Correlation], memory: Sequence[Row], proxies: Sequence[Row]
) -> Rows:
    """Three rows of `StudyData.verdicts`; `correlations` by proxy, of the rows `proxies`, of which some seeds may lack
    theirs; `memory` as `StudyData.memory`."""
    seeds = len({row["seed"] for row in results})
    found = (relational(results), proxies_fail(correlations, _ranked_seeds(proxies)), decoupling(results, memory))
    return [row | {"rules": VERSION, "seeds": seeds} for row in found]


def _ranked_seeds(proxies: Sequence[Row]) -> int:
    """In how many seeds there are texts to rank, for the proxy of which that is in the fewest."""
    seeds: dict[str, set] = {}
    ranked = (row for row in proxies if row["proxy"] in JUDGED and row["relation"] in RELATIONS)
    for (proxy, _, _, seed), texts in grouped(ranked, "proxy", "student", "condition", "seed").items():
        seeds.setdefault(proxy, set()).update({seed} if len(texts) > 1 else ())
    return min((len(of) for of in seeds.values() if of), default=0)


def _verdict(finding: str, claim: str, evidence: Rows, verdict: str, reason: str) -> dict[str, Any]:
    return {"finding": finding, "claim": claim, "verdict": verdict, "reason": reason, "evidence": evidence}


def _evidence(name: str, values: Iterable[float], unit: str) -> dict[str, Any]:
    """Of shares, one a seed, times 100."""
    values = [100 * value for value in values]
    return {"name": name, "unit": unit, **estimate(values), "detectable": detectable(values)}


def suites(results: Sequence[Row]) -> list[Metric]:
    """Every capability suite once; their mean where there are only rows of that."""
    found = dict.fromkeys(row["metric"] for row in results)
    return each_suite(found) or [mean for mean in found if mean == CAPABILITY]


def standardised(results: Sequence[Row], chosen: Sequence[Metric]) -> Rows:
    """Rows of `results` with "value": the mean over the `chosen` suites of their change, each suite in units of its own
    standard deviation, times the mean of these deviations; a suite that does not vary is of neither.

    So no suite decides alone because it varies most, and the unit is still accuracy. The deviation of a suite is that
    between the texts that models wrote, within student, condition and seed.
    """
    rows = {metric: [row for row in of(results, metric) if row["relation"] in RELATIONS] for metric in chosen}
    spread = {}
    for metric, found in rows.items():
        groups = [[change(row) for row in group] for group in grouped(found, "student", "condition", "seed").values()]
        degrees = sum(len(group) - 1 for group in groups)
        squares = sum(np.sum((np.array(group) - np.mean(group)) ** 2) for group in groups)
        spread[metric] = float(np.sqrt(squares / degrees)) if degrees else 0.0
    typical = np.mean([value for value in spread.values() if value > 1e-12] or [0.0])
    values: dict[tuple, list[float]] = {}
    for metric, found in rows.items():
        weight = typical / spread[metric] if spread[metric] > 1e-12 else 1.0
        for row in found:
            place = tuple((k, row[k]) for k in ("student", "arm", "relation", "condition", "seed", "subset"))
            values.setdefault(place, []).append(weight * change(row))
    return [{**dict(place), "value": float(np.mean(of_suites))} for place, of_suites in values.items()]


def relational(results: Sequence[Row]) -> dict[str, Any]:
    """Reproduced: self minus each other relation is above `MARGIN`, by tests adjusted for their number. Not reproduced:
    one of these is below it, likewise."""
    chosen = suites(results)
    steps = _steps(results, chosen)
    evidence = [
        _evidence(f"self minus {name}, suites standardised", values, "points") for name, values in steps.items()
    ]
    verdict = functools.partial(
        _verdict,
        "1. Utility is relational",
        "Capability is higher after training on self-generated text than after training on that of each other "
        f"relation, by more than {100 * MARGIN:g} point.",
        evidence,
    )
    if not steps:
        return verdict(UNDECIDED, "The study has no self-trained student beside others.")
    of_self = [row for row in of(results, CAPABILITY) if row["relation"] == "self"]
    evidence.append(own := _evidence("self: capability after minus before", seed_means(of_self).values(), "points"))
    if min(map(len, steps.values())) < 2:
        return verdict(UNDECIDED, "One seed gives no interval.")
    for row, p_values in zip(evidence, zip(*_adjusted(steps))):
        row["p_value"] = float(min(p_values))
    found = _of_steps(steps)
    below = [name for name, p_value in zip(steps, _adjusted(steps)[1]) if p_value <= LEVEL]
    reasons = {
        REPRODUCED: f"Self is surely above each by more than {100 * MARGIN:g} point.",
        REFUTED: f"Self is surely not {100 * MARGIN:g} point above {' and '.join(below)}.",
        UNDECIDED: f"The intervals hold {100 * MARGIN:g} point.",
        CANNOT: f"The intervals hold {100 * MARGIN:g} point, and these seeds cannot tell an effect of that size.",
    }
    reason = reasons[found]
    if own["high"] is not None and own["high"] < 0:
        reason += " Self-generated text surely lowers capability, too."
    for left_out in chosen if len(chosen) > 1 else ():
        without = _steps(results, [metric for metric in chosen if metric != left_out])
        least = min(without, key=lambda name: np.mean(without[name]))
        row = _evidence(f"without {left_out.item}: self minus {least}", without[least], "points")
        evidence.append(row | {"p_value": float(min(p[list(without).index(least)] for p in _adjusted(without)))})
        if (other := _of_steps(without)) != found:
            reason += f" Without {left_out.item}: {other}."
    return verdict(found, reason)


def _steps(results: Sequence[Row], chosen: Sequence[Metric]) -> dict[str, list[float]]:
    """{relation: self minus it, one value a seed}."""
    rows = standardised(results, chosen)
    steps = {name: contrast(rows, "self", (name,), lambda row: row["value"]) for name in RELATIONS[1:]}
    return {name: list(values.values()) for name, values in steps.items() if values}


def _adjusted(steps: Mapping[str, Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Holm's p-values, of each step: that it is not above, that it is not below the margin."""
    above, below = zip(*(tails(values, MARGIN) for values in steps.values()))
    return holm(above), holm(below)


def _of_steps(steps: Mapping[str, Sequence[float]]) -> str:
    above, below = _adjusted(steps)
    if max(above) <= LEVEL:
        return REPRODUCED
    if min(below) <= LEVEL:
        return REFUTED
    return CANNOT if max(detectable(values) or np.inf for values in steps.values()) > MARGIN else UNDECIDED


def proxies_fail(correlations: Mapping[str, Correlation], num_seeds: int) -> dict[str, Any]:
    """Not reproduced: the Holm-adjusted permutation p of a proxy is below 0.05. Reproduced: the 90 % interval of every
    proxy lies within +-`USEFUL_CORRELATION`. Undecided below `ENOUGH_SOURCES` sources."""
    judged = {name: found for name in JUDGED if (found := correlations.get(name)) and found.rho is not None}
    evidence = []
    for name, found in judged.items():
        low, high = found.interval(0.9)
        row = {"name": f"rank correlation of utility and {PROXIES[name].words}, 90 % interval", "unit": ""}
        row |= {"value": found.rho, "low": low, "high": high, "num_replicates": found.sources}
        evidence.append(row | {"detectable": found.detectable})
    verdict = functools.partial(
        _verdict,
        "2. Simple proxies fail",
        "Within students, neither the similarity of corpus and benchmark nor the corpus's likelihood under the student "
        "predicts which corpus helps.",
        evidence,
    )
    if not judged:
        return verdict(UNDECIDED, "Too few texts for a rank correlation within students.")
    adjusted = holm([found.p_value for found in judged.values()])
    for row, p_value in zip(evidence, adjusted):
        row["p_value"] = float(p_value)
    fewest = min(found.sources for found in judged.values())
    if fewest < ENOUGH_SOURCES:
        return verdict(CANNOT, f"{fewest} sources: fewer than {ENOUGH_SOURCES} tell nothing of sources.")
    if num_seeds < 2:
        return verdict(UNDECIDED, "One seed alone.")
    if predicts := [PROXIES[name].words for name, p_value in zip(judged, adjusted) if p_value < 0.05]:
        tell = "tell" if len(predicts) > 1 else "tells"
        return verdict(REFUTED, f"Within students, {' and '.join(predicts)} surely {tell} which text helps more.")
    bounds = {name: max(map(abs, found.interval(0.9))) for name, found in judged.items()}
    left = [PROXIES[name].words for name, bound in bounds.items() if bound >= USEFUL_CORRELATION]
    if not left:
        return verdict(REPRODUCED, f"The rank correlation of every proxy is surely within {USEFUL_CORRELATION} of 0.")
    reason = (
        f"No proxy surely predicts utility, but a correlation of {USEFUL_CORRELATION} is open for {' and '.join(left)}."
    )
    weak = max(found.detectable for found in judged.values()) > USEFUL_CORRELATION
    return verdict(CANNOT if weak else UNDECIDED, reason)


def decoupling(results: Sequence[Row], memory: Sequence[Row]) -> dict[str, Any]:
    """Reproduced: capability falls by less than `KEPT`, more than `EXTRACTION_LOST` of what the base model extracted is
    lost, and more than by training on real text. Without the last: "not specific"."""
    kept = seed_means(row for row in of(results, CAPABILITY) if row["relation"] == "self")
    lost = Lost([row for row in memory if row["relation"] == "self"])
    evidence = []
    verdict = functools.partial(
        _verdict,
        "3. Capability and verbatim memorization come apart",
        f"After self-training capability falls by less than {100 * KEPT:g} points, while held-out extraction falls by "
        "more than 95 %, and more is forgotten than by training on real text.",
        evidence,
    )
    if not kept or not lost.extracted:
        return verdict(UNDECIDED, "No self-trained student with extraction to lose was measured.")
    for relation in ("self", CONTROLS[0]):
        if changes := seed_means(row for row in of(results, CAPABILITY) if row["relation"] == relation):
            evidence.append(_evidence(f"{relation}: capability after minus before", changes.values(), "points"))
        if (found := Lost([row for row in memory if row["relation"] == relation])).extracted:
            evidence.append(found.evidence(relation))
    specific = []
    for name, column in (("suffix tokens right", "token_share_after"), ("suffix log-probability", "log_prob_after")):
        values = list(contrast(memory, "self", CONTROLS[:1], _column(column)).values())
        if values and column.startswith("token"):
            evidence.append(row := _evidence(f"self minus real text: {name}", values, "points"))
        elif values:
            row = {"name": f"self minus real text: {name}", "unit": "nats per token", **estimate(values)}
            evidence.append(row := row | {"detectable": detectable(values)})
        if len(values) > 1:
            specific.append((row, tails(values, 0.0)[1]))
    if min(len(kept), len(lost.by_seed)) < 2:
        return verdict(UNDECIDED, "One seed gives no interval.")
    capability, (low, high) = evidence[0], lost.bounds
    known = capability["low"] is not None
    fall_open = not known or capability["low"] <= -100 * KEPT
    if known and capability["high"] < -100 * KEPT:
        return verdict(REFUTED, f"Capability surely falls by more than {100 * KEPT:g} points.")
    if high < EXTRACTION_LOST:
        return verdict(REFUTED, "Extraction surely falls by less than 95 %.")
    left = [f"capability falls by less than {100 * KEPT:g} points"] * fall_open
    left += ["extraction falls by more than 95 %"] * (low <= EXTRACTION_LOST)
    if left:
        reason = f"It is open whether {' and whether '.join(left)}."
        weak = [f"{len(kept)} seeds cannot tell a fall of {100 * KEPT:g} points"] * (
            fall_open and (capability["detectable"] or np.inf) > 100 * KEPT
        )
        few = f"{lost.extracted:.6g} probes that the base model extracts are fewer than {ENOUGH_PROBES}"
        weak += [few] * (lost.extracted < ENOUGH_PROBES)
        return verdict(CANNOT if weak else UNDECIDED, " ".join([reason, *(f"{w}." for w in weak)]))
    forgets = "Capability is surely kept, and extraction surely falls by more than 95 %"
    if not specific:
        return verdict(UNDECIDED, f"{forgets}; whether more than by training on real text was not measured.")
    for (row, _), p_value in zip(specific, adjusted := holm([p for _, p in specific])):
        row["p_value"] = float(p_value)
    if min(adjusted) <= LEVEL:
        return verdict(REPRODUCED, f"{forgets}, and surely more is forgotten than by training on real text.")
    return verdict(
        NOT_SPECIFIC, f"Forgets, not specific to its own text. {forgets}, but not surely more than by real text."
    )


def _column(name: str) -> Callable[[Row], float]:
    return lambda row: row[name]


class Lost:
    """What is no longer extracted of what the base model extracts, of `StudyData.memory` rows of one relation."""

    def __init__(self, rows: Sequence[Row]):
        self.extracted = self.lost = 0
        self.by_seed = {}
        for (seed,), of_seed in sorted(grouped((row for row in rows if row["extracted"]), "seed").items()):
            self.by_seed[seed] = sum(row["lost"] for row in of_seed) / sum(row["extracted"] for row in of_seed)
            # The same probes at another condition or subset are no other probes: their mean, no whole number, counts.
            for group in grouped(of_seed, "student").values():
                self.extracted += sum(row["extracted"] for row in group) / len(group)
                self.lost += sum(row["lost"] for row in group) / len(group)

    @property
    def bounds(self) -> tuple[float, float]:
        """The wider of the exact 90 % interval of all probes together (each side is a bound at 95 %) and Student's over
        seeds: one knows nothing of differences between seeds, the other nothing of few probes."""
        low, high = clopper_pearson(self.lost, self.extracted, 0.9)
        if (seeds := estimate(self.by_seed))["low"] is not None:
            low, high = max(min(low, seeds["low"]), 0.0), min(max(high, seeds["high"]), 1.0)
        return low, high

    def evidence(self, relation: str) -> dict[str, Any]:
        low, high = self.bounds
        name = f"{relation}: held-out extraction lost, {self.lost:.6g} of {self.extracted:.6g} probes"
        bounds = {"value": 100 * self.lost / self.extracted, "low": 100 * low, "high": 100 * high}
        return {"name": name, "unit": "%", **bounds, "num_replicates": len(self.by_seed)}
