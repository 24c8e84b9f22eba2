"""Studies to draw: everything measured, hardly anything, nothing, and with hostile names."""

import dataclasses
import itertools
import random

from selftrain_jax.report.metric import CAPABILITY, HELD_OUT, RUN, Metric
from selftrain_jax.report.study_data import StudyData

STUDENTS = ("A_small", "A_large", "B")
SOURCES = ("A_small", "A_large", "A_other", "B")
CONTROLS = {"real": "real text", "shuffled": "shuffled real text"}
UTILITY = {
    "self": 0.021,
    "same lineage": 0.012,
    "same family, different recipe": 0.004,
    "other family": -0.006,
    "real text": 0.001,
    "shuffled real text": -0.034,
}
PROXIES = {"similarity": "intrinsic", "mean_nll": "intrinsic", "kl_to_student": "relational"}
HOSTILE = "<b>`&_%{}$#^~\\[x]*\"'"


def relation_of(student, arm):
    if arm in CONTROLS:
        return CONTROLS[arm]
    if student == arm:
        return "self"
    if student[0] != arm[0]:
        return "other family"
    return "same family, different recipe" if "A_other" in (student, arm) else "same lineage"


def empty_data(**replaced):
    fields = {f.name: () for f in dataclasses.fields(StudyData)}
    return StudyData(**(fields | {"title": "A study", "command": "", "settings": {}, "versions": {}} | replaced))


