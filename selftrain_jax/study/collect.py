"""From what the units left on disk to the rows of a study; arms that are not finished are left out."""

import dataclasses
import pathlib
from typing import Any, Iterable, Iterator, Mapping, Sequence

import numpy as np

from selftrain_jax.data.corpus import read_corpus
from selftrain_jax.data.diversity import diversity
from selftrain_jax.data.settings import MANY_REPETITIONS
from selftrain_jax.evaluation import likelihood
from selftrain_jax.evaluation.items import Items
from selftrain_jax.evaluation.suite import limited
from selftrain_jax.models import hf
from selftrain_jax.report.metric import CAPABILITY, DRIFT, HELD_OUT, Metric, grouped
from selftrain_jax.report.study_data import RELATIONS, UNTRAINED, StudyData
from selftrain_jax.run import facts, stages, summary
from selftrain_jax.run.facts import WRITER
from selftrain_jax.run.summary import Masks
from selftrain_jax.study import analysis, comparisons
from selftrain_jax.study.costs import costs, done_stages
from selftrain_jax.study.expand import Study
from selftrain_jax.study.failures import Failures
from selftrain_jax.study.grid import grid
from selftrain_jax.study.model import Run
from selftrain_jax.study.replicates import ABOVE_CHANCE
from selftrain_jax.study.settings import StudyConfig
from selftrain_jax.study.tasks import harness_versions, task_unit, task_values

Rows = list[dict[str, Any]]
MEAN_LENGTH = Metric("mean_length")
DIVERSITY_TOKENS = 10_000_000
"""Of larger budgets, so many tokens are looked at for how varied their texts are, which takes 1 GB."""


def study_data(study: Study) -> StudyData:
    """Everything that the page shows, from the units that are done."""
    config = study.config
    done = {unit.name for unit in study.units if unit.done()}
    runs = finished_runs(study, done)
    results, memory, contamination, curves, proxies, lacking, older = [], [], [], [], [], [], []
    for run in runs:
        who = f"{run.student}-{run.seed}"
        untouched = {("none", UNTRAINED[0]): f"again/{who}"}
        if run.name == study.first_runs[run.student, run.seed].name:  # which says how far weights are moved
            untouched["noise", UNTRAINED[1]] = f"noise/{who}"
        untouched = {names: study.workdir / stage for names, stage in untouched.items() if stage in done}
        masks = summary.probe_masks(run.pipeline, pipeline_arms(run))
        tasks = _tasks(study, run, done)
        lacking += [run.name] * (tasks is None)
        for rows, of_run in zip((results, memory, contamination), _results(run, masks, untouched, tasks)):
            rows += of_run
        of_run, whole = _curves(run, masks)
        curves, older = curves + of_run, older + [run.name] * (not whole)
        for arm in run.arms:
            name = f"proxies/{run.student}-{run.seed}/{arm.key}"
            if name in done:
                found = stages.read_manifest(study.workdir, name)["result"]
                place = _place(run, arm.name, arm.relation)
                proxies += [{**place, "proxy": proxy, "value": value} for proxy, value in found.items()]
    generations = list(_generations(study, runs, done))
    found = analysis.analyse(results, proxies, memory)
    pairs = sum(len(run.arms) for run in runs), sum(len(run.arms) for run in study.runs)
    notes = [_replicates(config), *found.notes]
    if missing := [unit.name for unit in study.units if unit.name not in done]:
        notes[:0] = [
            f"{len(missing)} of {len(study.units)} units are not done; {pairs[1] - pairs[0]} of {pairs[1]} trained "
            "arms are left out, of their text held-out probes know nothing.",
            *Failures(study).notes(missing),
        ]
    if lacking:
        notes.append(f"Tasks are not done, so that no capability is shown, in {len(lacking)} of {len(runs)} runs.")
    if older:
        what = "Curves lack suites or texts that were added after training, and so capability and drift, in"
        notes.append(f"{what} {len(older)} of {len(runs)} runs.")
    for run in runs:
        found_unknown = stages.read_manifest(run.pipeline.workdir, "evaluate/base")["result"].get("unknown", {})
        notes += [f"{run.student} cannot write {share:.1%} of {text}." for text, share in found_unknown.items()]
    notes += harness_versions(study.workdir, (name for name in done if name.startswith("tasks/")))
    versions = facts.versions(manifest for _, _, manifest in done_stages(study, done))
    if several := [f"{name} {found}" for name, found in versions.items() if name != WRITER and ", " in found]:
        notes.append(f"Units were done with different software or devices: {'; '.join(several)}.")
    notes = list(dict.fromkeys(notes))
    notes += _repeated(
        (a.name, *facts.drawn(run.pipeline, key)) for run in runs for a, key in zip(run.arms, pipeline_arms(run))
    )
    if generations and config.subset.num_tokens > DIVERSITY_TOKENS:
        notes.append(f"Distinct n-grams and entropy are those of {DIVERSITY_TOKENS:,} tokens, in random documents.")
    notes += _too_small(generations)
    return StudyData(
        title=config.title,
        command=study.command,
        settings=dataclasses.asdict(config),
        versions=versions,
        models=_models(study),
        results=results,
        memory=memory,
        curves=curves,
        contamination=comparisons.by_contamination(contamination),
        grid=grid(
            results,
            memory,
            {arm.name: arm.temperature for run in runs for arm in run.arms},
            {condition.name: condition for condition in config.conditions()},
        ),
        matched=comparisons.at_equal_drift(curves),
        components=comparisons.components(results),
        generations=generations,
        loops=comparisons.over_generations(generations),
        costs=costs(study, done),
        runs=[
            {"run": run.name, "student": run.student, "condition": run.condition.name, "seed": run.seed}
            | {"report": f"../runs/{run.name}/report/report.html"}
            for run in runs
        ],
        **vars(found) | {"notes": notes},
    )


