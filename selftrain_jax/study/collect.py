"""From what the units left on disk to the rows of a study; arms that are not finished are left out."""

import dataclasses
import pathlib
from typing import Any, Iterator

import numpy as np

from selftrain_jax.data.corpus import read_corpus
from selftrain_jax.data.diversity import diversity
from selftrain_jax.evaluation import likelihood
from selftrain_jax.models import hf
from selftrain_jax.report.study_data import CONTROLS, RELATIONS, StudyData
from selftrain_jax.run import stages, summary
from selftrain_jax.study import analysis
from selftrain_jax.study.expand import Study, mean_capability
from selftrain_jax.study.model import Run

Rows = list[dict[str, Any]]


def study_data(study: Study) -> StudyData:
    """Everything that the page shows, from the units that are done."""
    config = study.config
    done = {unit.name for unit in study.units if unit.done()}
    runs = [_finished(run, done) for run in study.runs if f"{run.name}: base" in done]
    runs = [run for run in runs if run.arms]
    results, curves, proxies = [], [], []
    for run in runs:
        again = study.workdir / "again" / f"{run.student}-{run.seed}"
        masks = summary.probe_masks(run.pipeline, _keys(run))
        results += _results(run, masks, again if f"again/{again.name}" in done else None)
        curves += _curves(run, masks)
        for arm in run.arms:
            name = f"proxies/{run.student}-{run.seed}/{arm.key}"
            if name in done:
                found = stages.read_manifest(study.workdir, name)["result"]
                proxies += [{**_place(run, arm), "proxy": proxy, "value": value} for proxy, value in found.items()]
    generations = list(_generations(study, runs, done))
    found = analysis.analyse(results, proxies)
    pairs = sum(len(run.arms) for run in runs), sum(len(run.arms) for run in study.runs)
    notes = list(found.notes)
    if missing := len(study.units) - len(done):
        notes.insert(
            0,
            f"{missing} of {len(study.units)} units are not done; {pairs[1] - pairs[0]} of {pairs[1]} trained "
            "arms are left out, of their text held-out probes know nothing.",
        )
    return StudyData(
        title=config.title,
        command=study.command,
        settings=dataclasses.asdict(config),
        versions=summary.versions(study.mesh),
        models=_models(study),
        results=results,
        utility=found.utility,
        by_relation=found.by_relation,
        proxies=found.proxies,
        correlations=found.correlations,
        curves=curves,
        selectivity=found.selectivity,
        generations=generations,
        verdicts=found.verdicts,
        costs=_costs(study, done),
        runs=[
            {
                "run": run.name,
                "student": run.student,
                "condition": run.condition.name,
                "seed": run.seed,
                "report": f"../runs/{run.name}/report/report.html",
            }
            for run in runs
        ],
        notes=notes,
    )


def _finished(run: Run, done: set[str]) -> Run:
    """The run with the arms that are done; the main one is the pipeline's first, whatever else is missing."""
    return dataclasses.replace(run, arms=tuple(arm for arm in run.arms if f"{run.name}: {arm.key}" in done))


def _keys(run: Run) -> list[str]:
    """What the pipeline calls the arms of `_finished`."""
    main = run.pipeline.main
    known = set(run.pipeline.arms)
    return [arm.key if arm.key in known else main for arm in run.arms]


def _place(run: Run, arm) -> dict[str, Any]:
    return {
        "student": run.student,
        "arm": arm.name,
        "relation": arm.relation,
        "condition": run.condition.name,
        "seed": run.seed,
    }


def _results(run: Run, all_masks: list[dict[str, np.ndarray]], again: pathlib.Path | None) -> Rows:
    pipeline, rows = run.pipeline, []
    base = _items(pipeline.workdir / "evaluate" / "base")
    chance = _chance(pipeline)
    for subset, masks in enumerate(all_masks):
        before = _values(base, masks, pipeline, chance)
        for arm, key in zip(run.arms, _keys(run)):
            after = _values(_items(pipeline.workdir / "evaluate" / f"{key}-{subset}"), masks, pipeline, chance)
            rows += [
                {**_place(run, arm), "subset": subset, "metric": metric, "before": before[metric], "after": value}
                for metric, value in after.items()
            ]
        if again is not None:
            untouched = {
                "student": run.student,
                "arm": "none",
                "relation": CONTROLS[2],
                "condition": run.condition.name,
                "seed": run.seed,
                "subset": subset,
            }
            after = _values(_items(again), masks, pipeline, chance)
            rows += [{**untouched, "metric": m, "before": before[m], "after": value} for m, value in after.items()]
    return rows


