"""A run that plants sequences first: its stages, its models, and a kill inside."""

import shutil

import numpy as np
import pytest

from selftrain_jax.models import hf
from selftrain_jax.run.references import find_model

TRAIN = {"batch_size": 8, "sequence_length": 64, "epochs": 1, "dtype": "float32", "remat": False, "log_every": 1}
PLANT = {
    "text": "lab:control.jsonl",
    "tokens": 8 * 64 * 3,
    "kinds": ("words",),
    "counts": (0, 1, 4),
    "sequences": 2,
    "prefix_length": 3,
    "suffix_length": 3,
    "train": TRAIN | {"checkpoint_every": 1, "optimizer": {"learning_rate": 1e-2}},
}
RECOVERY = {"steps": 2, "train": TRAIN | {"optimizer": {"learning_rate": 1e-2, "schedule": "constant"}}}
SETTINGS = [f"--config.plant={PLANT}", "--config.evaluate.probes=", "--config.controls={}"]


@pytest.fixture(scope="module")
def made(selftrain, tmp_path_factory):
    """A workdir with the lab alone."""
    workdir = tmp_path_factory.mktemp("lab") / "run"
    selftrain.succeeds("lab", workdir, *SETTINGS)
    return workdir


@pytest.fixture
def workdir(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def weights(workdir, model):
    return (workdir / "plant" / model / "model" / "model.safetensors").read_bytes()


def test_a_killed_planting_goes_on_and_leaves_two_models(selftrain, workdir, hold):
    held = hold("plant/planted/checkpoints/2$")
    process = selftrain.start("plant", workdir, *SETTINGS, hold=held)
    held.reached(process)
    process.kill()
    held.release()
    selftrain.ends([process])
    out = selftrain.succeeds("plant", workdir, *SETTINGS)
    assert [line.split("] ")[1] for line in out.splitlines()] == [
        "plant/text: done before",
        "plant/planted",
        "plant/twin",
    ]
    killed = weights(workdir, "planted")
    assert killed != weights(workdir, "twin")
    shutil.rmtree(workdir / "plant")
    selftrain.succeeds("plant", workdir, *SETTINGS)
    assert weights(workdir, "planted") == killed

    references = [find_model(f"{workdir}:{name}") for name in ("base", "twin")]
    for reference, name in zip(references, ("planted", "twin")):
        _, params = hf.load_pretrained(workdir / "plant" / name / "model")
        np.testing.assert_array_equal(reference.load(None)["embed"]["embedding"], params["embed"]["embedding"])
    other = selftrain("plant", workdir, *SETTINGS, "--config.plant.seed=1")
    assert other.returncode == 2 and "stage plant/text: setting seed is 1" in other.stderr


@pytest.mark.parametrize(
    "setting, message",
    [
        ("plant.text=nowhere.txt", "setting plant.text: file not found: nowhere.txt"),
        ("plant.tokens=51200", "plant text='lab:control.jsonl' is too short"),
        ("plant.train.sequence_length=128", "train sequence_length=128 exceeds the model's context of 64"),
    ],
)
def test_bad_input_ends_before_training(selftrain, workdir, setting, message):
    more = ["--config.plant.tokens=3072"] if "length" in setting else []
    done = selftrain("plant", workdir, *SETTINGS, f"--config.{setting}", *more)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) <= 3
    assert not (workdir / "plant" / "planted").exists()


def test_a_text_in_another_encoding_is_refused_before_any_stage(selftrain, workdir, tmp_path):
    (tmp_path / "latin.txt").write_bytes("caf\u00e9 \u00e9t\u00e9".encode("latin-1"))
    done = selftrain("plant", workdir, *SETTINGS, f"--config.plant.text={tmp_path / 'latin.txt'}")
    assert done.returncode == 2 and "latin.txt is not valid UTF-8" in done.stderr


@pytest.mark.large
def test_a_run_reports_what_planting_caused_and_what_comes_back(selftrain, workdir, hold):
    """Killed once inside relearning. The planted model takes base's place; the twin stands beside it."""
    settings = [*SETTINGS, f"--config.recovery={RECOVERY}", "--config.evaluate.curve_points=0"]
    held = hold("recover/self-0/step-1.npz$")
    process = selftrain.start("run", workdir, *settings, hold=held)
    held.reached(process)
    process.kill()
    held.release()
    selftrain.ends([process])
    out = selftrain.succeeds("run", workdir, *settings)
    assert "Planted minus twin, extraction (points)" in out and "What was planted and is no longer extracted" in out
    report = selftrain.report(workdir)
    rows = [row for row in report["planted"] if row["measure"] == "extraction"]
    assert {(row["model"], row["repeats"]) for row in rows} <= {(m, n) for m in ("base", "self") for n in (0, 1, 4)}
    assert [row["n"] for row in rows if row["model"] == "base"] == [2, 2, 2]
    assert [row["model"] for row in report["recovery"]] == ["base", "twin", "self"]
    assert report["recovery"][2]["verdict"] == "undecided" and report["recovery"][0]["steps"] == [0, 1, 2]
    assert {row["model"] for row in report["metrics"]} == {"base", "twin", "self"}
