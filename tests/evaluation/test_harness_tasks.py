"""`selftrain evaluate MODEL --tasks ...`: local task files through the harness itself, without PyTorch or a network."""

import errno
import json
import os
import pathlib
import py_compile
import subprocess
import sys

import pytest

pytest.importorskip("lm_eval", reason="lm-evaluation-harness (extra eval) is not installed")

import lm_eval.tasks

from selftrain_jax.cli import main as cli
from selftrain_jax.core.errors import InputError
from selftrain_jax.evaluation import harness, harness_tasks
from selftrain_jax.evaluation.harness_tasks import Settings
from selftrain_jax.evaluation.task_book import PAPER_GROUPS, TaskBook, TaskRequest, expand
from tests.evaluation.harness_model import write_model

CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choice.jsonl, train: {folder}/choice.jsonl}}}}
test_split: test
fewshot_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
WRITE = """
task: tiny_write
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choice.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[gold]}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 4{more}}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
ROLL = """
task: tiny_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choice.jsonl}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: byte_perplexity}}]
"""
NAMES = "tiny_choice,tiny_write,tiny_text"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("tasks") / "model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("files")
    rows = [
        {"question": f"what is {x}?", "choices": ["the cat", "a dog", "one two"], "gold": i % 3}
        for i, x in enumerate(("one", "two", "the cat", "the dog", "a mat"))
    ]
    (found / "choice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("choice", CHOICE), ("write", WRITE), ("text", ROLL)):
        (found / f"{name}.yaml").write_text(text.format(folder=found, more=""))
    (found / "odd.yaml").write_text(
        WRITE.format(folder=found, more=", num_beams: 3").replace("tiny_write", "tiny_beams")
    )
    (found / "gone.yaml").write_text(CHOICE.format(folder="/nowhere").replace("tiny_choice", "tiny_gone"))
    unsafe = WRITE.format(folder=found, more="").replace("tiny_write", "tiny_unsafe") + "unsafe_code: true\n"
    (found / "unsafe.yaml").write_text(unsafe)
    (found / "group.yaml").write_text("group: tiny_group\ntask: [tiny_choice, tiny_unsafe]\n")
    return found


@pytest.fixture(scope="module")
def known(folder):
    """A book of some of the harness's own folders: reading all of them takes ten seconds."""
    book = TaskBook(["tiny_choice"], folder, True)
    own = pathlib.Path(lm_eval.tasks.__file__).parent
    names = ("arc", "mmlu/default", "truthfulqa", "hellaswag", "gsm8k", "minerva_math", "benchmarks", "humaneval")
    book.manager = lm_eval.tasks.TaskManager(include_path=[str(own / name) for name in names], include_defaults=False)
    return book


def evaluate(model, folder, out, *options, tasks=NAMES):
    own = (f"--include-path={folder}", "--confirm-run-unsafe-code")
    return cli.main(["evaluate", str(model), f"--tasks={tasks}", *own, f"--out={out}", *options])


def test_evaluation_goes_on_at_the_next_task_and_keeps_what_is_done(model, folder, tmp_path, monkeypatch, capsys):
    roll = harness.HarnessModel.loglikelihood_rolling

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # in the third task
        patch.setattr(harness.HarnessModel, "loglikelihood_rolling", interrupt)
        assert evaluate(model, folder, tmp_path) == 1
    assert "goes on from here" in capsys.readouterr().err
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "tasks").iterdir()}
    assert len(kept) == 2 and not (tmp_path / "results.json").exists()

    calls = []
    with monkeypatch.context() as patch:
        for name in ("loglikelihood", "generate_until"):
            patch.setattr(harness.HarnessModel, name, None)
        patch.setattr(harness.HarnessModel, "loglikelihood_rolling", lambda *a, **k: calls.append(1) or roll(*a, **k))
        assert evaluate(model, folder, tmp_path) == 0
    assert calls == [1] and all(path.stat().st_mtime_ns == time for path, time in kept.items())
    table = capsys.readouterr().out
    report = json.loads((tmp_path / "results.json").read_text())
    rows = {(row["task"], row["metric"]): row for row in report["metrics"]}
    assert set(rows) == {("tiny_choice", "acc"), ("tiny_write", "exact_match"), ("tiny_text", "byte_perplexity")}
    assert all(row["n"] == 5 and row["num_fewshot"] == 0 for row in rows.values())
    choice = rows["tiny_choice", "acc"]
    assert choice["value"] * 5 == pytest.approx(round(choice["value"] * 5)) and choice["stderr"] is not None
    assert rows["tiny_text", "byte_perplexity"]["value"] > 1
    assert f"{choice['value']:.4f}  {choice['stderr']:.4f}" in table

    with monkeypatch.context() as patch:  # nothing is left to do, so no model is made
        patch.setattr(harness, "HarnessModel", None)
        assert evaluate(model, folder, tmp_path) == 0
    assert json.loads((tmp_path / "results.json").read_text()) == report


