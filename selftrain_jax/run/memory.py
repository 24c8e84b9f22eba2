"""From what a run that plants sequences left to the figures of its report."""

import dataclasses
from typing import Any, Mapping, Sequence

import numpy as np

from selftrain_jax.evaluation.attributed import planted_minus_twin
from selftrain_jax.evaluation.discoverable import discoverable
from selftrain_jax.evaluation.items import Items, cluster_numbers
from selftrain_jax.evaluation.recovery import judge, steps_until
from selftrain_jax.evaluation.statistics import share
from selftrain_jax.lab.plant.relearn import PREFIXES, Planted, measured, read_planted, read_recovery
from selftrain_jax.report.metric import HELD_OUT, Metric
from selftrain_jax.run.names import RunNames

Masks = Mapping[Metric, np.ndarray]


def memory_data(
    run: RunNames, items: Mapping[str, Items], masks: Sequence[Masks], names: Mapping[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """The fields "planted" and "recovery" of `ReportData`; nothing where nothing is planted.

    Args:
      masks: of `summary.probe_masks`.
      names: evaluated model -> as the report calls it.
    """
    if run.config.plant is None:
        return {}
    planted = read_planted(run.path(run.config.evaluate.probes))
    repeats, kinds = np.array([p.repeats for p in planted]), np.array([p.kind for p in planted])
    rows = []
    for model, where in run.models.items():
        if model == "twin":
            continue
        # A trained model may have read what it wrote of a sequence itself.
        held_out = masks[where[1]][HELD_OUT] if where else np.ones(len(planted), bool)
        for kind in ("all", *(run.config.plant.kinds if len(run.config.plant.kinds) > 1 else ())):
            chosen = held_out & ((kinds == kind) | (kind == "all"))
            if not chosen.any():
                continue
            ours, twin = ({k: v[chosen] for k, v in items[name].probes.items()} for name in (model, "twin"))
            attacks = {k: (v[chosen], items["twin"].membership[k][chosen]) for k, v in items[model].membership.items()}
            found = planted_minus_twin(ours, twin, repeats[chosen], kinds[chosen], attacks)
            seed = where[1] if where else 0
            rows += [{"model": names[model], "seed": seed, "kind": kind, **row} for row in found]
    return {"planted": rows, "recovery": _recovery(run, planted, masks, names) if run.config.recovery else []}


def _recovery(
    run: RunNames, planted: list[Planted], masks: Sequence[Masks], names: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One row per model and subset number: curve, access before relearning, steps until half is back, and the verdict
    on what was trained. All of the probes that were inserted, held out and extracted by base."""
    found = {model: read_recovery(run.workdir / "recover" / model) for model in run.models}
    asked = measured(planted)
    index = np.array([i for i, one in enumerate(planted) if not one.relearned])
    inserted = np.array([one.repeats > 0 for one in asked])
    clusters = cluster_numbers([one.document for one in asked], "planted probes")
    steps, rows = sorted(found["base"]), []

    def exact(model: str) -> np.ndarray:
        return np.stack([found[model][step]["all/exact"] for step in steps])

    def sampled(model: str) -> np.ndarray:
        return discoverable(found[model][0]["all/log_prob"], run.config.recovery.samples, 0.5)

    def returns(model: str) -> np.ndarray:
        return exact(model)[1:].any(0) | found[model][0]["twice/exact"] | sampled(model)

    base = exact("base")
    for model, where in run.models.items():
        for seed in [where[1]] if where else range(len(masks)):
            chosen = inserted & base[0] & masks[seed][HELD_OUT][index]
            row = {"model": names[model], "seed": seed, "n": int(chosen.sum()), "steps": steps}
            if chosen.any():
                labels = None if clusters is None else clusters[chosen]
                row["extraction"] = [_interval(share(extracted, labels)) for extracted in exact(model)[:, chosen]]
                row["log_prob"] = [
                    float(found[model][step]["all/log_prob"][chosen].mean() / len(asked[0].probe.suffix))
                    for step in steps
                ]
                access = {f"prefix: {name}": found[model][0][f"{name}/exact"][chosen] for name in PREFIXES}
                access[f"{run.config.recovery.samples} samples"] = sampled(model)[chosen]
                row["access"] = {name: _interval(share(hits, labels)) for name, hits in access.items()}
                row["half_back"] = dict(zip(("step", "low", "high"), steps_until(steps, exact(model)[:, chosen])))
            if where:
                lost = chosen & ~exact(model)[0]
                row |= dataclasses.asdict(judge(lost, returns(model), returns("twin"), base[-1], clusters)) | {
                    "n": row["n"],
                    "lost": int(lost.sum()),
                }
            rows.append(row)
    return rows


def _interval(found: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), found))
