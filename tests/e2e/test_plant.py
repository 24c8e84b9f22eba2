"""A run that plants sequences first: its stages and models, on any mesh, in several processes, in a bucket, killed."""

import shutil

import numpy as np
import pytest
import safetensors.numpy

from selftrain_jax.core.storage import Workdir
from selftrain_jax.models import hf
from selftrain_jax.run.references import find_model
from tests.waiting import wait_until

TRAIN = {"batch_size": 8, "sequence_length": 64, "epochs": 1, "dtype": "float32", "remat": False, "log_every": 1}
PLANT = {
    "text": "lab:control.jsonl",
    "tokens": 8 * 64 * 3,
    "kinds": ("words",),
    "counts": (0, 1, 4),
    "sequences": 2,
    "prefix_length": 3,
    "suffix_length": 3,
    "train": TRAIN | {"checkpoint_every": 1, "optimizer": {"learning_rate": 1e-2, "eps": 1e-5}},
}
RELEARN = {"checkpoint_every": 1, "optimizer": {"learning_rate": 1e-2, "eps": 1e-5, "schedule": "constant"}}
RECOVERY = {"steps": 2, "train": TRAIN | RELEARN}
"""With `eps` of Adam far above the rounding of gradients that are truly zero, such as those of key biases."""
SETTINGS = [f"--config.plant={PLANT}", "--config.evaluate.probes=", "--config.controls={}"]
RUN = [*SETTINGS, f"--config.recovery={RECOVERY}", "--config.evaluate.curve_points=0"]


@pytest.fixture(scope="module")
def made(selftrain, tmp_path_factory):
    """A workdir with the lab alone."""
    workdir = tmp_path_factory.mktemp("lab") / "run"
    selftrain.succeeds("lab", workdir, *SETTINGS)
    return workdir


