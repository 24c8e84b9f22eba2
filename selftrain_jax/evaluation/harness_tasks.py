"""Tasks of lm-evaluation-harness on one model: names checked before any device work, results kept task by task.

Importing this module does not need the harness; its functions do (extra `eval`).
"""

import contextlib
import dataclasses
import difflib
import glob
import importlib.metadata
import os
import pathlib
from typing import Any, Callable, Iterable, Iterator, Sequence

from selftrain_jax.core import files
from selftrain_jax.core.errors import InputError, one_line
from selftrain_jax.evaluation.harness import read_generation

PAPER_GROUPS: dict[str, tuple[tuple[str, int], ...]] = {
    "paper-zero-shot": (
        ("arc_challenge", 0),
        ("mmlu", 0),
        ("truthfulqa_mc2", 0),
        ("hellaswag", 0),
        ("gsm8k", 0),
        ("minerva_math", 0),
        ("humaneval", 0),
    ),
    "paper-few-shot": (("arc_challenge", 25), ("gsm8k", 8), ("hellaswag", 5), ("minerva_math", 4)),
}
"""Group -> (harness task, examples in the prompt): the two suites of Alemohammad et al. 2026 (arXiv 2605.31126). MATH
is the harness's `minerva_math`."""

_KEPT = ("results", "groups", "group_subtasks", "versions", "n-shot", "n-samples", "higher_is_better")


@dataclasses.dataclass(frozen=True)
class TaskRequest:
    """A task (or group of tasks) as the harness names it; `num_fewshot` None leaves the number to the task's own
    file.
    """

    name: str
    num_fewshot: int | None = None

    @property
    def label(self) -> str:
        return self.name if self.num_fewshot is None else f"{self.name}, {self.num_fewshot}-shot"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What besides model and task decides a result, and where results are kept.

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
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"dtype={self.dtype!r} must be 'float32' or 'bfloat16'")
        if self.bootstrap_iters < 0:
            raise InputError(f"bootstrap_iters={self.bootstrap_iters} must be 0 (no bootstrap) or more")


