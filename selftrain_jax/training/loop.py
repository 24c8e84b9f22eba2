"""The training loop: batches by step number, metrics, checkpoints, resuming.

The only data state is the step number, since the batch of a step is a pure function of (seed, step). So a killed run
goes on from its last checkpoint and ends with the parameters that it would have had.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from selftrain_jax.core.errors import InputError, RunStopped
from selftrain_jax.core.files import as_path, fingerprint
from selftrain_jax.core.records import read_record, refuse_changes, write_record
from selftrain_jax.core.storage import CHECKPOINTS
from selftrain_jax.data.packing import PackedRows, batch_indices, steps_per_epoch
from selftrain_jax.distributed import job, preemption
from selftrain_jax.distributed.mesh import batch_sharding, batch_ways, exact_matmuls, target_device, to_global
from selftrain_jax.models import ops
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.decoder import Decoder, default_unroll, param_axes, param_shapes
from selftrain_jax.training.checkpoint import Checkpoints
from selftrain_jax.training.log import TrainingLog, check_wandb
from selftrain_jax.training.metrics import read_metrics
from selftrain_jax.training.optimizer import make_optimizer, make_schedule
from selftrain_jax.training.settings import OptimizerConfig, TrainConfig
from selftrain_jax.training.step import TrainState, make_train_step, next_token_loss, state_shardings

PROFILED_STEPS = 3


class TrainingDiverged(RunStopped):
    """The loss or a parameter is no longer finite; the message names the last good checkpoint."""


class Preempted(RunStopped):
    """SIGTERM, or the notice of a preemption, came; the step that it found is saved."""

    exit_code = preemption.EXIT_CODE


def train(
    params: Any | Callable[[], Any],
    model_config: DecoderConfig,
    rows: PackedRows,
    config: TrainConfig,
    directory: str | pathlib.Path,
    *,
    mesh: Mesh,
    description: str = "train",
    wandb: str = "",
    profile: bool = False,
    measure: Callable[[int, Any], None] | None = None,
    measure_points: int | str = 0,
    checkpoints: str | os.PathLike | None = None,
    before_save: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Trains `params` on `rows`, or goes on where an earlier call in `directory` was cut off.

    Writes `checkpoints/` (Orbax), `metrics.jsonl` (one line per `log_every` steps: step, epoch, loss in nats per token,
    learning_rate, grad_norm, param_norm, update_norm, targets, tokens_per_second; tflops_per_device and, in bfloat16 on
    devices whose peak is known, mfu, the share of it: `DecoderConfig.train_flops_per_token` over `log.PEAK_FLOPS`) and
    `tensorboard/`.

    Args:
      params: of any floating dtype; they are trained in fp32. Or a function that loads them, called only where no
        checkpoint is there to go on from; what it returns is given away: arrays that lie on `mesh` already lend their
        memory to the trained ones.
      mesh: devices, of one process or several; every process calls this with the same arguments.
      wandb: a project of Weights & Biases that the metrics also go to.
      profile: write a JAX trace of `PROFILED_STEPS` steps to `profile/`, for TensorBoard or Perfetto.
      measure: called with (finished updates, parameters) at the `measure_steps` of `measure_points`, before that step
        is saved; the parameters are the loop's own and must not be kept. A resumed run repeats no measurement from
        before its checkpoint.
      checkpoints: where they go instead, for example in a bucket (gs://...).
      before_save: called before each of them is begun, for example to copy the other files to the same place.

    Returns:
      The last line of metrics.

    Raises:
      InputError: rows longer than the context or not of `sequence_length`, too few rows for one batch, a batch that the
        mesh does not divide, or a directory that holds a training with other settings; before any device work.
      TrainingDiverged: the loss or a parameter is not finite.
      CheckpointNotSaved: the disk is full, or the folder is gone.
      Preempted: SIGTERM came (in a job of several processes: to any of them); the state was saved first.
      PeerLost: another process of the job is gone.
    """
    check_wandb(wandb)
    per_epoch = check_lengths(config, model_config.max_position, len(rows.tokens))
    if len(rows.tokens) and rows.tokens.shape[1] != config.sequence_length + 1:
        raise InputError(
            f"train sequence_length={config.sequence_length} does not match rows packed for "
            f"{rows.tokens.shape[1] - 1}: pack them again with the same sequence_length"
        )
    grad_accum = config.grad_accum or default_grad_accum(config.batch_size, config.sequence_length, mesh)
    per_slice, ways = config.batch_size // grad_accum, batch_ways(mesh)
    if per_slice % ways:
        raise InputError(
            f"train batch_size / grad_accum = {per_slice} rows cannot be spread over {ways} data-parallel devices: "
            "make it a multiple, or use fewer devices on the data and fsdp axes"
        )
    num_steps = per_epoch * config.epochs
    directory = pathlib.Path(directory)
    checkpoints = as_path(checkpoints or directory / CHECKPOINTS)
    for path in (directory, checkpoints):
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file: train needs a folder of that name, or another directory")
    directory.mkdir(parents=True, exist_ok=True)

    schedule = make_schedule(config.optimizer, num_steps)
    ops.attention_implementation(
        config.attention,
        config.dtype,
        model_config.head_dim,
        config.document_boundaries,
        model_config.attention_softcap is not None,
        target_device(mesh),
    )
    tokens_per_step = config.batch_size * config.sequence_length
    flops_per_token = model_config.train_flops_per_token(config.sequence_length)
    model = Decoder(
        model_config,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
        unroll=default_unroll(
            model_config, mesh, num_steps * tokens_per_step * flops_per_token / mesh.size, config.remat
        ),
        attention=config.attention,
    )
    optimizer, train_step = optimizer_and_step(model, config.optimizer, num_steps, mesh, grad_accum)

    settings = _check_same_training(directory, checkpoints, config, model_config, rows, params)
    checkpoints = Checkpoints(checkpoints, config.keep)
    state = _start_or_resume(checkpoints, params, optimizer, model_config, mesh)
    del params
    first = int(state.step)
    every = config.checkpoint_every or per_epoch
    batch_at = _batches(rows, config, mesh)
    log = TrainingLog(
        directory,
        first=first,
        num_steps=num_steps,
        tokens_per_step=tokens_per_step,
        flops_per_token=flops_per_token,
        mesh=mesh,
        half_precision=config.dtype == "bfloat16",
        description=description,
        wandb=wandb,
        settings=settings,
    )
    measured = measure_steps(num_steps, measure_points, per_epoch)
    trace = _Trace(directory / "profile" if profile else None, first)
    with contextlib.closing(log), contextlib.closing(trace), checkpoints, job.training(description) as told_to_stop:
        if measure and measured and first == 0:
            with log.paused():
                measure(0, state.params)
        for step in range(first, num_steps):
            trace.before(step, state)
            with exact_matmuls(config.dtype):
                state, metrics = train_step(state, batch_at(step))
            done = step + 1
            stops = told_to_stop()
            saves = done % every == 0 or done == num_steps or stops
            if saves or done % config.log_every == 0:
                more = {"epoch": done / per_epoch, "learning_rate": float(schedule(step))}
                values = log.write(done, metrics, more)
                # A finite loss with a broken gradient would still leave broken parameters to be saved.
                if not np.isfinite([values["loss"], values["param_norm"]]).all():
                    kept = checkpoints.steps()
                    raise TrainingDiverged(
                        f"loss or parameters are not finite at step {done} of {description}; last good checkpoint: "
                        f"{f'step {kept[-1]} in {directory}' if kept else 'none'}. Lower the learning rate or "
                        "clip_norm"
                    )
            if measure and done in measured:
                with log.paused():
                    measure(done, state.params)
            if stops:
                preemption.stop_by_itself()
            if saves:
                with preemption.during("saving"):
                    if before_save:
                        before_save()
                    checkpoints.save(state)
            if stops:
                break
        with preemption.during("saving"):
            checkpoints.wait()
        # It may also have come while the last checkpoint was written.
        if first < num_steps and (stops or told_to_stop()):
            preemption.stop_by_itself()
            raise Preempted(f"SIGTERM came; step {done} of {description} is saved, the same command goes on")
    return values if first < num_steps else (read_metrics(log.path) or [{"step": first}])[-1]