def test_other_settings_are_other_results(model, folder, tmp_path):
    assert evaluate(model, folder, tmp_path, "--limit=2", tasks="tiny_choice") == 0
    assert evaluate(model, folder, tmp_path, "--limit=2", "--num-fewshot=1", tasks="tiny_choice") == 0
    report = json.loads((tmp_path / "results.json").read_text())
    assert [(row["n"], row["num_fewshot"]) for row in report["metrics"]] == [(2, 1)]
    assert len(list((tmp_path / "tasks").iterdir())) == 2


def test_the_examples_of_a_group_are_those_of_its_tasks_or_unknown_where_they_differ(model, folder, tmp_path):
    """In groups of groups, too, and where the harness keeps a task at 0 whatever is asked for."""
    own = tmp_path / "own"
    own.mkdir()
    for name, shots in (("none", "num_fewshot: 0\n"), ("two", "num_fewshot: 2\n"), ("more", "num_fewshot: 2\n")):
        text = CHOICE.format(folder=folder).replace("tiny_choice", name)
        (own / f"{name}.yaml").write_text(text + shots)
    whole = "aggregate_metric_list: [{metric: acc}]\n"
    (own / "same.yaml").write_text(f"group: same\ntask: [two, more]\n{whole}")
    (own / "mixed.yaml").write_text(f"group: mixed\ntask: [none, two]\n{whole}")
    (own / "outer.yaml").write_text(f"group: outer\ntask: [mixed, none]\n{whole}")

    def shots(out, *options):
        assert evaluate(model, own, tmp_path / out, *options, tasks="same,mixed,outer") == 0
        rows = json.loads((tmp_path / out / "results.json").read_text())["metrics"]
        return {row["task"]: row["num_fewshot"] for row in rows}

    assert shots("own-numbers") == {"same": 2, "mixed": None, "outer": None, "none": 0, "two": 2, "more": 2}
    found = shots("one", "--num-fewshot=1")
    assert found == {"same": 1, "mixed": None, "outer": None, "none": 0, "two": 1, "more": 1}


@pytest.mark.parametrize(
    "tasks, options, words",
    [
        ("tiny_gone", [], ("task tiny_gone cannot be loaded", "data_files")),
        ("tiny_beams", [], ("task tiny_beams", "num_beams=3")),
        ("tiny_choice", ["--limit=0"], ("limit=0",)),
        ("tiny_choice", ["--num-fewshot=-1"], ("num_fewshot=-1",)),
        ("tiny_choice", ["--dtype=float16"], ("dtype='float16'",)),
        ("tiny_choice", ["--batch-size=0"], ("batch_size=0",)),
        ("tiny_choice", ["--config=x.py"], ("--config belongs to a run", "RUN:self-0")),
        ("", [], ("no tasks",)),
        ("paper-few-shot", ["--num-fewshot=2"], ("'paper-few-shot' has its own",)),
    ],
)
def test_bad_requests_end_before_any_device_work(model, folder, tmp_path, capsys, monkeypatch, tasks, options, words):
    monkeypatch.setattr(harness, "HarnessModel", None)
    assert evaluate(model, folder, tmp_path, *options, tasks=tasks) == 2
    error = capsys.readouterr().err
    message = error[error.index("selftrain: error:") :]
    assert all(word in message for word in words) and message.count("\n") == 1


def test_a_task_that_runs_what_the_model_wrote_needs_a_word(folder):
    book = TaskBook(["tiny_choice"], folder, True)
    for name in ("tiny_unsafe", "tiny_group"):
        with pytest.raises(InputError, match="task tiny_unsafe runs code.*--confirm-run-unsafe-code"):
            book.check([name], False)


