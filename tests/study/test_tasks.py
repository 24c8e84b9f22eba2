"""What the harness finds, as figures of a study."""

import numpy as np
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import write_json
from selftrain_jax.data.settings import SubsetConfig
from selftrain_jax.evaluation.items import Items
from selftrain_jax.report.metric import CAPABILITY, Metric
from selftrain_jax.study import collect
from selftrain_jax.study.expand import Study
from selftrain_jax.study.settings import ModelSettings, StudyConfig, TaskSettings
from selftrain_jax.study.tasks import harness_versions, task_book, task_values


def row(task, metric, value, shots=0, of="none"):
    return {"task": task, "metric": metric, "value": value, "num_fewshot": shots, "filter": of, "stderr": None, "n": 4}


def test_a_task_counts_by_its_first_share_of_right_answers_a_group_by_its_mean_and_a_tag_by_its_tasks():
    tasks = [
        {"name": "arc", "rows": [row("arc", "acc_norm", 0.5, 25), row("arc", "acc", 0.4, 25)]},
        {"name": "mmlu", "rows": [row("mmlu_law", "acc", 0.1), row("mmlu", "acc", 0.2), row("mmlu_art", "acc", 0.3)]},
        {"name": "gsm8k", "rows": [row("gsm8k", "exact_match", 0.6, 8, f) for f in ("strict-match", "flexible")]},
        {"name": "tag", "rows": [row(t, "exact_match", v) for t, v in (("sum", 0.7), ("product", 0.9))]},
        {"name": "wiki", "rows": [row("wiki", "word_perplexity", 9.0), row("wiki", "acc", None)]},
    ]
    values = task_values(tasks)
    assert {metric.name: value for metric, value in values.items()} == {
        "capability/arc, 25-shot": 0.4,
        "capability/arc, 25-shot:acc_norm": 0.5,
        "capability/mmlu, 0-shot": 0.2,
        "capability/gsm8k, 8-shot": 0.6,
        "capability/sum, 0-shot": 0.7,
        "capability/product, 0-shot": 0.9,
        "capability/gsm8k, 8-shot:exact_match (flexible)": 0.6,
    }
    suites = {Metric("capability", "cloze"): 0.8, Metric("capability", "cloze", "acc_norm"): 0.0, CAPABILITY: 0.8}
    assert collect._with_tasks(suites, {"base": values}, "base")[CAPABILITY] == pytest.approx(
        (0.8 + 0.4 + 0.2 + 0.6 + 0.7 + 0.9) / 6
    )
    assert collect._with_tasks(suites, {}, "base") == suites


def test_of_groups_in_a_group_without_a_figure_each_task_counts_once():
    """As the harness's `leaderboard`, whose groups have figures while the whole has none."""
    outer = [row("sums", "acc", 0.2, 5), row("words", "acc", 0.6, 5), row("verbs", "acc", 0.1, 0)]
    outer += [row("language", "acc", 0.35, None) | {"n": None}]
    mixed = [row("language", "acc", 0.35, None) | {"n": None}, row("words", "acc", 0.6, 5), row("verbs", "acc", 0.1, 0)]
    assert {m.name: v for m, v in task_values([{"name": "outer", "rows": outer}]).items()} == {
        "capability/sums, 5-shot": 0.2,
        "capability/words, 5-shot": 0.6,
        "capability/verbs, 0-shot": 0.1,
    }
    assert {m.name: v for m, v in task_values([{"name": "language", "rows": mixed}]).items()} == {
        "capability/language, mixed shots": 0.35
    }


def test_every_training_of_a_text_is_put_to_the_tasks(tmp_path):
    """Of two subsets both: the second's mean over suites would lack the tasks that the untouched student's has."""
    models = {"a": ModelSettings(path="a", family="A"), "b": ModelSettings(corpus="b", family="B")}
    subset, tasks = SubsetConfig(num_subsets=2), TaskSettings(names=("arc",))
    config = StudyConfig(models=models, students=("a",), sources=("a", "b"), seeds=(0,), subset=subset, tasks=tasks)
    study = Study(config, tmp_path)
    units = {unit.name: unit.needs for unit in study.units if unit.name.startswith("tasks/")}
    (run,) = study.runs
    assert {name.rpartition("/")[2] for name in units} == set(run.pipeline.models) and len(units) == 5
    assert units["tasks/a-0/b-1"] == ("a-0: b",) and units["tasks/a-0/base"] == ("a-0: base",)
    for name in units:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        rows = [row("arc", "acc", 0.5)]
        write_json(folder / "manifest.json", {"result": {"tasks": [{"name": "arc", "rows": rows}]}})
    assert collect._tasks(study, run, set(units)).keys() == run.pipeline.models.keys()
    assert collect._tasks(study, run, set(units) - {"tasks/a-0/b-1"}) is None


