"""The examples and the launcher do what their first lines say."""

import os
import pathlib
import runpy
import subprocess

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_the_train_step_example_learns():
    losses = runpy.run_path(str(ROOT / "examples" / "train_step.py"))["main"]()
    assert losses[0] > 5 and losses[-1] < 0.5 * losses[0]  # ln 256 = 5.5 nats before, then learned by heart


def test_the_step_runs_in_another_projects_mesh_and_loop():
    losses = runpy.run_path(str(ROOT / "examples" / "own_mesh_and_loop.py"))["main"]()
    assert losses[0] > 3.5 and losses[-1] < 0.5 * losses[0]  # a bigram table can learn this text by heart


def test_the_step_takes_another_loss():
    divergences = runpy.run_path(str(ROOT / "examples" / "distillation.py"))["main"]()
    assert divergences[-1] < 0.6 * divergences[0] and divergences[-1] > 0


def test_the_sample_example_draws_the_same_document_alone():
    example = runpy.run_path(str(ROOT / "examples" / "sample.py"))
    first, again = example["main"](), example["main"]()
    assert list(first.ids) == [0, 1, 1000] and (first.lengths >= 4).all()
    np.testing.assert_array_equal(first.tokens, again.tokens)


def test_the_gpu_launcher_prints_its_command_and_refuses_to_guess():
    def launch(*arguments):
        return subprocess.run(
            ["bash", ROOT / "launch" / "gpu.sh", *arguments],
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"]},
        )

    shown = launch("--dry-run", "--config=configs/pythia.py:410m", "--workdir=runs/with space")
    assert shown.returncode == 0
    assert "python -P -m selftrain_jax run --config=configs/pythia.py:410m --workdir=runs/with\\ space" in shown.stdout
    assert launch().returncode == 2