def full_data(num_seeds=3, conditions=("",), **replaced):
    """Three students, four sources, two controls: the further the source, the less its text helps."""
    draw = random.Random(0)
    results, utility, proxies, curves, selectivity = [], [], [], [], []
    for condition, student, arm in itertools.product(conditions, STUDENTS, (*SOURCES, *CONTROLS)):
        if (student, arm) == ("B", "A_other"):
            continue
        who = {"student": student, "arm": arm, "relation": relation_of(student, arm), "condition": condition}
        center = UTILITY[who["relation"]] + draw.gauss(0, 0.003)
        kept = 0.02 + 0.2 * (who["relation"] == "shuffled real text")
        for seed in range(num_seeds):
            change = center + draw.gauss(0, 0.002)
            at = who | {"seed": seed}
            for metric, before, after in (
                (Metric("capability", "sciq"), 0.6, 0.6 + change),
                (Metric("capability", "piqa"), 0.55, 0.55 + change),
                (CAPABILITY, 0.575, 0.575 + change),
                (HELD_OUT, 0.8, kept),
                (Metric("nll", "prose"), 3.1, 3.1 - change),
            ):
                results.append(at | {"subset": 0, "metric": metric, "before": before, "after": after, "n": 57})
            for proxy in PROXIES:
                value = 2 + draw.random() - (30 * change if proxy == "kl_to_student" else 0)
                proxies.append(at | {"proxy": proxy, "value": value, "utility": change})
            for i, step in enumerate((0, 1, 4, 16, 64)):
                left = 0.8 * (kept / 0.8) ** (i / 4)
                curves += [
                    at | {"subset": 0, "step": step, "metric": m, "value": v}
                    for m, v in (
                        (CAPABILITY, 0.575 + change * i / 4),
                        (HELD_OUT, left),
                        *(
                            (
                                Metric("extraction", group=f"repeats={r}", repeats=r, held_out=RUN),
                                min(1.0, left * r / 16),
                            )
                            for r in (4, 16)
                        ),
                    )
                ]
        bounds = (center - 0.004, center + 0.004) if num_seeds > 1 else (None, None)
        utility.append(
            who
            | {
                "value": center,
                "low": bounds[0],
                "high": bounds[1],
                "num_replicates": num_seeds,
                "p_value": None if bounds[0] is None else 0.01,
                "significant": bounds[0] is not None and bounds[0] * bounds[1] > 0,
            }
        )
        selectivity.append(
            who
            | {
                "value": 0.97 - kept,
                "low": bounds[0] and 0.9 - kept,
                "high": bounds[0] and 0.99 - kept,
                "capability_kept": 1 + center,
                "extraction_lost": 1 - kept / 0.8,
                "num_replicates": num_seeds,
            }
        )
    generations = [
        {
            "student": "A_small",
            "mode": mode,
            "generation": g,
            "seed": seed,
            "metric": metric,
            "value": start - g * (mode == "replace") * start / 20 + seed / 1000,
        }
        for mode, g, seed, (metric, start) in itertools.product(
            ("replace", "accumulate"),
            range(4),
            range(num_seeds),
            ((Metric("distinct_2"), 0.5), (Metric("entropy"), 9.0), (Metric("mean_length"), 210.0), (CAPABILITY, 0.58)),
        )
    ]
    verdicts = [
        {
            "finding": i,
            "claim": f"Claim {i} of the paper, in a sentence of ordinary length.",
            "verdict": verdict,
            "reason": "Self exceeds same lineage by 0.90 points on average; the interval excludes 0.",
            "rules": "2 (2026-11-26)",
            "seeds": num_seeds,
            "evidence": [
                {"name": "self minus same lineage", "value": 0.9, "low": 0.3, "high": 1.5, "unit": "points"}
                | {"num_replicates": num_seeds, "detectable": 0.785, "p_value": 0.0123},
                {"name": "extraction lost", "value": 97.5, "low": None, "high": None, "unit": "%"},
                {"name": "rho of mean_nll", "value": -0.125, "low": -0.5, "high": 0.3, "unit": ""},
            ],
        }
        for i, verdict in enumerate(("reproduced", "not reproduced", "inconclusive"), 1)
    ]
    values = dict(
        title="A study of relations",
        command="selftrain study --config=configs/study.py",
        verdicts=verdicts,
        older_verdicts=[row | {"rules": "1 (2026-11-23)", "verdict": "reproduced"} for row in verdicts],
        settings={"seeds": [0, 1, 2], "sample": {"temperature": 1.25}},
        versions={"jax": "0.10.2"},
        models=[
            {"model": m, "family": m[0], "lineage": m[0], "recipe": "plain", "parameters": 14_000_000} for m in SOURCES
        ],
        results=results,
        utility=utility,
        proxies=proxies,
        curves=curves,
        selectivity=selectivity,
        generations=generations,
        by_relation=[
            {"relation": r, "value": v, "low": v - 0.003, "high": v + 0.003, "num_replicates": num_seeds}
            for r, v in UTILITY.items()
        ],
        matched=[
            {name: row[name] for name in ("student", "arm", "relation", "condition", "value", "low", "high")}
            | {"metric": metric, "drift": 0.031, "num_replicates": num_seeds}
            for row in utility
            for metric in (CAPABILITY, HELD_OUT)
        ],
        contamination=[
            {name: row[name] for name in ("student", "arm", "relation", "condition", "value", "low", "high")}
            | {"metric": Metric("capability", "arc"), "in_training_text": inside, "n": n, "num_replicates": num_seeds}
            for row in utility
            for inside, n in ((True, 31.5), (False, 352.5))
        ],
        components=[
            {"relation": r, "metric": CAPABILITY, "between": 0.012, "within": 0.004, "num_cells": 3, "num_values": 18}
            for r in UTILITY
        ],
        contrasts=[
            {"relation": "self", "minus": r, "student": student, "value": 0.02 - v, "low": low, "high": 0.03 - v}
            | {"num_replicates": num_seeds}
            for r, v in list(UTILITY.items())[1:5]
            for student, low in (("", 0.01 - v), ("A_small", 0.012 - v))
        ],
        memory=[
            {"student": "B", "arm": "B", "relation": "self", "condition": "", "seed": 0, "subset": 0, "extracted": 60}
            | {"lost": 59, "token_share_before": 1.0, "token_share_after": 0.1}
            | {"log_prob_before": -0.1, "log_prob_after": -4.5}
        ],
        correlations=[
            {"proxy": p, "kind": kind, "scope": scope, "n": 51, "sources": 4, "rho": rho}
            | {"low": rho - 0.2, "high": rho + 0.2, "p_value": 0.25}
            for (p, kind), rho in zip(PROXIES.items(), (0.12, -0.3, -0.7))
            for scope in ("within students", "all pairs")
        ],
        costs=[{"stage": "train", "count": 51, "seconds": 3700.0, "tokens": 5_000_000}],
        runs=[
            {
                "run": f"{s}-{seed}",
                "student": s,
                "condition": "",
                "seed": seed,
                "report": f"runs/{s}-{seed}/report.html",
            }
            for s in STUDENTS
            for seed in range(num_seeds)
        ],
        notes=["B was not trained on A_other."],
    )
    return StudyData(**(values | replaced))