def check_lengths(config: TrainConfig, context: int, num_rows: int) -> int:
    """Steps per epoch on `num_rows` rows; `InputError` where they are too few for one, or longer than the context."""
    if config.sequence_length > context:
        raise InputError(f"train sequence_length={config.sequence_length} exceeds the model's context of {context}")
    return steps_per_epoch(num_rows=num_rows, batch_size=config.batch_size)


@functools.lru_cache(maxsize=4)
def optimizer_and_step(
    model: Decoder, config: OptimizerConfig, num_steps: int, mesh: Mesh, grad_accum: int
) -> tuple[optax.GradientTransformation, Callable]:
    """The same objects for equal arguments: the many trainings of a study trace and load one program."""
    optimizer = make_optimizer(config, num_steps)
    return optimizer, make_train_step(next_token_loss(model), optimizer, mesh=mesh, grad_accum=grad_accum)


# What may change between two calls that continue one training: where it runs, what it keeps, and what only rounds.
_MAY_CHANGE = ("grad_accum", "remat", "attention", "checkpoint_every", "keep", "log_every")


def _check_same_training(
    directory: pathlib.Path,
    checkpoints: pathlib.PurePath,
    config: TrainConfig,
    model: DecoderConfig,
    rows: PackedRows,
    params: Any,
) -> dict:
    """What decides the result of this training, after comparing it with `training.json` of an earlier call."""
    settings = {name: v for name, v in dataclasses.asdict(config).items() if name not in _MAY_CHANGE}
    data = hashlib.sha256(np.ascontiguousarray(rows.tokens))
    if config.document_boundaries:
        data.update(np.ascontiguousarray(rows.segment_ids))
    settings |= {"model": dataclasses.asdict(model), "rows": data.hexdigest()[:16], "start": _sketch(params)}
    if not job.same_on_all(fingerprint(settings)):
        raise InputError("train: the processes of this job have different settings, model or rows; start them alike")
    path, begun = directory / "training.json", any(p.name.isdigit() for p in checkpoints.glob("*"))
    if begun:
        if not (record := read_record(path)):
            what = f"{checkpoints} holds checkpoints, and no {path} says of which training"
            raise InputError(f"train: {what}: remove them, or name another directory")
        of_data = {name: record.get(name) for name in ("rows", "start")}
        refuse_changes("train", record, settings | of_data, directory, "name another directory")
        for name, what in (("rows", "rows"), ("start", "parameters")):
            if None not in (settings[name], of_data[name]) and settings[name] != of_data[name]:
                raise InputError(
                    f"train: {directory} was made from other {what}; give it those, or name another directory"
                )
    elif job.is_first():
        write_record(path, settings)
    return settings


