"""Where the figures of a training go: `metrics.jsonl`, TensorBoard, the progress bar, Weights & Biases on request."""

import contextlib
import pathlib
import time
from typing import Any, Iterator, Mapping

import jax
from jax.sharding import Mesh

from selftrain_jax.core import progress
from selftrain_jax.core.accelerators import PEAK_FLOPS
from selftrain_jax.core.errors import InputError, RunStopped
from selftrain_jax.core.files import json_text, write_atomic
from selftrain_jax.distributed import job
from selftrain_jax.training.metrics import read_metrics


def peak_flops(device_kind: str) -> float | None:
    """The entry of `PEAK_FLOPS` for a `jax.Device.device_kind`, None where there is none."""
    name = device_kind.removeprefix("NVIDIA ")
    return next((peak for start, peak in PEAK_FLOPS.items() if name.startswith(start)), None)


def check_wandb(project: str) -> None:
    """Raises `InputError` when Weights & Biases is asked for and not installed."""
    if project:
        try:
            import wandb  # noqa: F401
        except ImportError:
            raise InputError(f"wandb={project!r} needs Weights & Biases: pip install wandb, or leave it out") from None


class TrainingLog:
    """Everything is written by process 0 alone; the others only read the numbers.

    Args:
      directory: gets `metrics.jsonl` and `tensorboard/`. Lines of steps after `first` are dropped: they are taken
        again.
      first, num_steps: finished updates at the start, and at the end.
      tokens_per_step, flops_per_token: for the speed; the latter is `DecoderConfig.train_flops_per_token`.
      mesh: the devices that train, whose peak and number the speed of each goes by.
      half_precision: whether matrix products run in bfloat16, so that `PEAK_FLOPS` is their peak.
      wandb: project of Weights & Biases; "" for none. The run's id is kept in `wandb.id`, and a resumed run goes on in
        it.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        first: int,
        num_steps: int,
        tokens_per_step: int,
        flops_per_token: float,
        mesh: Mesh,
        half_precision: bool,
        description: str,
        wandb: str = "",
        settings: Mapping[str, Any] | None = None,
    ):
        self.path = directory / "metrics.jsonl"
        self._tokens_per_step, self._flops_per_token = tokens_per_step, flops_per_token
        self._num_devices = mesh.size
        self._peak = peak_flops(mesh.devices.flat[0].device_kind) if half_precision else None
        self._last = (first, time.perf_counter())
        self._writes = job.is_first()
        if not self._writes:
            return
        from tensorboardX import SummaryWriter

        kept = [line for line in read_metrics(self.path) if line["step"] <= first]
        write_atomic(self.path, "".join(json_text(line) + "\n" for line in kept))
        self._file = open(self.path, "a")
        # TensorBoard hides what an earlier writer logged from `purge_step` on; step `first` itself is kept.
        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=first + 1, write_to_disk=True)
        self._bar = progress.bar(total=num_steps, initial=first, desc=description, unit="step")
        self._wandb = _wandb_run(wandb, directory / "wandb.id", description, dict(settings or {})) if wandb else None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done meanwhile takes no time from the training's speed."""
        begin = time.perf_counter()
        yield
        step, last = self._last
        self._last = (step, last + time.perf_counter() - begin)

    def write(self, step: int, metrics: Mapping[str, jax.Array], more: Mapping[str, float]) -> dict[str, float]:
        """Logs the metrics of update number `step` (counted from 1), and `more` beside them; returns the line."""
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        now, (last_step, last_time) = time.perf_counter(), self._last
        speed = (step - last_step) * self._tokens_per_step / (now - last_time)
        flops = speed * self._flops_per_token / self._num_devices
        line = {"step": step, **more, **values, "tokens_per_second": speed, "tflops_per_device": flops / 1e12}
        if self._peak:
            line["mfu"] = flops / self._peak
        self._last = (step, now)
        if self._writes:
            try:
                self._file.write(json_text(line) + "\n")
                self._file.flush()
                for name, value in line.items():
                    if name != "step":
                        self._writer.add_scalar(name, value, step)
            except OSError as e:
                raise RunStopped(
                    f"the metrics of step {step} could not be written to {self.path.parent} ({e.strerror}). Make "
                    "room, then the same command goes on from the last checkpoint"
                ) from e
            if self._wandb:
                self._wandb.log(line, step=step)
            self._bar.set_postfix(loss=f"{values['loss']:.3f}", tok_s=f"{speed:,.0f}", refresh=False)
            self._bar.update(step - last_step)
        return line

    def close(self) -> None:
        if self._writes:
            self._bar.close()
            for file in (self._writer, self._file):
                with contextlib.suppress(OSError):  # a full disk, which `write` has told
                    file.close()
            if self._wandb:
                self._wandb.finish()


def _wandb_run(project: str, id_file: pathlib.Path, name: str, settings: dict[str, Any]):
    import wandb

    known = id_file.read_text().strip() if id_file.exists() else None
    run = wandb.init(project=project, id=known, resume="allow" if known else None, name=name, config=settings)
    write_atomic(id_file, run.id + "\n")
    return run