class TaskBook:
    """The tasks that can be asked for: the harness's own, and those in YAML files of `include_path`."""

    def __init__(self, names: Sequence[str], include_path: str | os.PathLike | None = None):
        """
        Args:
          names: those that will be asked for; where the files of `include_path` hold them all, the 14,000 of the
            harness are not read.

        Raises:
          InputError: the harness is not installed, or `include_path` is not a folder.
        """
        _need_harness()
        from lm_eval.tasks import TaskManager

        folder = None if include_path is None else files.user_path(include_path)
        if folder is not None and not folder.is_dir():
            raise InputError(f"include_path={str(include_path)!r} is not a folder; name one that holds YAML task files")
        self._manager = None
        if folder is not None:
            own = TaskManager(include_path=str(folder), include_defaults=False)
            if set(names) <= set(own.all_tasks):
                self._manager = own
        if self._manager is None:
            self._manager = TaskManager(include_path=None if folder is None else str(folder))

    @property
    def manager(self) -> Any:
        """The harness's `TaskManager`."""
        return self._manager

    def check(self, names: Iterable[str], confirm_run_unsafe_code: bool) -> None:
        """Raises `InputError` for names that the harness does not know, with the nearest it does, and for tasks (named)
        that run model-written code without the user's word."""
        known = set(self._manager.all_tasks)
        unknown = [name for name in dict.fromkeys(names) if name not in known]
        if unknown:
            advice = []
            for name in unknown:
                near = difflib.get_close_matches(name, sorted(known | set(PAPER_GROUPS)), 3, 0.7)
                advice.append(f"{name!r}" + (f" (did you mean {' or '.join(near)}?)" if near else ""))
            raise InputError(
                f"unknown task {', '.join(advice)}; `lm-eval ls tasks` lists the harness's, and --include-path names a "
                "folder of others"
            )
        if not confirm_run_unsafe_code:
            leaves = dict.fromkeys(leaf for name in names for leaf in self.leaves(name))
            unsafe = [leaf for leaf in leaves if self._settings(leaf).get("unsafe_code")]
            if unsafe:
                raise InputError(
                    f"task {', '.join(unsafe)} runs code that the model wrote, on this machine and with your rights; "
                    "leave "
                    "it out, or allow it with --confirm-run-unsafe-code"
                )

    def leaves(self, name: str) -> list[str]:
        """The single tasks that a name stands for; of tags and groups, those of their members."""
        entry = self._manager.task_index.get(name)
        if name in self._manager.all_tags:
            members = entry["task"] if isinstance(entry, dict) else sorted(entry.tags)
        elif name in self._manager.all_groups:
            members = self._settings(name).get("task") or []
            members = [members] if isinstance(members, str) else members
        else:
            return [name]
        names = [m if isinstance(m, str) else m.get("task") or m.get("group") for m in members]
        return list(dict.fromkeys(leaf for n in names if isinstance(n, str) for leaf in self.leaves(n)))

    def _settings(self, name: str) -> dict[str, Any]:
        """What the task's YAML file says, none of the code that it may name run."""
        entry = self._manager.task_index.get(name)
        if not isinstance(entry, dict):
            return getattr(entry, "cfg", None) or {}
        if not isinstance(entry["yaml_path"], (str, os.PathLike)):
            return {}
        from lm_eval.utils import load_yaml_config  # of 0.4.10, whose index holds no settings

        return load_yaml_config(entry["yaml_path"], mode="simple")

    def definition(self, name: str) -> str:
        """A hash of what decides a task's items: its YAML files, the Python files beside them, the local data they
        name.
        """
        parts: list[Any] = []
        for leaf in dict.fromkeys([name, *self.leaves(name)]):
            settings = self._settings(leaf)
            given = (settings.get("dataset_kwargs") or {}).get("data_files") or {}
            given = given.values() if isinstance(given, dict) else [given]
            named = [path for item in given for path in (item if isinstance(item, list) else [item])]
            named += [(settings.get("dataset_kwargs") or {}).get("data_dir"), settings.get("dataset_path")]
            entry = self._manager.task_index.get(leaf)
            yaml_path = entry.get("yaml_path") if isinstance(entry, dict) else getattr(entry, "yaml_path", None)
            if isinstance(yaml_path, (str, os.PathLike)):
                named.append(os.path.join(glob.escape(os.path.dirname(yaml_path)), "*.py"))
            parts.append([settings, *(files.file_fingerprint(path) for item in named for path in _local_files(item))])
        return files.fingerprint(parts)

    def load(self, name: str) -> dict[str, Any]:
        """The harness's task objects, by name; fetches their data.

        Raises:
          InputError: the data cannot be had, or a package that the task needs is missing.
        """
        try:
            if hasattr(self._manager, "load"):
                return self._manager.load([name])["tasks"]
            return dict(_flat(self._manager.load_task_or_group([name])))  # 0.4.10
        except ImportError as e:
            raise InputError(f"task {name} needs a package that is not installed: {one_line(e)}") from None
        except Exception as e:  # of the harness, the data set library, the hub client, and of the task's own code
            raise InputError(
                f"task {name} cannot be loaded ({type(e).__name__}: {one_line(e)[:300]}); check the network, or the "
                "data_files of a task file of your own (relative paths start at the working directory)"
            ) from None


def _local_files(named: Any) -> list[str]:
    """The files that a path, a pattern or a folder stands for; none for what is not on this disk."""
    if not isinstance(named, str):
        return []
    found = [named] if os.path.exists(named) else glob.glob(named, recursive=True)
    inside = [
        glob.glob(os.path.join(glob.escape(path), "**"), recursive=True) if os.path.isdir(path) else [path]
        for path in found
    ]
    return sorted(path for paths in inside for path in paths if os.path.isfile(path))