@pytest.fixture
def workdir(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


@pytest.fixture(scope="module")
def planted(selftrain, made, tmp_path_factory):
    """The same with what `plant` makes, undisturbed."""
    workdir = shutil.copytree(made, tmp_path_factory.mktemp("planted") / "run")
    selftrain.succeeds("plant", workdir, *SETTINGS)
    return workdir


def weights(workdir, model):
    return (workdir / "plant" / model / "model" / "model.safetensors").read_bytes()


def test_a_killed_planting_goes_on_and_leaves_two_models(selftrain, workdir, planted, hold):
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
    assert weights(workdir, "planted") == weights(planted, "planted") != weights(workdir, "twin")
    assert weights(workdir, "twin") == weights(planted, "twin")

    references = [find_model(f"{workdir}:{name}") for name in ("base", "twin")]
    for reference, name in zip(references, ("planted", "twin")):
        _, params = hf.load_pretrained(workdir / "plant" / name / "model")
        np.testing.assert_array_equal(reference.load(None)["embed"]["embedding"], params["embed"]["embedding"])
    other = selftrain("plant", workdir, *SETTINGS, "--config.plant.seed=1")
    assert other.returncode == 2 and "stage plant/text: setting seed is 1" in other.stderr


def test_a_model_of_which_a_part_came_to_a_bucket_is_written_anew(selftrain, planted, tmp_path):
    """A process that is killed while it sends a finished model leaves some files of it, and no manifest."""
    workdir = shutil.copytree(planted, tmp_path / "run")
    (workdir / "plant/twin/manifest.json").unlink()
    (workdir / "plant/twin/model/model.safetensors").unlink()
    selftrain.succeeds("plant", workdir, *SETTINGS)
    assert weights(workdir, "twin") == weights(planted, "twin")


def test_another_mesh_and_smaller_slices_plant_the_same(selftrain, workdir, planted):
    mesh = ["--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.plant.train.grad_accum=2"]
    selftrain.succeeds("plant", workdir, *SETTINGS, *mesh, devices=2)
    for name in ("planted/rows.npz", "twin/rows.npz", "probes.jsonl"):
        assert (workdir / "plant/text" / name).read_bytes() == (planted / "plant/text" / name).read_bytes()
    for model in ("planted", "twin"):
        ours, theirs = (safetensors.numpy.load(weights(folder, model)) for folder in (workdir, planted))
        largest = max(np.abs(ours[name] - theirs[name]).max() for name in theirs)
        print(f"{model}: largest difference of a weight {largest:.1e}")
        assert ours.keys() == theirs.keys() and largest < 1e-5  # sums over devices round by some 1e-8


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


@pytest.fixture(scope="module")
def reported(selftrain, planted, hold, tmp_path_factory):
    """(workdir, standard output) of a whole run, killed once inside relearning."""
    workdir = shutil.copytree(planted, tmp_path_factory.mktemp("reported") / "run")
    held = hold("recover/self-0/step-2.npz$")
    process = selftrain.start("run", workdir, *RUN, hold=held)
    held.reached(process)
    process.kill()
    held.release()
    selftrain.ends([process])
    assert not (workdir / "recover/self-0/manifest.json").exists()
    return workdir, selftrain.succeeds("run", workdir, *RUN)


@pytest.mark.large
def test_a_run_reports_what_planting_caused_and_what_comes_back(selftrain, reported):
    """The planted model takes base's place; the twin stands beside it."""
    workdir, out = reported
    assert "Planted minus twin, extraction (points)" in out and "What was planted and is no longer extracted" in out
    report = selftrain.report(workdir)
    rows = [row for row in report["planted"] if row["measure"] == "extraction"]
    assert {(row["model"], row["repeats"]) for row in rows} <= {(m, n) for m in ("base", "self") for n in (0, 1, 4)}
    assert [row["n"] for row in rows if row["model"] == "base"] == [2, 2, 2]
    assert [row["model"] for row in report["recovery"]] == ["base", "twin", "self"]
    assert report["recovery"][2]["verdict"] == "undecided" and report["recovery"][0]["steps"] == [0, 1, 2]
    assert {row["model"] for row in report["metrics"]} == {"base", "twin", "self"}


@pytest.mark.large
def test_two_processes_in_a_bucket_killed_in_planting_and_in_relearning_report_the_same(
    selftrain, made, reported, hold, bucket
):
    """One of them is killed, twice; in the end one process on one device goes on. Batches of evaluation are of another
    size."""
    place, other = Workdir(bucket), [*RUN, "--config.evaluate.batch_size=6"]
    for file in filter(lambda path: path.is_file() and ".lock" not in path.name, made.rglob("*")):
        target = place.path / file.relative_to(made).as_posix()
        target.write_bytes(file.read_bytes())
    for saved, moment in {
        "plant/planted/checkpoints/2": None,
        "recover/self-0/checkpoints/1": hold("recover/self-0/step-2.npz$"),
    }.items():
        job = selftrain.start_job(2, "run", bucket, *other, holds=moment and {0: moment})
        wait_until(lambda: (moment is None or moment.mark.exists()) and (place.path / saved).exists(), *job)
        job[1].kill()
        if moment:
            moment.release()
        (code, _, err), _ = selftrain.ends(job)
        assert code == 1 and "process 1" in err and "is gone" in err, err[-3000:]
    assert not (place.path / "recover/self-0/manifest.json").exists()
    out = selftrain.succeeds("run", bucket, *other)
    assert "plant/twin: done before" in out and "recover/base: done before" in out
    place.fetch()
    ours, theirs = (selftrain.report(folder) for folder in (place.local, reported[0]))
    for name in ("planted", "recovery"):
        assert len(ours[name]) == len(theirs[name]) > 0
        for row, expected in zip(ours[name], theirs[name]):
            assert row == nearly(expected)


def nearly(value):
    """`value`, numbers in it up to the rounding of sums over other devices and batches."""
    if isinstance(value, dict):
        return {key: nearly(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [nearly(inner) for inner in value]
    return pytest.approx(value, rel=1e-4, abs=1e-4) if isinstance(value, float) else value