def _sketch(params: Any) -> str | None:
    """What tells parameters apart without reading them all; None of those that are yet to be loaded, or that lie on
    other hosts, too."""
    leaves = [] if callable(params) else jax.tree.leaves(params)
    if not leaves or not all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves):
        return None
    firsts = (leaf[(0,) * (np.ndim(leaf) - 1)] if np.ndim(leaf) else leaf for leaf in leaves)
    return fingerprint([np.asarray(first, np.float32).ravel()[:8].tolist() for first in firsts])


def default_grad_accum(batch_size: int, sequence_length: int, mesh: Mesh) -> int:
    """Slices of a batch that suit the devices: of at most some 512 tokens per device on CPUs, whose caches hold no
    more; elsewhere one, the whole batch."""
    if target_device(mesh).platform != "cpu":
        return 1
    ways = batch_ways(mesh)
    fits = [n for n in range(1, batch_size + 1) if batch_size % n == 0 and batch_size // n % ways == 0]
    small = [n for n in fits if batch_size // n * sequence_length <= 512 * ways]
    return min(small) if small else max(fits, default=1)


def measure_steps(num_steps: int, points: int | str, per_epoch: int) -> list[int]:
    """0, and up to `points` steps from first to last, ever further apart: most of a curve's change comes early; with
    "epochs", the last step of each."""
    if points == "epochs":
        return [*range(0, num_steps + 1, per_epoch)]
    return sorted({0, *(int(step) for step in np.round(np.geomspace(1, num_steps, points)))}) if points else []


class _Trace:
    """A JAX trace of a few steps, from the third one on: the first compiles, the second still warms up. None without a
    directory."""

    def __init__(self, directory: pathlib.Path | None, first: int):
        self._directory, self._begin, self._running = directory, first + 2, False

    def before(self, step: int, state: TrainState) -> None:
        if self._directory is None or step not in (self._begin, self._begin + PROFILED_STEPS):
            return
        jax.block_until_ready(state.step)
        if step == self._begin:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # what Python does while devices work fills gigabytes
            jax.profiler.start_trace(self._directory, profiler_options=options)
            self._running = True
        else:
            self.close()

    def close(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False


def _start_or_resume(checkpoints, params, optimizer, model_config, mesh) -> TrainState:
    def create(params):
        return TrainState.create(jax.tree.map(lambda x: x.astype(jnp.float32), params), optimizer)

    abstract = jax.eval_shape(create, param_shapes(model_config))
    placement = state_shardings(abstract, mesh, param_axes(model_config))
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, placement)
    restored = checkpoints.restore(abstract)
    if restored is not None:
        return restored
    ours = callable(params)
    params = to_global(mesh, params() if ours else params, placement.params)
    if not ours:  # the step donates its state: copies keep the caller's arrays alive
        params = jax.tree.map(jnp.copy, params)
    return jax.jit(create, out_shardings=placement, donate_argnums=0)(params)


def _batches(rows: PackedRows, config: TrainConfig, mesh: Mesh):
    sharding = batch_sharding(mesh)

    def batch_at(step):
        chosen = batch_indices(step, num_rows=len(rows.tokens), batch_size=config.batch_size, seed=config.seed)
        batch = {"tokens": rows.tokens[chosen]}
        if config.document_boundaries:
            batch["segment_ids"] = rows.segment_ids[chosen]
        return to_global(mesh, batch, sharding)

    return batch_at
