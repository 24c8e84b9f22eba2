"""A run that is cut off anywhere and started again is the run that was never cut off; bad runs stop with a reason."""

import dataclasses
import errno
import json
import math
import os
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selftrain_jax.core.errors import InputError, InputWarning, RunStopped
from selftrain_jax.data.packing import PackedRows, batch_indices, pack
from selftrain_jax.distributed.mesh import make_mesh, replicated
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.models import decoder
from selftrain_jax.models.config import Layer, Rotary
from selftrain_jax.models.families import PRESETS
from selftrain_jax.training import log, loop
from selftrain_jax.training.checkpoint import CheckpointNotSaved, restore_params, saved_steps
from selftrain_jax.training.metrics import read_metrics
from selftrain_jax.training.optimizer import make_schedule
from selftrain_jax.training.settings import OptimizerConfig, TrainConfig
from selftrain_jax.training.step import next_token_loss
from tests.shapes import NARROW

MODEL = NARROW
# 5 batches an epoch, 15 steps; the last checkpoint falls on none of the regular ones.
CONFIG = TrainConfig(
    batch_size=4,
    sequence_length=16,
    epochs=3,
    dtype="float32",
    remat=False,
    checkpoint_every=4,
    log_every=3,
    # Key biases have no true gradient; a small eps would turn the rounding of theirs into whole steps.
    optimizer=OptimizerConfig(learning_rate=1e-2, eps=1e-5),
)
STEPS, LOGGED, SAVED = 15, [3, 4, 6, 8, 9, 12, 15], [12, 15]
SPEEDS = {"tokens_per_second", "tflops_per_device"}
FIELDS = {"step", "epoch", "loss", "learning_rate", "grad_norm", "param_norm", "update_norm", "targets"} | SPEEDS


def make_rows(seed=0, rows=22, sequence_length=16):
    rng = np.random.default_rng(seed)
    documents = [rng.integers(1, 64, rng.integers(3, 12)) for _ in range(rows * 4)]
    packed = pack(documents, bos_token_id=0, sequence_length=sequence_length)
    return PackedRows(packed.tokens[:rows], packed.segment_ids[:rows], 0)


def make_params():
    """Always compiled as a whole: step by step, jax 0.10 rounds the last bit of a normal draw differently."""
    return jax.jit(decoder.init_params, static_argnums=0)(MODEL, jax.random.key(0))


@pytest.fixture(scope="module")
def rows():
    return make_rows()


@pytest.fixture(scope="module")
def params():
    return make_params()


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])


