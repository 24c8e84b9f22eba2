"""Do the conclusions of a finished run hang on how its models are asked? Each of them, asked in other ways.

    python benchmarks/sensitivity.py runs/quickstart --models=base,self-0,real-0 --out=sensitivity.csv

One row per way of asking and model: mean capability by other prompts, and with BOS before them or not; extraction of
the held-out probes after the last part of their prefix; and by sampling at other temperatures (the share of probes of
which `--samples` samples hold the suffix with probability 1/2). Beside each value stands the change from base on the
same items, with its 95 % interval over items: where its sign changes with the row, the conclusion is one about prompts.
The run is read and left as it is."""

import argparse
import csv
import dataclasses
import pathlib
import sys
import tempfile
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import numpy as np

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import write_jsonl
from selftrain_jax.evaluation import discoverable, memorization, statistics, suite
from selftrain_jax.evaluation.items import Items
from selftrain_jax.evaluation.settings import SUITES, DiscoverableSettings, EvaluateSettings
from selftrain_jax.models import hf
from selftrain_jax.models.files.tokenizer import load_tokenizer
from selftrain_jax.report.metric import HELD_OUT, Metric, each_suite
from selftrain_jax.report.tables import interval, number
from selftrain_jax.run import summary
from selftrain_jax.run.references import find_model, open_run

