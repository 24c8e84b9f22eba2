"""What a training tells while it goes on."""

import io
import sys

from selftrain_jax.training.log import TrainingLog


def test_a_short_training_that_no_terminal_shows_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    speed = {"tokens_per_step": 8, "flops_per_token": 1.0, "half_precision": False}
    log = TrainingLog(tmp_path, first=0, num_steps=4, description="train self-0", **speed)
    for step in (1, 2, 4):
        log.write(step, {"loss": 1.0 / step}, {})
    log.close()
    lines = sys.stderr.getvalue().splitlines()
    assert len(lines) == 1 and "train self-0: 4 of 4 step, " in lines[0] and ", loss=0.250, tok_s=" in lines[0]