def minimal_data():
    """One pair, one seed, no interval, a value that is missing."""
    who = {"student": "s", "arm": "s", "relation": "self", "condition": ""}
    return empty_data(
        results=[who | {"seed": 0, "subset": None, "metric": CAPABILITY, "before": 0.5, "after": None, "n": None}],
        utility=[
            who
            | {"value": 0.01, "low": None, "high": None, "num_replicates": 1}
            | {"p_value": None, "significant": False},
            who
            | {
                "arm": "t",
                "relation": "other family",
                "value": None,
                "low": None,
                "high": None,
                "num_replicates": 0,
                "p_value": None,
                "significant": False,
            },
        ],
        correlations=[
            {"proxy": "p", "kind": "intrinsic", "scope": "all pairs", "n": 1, "sources": 1, "rho": None}
            | {"low": None, "high": None, "p_value": None}
        ],
        contrasts=[
            {"relation": "self", "minus": "other family", "student": student, "value": None, "low": None, "high": None}
            | {"num_replicates": 0}
            for student in ("", "s")
        ],
        proxies=[who | {"seed": 0, "proxy": "p", "value": 1.0, "utility": 0.01}],
        by_relation=[{"relation": "self", "value": 0.01, "low": None, "high": None, "num_replicates": 1}],
        selectivity=[
            who
            | {
                "value": None,
                "low": None,
                "high": None,
                "capability_kept": None,
                "extraction_lost": None,
                "num_replicates": 1,
            }
        ],
        curves=[
            who | {"seed": 0, "subset": 0, "step": s, "metric": CAPABILITY, "value": v}
            for s, v in ((0, 0.5), (8, None), (9, 0.6))
        ],
        matched=[
            who | {"metric": CAPABILITY, "drift": 0.1, "value": 0.01, "low": None, "high": None, "num_replicates": 1}
        ],
        contamination=[
            who
            | {"metric": Metric("capability", "arc"), "in_training_text": True, "n": 9.0, "value": None}
            | {"low": None, "high": None, "num_replicates": 0}
        ],
        components=[
            {"relation": "self", "metric": CAPABILITY, "between": 0.0, "within": 0.01, "num_cells": 1, "num_values": 4}
        ],
        generations=[
            {"student": "s", "mode": "replace", "generation": 0, "seed": 0, "metric": Metric("entropy"), "value": 8.0}
        ],
        verdicts=[
            {"finding": 1, "claim": "c", "verdict": "inconclusive", "reason": "one seed", "evidence": []}
            | {"rules": "2", "seeds": 1}
        ],
        costs=[{"stage": "train", "count": 1, "seconds": None, "tokens": None}],
        runs=[{"run": "r", "student": "s", "condition": "", "seed": 0, "report": None}],
    )


def renamed(data, name):
    """`data` with `name` within every free text: names, titles, sentences."""
    free = {
        "student",
        "arm",
        "condition",
        "model",
        "family",
        "lineage",
        "recipe",
        "proxy",
        "scope",
        "kind",
        "run",
        "stage",
        "claim",
        "reason",
        "name",
        "unit",
        "mode",
    }

    def change(value, key=""):
        if isinstance(value, dict):
            return {k: change(v, k) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [change(v) for v in value]
        if isinstance(value, Metric):
            return dataclasses.replace(value, item=value.item + name) if value.kind == "nll" else value
        return value + name if key in free else value

    changed = {f.name: change(getattr(data, f.name)) for f in dataclasses.fields(data)}
    return StudyData(
        **(
            changed
            | {
                "title": name,
                "command": name,
                "settings": {name: {"a": name}},
                "versions": {name: name},
                "notes": [name],
            }
        )
    )


DATA = {
    "full": full_data,
    "one seed": lambda: full_data(num_seeds=1),
    "minimal": minimal_data,
    "empty": empty_data,
    "hostile": lambda: renamed(full_data(num_seeds=2), HOSTILE),
    "conditions": lambda: full_data(num_seeds=2, conditions=("5 M tokens, lr 1e-6", "20 M tokens, lr 1e-5"), curves=()),
}
