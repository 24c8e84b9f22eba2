"""The training loop: batches by step number, metrics, checkpoints, resuming.

The only data state is the step number, since the batch of a step is a pure function of (seed, step). So a killed run
goes on from its last checkpoint and ends with the parameters that it would have had.
"""

import contextlib
import dataclasses
import json
import pathlib
import signal
import threading
import time
from typing import Any, Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from selftrain_jax import parallel
from selftrain_jax.data.packing import PackedRows, batch_indices, steps_per_epoch
from selftrain_jax.errors import InputError, RunStopped
from selftrain_jax.files import write_atomic
from selftrain_jax.models import ops
from selftrain_jax.models.config import ModelConfig
from selftrain_jax.models.gpt_neox import GPTNeoX, default_unroll, param_axes
from selftrain_jax.training.checkpoint import Checkpoints
from selftrain_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from selftrain_jax.training.step import TrainState, make_train_step, next_token_loss, state_shardings


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a model is fine-tuned (or, in the lab, pre-trained).

    Attributes:
      batch_size: rows per optimizer update, all slices together.
      sequence_length: targets per row.
      epochs: passes over the rows; the last incomplete batch of an epoch is left out.
      grad_accum: slices that a batch is processed in, one after the other.
      seed: order of the rows.
      dtype: compute dtype, "float32" or "bfloat16"; master weights and optimizer state are fp32 always.
      remat: recompute activations in the backward pass.
      attention: "auto" (by device, dtype and head size), "xla" or "cudnn".
      document_boundaries: keep packed documents apart (positions restart, no attention and no target across).
      checkpoint_every: steps between checkpoints; 0 saves after every epoch.
      keep: checkpoints kept.
      log_every: steps between lines of metrics.
      optimizer: AdamW and schedule.
    """

    batch_size: int = 64
    sequence_length: int = 2048
    epochs: int = 40
    grad_accum: int = 1
    seed: int = 0
    dtype: str = "bfloat16"
    remat: bool = True
    attention: str = "auto"
    document_boundaries: bool = False
    checkpoint_every: int = 0
    keep: int = 2
    log_every: int = 10
    optimizer: OptimizerConfig = OptimizerConfig()

    def __post_init__(self):
        for name in ("batch_size", "sequence_length", "epochs", "grad_accum", "keep", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"train {name}={getattr(self, name)} must be at least 1")
        if self.checkpoint_every < 0:
            raise InputError(f"train checkpoint_every={self.checkpoint_every} must be 0 (every epoch) or positive")
        if self.batch_size % self.grad_accum:
            raise InputError(f"train batch_size={self.batch_size} must be a multiple of grad_accum={self.grad_accum}")
        if self.attention not in ops.ATTENTION:
            raise InputError(f"train attention={self.attention!r} must be one of {', '.join(ops.ATTENTION)}")
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"train dtype={self.dtype!r} must be 'float32' or 'bfloat16'")


class TrainingDiverged(RunStopped):
    """The loss or a parameter is no longer finite; the message names the last good checkpoint."""


class Preempted(RunStopped):
    """SIGTERM, or the notice of a preemption, came; the step that it found is saved."""

    exit_code = 128 + signal.SIGTERM


def train(
    params: Any,
    model_config: ModelConfig,
    rows: PackedRows,
    config: TrainConfig,
    directory: str | pathlib.Path,
    *,
    mesh: Mesh,
    description: str = "train",
) -> dict[str, float]:
    """Trains `params` on `rows`, or goes on where an earlier call in `directory` was cut off.

    Writes `checkpoints/` (Orbax), `metrics.jsonl` (one line per `log_every` steps: step, epoch, loss in nats per token,
    learning_rate, grad_norm, param_norm, update_norm, tokens_per_second) and `tensorboard/`.

    Returns:
      The last line of metrics.

    Raises:
      InputError: rows longer than the context or not of `sequence_length`, too few rows for one batch, or a batch that
        the mesh does not divide; before any device work.
      TrainingDiverged: the loss or a parameter is not finite.
      CheckpointNotSaved: the disk is full, or the folder is gone.
      Preempted: SIGTERM came (in a job of several processes: to any of them); the state was saved first.
    """
    if config.sequence_length > model_config.max_position:
        raise InputError(
            f"train sequence_length={config.sequence_length} exceeds the model's context of {model_config.max_position}"
        )
    if len(rows.tokens) and rows.tokens.shape[1] != config.sequence_length + 1:
        raise InputError(
            f"train sequence_length={config.sequence_length} does not match rows packed for "
            f"{rows.tokens.shape[1] - 1}: pack them again with the same sequence_length"
        )
    per_slice = config.batch_size // config.grad_accum
    if per_slice % parallel.batch_ways(mesh):
        raise InputError(
            f"train batch_size / grad_accum = {per_slice} rows cannot be spread over {parallel.batch_ways(mesh)} "
            "data-parallel devices: make it a multiple, or use fewer devices on the data and fsdp axes"
        )
    per_epoch = steps_per_epoch(num_rows=len(rows.tokens), batch_size=config.batch_size)
    num_steps = per_epoch * config.epochs
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)

    optimizer = make_optimizer(config.optimizer, num_steps)
    schedule = make_schedule(config.optimizer, num_steps)
    ops.attention_implementation(config.attention, config.dtype, model_config.head_dim, config.document_boundaries)
    model = GPTNeoX(
        model_config, dtype=jnp.dtype(config.dtype), remat=config.remat, unroll=default_unroll(model_config),
        attention=config.attention,
    )  # fmt: skip
    train_step = make_train_step(next_token_loss(model), optimizer, mesh=mesh, grad_accum=config.grad_accum)

    checkpoints = Checkpoints(directory / "checkpoints", config.keep)
    state = _start_or_resume(checkpoints, params, optimizer, model_config, mesh)
    first = int(state.step)
    metrics_path = directory / "metrics.jsonl"
    _forget_after(metrics_path, first)
    every = config.checkpoint_every or per_epoch
    batch_at = _batches(rows, config, mesh)
    log = _Log(metrics_path, directory / "tensorboard", schedule, per_epoch, config, first, num_steps, description)
    try:
        with _told_to_stop() as told_to_stop:
            for step in range(first, num_steps):
                state, metrics = train_step(state, batch_at(step))
                done = step + 1
                stops = told_to_stop(done)
                saves = done % every == 0 or done == num_steps or stops
                if saves or done % config.log_every == 0:
                    values = log.write(done, metrics)
                    # A finite loss with a broken gradient would still leave broken parameters to be saved.
                    if not np.isfinite([values["loss"], values["param_norm"]]).all():
                        kept = checkpoints.steps()
                        raise TrainingDiverged(
                            f"loss or parameters are not finite at step {done} of {description}; last good checkpoint: "
                            f"{f'step {kept[-1]} in {directory}' if kept else 'none'}. Lower the learning rate or clip_norm"
                        )
                if saves:
                    checkpoints.save(state)
                if stops and done < num_steps:
                    checkpoints.wait()
                    raise Preempted(f"SIGTERM came; step {done} of {description} is saved, the same command goes on")
    finally:
        log.close()
        checkpoints.close()
    return read_metrics(metrics_path)[-1]


@contextlib.contextmanager
def _told_to_stop() -> Iterator[Callable[[int], bool]]:
    """`told_to_stop(step)`: whether SIGTERM has come. Several processes agree on the step, through JAX's own notice."""
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's business
        yield lambda step: False
        return
    came = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield lambda step: came.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)


