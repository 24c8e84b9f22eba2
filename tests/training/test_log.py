"""What a training tells while it goes on."""

import io
import sys

import jax

from selftrain_jax.distributed.mesh import make_mesh
from selftrain_jax.training import log as log_module
from selftrain_jax.training.log import TrainingLog


def make_log(directory, num_devices):
    speed = {"tokens_per_step": 8, "flops_per_token": 1e12, "half_precision": False}
    mesh = make_mesh(devices=jax.devices()[:num_devices])
    return TrainingLog(directory, first=0, num_steps=4, description="train self-0", mesh=mesh, **speed)


def test_a_short_training_that_no_terminal_shows_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    log = make_log(tmp_path, 1)
    for step in (1, 2, 4):
        log.write(step, {"loss": 1.0 / step}, {})
    log.close()
    lines = sys.stderr.getvalue().splitlines()
    assert len(lines) == 1 and "train self-0: 4 of 4 step, " in lines[0] and ", loss=0.250, tok_s=" in lines[0]


def test_speeds_are_those_of_the_devices_that_train_while_they_train(tmp_path, monkeypatch):
    """Not of all that JAX has, and without what was measured in between."""
    clock = iter([0.0, 4.0, 10.0, 14.0])
    monkeypatch.setattr(log_module.time, "perf_counter", lambda: next(clock))
    log = make_log(tmp_path, 2)
    assert jax.device_count() > 2
    with log.paused():  # from 4 to 10
        pass
    first = log.write(2, {"loss": 1.0}, {})  # at 14: two steps of 8 tokens in 8 seconds
    assert (first["tokens_per_second"], first["tflops_per_device"]) == (2.0, 1.0)
    monkeypatch.undo()
    log.close()
