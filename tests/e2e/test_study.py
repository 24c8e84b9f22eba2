import csv
import json
import pathlib
import random
import shutil
import signal
import time

import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.report.study_data import UNTRAINED
from selftrain_jax.run.references import find_model
from selftrain_jax.study.execute import run_study
from selftrain_jax.study.rules import VERSION

CONFIG = pathlib.Path(__file__).with_name("tiny_study.py")
NO_LOOP = "--config.generations.count=1"


@pytest.fixture(scope="module")
def finished(selftrain, tmp_path_factory):
    """(workdir, standard output) of one uninterrupted study."""
    workdir = tmp_path_factory.mktemp("study") / "study"
    return workdir, selftrain.succeeds("study", workdir, config=CONFIG)


def found(workdir):
    """study.json without what may differ between equal studies."""
    value = json.loads((workdir / "report" / "study.json").read_text())
    return {name: rows for name, rows in value.items() if name not in ("command", "costs", "versions")}


def test_a_study_ends_with_its_tables(finished):
    workdir, out = finished
    data = found(workdir)
    assert [row["finding"][0] for row in data["verdicts"]] == ["1", "2", "3"]
    assert {row["rules"] for row in data["verdicts"]} == {VERSION} and {row["seeds"] for row in data["verdicts"]} == {1}
    assert [row["finding"][0] for row in data["older_verdicts"]] == ["1", "2", "3", "1"]
    extracted = [row for row in data["results"] if row["metric"] == "extraction/held_out" and row["before"]]
    assert len(data["memory"]) == len(extracted)
    assert not any("not done" in note for note in data["notes"])
    pairs = {(row["student"], row["arm"], row["relation"]) for row in data["utility"]}
    assert pairs == {
        ("A_small", "A_small", "self"),
        ("A_small", "B", "other family"),
        ("A_small", "real", "real text"),
        ("A_small", "shuffled", "shuffled real text"),
        ("A_small", "none", UNTRAINED[0]),
        ("A_small", "noise", UNTRAINED[1]),
    }
    drift = {row["arm"]: row["after"] for row in data["results"] if row["metric"] == "drift"}
    assert drift["none"] < 1e-4 < min(drift["A_small"], drift["noise"])
    assert {row["metric"] for row in data["curves"]} >= {"capability", "drift", "nll/validation"}
    assert {row["arm"] for row in data["matched"]} == {"A_small", "B", "real", "shuffled"}
    # In batches of another size nothing changes but the last digits of a likelihood.
    again = [(row["before"], row["after"]) for row in data["results"] if row["arm"] == "none"]
    assert again and all(after == pytest.approx(before, abs=1e-5) for before, after in again)
    assert {row["num_replicates"] for row in data["utility"]} == {1}
    assert {row["proxy"] for row in data["proxies"]} >= {
        "nll",
        "bits_per_byte",
        "excess_nll",
        "hidden_similarity",
        "tfidf_similarity",
        "gradient_alignment",
    }
    excess = {row["arm"]: row["value"] for row in data["proxies"] if row["proxy"] == "excess_nll"}
    assert excess.pop("A_small") == 0 and all(excess.values())  # of its own text, whatever rounding says
    assert {row["generation"] for row in data["generations"]} == {0, 1, 2}
    assert {row["mode"] for row in data["generations"]} == {"replace", "accumulate"}
    assert {row["step"] for row in data["curves"]} >= {0}
    with open(workdir / "report" / "tables" / "results.csv", newline="") as f:
        assert len(list(csv.DictReader(f))) == len(data["results"])
    for run in data["runs"]:
        assert (workdir / "report" / run["report"]).resolve().is_file()
    assert "A_small-0: A_small: capability " in out and " -> " in out
    assert str(workdir / "report" / "study.html") in out and "INCONCLUSIVE" in out


def test_a_finished_study_is_not_done_again_though_it_was_moved(finished, selftrain, tmp_path):
    workdir, _ = finished
    moved = shutil.copytree(workdir, tmp_path / "elsewhere" / "moved")
    out = selftrain.succeeds("study", moved, config=CONFIG)
    units = [line for line in out.splitlines() if line.startswith("[")]
    assert units and all(line.endswith("done before") for line in units)
    assert {**found(moved), "settings": 0} == {**found(workdir), "settings": 0}
    assert find_model(f"{moved}/runs/A_small-0:corpus-0").tokenizer.is_relative_to(moved)


@pytest.mark.parametrize(
    "gone, unit",
    [("runs/A_small-0/evaluate/base/items.npz", "evaluate/base"), ("corpora/0/B/corpus/manifest.json", "corpora/0/B")],
)
def test_a_unit_whose_files_are_gone_is_named_before_any_work(finished, selftrain, tmp_path, gone, unit):
    moved = shutil.copytree(finished[0], tmp_path / "moved")
    (moved / gone).unlink()
    done = selftrain("study", moved, config=CONFIG)
    assert done.returncode == 2 and f"stage {unit} in " in done.stderr and "is gone from its folder" in done.stderr
    assert "[" not in done.stdout


def test_a_table_says_which_runs_it_lacks(finished, selftrain, tmp_path):
    moved = shutil.copytree(finished[0], tmp_path / "moved")
    arguments = "metrics", moved, f"--out={tmp_path / 'm.jsonl'}"
    whole = selftrain.command(*arguments)
    assert whole.returncode == 0 and "warning" not in whole.stderr
    (moved / "runs/A_small-0/evaluate/real-0/items.npz").unlink()
    done = selftrain.command(*arguments)
    assert done.returncode == 0
    assert "1 of 1 runs are left out, or arms of them, since not done or stale: A_small-0" in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert {row["arm"] for row in rows} == {None, "A_small", "B", "shuffled"}
    # A report of another evaluation than that of now, and one that is still to be written.
    manifest = moved / "runs/A_small-0/report/manifest.json"
    kept = json.loads(manifest.read_text())
    inputs = kept["inputs"] | {"evaluate/B-0": "of another"}
    for spoil in (lambda: manifest.write_text(json.dumps(kept | {"inputs": inputs})), manifest.unlink):
        spoil()
        done = selftrain.command(*arguments)
        assert done.returncode == 2 and "has no run that is done" in done.stderr
        assert selftrain.command("items", moved, f"--out={tmp_path / 'i.jsonl'}").returncode == 0