def read_metrics(path: str | pathlib.Path) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl`; a line cut short by a kill is left out."""
    lines = []
    if pathlib.Path(path).exists():
        for line in pathlib.Path(path).read_text().splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return lines


def _start_or_resume(checkpoints, params, optimizer, model_config, mesh) -> TrainState:
    abstract = jax.eval_shape(lambda p: TrainState.create(p, optimizer), params)
    placement = state_shardings(abstract, mesh, param_axes(model_config))
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, placement)
    restored = checkpoints.restore(abstract)
    if restored is not None:
        return restored
    # The step donates its state: `params` are copied so that the caller's arrays stay alive.
    params = jax.tree.map(jnp.copy, parallel.to_global(mesh, params, placement.params))
    return jax.jit(lambda p: TrainState.create(p, optimizer), out_shardings=placement, donate_argnums=0)(params)


def _batches(rows: PackedRows, config: TrainConfig, mesh: Mesh):
    sharding = parallel.batch_sharding(mesh)

    def batch_at(step):
        chosen = batch_indices(step, num_rows=len(rows.tokens), batch_size=config.batch_size, seed=config.seed)
        batch = {"tokens": rows.tokens[chosen]}
        if config.document_boundaries:
            batch["segment_ids"] = rows.segment_ids[chosen]
        return parallel.to_global(mesh, batch, sharding)

    return batch_at


def _forget_after(path: pathlib.Path, step: int) -> None:
    """Drops the lines of steps that will be taken again."""
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))


class _Log:
    """metrics.jsonl, TensorBoard and the progress bar."""

    def __init__(self, path, tensorboard, schedule, per_epoch, config, first, num_steps, description):
        from tensorboardX import SummaryWriter
        from tqdm import tqdm

        self._file = open(path, "a")
        # TensorBoard hides what an earlier writer logged from `purge_step` on; step `first` itself is kept.
        self._writer = SummaryWriter(str(tensorboard), purge_step=first + 1, write_to_disk=True)
        self._bar = tqdm(total=num_steps, initial=first, desc=description, unit="step", dynamic_ncols=True)
        self._schedule, self._per_epoch = schedule, per_epoch
        self._tokens_per_step = config.batch_size * config.sequence_length
        self._last = (first, time.perf_counter())

    def write(self, step: int, metrics: dict[str, jax.Array]) -> dict[str, float]:
        """Logs the metrics of update number `step` (counted from 1) and returns them as numbers."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        now, (last_step, last_time) = time.perf_counter(), self._last
        speed = (step - last_step) * self._tokens_per_step / (now - last_time)
        line = {"step": step, "epoch": step / self._per_epoch, "learning_rate": float(self._schedule(step - 1))}
        line |= values | {"tokens_per_second": speed}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in line.items():
            if name != "step":
                self._writer.add_scalar(name, value, step)
        self._bar.update(step - last_step)
        self._bar.set_postfix(loss=f"{values['loss']:.3f}", tok_s=f"{speed:,.0f}")
        self._last = (step, now)
        return values

    def close(self) -> None:
        self._bar.close()
        self._writer.close()
        self._file.close()
