"""The tasks of lm-evaluation-harness: which there are, what they consist of, whether they run code.

Importing this module does not need the harness; its functions do (extra `eval`).
"""

import ast
import contextlib
import dataclasses
import difflib
import glob
import os
import pathlib
import re
import sys
from typing import Any, Iterable, Iterator, Sequence

from selftrain_jax.core import files
from selftrain_jax.core.errors import InputError, one_line
from selftrain_jax.core.imports import fresh_imports
from selftrain_jax.core.rows import below, has_ending, hidden

RESULTS = "results.json"
"""What `selftrain evaluate --out` writes."""
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


@dataclasses.dataclass(frozen=True)
class TaskRequest:
    """A task (or group) as the harness names it; `num_fewshot` None leaves the number to the task's own file."""

    name: str
    num_fewshot: int | None = None

    @property
    def label(self) -> str:
        return self.name if self.num_fewshot is None else f"{self.name}, {self.num_fewshot}-shot"


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


class TaskBook:
    """The tasks that can be asked for: the harness's own, and those in YAML files of `include_path`."""

    def __init__(
        self, names: Sequence[str], include_path: str | os.PathLike | None = None, confirm_run_unsafe_code: bool = False
    ):
        """
        Args:
          names: those that will be asked for; where the files of `include_path` hold them all, the 14,000 of the
            harness are not read.
          confirm_run_unsafe_code: whether the files of `include_path` may run code: the harness imports what they name
            with `!function`, and renders their templates without a sandbox.

        Raises:
          InputError: the harness is not installed, or `include_path` is not a folder or may not run code.
        """
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as e:
            raise InputError(
                f"tasks need lm-evaluation-harness 0.4.10 or later ({one_line(e)}): pip install 'selftrain_jax[eval]'"
            ) from None
        folder = None if include_path is None else files.user_path(include_path)
        if folder is not None and not folder.is_dir():
            raise InputError(f"include_path={str(include_path)!r} is not a folder; name one that holds YAML task files")
        if folder is not None and not confirm_run_unsafe_code:
            raise InputError(
                f"include_path={str(include_path)!r}: task files run code (what they name with !function, and their "
                "templates) with your rights; read them, then allow it with --confirm-run-unsafe-code"
            )
        self.folders = [] if folder is None else [os.path.realpath(folder)]
        self.manager = None if folder is None else TaskManager(include_path=str(folder), include_defaults=False)
        if self.manager is None or not set(names) <= set(self.manager.all_tasks):
            self.manager = TaskManager(include_path=None if folder is None else str(folder))

    def check(self, names: Iterable[str], confirm_run_unsafe_code: bool) -> None:
        """Raises `InputError` for names that the harness does not know, with the nearest it does, and for tasks (named)
        that run model-written code without the user's word."""
        known = set(self.manager.all_tasks)
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
                    "leave it out, or allow it with --confirm-run-unsafe-code"
                )

    def leaves(self, name: str) -> list[str]:
        """The single tasks that a name stands for; of tags and groups, those of their members."""
        entry = self.manager.task_index.get(name)
        if name in self.manager.all_tags:
            members = entry["task"] if isinstance(entry, dict) else sorted(entry.tags)
        elif name in self.manager.all_groups:
            members = self._settings(name).get("task") or []
            members = [members] if isinstance(members, str) else members
        else:
            return [name]
        names = [m if isinstance(m, str) else m.get("task") or m.get("group") for m in members]
        return list(dict.fromkeys(leaf for n in names if isinstance(n, str) for leaf in self.leaves(n)))

    def _settings(self, name: str) -> dict[str, Any]:
        """What the task's YAML file says, none of the code that it may name run."""
        entry = self.manager.task_index.get(name)
        if not isinstance(entry, dict):
            return getattr(entry, "cfg", None) or {}
        if not isinstance(entry["yaml_path"], (str, os.PathLike)):
            return {}
        from lm_eval.utils import load_yaml_config  # of 0.4.10, whose index holds no settings

        return load_yaml_config(entry["yaml_path"], mode="simple")

    def definition(self, name: str, of_code: bool = True) -> str:
        """A hash of what decides a task's items: its YAML files, Python files beside them, and local data they name; of
        a task of `include_path`, all of these below that, since they may include and group one another.

        Args:
          of_code: whether what these Python files may read counts, too; they may write it as well.
        """
        parts, own = [], False
        for leaf in dict.fromkeys([name, *self.leaves(name)]):
            data, code = self._data(leaf), []
            entry = self.manager.task_index.get(leaf)
            yaml_path = entry.get("yaml_path") if isinstance(entry, dict) else getattr(entry, "yaml_path", None)
            if isinstance(yaml_path, (str, os.PathLike)):
                folder = os.path.realpath(os.path.dirname(yaml_path))
                if any(pathlib.Path(folder).is_relative_to(one) for one in self.folders):
                    own = True
                else:
                    code = _local_files(os.path.join(glob.escape(folder), "*.py"))
            parts.append([self._settings(leaf), *(files.file_fingerprint(path) for path in [*data, *code])])
        read = [path for folder in self.folders for path in _of_tasks(folder, of_code)] if own else []
        return files.fingerprint([*parts, *map(files.file_fingerprint, read)])

    def _data(self, leaf: str) -> list[str]:
        """The files on this disk that a single task's settings name as its data."""
        return _named_data(self._settings(leaf))

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Within, the `datasets` library keeps what it prepares of a task whose data is all on this disk by contents.
        By itself it tells files apart by path and time: of one that took another's place and time, as from an archive
        or by `cp -p`, it would give the other's rows."""
        data = [self._data(leaf) for leaf in self.leaves(name)]
        if not data or not all(data):  # what comes from the hub is found offline where it was put
            yield
            return
        from datasets import config

        usual = config.HF_DATASETS_CACHE
        contents = files.file_fingerprint(*(path for paths in data for path in paths))
        config.HF_DATASETS_CACHE = pathlib.Path(usual) / "selftrain_jax" / contents
        try:
            yield
        finally:
            config.HF_DATASETS_CACHE = usual

    def load(self, name: str) -> dict[str, Any]:
        """The harness's task objects, by name; fetches their data.

        Raises:
          InputError: the data cannot be had, or a package that the task needs is missing.
        """
        for module in [*filter(os.path.isabs, sys.modules)]:  # the harness takes code of the same time for the same
            del sys.modules[module]
        try:
            with self.reading(name), fresh_imports(*self.folders):
                if hasattr(self.manager, "load"):
                    return self.manager.load([name])["tasks"]
                return dict(_flat(self.manager.load_task_or_group([name])))  # 0.4.10
        except ImportError as e:
            raise InputError(f"task {name} needs a package that is not installed: {one_line(e)}") from None
        except Exception as e:  # of the harness, the data set library, the hub client, and of the task's own code
            raise InputError(
                f"task {name} cannot be loaded ({type(e).__name__}: {one_line(e)[:300]}); check the network, or the "
                "data_files of a task file of your own (relative paths start at the working directory)"
            ) from None


