"""A command that is refused in the middle of its work, on a folder that was whole."""

import json
import pathlib

import pytest

from selftrain_jax.cli import main as cli
from selftrain_jax.cli.config import load_config
from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import write_json
from selftrain_jax.run import checks
from selftrain_jax.run.pipeline import Pipeline
from selftrain_jax.run.stages import Stage

TINY = str(pathlib.Path(__file__).resolve().parents[1] / "e2e" / "tiny.py")


@pytest.fixture
def selftrain(tmp_path, monkeypatch):
    """`selftrain(*arguments)` -> exit code of `run` with two stages, of which evaluation refuses a `limit` of 3."""

    def plan(pipeline):
        def measure(directory):
            if pipeline.config.evaluate.limit == 3:
                raise InputError("this suite cannot be read")
            (directory / "items").write_text(str(pipeline.config))

        def train(directory):
            (directory / "weights").write_text(str(pipeline.config.train.epochs))

        settings = {"limit": pipeline.config.evaluate.limit}
        return [
            Stage("train/self-0", {"epochs": pipeline.config.train.epochs}, [], train),
            Stage("evaluate/self-0", settings, ["train/self-0"], measure),
        ]

    monkeypatch.setattr(Pipeline, "stages", plan)
    for check in ("check_files", "check_lengths", "check_attention"):
        monkeypatch.setattr(checks, check, lambda run: None)
    monkeypatch.setattr("selftrain_jax.cli.runs.format_table", lambda *_: "")
    monkeypatch.setattr("selftrain_jax.report.memory.lines", lambda *_: [])
    return lambda *arguments: cli.main(["run", f"--workdir={tmp_path}", *arguments])


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".txt"}


@pytest.mark.parametrize("redo", [[], ["--redo"]], ids=["without", "redo"])
def test_a_setting_that_is_refused_leaves_everything_as_it_was(selftrain, tmp_path, capsys, redo):
    """The folder's own settings, too: a command with --workdir alone goes on with them."""
    assert selftrain(f"--config={TINY}") == 0
    before = contents(tmp_path)
    assert selftrain("--config.evaluate.limit=3", *redo) == 2
    assert ("this suite cannot be read" if redo else "setting limit is 3") in capsys.readouterr().err
    assert contents(tmp_path) == before and not (tmp_path / "before-redo").exists()
    assert selftrain() == 0 and contents(tmp_path) == before


def test_what_was_made_anew_before_a_refusal_keeps_its_settings(selftrain, tmp_path):
    assert selftrain(f"--config={TINY}") == 0
    before = contents(tmp_path)
    assert selftrain("--config.train.epochs=7", "--config.evaluate.limit=3", "--redo") == 2
    after = contents(tmp_path)
    assert json.loads(after["config.json"])["train"]["epochs"] == 7 and after["train/self-0/weights"] == b"7"
    assert all(after[f"before-redo/{name}"] == data for name, data in before.items() if "/" in name)
    assert selftrain("--config.evaluate.limit=2", "--redo") == 0
    assert json.loads((tmp_path / "config.json").read_text())["evaluate"]["limit"] == 2
    assert not (tmp_path / "before-redo").exists()


def test_a_first_run_that_is_refused_keeps_its_settings(selftrain, tmp_path):
    assert selftrain(f"--config={TINY}", "--config.evaluate.limit=3") == 2
    assert json.loads((tmp_path / "config.json").read_text())["evaluate"]["limit"] == 3
    assert selftrain("--config.evaluate.limit=2") == 0


def test_a_file_that_a_finished_lab_has_not_is_refused_before_any_work(selftrain, tmp_path, capsys):
    made = {value.removeprefix("lab:"): "" for value in Pipeline(load_config(TINY), tmp_path).references().values()}
    (tmp_path / "lab/world").mkdir(parents=True)
    write_json(tmp_path / "lab/world/manifest.json", {"files": made})
    before = contents(tmp_path)
    assert selftrain(f"--config={TINY}", "--config.leaks.references.known=lab:facts.jsonl") == 2
    told = "setting leaks.references.known='lab:facts.jsonl': the lab makes base, other, control.jsonl, probes.jsonl, "
    assert told in capsys.readouterr().err and contents(tmp_path) == before
    assert selftrain(f"--config={TINY}", "--config.leaks.references.known=lab:control.jsonl") == 0
