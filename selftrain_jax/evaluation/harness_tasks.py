"""Tasks of lm-evaluation-harness on one model: names checked before any device work, results kept task by task.

Importing this module does not need the harness; its functions do (extra `eval`).
"""

import contextlib
import dataclasses
import importlib.machinery
import importlib.metadata
import json
import os
import pathlib
import sys
import types
from typing import Any, Callable, Iterator, Sequence

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import fingerprint as fingerprint_of
from selftrain_jax.core.files import json_text
from selftrain_jax.core.records import read_same, write_record
from selftrain_jax.core.settings import COMPUTE_DTYPES, check_choice, check_ranges
from selftrain_jax.evaluation.generation import read_generation
from selftrain_jax.evaluation.task_book import TaskBook, TaskRequest

_KEPT = ("results", "groups", "group_subtasks", "versions", "n-shot", "n-samples", "higher_is_better")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What besides model and task decides a result.

    Attributes:
      limit: only the first so many items of every task; None takes all.
      dtype: compute dtype of the model.
      bootstrap_iters: resamples for the standard error of metrics that are not plain means; 0 gives none.
      confirm_run_unsafe_code: whether tasks may run code that the model wrote.
    """

    limit: int | None = None
    dtype: str = "float32"
    bootstrap_iters: int = 1000
    confirm_run_unsafe_code: bool = False

    def __post_init__(self):
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit={self.limit} must be at least 1; leave it out to take every item")
        check_choice("benchmark", self, "dtype", COMPUTE_DTYPES)
        check_ranges("benchmark", self, {"bootstrap_iters": 0})


def run(
    requests: Sequence[TaskRequest],
    book: TaskBook,
    fingerprint: str,
    directory: pathlib.Path,
    settings: Settings,
    make_model: Callable[[], Any],
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """The results of every request, in order; what `directory` already holds is not computed again.

    Args:
      fingerprint: stands for weights and tokenizer.
      directory: gets one JSON file per result, written when the task is done: a killed run goes on at the next task.
      make_model: makes the harness's model; called once, and only if something is to be computed.

    Returns:
      One dict per request: "task", "num_fewshot", "limit", and what the harness reports ("results", "n-shot", ...).

    Raises:
      InputError: a task that the harness does not know, that runs code, or whose data cannot be had: before any device
        work. A task whose files change while it is measured.
    """
    from lm_eval import simple_evaluate

    book.check([request.name for request in requests], settings.confirm_run_unsafe_code)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"result folder {directory} cannot be made ({e.strerror}); choose another") from None
    given = {name: getattr(settings, name) for name in ("limit", "dtype", "bootstrap_iters")}
    given |= {"model": fingerprint, "lm_eval": importlib.metadata.version("lm_eval")}
    asked = {
        request: given
        | {"task": request.name, "num_fewshot": request.num_fewshot, "definition": book.definition(request.name)}
        for request in requests
    }
    before = {request: book.definition(request.name, of_code=False) for request in requests}
    done = {request: found for request in requests if (found := _read_result(directory, asked[request], say))}
    for request in done:
        say(f"{request.label} is kept as it was done before, in {_result_path(directory, asked[request])}")
    waiting = [request for request in requests if request not in done]
    with _environment(settings):
        for request in waiting:
            for name, task in book.load(request.name).items():
                if task.OUTPUT_TYPE == "generate_until":
                    try:
                        read_generation(task.config.generation_kwargs or {})
                    except InputError as e:
                        raise InputError(f"task {name}: {e}") from None
        model = make_model() if waiting else None
        for number, request in enumerate(waiting, 1):
            say(f"{request.label} ({number} of {len(waiting)})")
            with book.reading(request.name):
                found = simple_evaluate(
                    model=model,
                    tasks=[request.name],
                    num_fewshot=request.num_fewshot,
                    limit=settings.limit,
                    bootstrap_iters=settings.bootstrap_iters,
                    task_manager=book.manager,
                    log_samples=False,
                    confirm_run_unsafe_code=settings.confirm_run_unsafe_code,
                )
            if book.definition(request.name, of_code=False) != before[request]:
                raise InputError(f"task {request.name}: its files changed while it was measured; do it again")
            done[request] = _plain({name: found[name] for name in _KEPT if name in found})
            write_record(_result_path(directory, asked[request]), {"key": asked[request]}, **done[request])
    return [
        {"task": request.name, "num_fewshot": request.num_fewshot, "limit": settings.limit} | done[request]
        for request in requests
    ]


def _result_path(directory: pathlib.Path, asked: dict[str, Any]) -> pathlib.Path:
    return directory / f"{asked['task'].replace('/', '_')}-{fingerprint_of(asked)}.json"


def _read_result(directory: pathlib.Path, asked: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any] | None:
    """What an earlier run found for what is asked; None when there is nothing, or nothing that can be used."""
    path = _result_path(directory, asked)
    found = read_same(path, {"key": asked}) or {}
    if isinstance(found.get("results"), dict):
        return {name: value for name, value in found.items() if name != "key"}
    if path.is_file():
        say(f"{path} is damaged: that task is run again")
    return None


@contextlib.contextmanager
def _environment(settings: Settings) -> Iterator[None]:
    """No forked bootstrap beside JAX's threads; the harness's code runner, and metrics that are scripts, only where the
    user allowed it."""
    wanted = {"DISABLE_MULTIPROC": "1"} | ({"HF_ALLOW_CODE_EVAL": "1"} if settings.confirm_run_unsafe_code else {})
    before = {name: os.environ[name] for name in wanted if name in os.environ}
    os.environ.update(wanted)
    library = sys.modules.get("evaluate")
    if not settings.confirm_run_unsafe_code:
        sys.modules["evaluate"] = stub = types.ModuleType("evaluate")
        stub.load, stub.__spec__ = _refuse_script, importlib.machinery.ModuleSpec("evaluate", None)
    try:
        yield
    finally:
        if not settings.confirm_run_unsafe_code:
            del sys.modules["evaluate"]
            sys.modules.update({"evaluate": library} if library else {})
        for name in wanted:
            os.environ.pop(name, None)
        os.environ.update(before)


def _refuse_script(name: str, *_, **__) -> None:
    raise InputError(
        f"metric {name!r} is a script, which the `evaluate` library takes from the working directory or the hub and "
        "runs; leave the task out, or allow it with --confirm-run-unsafe-code"
    )


def _plain(value: Any) -> Any:
    """`value` as it reads back from JSON: numpy numbers as numbers, and anything else unknown as text."""
    return json.loads(json_text(value, default=lambda x: x.item() if getattr(x, "ndim", None) == 0 else str(x)))


def rows(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per task and metric: "task", "num_fewshot" (None: of a group whose tasks differ), "filter", "metric",
    "value" (None: not finite), "stderr" (None: not known), "n" (None: of a group).
    """
    table = []
    for result in results:
        for task, metrics in (result["results"] | result.get("groups", {})).items():
            shots = _shots(result, task)
            count = result["n-samples"].get(task, {}).get("effective")
            for key, value in metrics.items():
                metric, comma, filter_name = key.partition(",")
                if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float, type(None))):
                    continue
                stderr = metrics.get(f"{metric}_stderr,{filter_name}")
                table.append(
                    {
                        "task": task,
                        "num_fewshot": shots,
                        "filter": filter_name,
                        "metric": metric,
                        "value": value,
                        "stderr": stderr if isinstance(stderr, (int, float)) else None,
                        "n": count,
                    }
                )
    return table


