"""Figures of one model never stand for another: every reader of a run refuses what was made from something else."""

import json
import shutil

import pytest

from selftrain_jax.core.storage import RECORDS
from selftrain_jax.run.references import find_model
from tests.models.checkpoints import refuses

CHANGE = "--config.train.optimizer.learning_rate=1e-4"


@pytest.fixture
def retrained(selftrain, copy_of, finished):
    """A finished run whose models were removed and trained anew with another learning rate, but not evaluated."""
    workdir = copy_of("lab", "sample", "audit", "subset", "evaluate", "report")
    for model in ("self-0", "real-0", "other-0"):
        shutil.copytree(finished[0] / "train" / model, workdir / "train" / model)
    changed = json.loads((finished[0] / "config.json").read_text())
    changed["train"]["optimizer"]["learning_rate"] = 1e-4
    (workdir / "config.json").write_text(json.dumps(changed))
    for path in (path for name in RECORDS for path in workdir.glob(f"train/*/{name}")):
        record = json.loads(path.read_text())
        record.get("settings", {}).get("optimizer", {}).update(learning_rate=1e-4)
        path.write_text(json.dumps(record | ({"fingerprint": "another"} if "fingerprint" in record else {})))
    return workdir


def test_nothing_is_trained_where_the_evaluation_would_be_refused(selftrain, copy_of):
    workdir = copy_of("lab", "sample", "audit", "subset", "evaluate", "report")
    done = selftrain("run", workdir, CHANGE)
    assert done.returncode == 2 and not (workdir / "train").exists()
    assert "stage evaluate/self-0 in " in done.stderr and "made from another train/self-0" in done.stderr


def test_status_report_and_export_refuse_figures_of_another_model(selftrain, retrained, tmp_path):
    lines = selftrain.succeeds("status", retrained, CHANGE).splitlines()
    stale = {line.split()[1].rstrip(":") for line in lines if line.startswith("stale ")}
    assert stale == {"evaluate/self-0", "evaluate/real-0", "evaluate/other-0", "report"}
    for done in (selftrain("report", retrained, CHANGE), selftrain.command("export", retrained, tmp_path / "out")):
        assert done.returncode == 2 and " is stale: " in done.stderr
    assert not (tmp_path / "out").exists()
    find_model(f"{retrained}:self-0")  # the weights themselves are those that config.json speaks of


def test_a_model_of_another_text_is_refused_by_name(retrained):
    for path in retrained.glob("subset/self-0/*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": "another"}))
    refuses(lambda: find_model(f"{retrained}:self-0"), "train/self-0", "is stale", "another subset/self-0")


def test_a_corpus_is_not_published_with_the_audit_of_another(selftrain, copy_of, finished, tmp_path):
    workdir = copy_of("sample", "audit")
    settings = json.loads((finished[0] / "config.json").read_text())
    for seed, code in ((settings["sample"]["seed"], 0), (7, 2)):  # drawn anew with another seed, but not audited
        settings["sample"]["seed"] = seed
        (workdir / "config.json").write_text(json.dumps(settings))
        for path in (path for name in RECORDS for path in workdir.glob(f"sample/*/{name}")):
            record = json.loads(path.read_text())
            record["settings"]["seed"] = seed
            path.write_text(json.dumps(record | ({"fingerprint": "another"} if seed == 7 else {})))
        done = selftrain.command("publish", workdir / "sample/self/corpus", tmp_path / f"out-{seed}")
        assert done.returncode == code and (tmp_path / f"out-{seed}").exists() == (code == 0)
    assert "stage audit/self in " in done.stderr and "made from another sample/self" in done.stderr


def test_weights_or_settings_put_in_the_place_of_others_are_refused(copy_of, finished):
    workdir = copy_of("lab", "sample", "audit", "subset", "train", "evaluate", "report")
    settings = json.loads((finished[0] / "config.json").read_text())
    settings["train"]["epochs"] += 1
    (workdir / "config.json").write_text(json.dumps(settings))
    refuses(lambda: find_model(f"{workdir}:self-0"), "setting epochs is")
    shutil.copyfile(finished[0] / "config.json", workdir / "config.json")
    find_model(f"{workdir}:self-0")
    [*_, last] = sorted((workdir / "train/self-0/checkpoints").glob("[0-9]*"), key=lambda step: int(step.name))
    shutil.rmtree(last)
    shutil.copytree(workdir / "train/real-0/checkpoints" / last.name, last)
    refuses(lambda: find_model(f"{workdir}:self-0"), "train/self-0", "checkpoints/", "has changed in its folder")


@pytest.mark.large
def test_suites_texts_probes_and_a_control_that_come_later_redo_nothing_else(selftrain, copy_of, finished):
    """The report is that of a run which had them from the start."""
    workdir = copy_of("lab", "sample")
    settings = json.loads((finished[0] / "config.json").read_text())
    suites, controls = settings["evaluate"]["multiple_choice"], settings["controls"]
    less = ["--config.evaluate.texts={}", "--config.evaluate.probes="]
    less += [f"--config.evaluate.multiple_choice={ {'two_step': suites['two_step']} }"]
    less += [f"--config.controls={ {'real': {'texts': controls['real']['texts']}} }"]
    selftrain.succeeds("run", workdir, *less)
    before = {stage: selftrain.contents(workdir / stage) for stage in ("audit", "subset", "train")}
    out = selftrain.succeeds("run", workdir)
    for stage, files in before.items():
        assert files.items() <= selftrain.contents(workdir / stage).items()
    assert {line.split()[1] for line in out.splitlines() if line.startswith("[") and "done before" not in line} == {
        *(f"evaluate/{model}" for model in ("base", "self-0", "real-0", "other-0")),
        *("audit/other", "subset/other-0", "train/other-0", "report"),
    }
    assert selftrain.report(workdir) == selftrain.report(finished[0])


@pytest.mark.large
def test_a_corpus_that_grows_is_carried_through_to_the_report(selftrain, copy_of, finished):
    workdir = copy_of("lab", "sample", "audit", "subset", "train", "evaluate", "report")
    before = selftrain.contents(workdir / "train")
    out = selftrain.succeeds("run", workdir, "--config.sample.num_samples=80", "--config.train.epochs=4")
    assert "sample/self" in out and "lab/base: done before" in out and "train/real-0: done before" in out
    assert json.loads((workdir / "report" / "report.json").read_text())["corpus"]["num_documents"] == 80
    kept = selftrain.contents(workdir / "replaced" / "1" / "train")
    assert kept and all(before[name] == data for name, data in kept.items())
    again = selftrain.succeeds("status", workdir, "--config.sample.num_samples=80").splitlines()
    assert {line.split()[0] for line in again} == {"done"}
