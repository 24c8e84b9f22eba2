"""Tasks of lm-evaluation-harness in a study: on every untouched student, and on every trained one."""

import collections
import dataclasses
import importlib.metadata
import pathlib
from typing import TYPE_CHECKING, Any, Callable, Iterable, Sequence

from selftrain_jax.core.files import fingerprint
from selftrain_jax.evaluation import harness_tasks
from selftrain_jax.evaluation.task_book import TaskBook, expand
from selftrain_jax.report.metric import Metric
from selftrain_jax.run.names import RunNames
from selftrain_jax.run.stages import Stage, fingerprints_of, read_manifest
from selftrain_jax.study.model import Run
from selftrain_jax.study.settings import TaskSettings

if TYPE_CHECKING:
    from jax.sharding import Mesh


def task_book(settings: TaskSettings) -> TaskBook:
    """The tasks that are asked for; `InputError` for one that is unknown, or runs code without the user's word."""
    names, allowed = [request.name for request in expand(settings.names, None)], settings.confirm_run_unsafe_code
    book = TaskBook(names, settings.include_path or None, allowed)
    book.check(names, allowed)
    return book


def _own_tasks(settings: TaskSettings) -> str:
    """A hash of what decides the items of the tasks in files of one's own; those of the harness are its version's."""
    book = TaskBook([], settings.include_path, settings.confirm_run_unsafe_code)
    known = set(book.manager.all_tasks)
    return fingerprint([book.definition(r.name) for r in expand(settings.names, None) if r.name in known])


def task_unit(run: Run, model: str) -> str:
    """The name of the unit of one model of a run."""
    return f"tasks/{run.name}/{model}"


def tasks_stage(name: str, settings: TaskSettings, run: RunNames, model: str, mesh: "Callable[[], Mesh]") -> Stage:
    """The stage that puts one model of a run to the tasks; its result is their rows, as of `harness_tasks.rows`."""
    evaluate, stage = run.config.evaluate, f"train/{model}" if model != "base" else "evaluate/base"

    def work(directory):
        from selftrain_jax.evaluation.harness import HarnessModel  # which needs the extra
        from selftrain_jax.run.references import find_model

        found = find_model(f"{run.workdir}:{model}")

        def make_model():
            placed = {"mesh": mesh(), "batch_size": evaluate.batch_size, "dtype": evaluate.dtype}
            return HarnessModel(found.load(placed["mesh"]), found.config, found.tokenizer, **placed)

        limited = {"limit": settings.limit or None, "dtype": evaluate.dtype}
        asked = harness_tasks.Settings(**limited, confirm_run_unsafe_code=settings.confirm_run_unsafe_code)
        requests, kept = expand(settings.names, None), directory / "tasks"
        results = harness_tasks.run(requests, task_book(settings), found.fingerprint, kept, asked, make_model)
        rows = [{"name": result["task"], "rows": harness_tasks.rows([result])} for result in results]
        return {"tasks": rows, "lm_eval": importlib.metadata.version("lm_eval")}

    def externals():
        return fingerprints_of(run.workdir, model=stage)

    def own_tasks():  # apart, since it imports the harness
        return {"tasks": _own_tasks(settings)} if settings.include_path else {}

    asked = dataclasses.asdict(settings) | {"dtype": evaluate.dtype}
    return Stage(name, asked, (), work, externals, own_tasks, unnoted=(("tasks",),))


def harness_versions(workdir: pathlib.Path, units: Iterable[str]) -> list[str]:
    """A sentence where the finished task `units` of a study are of different versions of the harness."""
    found = collections.Counter(read_manifest(workdir, unit)["result"].get("lm_eval", "unknown") for unit in units)
    versions = ", ".join(f"{version} ({count} models)" for version, count in sorted(found.items()))
    what = f"Tasks are of different versions of lm-evaluation-harness, which may ask and score differently: {versions}"
    return [f"{what}; without {workdir / 'tasks'} all are done again by one."] if len(found) > 1 else []


SHARES = ("acc", "acc_norm", "exact_match", "math_verify", "pass@1")
"""Metrics that are shares of right answers; the first that a task has enters the mean over suites."""


def task_values(tasks: Sequence[dict[str, Any]]) -> dict[Metric, float]:
    """The `SHARES` of the tasks asked for by name; of a group those of the whole alone, of what has no figure of the
    whole (a tag, some groups) those of each of its tasks. The first of each has the rule "acc"."""
    values: dict[Metric, float] = {}
    for task in tasks:
        rows = [row for row in task["rows"] if row["metric"] in SHARES and row["value"] is not None]
        whole = [row for row in rows if row["task"] == task["name"]]
        rows = whole or [row for row in rows if row["n"] is not None]  # else tasks would count again in a group's mean
        for row in sorted(rows, key=lambda row: SHARES.index(row["metric"])):
            shots = "mixed shots" if row["num_fewshot"] is None else f"{row['num_fewshot']}-shot"
            item = f"{row['task']}, {shots}"  # which tells it from a suite in a file
            rule = row["metric"] + (f" ({row['filter']})" if row["filter"] != "none" else "")
            first = Metric("capability", item)
            values[dataclasses.replace(first, rule=rule) if first in values else first] = row["value"]
    return values