def _replicates(config: StudyConfig) -> str:
    """The note on what differs from seed to seed."""
    fixed = [name for name in config.writers if config.one_corpus or config.models[name].corpus]
    if config.lab is not None:
        found = (
            "A seed is another world with other models, samples and order of training: intervals over seeds speak of "
            "all that together."
        )
    elif len(fixed) == len(config.writers):
        found = (
            "A seed is another subset of the same texts, and another order of training of the same base models: "
            "intervals over seeds speak of no other samples, and of no other base models."
        )
    else:
        found = (
            "A seed is other samples, another subset and another order of training of the same base models: intervals "
            "over seeds speak of no other base models."
        )
    if 0 < len(fixed) < len(config.writers):
        found += f" The text of {', '.join(fixed)} is the same in every seed."
    return found


def _repeated(drawn: Iterable[tuple[str, int, int]]) -> list[str]:
    """The note on texts that repeat in any run, of all (name, documents drawn, different ones)."""
    many = dict.fromkeys(name for name, number, distinct in drawn if number > MANY_REPETITIONS * distinct)
    text = f"Text that repeats its documents more than {MANY_REPETITIONS:g} times: {', '.join(many)}."
    return [text] if many else []


def finished_runs(study: Study, done: set[str]) -> list[Run]:
    """The runs with a base and an arm that are done, each with the arms that are; the main one is the pipeline's first,
    whatever else is missing."""
    bases = (run for run in study.runs if f"{run.name}: base" in done)
    runs = ((run, tuple(arm for arm in run.arms if f"{run.name}: {arm.key}" in done)) for run in bases)
    return [dataclasses.replace(run, arms=arms) for run, arms in runs if arms]


def pipeline_arms(run: Run) -> list[str]:
    """What the pipeline calls the arms of a run of `finished_runs`."""
    main = run.pipeline.main
    known = set(run.pipeline.arms)
    return [arm.key if arm.key in known else main for arm in run.arms]


def _place(run: Run, arm: str, relation: str) -> dict[str, Any]:
    """The first columns of a row."""
    who = {"student": run.student, "arm": arm, "relation": relation}
    return {**who, "condition": run.condition.name, "seed": run.seed}


def _tasks(study: Study, run: Run, done: set[str]) -> dict[str, dict[Metric, float]] | None:
    """Model -> its figures in the tasks, if the study has some; None while a model of the run lacks its own."""
    if not study.config.tasks.names:
        return {}
    keys = pipeline_arms(run)
    models = [model for model, where in run.pipeline.models.items() if not where or where[0] in keys]
    names = {model: task_unit(run, model) for model in models}
    if not set(names.values()) <= done:
        return None
    manifests = {model: stages.read_manifest(study.workdir, name) for model, name in names.items()}
    return {model: task_values(manifest["result"]["tasks"]) for model, manifest in manifests.items()}