def test_figures_of_another_task_file_or_of_other_data_are_not_taken_for_those_of_now(tmp_path):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness (extra eval) is not installed")
    own = tmp_path / "own"
    own.mkdir()
    data = own / "items.jsonl"
    data.write_text('{"question": "one?", "choices": ["a", "b"], "gold": 0}\n')
    task = (
        f"task: own_choice\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: question\ndoc_to_choice: choices\n"
    )
    (own / "own.yaml").write_text(task)
    models = {"a": ModelSettings(path="a", family="A")}
    tasks = TaskSettings(names=("own_choice",), include_path=str(own), confirm_run_unsafe_code=True)
    config = StudyConfig(models=models, students=("a",), seeds=(0,), tasks=tasks)
    study = Study(config, tmp_path / "study")
    (stage,) = next(unit for unit in study.units if unit.name == "tasks/a-0/base").stages
    folder = study.runs[0].pipeline.workdir / "evaluate" / "base"
    folder.mkdir(parents=True)
    write_json(folder / "manifest.json", {"fingerprint": "of the model"})
    assert stage.externals() == {"model": "of the model"}
    before = stage.models()
    assert before and stage.models() == before
    (own / "own.yaml").write_text(task.replace("doc_to_text: question", "doc_to_text: 'Q: {{question}}'"))
    assert stage.models() != before
    (own / "own.yaml").write_text(task)
    assert stage.models() == before
    data.write_text(data.read_text().replace("one", "two"))
    assert stage.models() != before


def test_a_run_whose_tasks_are_not_done_has_no_capability_beside_runs_that_have_theirs(tmp_path):
    """Its mean would be of the suites in files alone, and the mean over seeds one of other suites in each."""
    models = {"a": ModelSettings(path="a", family="A")}
    config = StudyConfig(models=models, students=("a",), sources=("a",), subset=SubsetConfig(num_subsets=1))
    (run, *_) = Study(config, tmp_path).runs
    for model, right in (("base", 1), ("corpus-0", 3)):
        hits = {("quiz", "acc"): np.arange(4) < right}
        Items(hits, {"wiki": (np.ones(2), np.ones(2))}).save(run.pipeline.workdir / "evaluate" / model)
    of_task = {model: {Metric("capability", "arc, 0-shot"): 0.5} for model in ("base", "corpus-0")}

    def after(tasks):
        return {row["metric"].name: row["after"] for row in collect._results(run, [{}], {}, tasks)[0]}

    assert after(of_task)["capability"] == 0.625 and after({})["capability"] == 0.75
    assert after(None).keys() == {"drift", "nll/wiki"}


def test_a_study_says_when_its_tasks_are_of_different_versions_of_the_harness(tmp_path):
    for model, of in (("base", {"lm_eval": "0.4.10"}), ("self-0", {"lm_eval": "0.4.13"}), ("self-1", {})):
        (tmp_path / "tasks" / model).mkdir(parents=True)
        write_json(tmp_path / "tasks" / model / "manifest.json", {"result": {"tasks": [], **of}})
    (note,) = harness_versions(tmp_path, ["tasks/base", "tasks/self-0", "tasks/self-1"])
    assert ": 0.4.10 (1 models), 0.4.13 (1 models), unknown (1 models); " in note
    assert harness_versions(tmp_path, ["tasks/base"]) == harness_versions(tmp_path, []) == []


def test_tasks_are_checked_before_any_work():
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness (extra eval) is not installed")
    with pytest.raises(InputError, match="include_path='tasks' is not a folder"):
        task_book(TaskSettings(names=("arc_easy",), include_path="tasks"))
    with pytest.raises(InputError, match="tasks limit=-1 must be at least 0"):
        TaskSettings(limit=-1)