def _flat(tasks: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name, task in tasks.items():
        if isinstance(task, dict):
            yield from _flat(task)
        else:
            yield name, task


def _need_harness() -> None:
    try:
        import lm_eval.tasks  # noqa: F401
    except ImportError as e:
        raise InputError(
            f"tasks need lm-evaluation-harness 0.4.10 or later ({one_line(e)}): pip install 'selftrain_jax[eval]'"
        ) from None


def expand(names: Sequence[str], num_fewshot: int | None) -> list[TaskRequest]:
    """The requests that names stand for, groups of `PAPER_GROUPS` among them, each once.

    Raises:
      InputError: no names, a negative `num_fewshot`, or one together with a group that fixes its own.
    """
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise InputError("no tasks: name some, for example --tasks arc_easy,hellaswag")
    if num_fewshot is not None and num_fewshot < 0:
        raise InputError(f"num_fewshot={num_fewshot} must be 0 or more")
    requests: list[TaskRequest] = []
    for name in names:
        if name in PAPER_GROUPS:
            if num_fewshot is not None:
                raise InputError(f"num_fewshot={num_fewshot}: group {name!r} has its own numbers; ask for it without")
            requests += [TaskRequest(*task) for task in PAPER_GROUPS[name]]
        else:
            requests.append(TaskRequest(name, num_fewshot))
    return list(dict.fromkeys(requests))


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
        work.
    """
    from lm_eval import simple_evaluate

    book.check([request.name for request in requests], settings.confirm_run_unsafe_code)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"result folder {directory} cannot be made ({e.strerror}); choose another") from None
    keys = {}
    for request in requests:
        keys[request] = {
            "model": fingerprint,
            "task": request.name,
            "num_fewshot": request.num_fewshot,
            "limit": settings.limit,
            "dtype": settings.dtype,
            "definition": book.definition(request.name),
            "lm_eval": importlib.metadata.version("lm_eval"),
            "bootstrap_iters": settings.bootstrap_iters,
        }
    names = {
        request: f"{request.name.replace('/', '_')}-{files.fingerprint(key)}.json" for request, key in keys.items()
    }
    paths = {request: directory / name for request, name in names.items()}
    done = {request: value for request in requests if (value := _kept_result(paths[request], keys[request], say))}
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
            kept = {name: found[name] for name in _KEPT if name in found}
            done[request] = _plain(kept)
            files.write_json(paths[request], {"key": keys[request]} | done[request])
    return [
        {"task": request.name, "num_fewshot": request.num_fewshot, "limit": settings.limit} | done[request]
        for request in requests
    ]


def _kept_result(path: pathlib.Path, key: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any] | None:
    """What an earlier run left in `path`; None when there is nothing, or nothing that can be used."""
    if not path.is_file():
        return None
    with contextlib.suppress(InputError):
        value = files.read_json(path)
        if isinstance(value, dict) and value.pop("key", None) == key and isinstance(value.get("results"), dict):
            return value
    say(f"{path} is damaged: that task is run again")
    return None


@contextlib.contextmanager
def _environment(settings: Settings) -> Iterator[None]:
    """No forked bootstrap beside JAX's threads, and the harness's code runner only where the user allowed it."""
    wanted = {"DISABLE_MULTIPROC": "1"} | ({"HF_ALLOW_CODE_EVAL": "1"} if settings.confirm_run_unsafe_code else {})
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _plain(value: Any) -> Any:
    """`value` in JSON's types: numpy numbers as numbers, and anything else unknown as text."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return value.item()
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def rows(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per task and metric: "task", "num_fewshot", "filter", "metric", "value", "stderr" (None: not
    known), "n".
    """
    table = []
    for result in results:
        for task, metrics in (result["results"] | result.get("groups", {})).items():
            shots = result["n-shot"].get(task, result["num_fewshot"])
            count = result["n-samples"].get(task, {}).get("effective")
            for key, value in metrics.items():
                metric, comma, filter_name = key.partition(",")
                if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
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


def format_table(table: Sequence[dict[str, Any]]) -> str:
    """`rows` as aligned text: value, plus or minus one standard error."""
    lines = [("task", "shots", "metric", "value", "stderr", "n")]
    for row in table:
        metric = row["metric"] if row["filter"] == "none" else f"{row['metric']} ({row['filter']})"
        stderr = "-" if row["stderr"] is None else f"{row['stderr']:.4f}"
        shots, count = ("-" if row[name] is None else str(row[name]) for name in ("num_fewshot", "n"))
        lines.append((row["task"], shots, metric, f"{row['value']:.4f}", stderr, count))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    left = (True, False, True, False, False, False)
    return "\n".join(
        "  ".join(
            f"{cell:<{w}}" if to_left else f"{cell:>{w}}" for cell, w, to_left in zip(line, widths, left)
        ).rstrip()
        for line in lines
    )