def _results(
    run: Run,
    all_masks: list[Masks],
    untouched: Mapping[tuple[str, str], pathlib.Path],
    tasks: dict[str, dict[Metric, float]] | None,
) -> tuple[Rows, Rows, Rows]:
    """The rows of `StudyData.results`, of its `memory`, and those of `_contamination`; without `tasks` no capability,
    since means over suites are over the same ones in all runs."""
    evaluated, chance = run.pipeline.workdir / "evaluate", _chance(run.pipeline)
    rows, memory, contamination = [], [], []
    suffix_lengths = run.pipeline.config.evaluate.suffix_lengths
    base = Items.load(evaluated / "base")
    for subset, masks in enumerate(all_masks):
        before = _with_tasks(_values(base, masks, suffix_lengths, chance, base), tasks or {}, "base")
        trained = {(a.name, a.relation): evaluated / f"{key}-{subset}" for a, key in zip(run.arms, pipeline_arms(run))}
        for names, directory in {**trained, **untouched}.items():
            place, items = {**_place(run, *names), "subset": subset}, Items.load(directory)
            counts = {metric: len(hits) for metric, hits in summary.hits(items, masks, suffix_lengths).items()}
            values = _values(items, masks, suffix_lengths, chance, base)
            # Untouched students are not put to the tasks again: they get no mean over suites that others have.
            if names in trained:
                values = _with_tasks(values, tasks or {}, directory.name)
                contamination += _contamination(place, base, items)
                if found := held_out_memory(base, items, masks.get(HELD_OUT)):
                    memory.append({**place, **found})
            elif tasks:
                values = {metric: value for metric, value in values.items() if metric not in (CAPABILITY, ABOVE_CHANCE)}
            for metric, value in values.items():
                if metric in before and (tasks is not None or metric.kind != "capability"):
                    figures = {"before": before[metric], "after": value, "n": counts.get(metric)}
                    rows.append({**place, "metric": metric, **figures})
    return rows, memory, contamination


def _contamination(place: dict[str, Any], base: Items, items: Items) -> Iterator[dict[str, Any]]:
    """The rows of one trained model that `comparisons.by_contamination` takes."""
    for (suite, rule), hits in items.capability.items():
        flags = items.contaminated.get(suite)
        for inside in (True, False) if flags is not None else ():
            parts = (("before", base.capability[suite, rule]), ("after", hits))
            means = {name: float(of[flags == inside].mean()) for name, of in parts if np.any(flags == inside)}
            about = {"in_training_text": inside, "n": int(np.sum(flags == inside))}
            yield {**place, "metric": Metric("capability", suite, rule), **about, **means}


def _with_tasks(values: dict[Metric, float], tasks: dict[str, dict[Metric, float]], model: str) -> dict[Metric, float]:
    """`values` with the figures of the tasks, which count in the mean over the suites like any other."""
    values = values | tasks.get(model, {})
    mean = summary.mean_over_suites(values)
    return values if mean is None else values | {CAPABILITY: mean}


def held_out_memory(before: Items, after: Items, held_out: np.ndarray | None) -> dict[str, float] | None:
    """The columns of `StudyData.memory` that are measured; None without a held-out probe that the base model extracts.

    Exact extraction alone hides what stays: a sequence whose every second token is still known counts as forgotten.
    """
    if held_out is None:
        return None
    chosen = held_out[before.probes["index"]] & before.probes["exact"]
    if not chosen.any():
        return None
    found = {"extracted": int(chosen.sum()), "lost": int(np.sum(chosen & ~after.probes["exact"]))}
    for name, items in (("before", before), ("after", after)):
        figures = summary.means(items, {HELD_OUT: held_out}, before)
        for column, kind in (("token_share", "left_tokens"), ("log_prob", "left_log_prob")):
            values, weights, _ = figures[dataclasses.replace(HELD_OUT, kind=kind)]
            found[f"{column}_{name}"] = float(np.average(values, weights=weights))
    return found


def _values(
    items: Items,
    masks: Masks,
    suffix_lengths: Sequence[int] = (),
    chance: float | None = None,
    base: Items | None = None,
) -> dict[Metric, float]:
    """Every metric of one model: shares, and nats per token; its drift from `base`."""
    found = {metric: float(hits.mean()) for metric, hits in summary.hits(items, masks, suffix_lengths).items()}
    if (capability := summary.mean_capability(items)) is not None:
        found |= {CAPABILITY: capability} | ({} if chance is None else {ABOVE_CHANCE: capability - chance})
    if base is not None and items.nll:
        found[DRIFT] = _drift(base, items)
    return found | summary.nll_per_token(items)


def _drift(base: Items, items: Items) -> float:
    """Nats per token: the mean absolute change of the log-likelihood of windows of text."""
    moved = sum(float(np.abs(items.nll[name][0] - nats).sum()) for name, (nats, _) in base.nll.items())
    return moved / sum(int(tokens.sum()) for _, tokens in base.nll.values())


def _chance(pipeline) -> float | None:
    """The mean over the suites of the accuracy of guessing."""
    evaluate = pipeline.config.evaluate
    files = {name: pipeline.path(path) for name, path in evaluate.multiple_choice.items()}
    suites = limited({n: likelihood.load_multiple_choice(file) for n, file in files.items()}, evaluate.limit)
    rates = [float(np.mean([1 / len(row["choices"]) for row in rows])) for rows in suites.values()]
    rates += [0.5] * len(evaluate.minimal_pairs) + [0.0] * len(evaluate.last_words)
    return float(np.mean(rates)) if rates else None