def test_a_text_that_is_no_longer_asked_for_stands_in_no_report(finished, selftrain, tmp_path):
    workdir, out = shutil.copytree(finished[0], tmp_path / "study"), tmp_path / "m.jsonl"
    report = workdir / "runs/A_small-0/report/report.json"
    assert "control:B" in report.read_text()
    selftrain.succeeds("study", workdir, "--config.sources=('A_small',)", config=CONFIG)
    assert "control:B" not in report.read_text()
    assert selftrain.command("metrics", workdir, f"--out={out}").returncode == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["model"] for row in rows} == {"base", "corpus", "control:real", "control:shuffled"}


def test_a_changed_setting_is_named_before_any_work(finished, selftrain):
    workdir, _ = finished
    before = selftrain.contents(workdir / "report")
    done = selftrain("study", workdir, "--config.train.epochs=3", config=CONFIG)
    assert done.returncode == 2 and "setting epochs is 3 but" in done.stderr and "Traceback" not in done.stderr
    assert selftrain.contents(workdir / "report") == before


@pytest.mark.large
def test_a_study_of_other_settings_is_done_anew_where_asked_for(finished, selftrain, tmp_path):
    """By two shards, from the stages that the setting is of on; what came before, and what was kept meanwhile, stays
    as it is or goes."""
    workdir, setting = shutil.copytree(finished[0], tmp_path / "study"), "--config.train.epochs=1"
    corpus = workdir / "corpora/0/B/manifest.json"
    before = corpus.read_bytes()
    started = [selftrain.start("study", workdir, setting, "--redo", f"--shard={i}/2", config=CONFIG) for i in (0, 1)]
    ends = [process.communicate(timeout=600) for process in started]
    assert [process.returncode for process in started] == [0, 0], ends
    assert corpus.read_bytes() == before and not list(workdir.rglob("before-redo"))
    selftrain.succeeds("study", tmp_path / "fresh", setting, config=CONFIG)
    assert found(workdir) == found(tmp_path / "fresh")


@pytest.mark.large
def test_two_shards_on_one_folder_find_what_one_process_finds(finished, selftrain, tmp_path):
    processes = [selftrain.start("study", tmp_path, f"--shard={i}/2", config=CONFIG) for i in (0, 1)]
    ends = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    assert found(tmp_path) == found(finished[0])


@pytest.mark.large
def test_a_study_killed_at_random_finds_the_same(finished, selftrain, tmp_path):
    rng = random.Random(0)
    for _ in range(4):
        process = selftrain.start("study", tmp_path, config=CONFIG)
        time.sleep(rng.uniform(4, 16))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    selftrain.succeeds("study", tmp_path, config=CONFIG)
    assert found(tmp_path) == found(finished[0])


@pytest.mark.large
def test_what_fails_is_told_and_the_rest_is_done(selftrain, tmp_path):
    """One-word overlaps are everywhere: no audit lets anything through."""
    done = selftrain("study", tmp_path, NO_LOOP, "--config.audit.ngram=1", config=CONFIG)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    last = done.stderr.splitlines()[-1]
    assert "units failed, the rest is done" in last and "A_small-0: A_small" in last
    data = found(tmp_path)
    assert not [row for row in data["utility"] if row["arm"] != "none"] and "units are not done" in data["notes"][0]
    assert "units failed: A_small-0: A_small: " in data["notes"][1] and ", which failed" not in data["notes"][1]
    assert (tmp_path / "failed").is_dir() and (tmp_path / "corpora" / "0" / "B" / "manifest.json").is_file()


@pytest.mark.large
def test_a_training_whose_numbers_break_is_one_failure_among_others(selftrain, tmp_path):
    rates = "--config.learning_rates=(0.001,1e38)"
    done = selftrain("study", tmp_path, NO_LOOP, rates, "--config.sources=('A_small',)", config=CONFIG)
    assert done.returncode == 2 and "not finite" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    data = found(tmp_path)
    assert {row["condition"] for row in data["utility"]} == {"lr 0.001"} and data["notes"]


def test_bad_input_is_refused_before_anything_is_written(selftrain, tmp_path):
    for settings, message in (
        (["--config.real=missing.jsonl"], "missing.jsonl"),
        (["--config.sources=('A_smal',)"], "sources names 'A_smal'"),
        (["--shard=2/2"], "--shard='2/2' must be I/N"),
        (["--report"], "holds no study"),
        (["--config.evaluate.texts.more=missing.jsonl"], "evaluate.texts.more: file not found"),
    ):
        done = selftrain("study", tmp_path / "x", *settings, config=CONFIG)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
        assert not (tmp_path / "x").exists()


def test_a_job_of_several_processes_is_sent_to_shards(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(InputError, match="--shard"):
        run_study(None, tmp_path / "x", "", "0/1", False, False, print)


def test_study_and_run_name_each_other(selftrain, tmp_path):
    done = selftrain("run", tmp_path / "x", config=CONFIG)
    assert done.returncode == 2 and "use `selftrain study" in done.stderr
    done = selftrain("study", tmp_path / "x")
    assert done.returncode == 2 and "use `selftrain run" in done.stderr