def test_files_of_ones_own_need_a_word_before_they_are_read(tmp_path):
    task = "task: own\ndataset_path: json\noutput_type: loglikelihood\ndoc_to_text: !function code.text\n"
    (tmp_path / "own.yaml").write_text(task)
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(InputError, match="run code.*--confirm-run-unsafe-code"):
        TaskBook(["own"], tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_metric_that_is_a_script_needs_a_word(tmp_path, monkeypatch):
    book = TaskBook(["meqsum"], pathlib.Path(lm_eval.tasks.__file__).parent / "meqsum", True)
    (tmp_path / "bleu").mkdir()
    (tmp_path / "bleu" / "bleu.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="metric 'bleu' is a script.*--confirm-run-unsafe-code"):
        harness_tasks.run([TaskRequest("meqsum")], book, "", tmp_path / "out", Settings(), lambda: pytest.fail("work"))
    assert not (tmp_path / "ran").exists()


def test_unknown_tasks_are_named_with_the_nearest_known(known):
    with pytest.raises(InputError, match=r"'arc_esay' \(did you mean arc_easy.*'hellaswagg' \(did you mean hellaswag"):
        known.check(["arc_easy", "arc_esay", "hellaswagg"], False)


def test_the_papers_tasks_exist_and_humaneval_needs_a_word(known):
    names = [name for group in PAPER_GROUPS.values() for name, _ in group]
    known.check(names, True)
    assert len(known.leaves("mmlu")) == 57 and len(known.leaves("minerva_math")) == 7
    with pytest.raises(InputError, match="task humaneval runs code"):
        known.check(names, False)


def test_paper_groups_carry_their_numbers_of_examples():
    assert expand(["paper-few-shot"], None)[0] == TaskRequest("arc_challenge", 25)
    assert TaskRequest("gsm8k", 0) in expand(["paper-zero-shot", "arc_easy"], None)
    assert expand(["a", "a", " b"], 3) == [TaskRequest("a", 3), TaskRequest("b", 3)]


def test_a_changed_data_file_is_another_task(folder):
    book = TaskBook(["tiny_choice"], folder, True)
    before = book.definition("tiny_choice")
    data = (folder / "choice.jsonl").read_text()
    (folder / "choice.jsonl").write_text(data + data.splitlines()[0] + "\n")
    assert book.definition("tiny_choice") != before
    (folder / "choice.jsonl").write_text(data)
    assert book.definition("tiny_choice") == before


def test_data_that_took_the_place_and_time_of_other_data_is_what_is_read(model, folder, tmp_path):
    """As by `cp -p`, or from archives in which all files have one time: the `datasets` library looks at that alone."""
    file = folder / "choice.jsonl"
    data, times = file.read_text(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)

    def items(out):
        assert evaluate(model, folder, tmp_path / out, tasks="tiny_choice") == 0
        return json.loads((tmp_path / out / "results.json").read_text())["metrics"][0]["n"]

    try:
        assert items("first") == 5
        file.write_text("".join(data.splitlines(keepends=True)[:3]))
        os.utime(file, ns=times)
        assert items("then") == 3
    finally:
        file.write_text(data)


def test_data_that_changes_while_it_is_measured_is_refused(model, folder, tmp_path, monkeypatch, capsys):
    file = folder / "choice.jsonl"
    data, measure = file.read_text(), harness.HarnessModel.loglikelihood

    def changed_then(*arguments, **options):
        file.write_text(data + data.splitlines()[0] + "\n")
        return measure(*arguments, **options)

    monkeypatch.setattr(harness.HarnessModel, "loglikelihood", changed_then)
    try:
        assert evaluate(model, folder, tmp_path / "out", tasks="tiny_choice") == 2
    finally:
        file.write_text(data)
    assert "tiny_choice: its files changed while it was measured" in capsys.readouterr().err
    assert not list((tmp_path / "out" / "tasks").iterdir())


def test_changed_code_or_more_files_of_a_pattern_are_another_task(folder):
    """What a task's YAML names with !function lies beside it; a pattern may match more files tomorrow."""
    task = CHOICE.format(folder=folder).replace("tiny_choice", "globbed").replace("choice.j", "*.j")
    (folder / "globbed.yaml").write_text(task)
    book = TaskBook(["globbed"], folder, True)
    seen = [book.definition("globbed")]
    for name, text in (("utils.py", "A = 1"), ("utils.py", "A = 2"), ("more.jsonl", "{}")):
        (folder / name).write_text(text)
        seen.append(book.definition("globbed"))
    assert len(set(seen)) == 4
    for name in ("utils.py", "more.jsonl", "globbed.yaml"):
        (folder / name).unlink()


READS = """
import datasets, json, pathlib

HERE = pathlib.Path(__file__).parent


def load(**_):
    names = [HERE / "rows.jsonl", *sorted((HERE / "more" / "parts").glob("*.jsonl")), {elsewhere!r}]
    rows = [json.loads(line) for name in names for line in open(name)]
    return {{"test": datasets.Dataset.from_list(rows)}}
"""
FUNCTION = """
task: own_reader
custom_dataset: !function utils.load
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def test_code_of_the_same_size_and_time_is_read_anew(tmp_path, monkeypatch):
    """As from an archive, or by `cp -p`: Python, and the harness, would take what was there before."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "function.yaml").write_text(FUNCTION)
    for word in ("one", "two"):
        row = {"question": word, "choices": ["a", "b"], "gold": 0}
        code = (
            "import os, sys\nimport datasets\nsys.path.insert(0, os.path.dirname(__file__))\nimport rows_of_task\n\n\n"
        )
        code += "def load(**_):\n    return {'test': datasets.Dataset.from_list([rows_of_task.ROW])}\n"
        for file, text in (("utils.py", code), ("rows_of_task.py", f"ROW = {row}\n")):
            (tmp_path / file).write_text(text)
            os.utime(tmp_path / file, (1e9, 1e9))
        [task] = TaskBook(["own_reader"], tmp_path, True).load("own_reader").values()
        assert [doc["question"] for doc in task.test_docs()] == [word]
        for file in tmp_path.glob("*.py"):
            py_compile.compile(file)


@pytest.mark.parametrize("named", ["/**/*.jsonl", ""], ids=["pattern", "folder"])
def test_data_that_may_not_be_read_is_refused(tmp_path, monkeypatch, named):
    """The library of data sets would take the rest for all."""
    shut = tmp_path / "data" / "shut"
    shut.mkdir(parents=True)
    task = CHOICE.replace("{folder}/choice.jsonl", f"{shut.parent}{named}").format()
    (tmp_path / "tiny_choice.yaml").write_text(task)

    def refuse(path, real=os.scandir):
        if os.fspath(path) == os.fspath(shut):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return real(path)

    book = TaskBook(["tiny_choice"], tmp_path, True)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match="shut cannot be read"):
        book.definition("tiny_choice")


def test_what_the_code_of_a_task_reads_is_part_of_it(model, tmp_path, capsys):
    """Beside the code, in a folder that it names, and elsewhere by a name that stands in it; by no YAML file."""
    own, elsewhere = tmp_path / "own", tmp_path / "elsewhere.jsonl"
    (own / "more" / "parts").mkdir(parents=True)
    (own / "function.yaml").write_text(FUNCTION)
    (own / "utils.py").write_text(READS.format(elsewhere=str(elsewhere)))
    line = json.dumps({"question": "what is one?", "choices": [" the cat", " a dog"], "gold": 0}) + "\n"
    files = [own / "rows.jsonl", own / "more" / "parts" / "0.jsonl", elsewhere]
    for file in files:
        file.write_text(line)

    def items(out=tmp_path / "out"):
        assert evaluate(model, own, out, tasks="own_reader") == 0
        return json.loads((out / "results.json").read_text())["metrics"][0]["n"]

    assert items() == 3
    for number, file in enumerate(files, 4):
        file.write_text(2 * line)
        assert items() == number
    (own / "more" / "parts" / "1.jsonl").write_text(line)
    assert items() == 7
    assert items(own) == 7
    capsys.readouterr()
    (own / "notes.md").write_text("no data")
    (own / "evaluate.log").write_text("nor this")
    assert items() == items(own) == 7 and capsys.readouterr().out.count("own_reader is kept") == 2


def test_what_the_code_of_a_task_writes_ends_nothing(model, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "function.yaml").write_text(FUNCTION)
    writes = "    (HERE / 'seen.txt').write_text('1')\n    return"
    (own / "utils.py").write_text(READS.format(elsewhere=os.devnull).replace("    return", writes))
    (own / "rows.jsonl").write_text(json.dumps({"question": "one?", "choices": [" cat", " dog"], "gold": 0}) + "\n")
    assert evaluate(model, own, tmp_path / "out", tasks="own_reader") == 0


def test_a_damaged_result_is_computed_again(model, folder, tmp_path, capsys):
    assert evaluate(model, folder, tmp_path, tasks="tiny_text") == 0
    expected = (tmp_path / "results.json").read_text()
    (kept,) = (tmp_path / "tasks").iterdir()
    for content in ("", "{}", "[]", '{"key": 1, "results": {}}'):
        kept.write_text(content)
        assert evaluate(model, folder, tmp_path, tasks="tiny_text") == 0
        assert "is damaged: that task is run again" in capsys.readouterr().out
        assert json.loads((tmp_path / "results.json").read_text())["metrics"] == json.loads(expected)["metrics"]


def test_settings_are_checked():
    with pytest.raises(InputError, match="bootstrap_iters=-1"):
        Settings(bootstrap_iters=-1)


def test_without_the_harness_the_extra_is_named(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    assert cli.main(["evaluate", str(model), "--tasks=arc_easy", f"--out={tmp_path}"]) == 2
    assert "pip install 'selftrain_jax[eval]'" in capsys.readouterr().err


def test_only_benchmarks_need_the_harness():
    """Other sub-commands, and what names the missing extra, are imported without it."""
    names = "selftrain_jax.cli.tools", "selftrain_jax.evaluation.harness_tasks"
    code = f"import sys; sys.modules['lm_eval'] = None; import {', '.join(names)}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_value_that_is_no_number_is_shown_as_not_known():
    result = {"task": "t", "num_fewshot": 0, "results": {"t": {"ppl,none": float("inf"), "acc,none": 0.5}}}
    (ppl, acc) = harness_tasks.rows([harness_tasks._plain(result | {"n-shot": {}, "n-samples": {}})])
    assert (ppl["value"], acc["value"]) == (None, 0.5)
    assert harness_tasks.format_table([ppl]).splitlines()[1].split() == ["t", "0", "ppl", "-", "-", "-"]


def test_data_behind_urls_and_links_is_part_of_a_task(tmp_path):
    for name in ("own", "elsewhere", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "data")
    files = [tmp_path / "elsewhere" / "rows.jsonl", tmp_path / "choice.jsonl"]
    for file in files:
        file.write_text('{"question": "what?", "choices": ["a", "b"], "gold": 0}\n')
    for task, text in (("url", "file://{folder}/choice.jsonl"), ("link", "{folder}/data")):
        yaml = CHOICE.replace("tiny_choice", task).replace("{folder}/choice.jsonl", text).format(folder=tmp_path)
        (tmp_path / "own" / f"{task}.yaml").write_text(yaml)

    found = {task: set(TaskBook([task], tmp_path / "own", True)._data(task)) for task in ("url", "link")}
    assert found == {"url": {str(files[1])}, "link": {str(tmp_path / "data" / "link" / "rows.jsonl")}}


@pytest.mark.parametrize("edited", ["base/_common.yaml", "base/code.py", "lib/code.py", "inner.jsonl", "choice.jsonl"])
def test_whatever_a_task_of_ones_own_is_put_together_from_is_part_of_it(tmp_path, edited):
    """What it includes and the code beside that, code in a folder, tasks within a group, and their data."""
    own = tmp_path / "own"
    for name in ("base/code.py", "lib/code.py"):
        (own / name).parent.mkdir(parents=True)
        (own / name).write_text("def same(data):\n    return data\n")
    for name in ("inner.jsonl", "choice.jsonl"):
        (own / name).write_text('{"question": "what?", "choices": ["a", "b"], "gold": 0}\n')
    common = CHOICE.replace("task: tiny_choice\n", "").replace("{folder}", str(own)).format()
    (own / "base" / "_common.yaml").write_text(f"{common}\nprocess_docs: !function code.same\n")
    (own / "one.yaml").write_text("task: one\ninclude: base/_common.yaml\n")
    (own / "two.yaml").write_text(f"task: two\n{common}\nprocess_docs: !function lib/code.same\n")
    inline = f"{{task: three, include: base/_common.yaml, dataset_kwargs: {{data_files: {{test: {own}/inner.jsonl}}}}}}"
    (own / "all.yaml").write_text(f"group: all\ntask:\n- group: within\n  task: [one, two]\n- {inline}\n")
    (tmp_path / "link").symlink_to(own)
    before = [TaskBook(["all"], place, True).definition("all") for place in (own, tmp_path / "link")]
    (own / ".hidden.py").write_text("")
    assert [TaskBook(["all"], place, True).definition("all") for place in (own, tmp_path / "link")] == before
    (own / edited).write_text((own / edited).read_text() + "\n")
    for place, was in zip((own, tmp_path / "link"), before):
        assert TaskBook(["all"], place, True).definition("all") != was