def _named_data(settings: Any, name: str = "") -> list[str]:
    """The files on this disk that a task's settings, or tasks in them, name as data."""
    if isinstance(settings, dict):
        within = (_named_data(value, name if name in _DATA else str(key)) for key, value in settings.items())
    elif isinstance(settings, list):
        within = (_named_data(value, name) for value in settings)
    else:
        return _local_files(settings) if name in _DATA else []
    return [path for found in within for path in found]


def _of_tasks(folder: str, of_code: bool) -> list[str]:
    """All task files and code below `folder`, the data that these name, and with `of_code` what that code may read."""
    import yaml

    class Plain(yaml.SafeLoader):
        """The harness's own loader runs code."""

    Plain.add_multi_constructor("!", lambda loader, tag, node: None)
    found = [path for path in _through_links(folder) if "/." not in path.removeprefix(folder)]
    settings, code = ([path for path in found if has_ending(path, of)] for of in ((".yaml", ".yml"), (".py",)))
    read = [*settings, *code]
    for path in settings:
        with contextlib.suppress(yaml.YAMLError, ValueError):  # loading it tells
            read += _named_data(yaml.load(pathlib.Path(path).read_bytes(), Plain))  # noqa: S506
    for place in sorted({os.path.dirname(path) for path in code}) if of_code else ():
        read += _may_read(place, [path for path in code if os.path.dirname(path) == place])
    return list(dict.fromkeys(read))


def _local_files(named: Any) -> list[str]:
    """The files that a path, a pattern or a folder stands for; none for what is not on this disk."""
    if not isinstance(named, str):
        return []
    named = re.sub("^(file|local)://", "", named)
    found = [named] if os.path.exists(named) else glob.glob(named, recursive=True)
    if "**" in named and found != [named]:
        below(os.path.dirname(glob.escape(named).partition("[")[0]) or ".")  # refuses folders that may not be read
    read = [path for path in found if os.path.isfile(path)]
    for folder in filter(os.path.isdir, found):
        below(folder)  # refuses folders that may not be read, too
        read += [path for path in _through_links(folder) if not hidden(os.path.relpath(path, folder))]
    return sorted(set(read))


def _through_links(folder: str) -> list[str]:
    """The files in and below `folder`, of folders that links lead to as well, each folder once; sorted."""
    seen: set[str] = set()
    found: list[str] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        found += filter(os.path.isfile, (os.path.join(place, name) for name in names))
    return sorted(found)


_DATA = ("data_files", "data_dir", "dataset_path")
"""Settings of a task that name its data."""
_NO_DATA = (".py", ".pyc", ".yaml", ".yml", ".md", ".log", ".out", ".err")
"""Endings of files that lie beside a task's code, and are no data unless it names them."""


def _may_read(folder: str, code: Sequence[str]) -> list[str]:
    """The files from which a task's Python files `code` may take its items, as far as that can be told without running
    them: what lies beside them in `folder`, or in folders there that a text in them names, and files that one names."""
    texts: set[str] = set()
    for path in code:
        with contextlib.suppress(OSError, SyntaxError, ValueError, RecursionError):  # which loading it tells
            nodes = ast.walk(ast.parse(pathlib.Path(path).read_bytes()))
            texts |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    parts = {part for text in texts for part in text.split("/")}
    found = [os.path.join(base, os.path.expanduser(text)) for text in texts for base in (folder, os.getcwd())]
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if os.path.isdir(path) and name in parts:
            found += glob.glob(os.path.join(glob.escape(path), "**"), recursive=True)
        elif not name.startswith(".") and not name.lower().endswith(_NO_DATA) and name != RESULTS:
            found.append(path)
    read = {os.path.abspath(path) for path in found if os.path.isfile(path) and os.access(path, os.R_OK)}
    return sorted(read - set(map(os.path.abspath, code)))


def _flat(tasks: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name, task in tasks.items():
        if isinstance(task, dict):
            yield from _flat(task)
        else:
            yield name, task