@pytest.fixture(scope="module")
def whole(params, rows, mesh, tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    directory = tmp_path_factory.mktemp("whole")
    last = loop.train(params, MODEL, rows, CONFIG, directory, mesh=mesh)
    assert last == read_metrics(directory / "metrics.jsonl")[-1]
    return directory


def results(directory, mesh):
    """Final parameters as bits, and every metric but the speeds."""
    final = jax.tree.map(np.asarray, restore_params(directory / "checkpoints", MODEL, mesh, STEPS))
    lines = read_metrics(directory / "metrics.jsonl")
    timeless = [{name: value for name, value in line.items() if name not in SPEEDS} for line in lines]
    return jax.tree.map(lambda x: x.tobytes(), final), timeless


def wrap_step(monkeypatch, wrapper):
    """Every step that the loop takes goes through `wrapper(number of the call, step function, state, batch)`."""
    original = loop.optimizer_and_step

    def make(*args):
        (optimizer, train_step), calls = original(*args), iter(range(1, 1000))
        return optimizer, lambda state, batch: wrapper(next(calls), train_step, state, batch)

    monkeypatch.setattr(loop, "optimizer_and_step", make)


class Killed(BaseException):
    pass


def kill_at(monkeypatch, number):
    def wrapper(call, train_step, state, batch):
        if call == number:
            raise Killed
        return train_step(state, batch)

    wrap_step(monkeypatch, wrapper)


# Before the first checkpoint, right after one, between two (with a line of metrics to forget), at the last step.
@pytest.mark.everywhere
@pytest.mark.parametrize("killed_at", [4, 5, 15, *(pytest.param(n, marks=pytest.mark.large) for n in (1, 8))])
def test_a_killed_run_ends_like_one_that_was_not(whole, params, rows, mesh, tmp_path, monkeypatch, killed_at):
    with monkeypatch.context() as patch:
        kill_at(patch, killed_at)
        with pytest.raises(Killed):
            loop.train(params, MODEL, rows, CONFIG, tmp_path, mesh=mesh)
    last = loop.train(params, MODEL, rows, CONFIG, tmp_path, mesh=mesh)
    assert last["step"] == STEPS
    assert results(tmp_path, mesh) == results(whole, mesh)


def test_the_checkpoint_is_what_a_run_goes_on_from(whole, params, rows, mesh, tmp_path, monkeypatch):
    """Only the steps after the checkpoint are taken again, and a half-written line of metrics does no harm."""
    with monkeypatch.context() as patch:
        kill_at(patch, 12)
        with pytest.raises(Killed):
            loop.train(params, MODEL, rows, CONFIG, tmp_path, mesh=mesh)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 12, "lo')
    taken = []
    wrap_step(monkeypatch, lambda call, train_step, *args: taken.append(call) or train_step(*args))
    # What is yet to be loaded is not looked at when there is a checkpoint.
    loop.train(lambda: pytest.fail("loaded"), MODEL, rows, CONFIG, tmp_path, mesh=mesh)
    assert len(taken) == STEPS - 8
    assert results(tmp_path, mesh) == results(whole, mesh)


def test_a_finished_run_is_left_alone(whole, params, rows, mesh, monkeypatch):
    kill_at(monkeypatch, 1)
    before = results(whole, mesh)
    assert loop.train(params, MODEL, rows, CONFIG, whole, mesh=mesh)["step"] == STEPS
    assert results(whole, mesh) == before


FOLDERS = (pathlib.Path(__file__).parent, pathlib.Path(__file__).parents[2])
SCRIPT = """
import pathlib, signal, sys, time
import jax
import test_loop
from selftrain_jax.distributed.mesh import make_mesh
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.training import loop

original = loop.batch_indices
def slow(*args, **settings):
    time.sleep(0.1)
    return original(*args, **settings)
loop.batch_indices = slow
params = test_loop.make_params()
mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
loop.train(params, test_loop.MODEL, test_loop.make_rows(), test_loop.CONFIG, pathlib.Path(sys.argv[1]), mesh=mesh)
signal.pause()
"""


@pytest.mark.parametrize("trial", [0, *(pytest.param(i, marks=pytest.mark.large) for i in range(1, 10))])
def test_a_process_killed_at_any_moment_is_resumed(whole, params, rows, mesh, tmp_path, trial):
    """SIGKILL up to 1.5 s after the first line of metrics: during a step, during a save, between, or after the last."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, FOLDERS)),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9",  # a kill must not leave half a compiled program to others
    }
    wait = random.Random(trial).uniform(0, 1.5)
    with open(tmp_path / "output", "w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "run")], env=environment, stdout=output, stderr=output
        )
        try:
            metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 600
            while not read_metrics(metrics):
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "output").read_text()
                time.sleep(0.02)
            time.sleep(wait)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    seen = read_metrics(metrics)[-1]["step"]
    loop.train(params, MODEL, rows, CONFIG, tmp_path / "run", mesh=mesh)
    assert results(tmp_path / "run", mesh) == results(whole, mesh), f"killed {wait} s after line 1, at step {seen}"


def test_a_run_goes_on_with_another_mesh(whole, params, rows, mesh, tmp_path, monkeypatch):
    """From one device to eight.

    Bound: gradients round differently by some 1e-8, which Adam divides by no less than eps.
    """
    with monkeypatch.context() as patch:
        kill_at(patch, 14)
        with pytest.raises(Killed):
            loop.train(params, MODEL, rows, CONFIG, tmp_path, mesh=mesh)
    eight = make_mesh(MeshConfig(2, 2, 2))
    loop.train(params, MODEL, rows, CONFIG, tmp_path, mesh=eight)
    found, expected = (restore_params(path / "checkpoints", MODEL, mesh) for path in (tmp_path, whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), found, expected)
    losses = [[line["loss"] for line in read_metrics(path / "metrics.jsonl")] for path in (tmp_path, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.everywhere
def test_metrics_have_every_field(whole):
    lines = read_metrics(whole / "metrics.jsonl")
    schedule = make_schedule(CONFIG.optimizer, STEPS)
    assert [line["step"] for line in lines] == LOGGED
    for line in lines:
        assert set(line) == FIELDS and all(np.isfinite(value) for value in line.values())
        assert line["epoch"] == line["step"] / 5 and line["targets"] == 4 * 16 and line["tokens_per_second"] > 0
        assert line["learning_rate"] == float(schedule(line["step"] - 1))
    assert abs(lines[0]["loss"] - np.log(64)) < 0.3 and lines[-1]["loss"] < lines[0]["loss"]


def scalars(directory):
    """What TensorBoard shows: {(tag, step): value} and the steps at which writers began."""
    from tensorboardX.proto.event_pb2 import Event

    found, starts = {}, []
    for path in sorted(directory.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:  # length, its checksum, event, its checksum
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.HasField("session_log"):
                starts.append(event.step)
                found = {key: value for key, value in found.items() if key[1] < event.step}
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    return found, starts


def test_tensorboard_shows_the_metrics(whole):
    expected = {
        (name, line["step"]): np.float32(value)
        for line in read_metrics(whole / "metrics.jsonl")
        for name, value in line.items()
        if name != "step"
    }
    assert scalars(whole / "tensorboard")[0] == expected


def test_tensorboard_of_a_resumed_run_hides_the_steps_taken_twice(params, rows, mesh, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_at(patch, 11)
        with pytest.raises(Killed):
            loop.train(params, MODEL, rows, CONFIG, tmp_path, mesh=mesh)
    time.sleep(1.1)  # event files are named by the second
    loop.train(params, MODEL, rows, CONFIG, tmp_path, mesh=mesh)
    found, starts = scalars(tmp_path / "tensorboard")
    assert starts == [1, 9]  # resumed after step 8, whose values stay
    assert sorted(step for name, step in found if name == "loss") == LOGGED


@pytest.mark.parametrize("boundaries, grad_accum", [(False, 1), (True, 2)], ids=["joined", "apart_in_slices"])
def test_the_first_batch_has_the_loss_of_its_rows(params, rows, mesh, tmp_path, boundaries, grad_accum):
    config = dataclasses.replace(CONFIG, grad_accum=grad_accum, log_every=1, document_boundaries=boundaries, seed=3)
    loop.train(params, MODEL, rows, config, tmp_path, mesh=mesh)
    found = read_metrics(tmp_path / "metrics.jsonl")[0]
    chosen = batch_indices(0, num_rows=22, batch_size=4, seed=3)
    batch = {"tokens": rows.tokens[chosen]} | ({"segment_ids": rows.segment_ids[chosen]} if boundaries else {})
    loss, targets = jax.jit(next_token_loss(decoder.Decoder(MODEL)))(params, batch)
    assert found["loss"] == pytest.approx(float(loss / targets), rel=1e-5) and found["targets"] == targets
    assert (targets < 4 * 16) == boundaries


def test_half_precision_training_keeps_fp32_weights(params, rows, mesh, tmp_path):
    """bf16 has 8 bits: the loss stays within a percent, and updates far below its spacing still add up."""
    slow = OptimizerConfig(learning_rate=1e-5)
    config = dataclasses.replace(CONFIG, epochs=1, dtype="bfloat16", remat=True, optimizer=slow)
    last = loop.train(params, MODEL, rows, config, tmp_path, mesh=mesh)
    trained = restore_params(tmp_path / "checkpoints", MODEL, mesh)
    assert {leaf.dtype for leaf in jax.tree.leaves(trained)} == {np.dtype("float32")}
    moved = np.abs(np.asarray(trained["head"]["kernel"]) - np.asarray(params["head"]["kernel"]))
    assert 0 < moved.max() < 1e-4 and (moved > 0).mean() > 0.9
    assert last["loss"] == pytest.approx(np.log(64), abs=0.3)


@pytest.mark.parametrize("dtype, precision", [("float32", "highest"), ("bfloat16", None)])
def test_fp32_training_is_not_tf32_on_accelerators(params, rows, mesh, tmp_path, monkeypatch, dtype, precision):
    class Asked(BaseException):
        pass

    def wrapper(call, train_step, state, batch):
        assert jax.config.jax_default_matmul_precision == precision
        raise Asked

    wrap_step(monkeypatch, wrapper)
    with pytest.raises(Asked):
        loop.train(params, MODEL, rows, dataclasses.replace(CONFIG, dtype=dtype), tmp_path, mesh=mesh)


def poison(tree):
    return jax.tree.map(lambda x: x * np.nan, tree)


@pytest.mark.parametrize(
    "poisoned_at, noticed_at, last_good", [(1, 3, "none"), (5, 6, "step 4"), (4, 4, "none"), (8, 8, "step 4")]
)
def test_divergence_stops_the_run(params, rows, mesh, tmp_path, monkeypatch, poisoned_at, noticed_at, last_good):
    """Parameters break in one update. Just before a checkpoint, its loss is still finite: it must not be saved."""

    def wrapper(call, train_step, state, batch):
        state, metrics = train_step(state, batch)
        if call == poisoned_at:
            state = state.replace(params=poison(state.params))
            metrics = metrics | {"param_norm": jnp.float32(np.nan)}
        return state, metrics

    wrap_step(monkeypatch, wrapper)
    message = f"at step {noticed_at} of my run; last good checkpoint: {last_good}"
    with pytest.raises(loop.TrainingDiverged, match=message):
        loop.train(params, MODEL, rows, CONFIG, tmp_path, mesh=mesh, description="my run")
    if last_good == "none":
        with pytest.raises(InputError, match="no checkpoint"):
            restore_params(tmp_path / "checkpoints", MODEL, mesh)
    else:
        kept = restore_params(tmp_path / "checkpoints", MODEL, mesh)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept))


def test_a_real_divergence_is_noticed(params, rows, mesh, tmp_path):
    """Nothing is patched: one update of 1e30 per weight, and the activations overflow."""
    config = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(learning_rate=1e30, warmup=0.0))
    message = "at step 3 of train; last good checkpoint: none. Lower the learning"
    with pytest.raises(loop.TrainingDiverged, match=message):
        loop.train(params, MODEL, rows, config, tmp_path, mesh=mesh)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batch_size": 23}, "batch_size=23 is more than the 22 packed rows"),
        ({"sequence_length": 33}, "sequence_length=33 exceeds the model's context of 32"),
        ({"sequence_length": 15}, "sequence_length=15 does not match rows packed for 16"),
        ({"batch_size": 6}, "= 6 rows cannot be spread over 4"),
        ({"batch_size": 8, "grad_accum": 4}, "= 2 rows cannot be spread over 4"),
    ],
    ids=str,
)
def test_runs_that_cannot_work_are_refused_before_they_start(rows, tmp_path, change, message):
    """No parameters are looked at and no folder is made."""
    if change.get("batch_size") == 23:
        mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    else:
        mesh = make_mesh(MeshConfig(2, 2, 2))
    with pytest.raises(InputError, match=message):
        loop.train(None, MODEL, rows, dataclasses.replace(CONFIG, **change), tmp_path / "run", mesh=mesh)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 0},
        {"sequence_length": 0},
        {"epochs": 0},
        {"keep": 0},
        {"log_every": 0},
        {"grad_accum": -1},
        {"grad_accum": 3},
        {"checkpoint_every": -1},
        {"dtype": "float16"},
    ],
    ids=str,
)
def test_bad_settings_are_refused_by_name(change):
    ((name, value),) = change.items()
    with pytest.raises(InputError, match=f"{name}={value!r}"):
        dataclasses.replace(CONFIG, **change)


@pytest.mark.parametrize("delay", [0, pytest.param(0.05, marks=pytest.mark.large), 1])
def test_checkpoints_removed_under_a_run_cost_nothing_more(whole, params, rows, mesh, tmp_path, monkeypatch, delay):
    """Their folder vanishes right after a save begins, a little later, or when it is done."""

    def wrapper(call, train_step, state, batch):
        if call == 9:  # the save after step 8 has begun
            time.sleep(delay)
            shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
        return train_step(state, batch)

    wrap_step(monkeypatch, wrapper)
    with pytest.warns(InputWarning, match="were removed while training went on"):
        loop.train(params, MODEL, rows, CONFIG, tmp_path, mesh=mesh)
    assert results(tmp_path, mesh) == results(whole, mesh)


def test_a_folder_that_is_gone_ends_the_run_in_one_line(params, rows, mesh, tmp_path, monkeypatch):
    def wrapper(call, train_step, state, batch):
        if call == 5:
            checkpoints[0].wait()  # nothing is written there any more
            shutil.rmtree(tmp_path / "run")
        return train_step(state, batch)

    checkpoints, save = [], loop.Checkpoints.save
    monkeypatch.setattr(loop.Checkpoints, "save", lambda *args: (checkpoints.append(args[0]), save(*args)))
    wrap_step(monkeypatch, wrapper)
    with pytest.raises(CheckpointNotSaved, match="can no longer be saved: .*run is gone"):
        loop.train(params, MODEL, rows, CONFIG, tmp_path / "run", mesh=mesh)


@pytest.mark.parametrize("signals", [pytest.param(1, marks=pytest.mark.large), 2])
def test_sigterm_during_a_save_leaves_a_whole_checkpoint(whole, params, rows, mesh, tmp_path, monkeypatch, signals):
    """It comes when the save after step 4 has begun and not ended: that one is finished, and step 5 is saved."""
    save = loop.Checkpoints.save

    def interrupted(self, state):
        save(self, state)
        if int(state.step) == 4:
            for _ in range(signals):
                os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Checkpoints, "save", interrupted)
        with pytest.raises(loop.Preempted, match="step 5 of train is saved"):
            loop.train(params, MODEL, rows, CONFIG, tmp_path, mesh=mesh)
    assert saved_steps(tmp_path / "checkpoints") == [4, 5]
    loop.train(params, MODEL, rows, CONFIG, tmp_path, mesh=mesh)
    found, lines = results(tmp_path, mesh)
    expected, wanted = results(whole, mesh)
    assert found == expected and [line for line in lines if line["step"] != 5] == wanted


@pytest.fixture
def begun(whole, tmp_path):
    """A run of which only the steps up to 12 are left."""
    shutil.copytree(whole, tmp_path / "begun")
    shutil.rmtree(tmp_path / "begun" / "checkpoints" / "15")
    return tmp_path / "begun"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"optimizer": OptimizerConfig(learning_rate=1e-5, eps=1e-5)}, "optimizer.learning_rate is 1e-05 .* with 0.01"),
        ({"batch_size": 2}, "train: setting batch_size is 2 .* with 4"),
        ({"epochs": 1}, "train: setting epochs is 1 .* with 3"),
        ({"seed": 1}, "train: setting seed is 1"),
    ],
    ids=str,
)
def test_a_run_does_not_go_on_with_other_settings(begun, params, rows, mesh, change, message):
    with pytest.raises(InputError, match=message):
        loop.train(params, MODEL, rows, dataclasses.replace(CONFIG, **change), begun, mesh=mesh)


def test_a_run_does_not_go_on_with_other_rows_parameters_or_another_model(begun, params, rows, mesh):
    other = jax.tree.map(lambda leaf: leaf + 1e-6, params)
    with pytest.raises(InputError, match="train: .* was made from other parameters"):
        loop.train(other, MODEL, rows, CONFIG, begun, mesh=mesh)
    with pytest.raises(InputError, match="train: .* was made from other rows"):
        loop.train(params, MODEL, make_rows(seed=9), CONFIG, begun, mesh=mesh)
    with pytest.raises(InputError, match="train: setting model.pattern is"):
        loop.train(
            params,
            dataclasses.replace(MODEL, pattern=(Layer(Rotary(0.5, base=500.0)),)),
            rows,
            CONFIG,
            begun,
            mesh=mesh,
        )


def test_checkpoints_of_which_nothing_tells_are_not_gone_on_from(params, rows, mesh, tmp_path):
    """As where a copy broke off before training.json."""
    loop.train(params, MODEL, rows, CONFIG, tmp_path, mesh=mesh)
    (tmp_path / "training.json").unlink()
    with pytest.raises(InputError, match="holds checkpoints, and no .*training.json says of which training"):
        loop.train(params, MODEL, rows, CONFIG, tmp_path, mesh=mesh)


def test_what_only_rounds_may_change_under_a_run(begun, params, rows, mesh):
    changed = dataclasses.replace(CONFIG, grad_accum=2, remat=True, keep=5, log_every=1)
    assert loop.train(params, MODEL, rows, changed, begun, mesh=mesh)["step"] == STEPS


@pytest.mark.parametrize("content", [None, b"5\n", b'{"loss": 1}\n', b"\xff\xfe\x00\n"], ids=str)
def test_damaged_metrics_stop_no_run(whole, params, rows, mesh, tmp_path, content):
    """Neither a finished run, nor one that goes on."""
    for left in (15, 12):
        run = shutil.copytree(whole, tmp_path / str(left))
        if left == 12:
            shutil.rmtree(run / "checkpoints" / "15")
        (run / "metrics.jsonl").unlink()
        if content is not None:
            (run / "metrics.jsonl").write_bytes(content)
        assert loop.train(params, MODEL, rows, CONFIG, run, mesh=mesh)["step"] == STEPS


def test_a_disk_that_is_full_for_the_metrics_ends_the_run_in_one_line(params, rows, mesh, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tensorboardX.SummaryWriter.add_scalar", full)
    with pytest.raises(RunStopped, match="metrics of step 3 could not be written .*No space left.*goes on from"):
        loop.train(params, MODEL, rows, CONFIG, tmp_path, mesh=mesh)


@pytest.mark.large
def test_half_precision_parameters_are_trained_in_fp32(params, rows, mesh, tmp_path):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    loop.train(half, MODEL, rows, dataclasses.replace(CONFIG, epochs=1), tmp_path, mesh=mesh)
    trained = restore_params(tmp_path / "checkpoints", MODEL, mesh)
    assert {leaf.dtype for leaf in jax.tree.leaves(trained)} == {np.dtype("float32")}


def test_sigterm_during_the_last_save_is_not_swallowed(whole, params, rows, mesh, tmp_path, monkeypatch):
    """What comes after training would otherwise begin, with the machine about to go."""
    save = loop.Checkpoints.save
    monkeypatch.setattr(loop.Checkpoints, "save", lambda *args: (save(*args), os.kill(os.getpid(), signal.SIGTERM)))
    config = dataclasses.replace(CONFIG, checkpoint_every=100)
    with pytest.raises(loop.Preempted, match="step 15 of train is saved"):
        loop.train(params, MODEL, rows, config, tmp_path, mesh=mesh)


@pytest.mark.parametrize("name", ["run", "run/checkpoints"])
def test_a_file_in_the_way_is_named(params, rows, mesh, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    with pytest.raises(InputError, match=f"{name} is a file"):
        loop.train(params, MODEL, rows, CONFIG, tmp_path / "run", mesh=mesh)


def test_parameters_are_given_away_only_by_a_function_that_loads_them(params, rows, mesh, tmp_path, monkeypatch):
    """Two trainings alike, which share one compiled step."""
    config, built, make = dataclasses.replace(CONFIG, epochs=1), [], loop.make_train_step
    loop.optimizer_and_step.cache_clear()
    monkeypatch.setattr(loop, "make_train_step", lambda *args, **given: built.append(args) or make(*args, **given))
    placed = jax.device_put(jax.tree.map(jnp.copy, params), replicated(mesh))
    for donate, given in ((False, placed), (True, lambda: placed)):
        loop.train(given, MODEL, rows, config, tmp_path / str(donate), mesh=mesh)
        assert all(leaf.is_deleted() == donate for leaf in jax.tree.leaves(placed))
    assert len(built) == 1
    results = [restore_params(tmp_path / str(donate) / "checkpoints", MODEL) for donate in (False, True)]
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_a_training_that_goes_on_loads_no_weights(whole, begun, rows, mesh):
    """Neither where steps are left nor where all are done."""

    def load():
        raise AssertionError("weights were loaded that a checkpoint replaces")

    for folder in (begun, whole):
        assert loop.train(load, MODEL, rows, CONFIG, folder, mesh=mesh)["step"] == STEPS
    assert results(begun, mesh) == results(whole, mesh)


def test_measurements_come_at_their_steps_and_before_the_save(whole, params, rows, mesh, tmp_path, monkeypatch):
    """Points 0, 1, 2, 4, 8 and 15 of 15; the run is killed in step 10, after the checkpoint of step 8."""
    seen = []

    def measure(step, params):
        seen.append((step, float(params["head"]["kernel"][0, 0])))

    with monkeypatch.context() as patch:
        kill_at(patch, 10)
        with pytest.raises(Killed):
            loop.train(params, MODEL, rows, CONFIG, tmp_path, mesh=mesh, measure=measure, measure_points=5)
    loop.train(params, MODEL, rows, CONFIG, tmp_path, mesh=mesh, measure=measure, measure_points=5)
    assert [step for step, _ in seen] == [0, 1, 2, 4, 8, 15] == loop.measure_steps(STEPS, 5, 5)
    assert len({value for _, value in seen}) == 6
    assert seen[-1][1] == restore_params(tmp_path / "checkpoints", MODEL)["head"]["kernel"][0, 0]
    assert results(tmp_path, mesh) == results(whole, mesh)
    assert loop.measure_steps(3, 10, 1) == [0, 1, 2, 3] and loop.measure_steps(100, 0, 1) == []
    assert loop.measure_steps(15, "epochs", 5) == [0, 5, 10, 15]


def test_a_profile_is_written_on_request(params, rows, mesh, tmp_path):
    loop.train(params, MODEL, rows, dataclasses.replace(CONFIG, epochs=2), tmp_path, mesh=mesh, profile=True)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_weights_and_biases_gets_the_metrics_and_goes_on_in_the_same_run(params, rows, mesh, tmp_path, monkeypatch):
    """A stand-in for the package: it records what is asked of it."""
    begun, logged = [], []

    def init(**settings):
        begun.append(settings)
        return types.SimpleNamespace(id="abc", log=lambda line, step: logged.append((step, line)), finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    arguments = dict(mesh=mesh, description="my run", wandb="project")
    with monkeypatch.context() as patch:
        kill_at(patch, 6)
        with pytest.raises(Killed):
            loop.train(params, MODEL, rows, CONFIG, tmp_path, **arguments)
    loop.train(params, MODEL, rows, CONFIG, tmp_path, **arguments)
    assert [(run["project"], run["id"], run["name"]) for run in begun] == [
        ("project", None, "my run"),
        ("project", "abc", "my run"),
    ]
    assert begun[1]["config"]["optimizer"]["learning_rate"] == 1e-2
    assert [line for _, line in logged] == read_metrics(tmp_path / "metrics.jsonl")
    assert all(step == line["step"] for step, line in logged)


def test_weights_and_biases_that_are_not_installed_are_refused_first(rows, mesh, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="wandb='project' needs Weights & Biases: pip install wandb"):
        loop.train(None, MODEL, rows, CONFIG, tmp_path / "run", mesh=mesh, wandb="project")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "batch_size, sequence_length, sizes, expected",
    [
        (16, 64, (1, 1, 1), 2),  # 1,024 tokens
        (8, 512, (1, 1, 1), 8),
        (8, 2048, (1, 1, 1), 8),  # never less than a row
        (4, 64, (1, 1, 1), 1),
        (32, 512, (2, 2, 2), 8),  # four devices share the rows
        (6, 512, (2, 2, 2), 1),  # no number of slices will do; the error is elsewhere
    ],
)
def test_slices_that_are_chosen_fit_the_caches_of_a_cpu(batch_size, sequence_length, sizes, expected):
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: math.prod(sizes)])
    assert loop.default_grad_accum(batch_size, sequence_length, mesh) == expected


def test_utilisation_is_that_of_the_devices_peak():
    """6 N + 6 L D T for pythia-70m: 18.9 M weights in layers, 25.8 M in the output layer, 6 layers of 512, 2,048
    tokens.
    """
    assert PRESETS["pythia-70m"].train_flops_per_token(2048) == pytest.approx(
        6 * 44.67e6 + 6 * 6 * 512 * 2048, rel=1e-3
    )
    assert log.peak_flops("NVIDIA H200") == 989e12 and log.peak_flops("TPU v5 lite") == 197e12
    assert log.peak_flops("NVIDIA A100-SXM4-80GB") == 312e12 and log.peak_flops("cpu") is None


def test_broken_lines_of_metrics_are_left_out(tmp_path):
    assert read_metrics(tmp_path / "none.jsonl") == []
    (tmp_path / "cut.jsonl").write_text(json.dumps({"step": 1}) + '\n{"st')
    assert read_metrics(tmp_path / "cut.jsonl") == [{"step": 1}]