def _shots(result: dict[str, Any], task: str) -> int | None:
    """Examples in the prompt; of a group those of its tasks, of which the harness forgets groups in groups."""
    members = result.get("group_subtasks", {}).get(task)
    if not members:
        return result["n-shot"].get(task, result["num_fewshot"])
    found = {_shots(result, member) for member in members}
    return found.pop() if len(found) == 1 else None


def format_table(table: Sequence[dict[str, Any]]) -> str:
    """`rows` as aligned text: value, plus or minus one standard error."""
    lines = [("task", "shots", "metric", "value", "stderr", "n")]
    for row in table:
        metric = row["metric"] if row["filter"] == "none" else f"{row['metric']} ({row['filter']})"
        stderr = "-" if row["stderr"] is None else f"{row['stderr']:.4f}"
        value = "-" if row["value"] is None else f"{row['value']:.4f}"
        shots, count = ("-" if row[name] is None else str(row[name]) for name in ("num_fewshot", "n"))
        lines.append((row["task"], shots, metric, value, stderr, count))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    left = (True, False, True, False, False, False)
    return "\n".join(
        "  ".join(
            f"{cell:<{w}}" if to_left else f"{cell:>{w}}" for cell, w, to_left in zip(line, widths, left)
        ).rstrip()
        for line in lines
    )