def _items(directory: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(directory / "items.npz") as arrays:
        return dict(arrays)


def _values(
    items: dict[str, np.ndarray], masks: dict[str, np.ndarray], pipeline, chance: float | None
) -> dict[str, float]:
    """Every metric of one model: shares, and nats per token."""
    found = {name: float(hits.mean()) for name, hits in summary.hits(items, masks, pipeline.config.evaluate).items()}
    capability = mean_capability(found)
    if capability is not None:
        found |= {"capability": capability, "capability above chance": capability - chance}
    for name, values in items.items():
        if name.startswith("nll/") and not name.endswith(":tokens"):
            found[name] = float(values.sum() / items[f"{name}:tokens"].sum())
    return found


def _chance(pipeline) -> float | None:
    """The mean over the suites of the accuracy of guessing."""
    evaluate = pipeline.config.evaluate
    rates = [
        float(np.mean([1 / len(row["choices"]) for row in likelihood.load_multiple_choice(pipeline.path(path))]))
        for path in evaluate.multiple_choice.values()
    ]
    rates += [0.5] * len(evaluate.minimal_pairs)
    return float(np.mean(rates)) if rates else None


def _curves(run: Run, all_masks: list[dict[str, np.ndarray]]) -> Rows:
    rows = []
    for subset, masks in enumerate(all_masks):
        for arm, key in zip(run.arms, _keys(run)):
            by_step: dict[int, dict[str, float]] = {}
            for row in summary.curve(run.pipeline.workdir / "train" / f"{key}-{subset}" / "curve", masks):
                by_step.setdefault(row["step"], {})[row["metric"]] = row["value"]
            for step, found in by_step.items():
                if (capability := mean_capability(found)) is not None:
                    found["capability"] = capability
                rows += [
                    {**_place(run, arm), "subset": subset, "step": step, "metric": metric, "value": value}
                    for metric, value in found.items()
                ]
    return rows


def _generations(study: Study, runs: list[Run], done: set[str]) -> Iterator[dict[str, Any]]:
    """The untouched students as generation 0, those of the ordinary runs as 1, and those of the loop from 2 on; held
    out is what is in the text of none of them."""
    finished = {run.name: run for run in runs if any(arm.relation == RELATIONS[0] for arm in run.arms)}
    for student, seed in sorted({(g.student, g.seed) for g in study.generations if g.name in done}):
        first = finished.get(study.first_runs[student, seed].name)
        if first is None:
            continue
        chance = _chance(first.pipeline)  # the suites are the same throughout
        later = [g for g in study.generations if (g.student, g.seed) == (student, seed) and g.name in done]
        kinds = [summary.probe_masks(first.pipeline, _keys(first))[0]]
        kinds += [summary.probe_masks(g.pipeline)[0] for g in later]
        masks = {name: np.all([kind[name] for kind in kinds], axis=0) for name in kinds[0]}
        for number, model in enumerate(("base", f"{first.pipeline.main}-0")):
            values = _model_values(first.pipeline, model, masks, chance)
            if number:
                values |= _corpus_values(first.pipeline.config.corpus, first.pipeline)
            for mode in study.config.generations.modes:
                yield from _generation_rows(student, mode, number, seed, values)
        for g in later:
            values = _model_values(g.pipeline, f"{g.pipeline.main}-0", masks, chance)
            values |= _corpus_values(g.pipeline.corpus_path(g.pipeline.main), g.pipeline)
            yield from _generation_rows(student, g.mode, g.number, seed, values)


def _model_values(pipeline, model: str, masks: dict[str, np.ndarray], chance: float | None) -> dict[str, float]:
    return _values(_items(pipeline.workdir / "evaluate" / model), masks, pipeline, chance)


def _generation_rows(student: str, mode: str, number: int, seed: int, values: dict[str, float]) -> Iterator[dict]:
    for metric, value in values.items():
        yield {"student": student, "mode": mode, "generation": number, "seed": seed, "metric": metric, "value": value}


def _corpus_values(path: str | pathlib.Path, pipeline) -> dict[str, float]:
    """Collapse measures of the text that a generation was trained on, at the size of the training budget.

    In random order: an accumulated corpus begins with its oldest text.
    """
    corpus = read_corpus(path)
    nll = corpus.manifest["nll"]
    order = np.random.default_rng(0).permutation(len(corpus))
    found = diversity([d.tokens for d in corpus.take(order)], num_tokens=pipeline.config.subset.num_tokens)
    return found | ({"source_nll": nll["mean"]} if nll else {})


def _models(study: Study) -> Rows:
    config, rows = study.config, []
    for name, model in config.models.items():
        parameters = None
        if not model.corpus:
            try:
                parameters = hf.load_config(study.resolve(name, config.seeds[0])).num_params
            except (OSError, ValueError):
                pass  # not made yet
        rows.append(
            {
                "model": name,
                "family": model.family,
                "lineage": f"{model.family} {model.recipe}".strip(),
                "recipe": model.recipe,
                "parameters": parameters,
            }
        )
    return rows


def _costs(study: Study, done: set[str]) -> Rows:
    totals: dict[str, dict[str, Any]] = {}
    for unit in study.units:
        for name in sorted(stage.name for stage in unit.stages) if unit.name in done else ():
            manifest = stages.read_manifest(unit.workdir, name)
            kind = _kind(name)
            row = totals.setdefault(kind, {"stage": kind, "count": 0, "seconds": 0.0, "tokens": 0})
            row["count"] += 1
            row["seconds"] += manifest["seconds"]
            row["tokens"] += (manifest["result"].get("num_tokens") or 0) if kind in ("sample", "subset") else 0
    if "subset" in totals and "train" in totals:
        totals["train"]["tokens"] = totals["subset"]["tokens"] * study.config.train.epochs
    return [row | {"tokens": row["tokens"] or None} for row in totals.values()]


def _kind(stage: str) -> str:
    """The kind of work that a stage does, by its name."""
    kind = stage.partition("/")[0]
    if kind == "lab":
        return "world" if stage.endswith("/world") else "pre-train"
    return "sample" if kind in ("corpora", "sampled") else kind
