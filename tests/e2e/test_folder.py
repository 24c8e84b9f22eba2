"""What a workdir alone is enough for: it keeps its settings."""

import json
import shutil

import pytest

from selftrain_jax.cli.config import load_config
from tests.e2e.conftest import CONFIG


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "run")


def test_a_workdir_alone_is_looked_at_and_gone_on_with(selftrain, folder):
    def succeeds(*arguments):
        done = selftrain.command(*arguments, f"--workdir={folder}")
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    before = selftrain.report(folder)
    assert {line.split()[0] for line in succeeds("status").splitlines()} == {"done"}
    assert succeeds("sample", "--show=2").count("--- document ") == 2
    shutil.rmtree(folder / "evaluate" / "real-0")
    shutil.rmtree(folder / "report")
    succeeds("evaluate")
    succeeds("report")
    assert selftrain.report(folder) == before
    assert "done before" in succeeds("run") and selftrain.report(folder) == before
    repeat = json.loads((folder / "report" / "report.json").read_text())["command"]
    assert repeat == f"selftrain run --config={folder}/config.json --workdir=NEW"
    assert load_config(f"{folder}/config.json") == load_config(str(CONFIG))


def test_one_setting_can_be_changed_on_top(selftrain, folder):
    changed = "--config.train.epochs=7"
    done = selftrain.command("run", f"--workdir={folder}", changed)
    assert done.returncode == 2 and "setting epochs is 7 but" in done.stderr
    done = selftrain.command("config", f"--workdir={folder}", changed)
    lines = done.stdout.splitlines()
    at = lines.index("train.epochs = 7")
    assert lines[at + 1].startswith("    (command line) ")
    assert lines[lines.index("train.batch_size = 8") + 1].startswith(f"    ({folder}/config.json)")


@pytest.mark.parametrize("command", ["run", "status", "study", "evaluate", "config"])
def test_an_empty_workdir_needs_a_config(selftrain, tmp_path, command):
    done = selftrain.command(command, f"--workdir={tmp_path / 'new'}")
    kept = "study.json" if command == "study" else "config.json"
    assert done.returncode == 2 and f"(no {kept} in it): name a config with --config=FILE.py" in done.stderr
    assert not (tmp_path / "new").exists()


def test_what_more_samples_would_redo_is_told(selftrain, folder):
    done = selftrain.command("run", f"--workdir={folder}", "--config.sample.num_samples=999", "--dry-run")
    told = [line.partition(" (took")[0] for line in done.stdout.splitlines()]
    assert {"keep   lab/base", "go on  sample/self", "keep   train/real-0"} <= set(told)
    assert {"redo   audit/self", "redo   train/self-0"} <= {line.partition(":")[0] for line in told}
    assert "train/self-0: it was made from less of subset/self-0 than is asked for now" in done.stdout


def test_a_changed_setting_is_carried_through_when_asked_for(selftrain, folder):
    """What does not depend on it is kept; nothing of before is left beside it."""
    old, arguments = selftrain.contents(folder), (f"--workdir={folder}", "--config.train.epochs=3")
    done = selftrain.command("run", *arguments, "--dry-run")
    lines = dict(reversed(line.split(maxsplit=1)) for line in done.stdout.splitlines())
    todo = {name.partition(":")[0].partition(" ")[0]: what for name, what in lines.items()}
    assert {todo[name] for name in ("lab/base", "sample/self", "subset/real-0", "evaluate/base")} == {"keep"}
    assert {todo[name] for name in ("train/self-0", "evaluate/self-0", "train/real-0", "report")} == {"redo"}
    assert "train/self-0: setting epochs is 3 and was 4" in done.stdout
    assert selftrain.contents(folder) == old
    refused = selftrain.command("run", *arguments)
    assert refused.returncode == 2 and "which `selftrain run --redo` does" in refused.stderr

    done = selftrain.command("run", *arguments, "--redo")
    assert done.returncode == 0, done.stderr[-3000:]
    new = selftrain.contents(folder)
    assert not [name for name in new if name.startswith(("before-redo", ".removed"))]
    assert all(new[name] == old[name] for name in old if name.startswith(("lab/", "sample/", "subset/")))
    assert selftrain.report(folder)["metrics"] != json.loads(old["report/report.json"])["metrics"]
    assert "done before" in selftrain.command("run", f"--workdir={folder}").stdout