def _curves(run: Run, all_masks: list[Masks]) -> tuple[Rows, bool]:
    """The rows of `StudyData.curves`, and whether all suites and texts of now were measured. Where not, what is a mean
    over all of them is left out: elsewhere it is over others."""
    rows, whole, known = [], True, _measured(Items.load(run.pipeline.workdir / "evaluate" / "base"))
    for subset, masks in enumerate(all_masks):
        for arm, key in zip(run.arms, pipeline_arms(run)):
            base = None
            for step, items in summary.curve(run.pipeline.workdir / "train" / f"{key}-{subset}"):
                base = base or items  # step 0
                place = {**_place(run, arm.name, arm.relation), "subset": subset, "step": step}
                values, same = _values(items, masks, base=base), _measured(items) == known
                kept = values if same else {m: value for m, value in values.items() if m not in (CAPABILITY, DRIFT)}
                rows, whole = rows + [{**place, "metric": m, "value": v} for m, v in kept.items()], whole and same
    return rows, whole


def _measured(items: Items) -> tuple[set[str], set[str]]:
    """Suites and text sets."""
    return {suite for suite, _ in items.capability}, {*items.nll}


def _generations(study: Study, runs: list[Run], done: set[str]) -> Iterator[dict[str, Any]]:
    """The untouched students as generation 0, those of the ordinary runs as 1, and those of the loop from 2 on; held
    out is what is in the text of none of them."""
    finished = {run.name: run for run in runs if any(arm.relation == RELATIONS[0] for arm in run.arms)}
    for student, seed in sorted({(g.student, g.seed) for g in study.generations if g.name in done}):
        run = finished.get(study.first_runs[student, seed].name)
        if run is None:
            continue
        first = run.pipeline
        later = [g for g in study.generations if (g.student, g.seed) == (student, seed) and g.name in done]
        kinds = [
            summary.probe_masks(first, pipeline_arms(run))[0],
            *(summary.probe_masks(g.pipeline)[0] for g in later),
        ]
        masks = {metric: np.all([kind[metric] for kind in kinds], axis=0) for metric in kinds[0]}
        modes = study.config.generations.modes
        turns = [(modes, 0, first), (modes, 1, first), *(((g.mode,), g.number, g.pipeline) for g in later)]
        chance = _chance(first)  # the suites are the same throughout
        for modes, number, pipeline in turns:
            model = f"{pipeline.main}-0" if number else "base"
            items = Items.load(pipeline.workdir / "evaluate" / model)
            values = _values(items, masks, pipeline.config.evaluate.suffix_lengths, chance)
            values |= _corpus_values(pipeline) if number else {}
            for mode in modes:
                place = {"student": student, "mode": mode, "generation": number, "seed": seed}
                yield from ({**place, "metric": metric, "value": value} for metric, value in values.items())


def _corpus_values(pipeline) -> dict[Metric, float]:
    """Collapse measures of the text that a generation was trained on, at the size of the training budget or
    `DIVERSITY_TOKENS`; of less text, which a budget may repeat, those that depend on its size are left out.

    In random order: an accumulated corpus begins with its oldest text.
    """
    corpus = read_corpus(pipeline.corpus_path(pipeline.main))
    nll, size = corpus.manifest["nll"], min(pipeline.config.subset.num_tokens, DIVERSITY_TOKENS)
    found = {MEAN_LENGTH.kind: corpus.manifest["length"]["mean"]}
    if corpus.manifest["num_tokens"] >= size:
        documents, left = [], size
        for document in corpus.take(np.random.default_rng(0).permutation(len(corpus))):
            documents.append(document.tokens)
            left -= len(document.tokens)
            if left <= 0:
                break
        found = diversity(documents, num_tokens=size) | found
    found |= {"source_nll": nll["mean"]} if nll else {}
    return {Metric(kind): value for kind, value in found.items()}


def _too_small(generations: Sequence[dict[str, Any]]) -> list[str]:
    """The note on texts of generations that have fewer tokens than the budget."""
    names = "student", "mode", "generation", "seed"
    few = [
        "{} {} generation {} seed {}".format(*place)
        for place, rows in grouped(generations, *names).items()
        if {row["metric"] for row in rows} & {MEAN_LENGTH, Metric("entropy")} == {MEAN_LENGTH}
    ]
    what = "Fewer tokens than the budget (start tokens not counted), so that no distinct n-grams and entropy are given"
    return [f"{what}: {', '.join(few)}."] if few else []


def _models(study: Study) -> Rows:
    config, rows = study.config, []
    for name, model in config.models.items():
        parameters = None
        if not model.corpus:
            try:
                parameters = hf.load_config(study.resolve(name, config.seeds[0])).num_params
            except (OSError, ValueError):
                pass  # not made yet
        lineage = f"{model.family} {model.recipe}".strip()
        about = {"family": model.family, "lineage": lineage, "recipe": model.recipe}
        rows.append({"model": name, **about, "parameters": parameters})
    return rows