COLUMNS = ("figure", "asked", "model", "n", "value", "change", "low", "high")
Figure = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Values in [0, 1], weights and clusters of the items that a figure is the mean of."""


class Way(NamedTuple):
    """One way of asking: the figure that it is of, in words, with settings, and the figure of the measured items."""

    figure: str
    asked: str
    settings: EvaluateSettings
    read: Callable[[Items], Figure]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("run", type=pathlib.Path, help="the folder of a finished run, also one of a study (STUDY/runs/NAME)")
    option("--models", default="", help="base and others of the run, separated by commas; without it, all of them")
    option("--template", action="append", help="a prompt with {question}, beside the run's own; may be repeated")
    option("--prefix", type=float, nargs="*", default=[1.0, 0.75, 0.5, 0.25], help="shares of the prefix that are kept")
    option("--temperatures", type=float, nargs="*", default=[0.5, 1.0, 1.25])
    option("--samples", type=int, default=100)
    option("--out", type=pathlib.Path, help="a CSV file")
    arguments = parser.parse_args()
    try:
        rows = list(measure(arguments))
    except InputError as e:
        sys.exit(f"error: {e}")
    for row in rows:
        change = "" if row["change"] is None else f"{number(row['change'], 1, 100, True)} points "
        bounds = interval(row["low"], row["high"], 1, 100, True)
        value = f"{row['figure']:<22} {row['asked']:<34} {row['model']:<12} {number(row['value'], 1, 100):>6} %"
        print(f"{value}  {change}{bounds}".rstrip())
    if arguments.out:
        with arguments.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows of `COLUMNS`; "change", "low" and "high" are None of base."""
    run = open_run(arguments.run)
    chosen = list(dict.fromkeys(["base", *filter(None, arguments.models.split(","))]))
    models = {name: find_model(f"{arguments.run}:{name}") for name in (chosen if arguments.models else run.models)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        asked = list(ways(run, arguments, folder))
        if not asked:
            raise InputError(f"run {arguments.run} has neither suites nor probes (evaluate): there is nothing to ask")
        found: list[dict[str, Figure]] = [{} for _ in asked]
        for name, model in models.items():
            loaded = model.config, model.load(run.local_mesh)
            for number_of, way in enumerate(asked):
                place = {"mesh": run.local_mesh, "name": f"{name}, {way.asked}"}
                suite.evaluate_model(loaded, model.tokenizer, way.settings, run.path, folder / "items", **place)
                found[number_of][name] = way.read(Items.load(folder / "items"))
    for way, figures in zip(asked, found):
        base = figures["base"]
        for name, (values, weights, clusters) in figures.items():
            row = {"figure": way.figure, "asked": way.asked, "model": name, "n": len(values)}
            change = (None, None, None)
            if name != "base":
                change = statistics.paired_mean(base[0], values, weights, 1.0, cluster=clusters)
            value = float(np.average(values, weights=weights))
            yield row | {"value": value} | dict(zip(("change", "low", "high"), change))


def ways(run: Any, arguments: argparse.Namespace, folder: pathlib.Path) -> Iterator[Way]:
    """Every way of asking; files of cut probes are written to `folder`."""
    settings, tokenizer = run.config.evaluate, load_tokenizer(run.model_path(run.student))
    plain = dataclasses.replace(settings.for_curve(), texts={}, suffix_lengths=(), offset_edges=())
    suites = dataclasses.replace(plain, probes="")
    if any(getattr(suites, kind) for kind in SUITES):
        for template in dict.fromkeys([settings.template, *(arguments.template or ["Question: {question}\nAnswer:"])]):
            asked = dataclasses.replace(suites, template=template)
            yield Way("capability", f"prompt {template!r}", asked, _capability)
        for add_bos in (True, False):
            asked, own = dataclasses.replace(suites, add_bos=add_bos), suite.begins_with_bos(settings, tokenizer)
            words = f"{'with' if add_bos else 'without'} BOS" + " (as in the run)" * (add_bos == own)
            yield Way("capability", words, asked, _capability)
    if settings.probes:
        probes = memorization.load_probes(run.path(settings.probes), hf.load_config(run.model_path(run.student)))
        held_out = np.all([masks[HELD_OUT] for masks in summary.probe_masks(run)], axis=0)
        if not held_out.any():
            raise InputError(f"run {arguments.run} has no held-out probes to ask for")
        memory = dataclasses.replace(plain, **dict.fromkeys(SUITES, {}))
        for share in arguments.prefix:
            file = folder / f"probes-{share:g}.jsonl"
            write_jsonl(file, (_cut(probe, share) for probe in probes))
            asked = dataclasses.replace(memory, probes=str(file))
            for figure, column in (("extraction", "exact"), ("suffix tokens right", "token_share")):
                read = _of_probes(held_out, lambda items, column=column: items.probes[column].astype(float))
                yield Way(figure, f"last {share:.0%} of the prefix", asked, read)
        for temperature in arguments.temperatures:
            sampled = DiscoverableSettings(samples=(arguments.samples,), temperature=temperature)
            asked = dataclasses.replace(memory, discoverable=sampled)
            words = f"{arguments.samples} samples at {temperature:g}"
            yield Way("extraction", words, asked, _of_probes(held_out, _drawn(sampled)))


def _cut(probe: memorization.Probe, share: float) -> dict[str, Any]:
    kept = max(round(share * len(probe.prefix)), 1)
    row = {"prefix": probe.prefix[-kept:].tolist(), "suffix": probe.suffix.tolist(), "group": probe.group}
    return row | ({} if probe.cluster is None else {"cluster": probe.cluster})


def _capability(items: Items) -> Figure:
    """The mean over suites: every suite counts alike, by the rule that counts in means over suites."""
    metrics = each_suite(Metric("capability", *key) for key in items.capability)
    hits = [items.capability[metric.item, metric.rule].astype(float) for metric in metrics]
    labels = [
        [f"{metric.item} {label}" for label in items.clusters.get(metric.item, range(len(of)))]
        for metric, of in zip(metrics, hits)
    ]
    weights = [np.full(len(of), 1 / len(of)) for of in hits]
    return np.concatenate(hits), np.concatenate(weights), np.concatenate(labels)


def _of_probes(held_out: np.ndarray, values: Callable[[Items], np.ndarray]) -> Callable[[Items], Figure]:
    def read(items: Items) -> Figure:
        clusters = items.probes.get("cluster", np.arange(len(held_out)))
        return values(items)[held_out], np.ones(held_out.sum()), clusters[held_out]

    return read


def _drawn(settings: DiscoverableSettings) -> Callable[[Items], np.ndarray]:
    def read(items: Items) -> np.ndarray:
        log_probs: Sequence[float] = items.probes["sampled_log_prob"]
        return discoverable.discoverable(log_probs, settings.samples[0], settings.probability).astype(float)

    return read


if __name__ == "__main__":
    main()
