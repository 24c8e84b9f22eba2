"""How much device memory a run takes on a mesh, and what fits an accelerator; nothing but a CPU is needed.

Weights, gradients, optimizer state and cache are closed formulas over shapes and shardings. Activations are not: what
lives at once is the compiler's choice. So the train step and the decode step are compiled for the mesh on virtual CPU
devices, at a few sizes, without allocating anything, and straight lines go through what the compiler says. Where the
accelerator has a kernel for attention, something as large stands for it (`models.outline`). docs/launching.md has how
near that comes to what TPUs' own compiler says."""

import argparse
import dataclasses
import math
import pathlib
from typing import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from selftrain_jax.cli import compiled, hours
from selftrain_jax.cli.config import load_config
from selftrain_jax.cli.programs import (
    TRAIN_HEADROOM,
    Line,
    Lines,
    compiling,
    sampling_weights,
    train_state,
    train_temporaries,
)
from selftrain_jax.core import accelerators
from selftrain_jax.core.accelerators import Accelerator
from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import json_text
from selftrain_jax.distributed.mesh import batch_ways, make_mesh, virtual_devices
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.lab.tokenization import build_tokenizer
from selftrain_jax.lab.world import build_world
from selftrain_jax.models import hf
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.decoder import Decoder
from selftrain_jax.models.families import published
from selftrain_jax.models.ops import attention_implementation
from selftrain_jax.run.settings import RunConfig
from selftrain_jax.sampling import memory
from selftrain_jax.sampling.decode import bucket_ends
from selftrain_jax.sampling.settings import SamplingConfig
from selftrain_jax.training.settings import TrainConfig


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes per device.

    Attributes:
      params, gradients, optimizer: in training, fp32; exact.
      activations: in training, by rows of a slice: temporaries beside the gradients.
      weights: in sampling, in its dtype; exact.
      cache: in sampling, per row at the longest cache; exact.
      wave: in sampling, by rows: the cache, and the temporaries of a step.
      ways: rows are multiples of it.
    """

    params: int
    gradients: int
    optimizer: int
    activations: Lines
    weights: int
    cache: int
    wave: Line
    ways: int

    @property
    def train_state(self) -> int:
        return self.params + self.gradients + self.optimizer

    def largest_slice(self, device: Accelerator) -> int:
        """Rows of a training slice that fit, over all devices together."""
        return self.activations.largest(TRAIN_HEADROOM * device.memory - self.train_state, self.ways)

    def largest_wave(self, device: Accelerator) -> int:
        """Rows of a sampling wave that fit, over all devices together."""
        return self.wave.largest(memory.HEADROOM * (device.memory - self.weights), self.ways)


def plan_run(
    config: RunConfig,
    mesh: str = "",
    accelerator: str = "",
    devices: int | None = None,
    device_memory: str = "",
    compile: str = "",
    slices: int | None = None,
    as_json: bool = False,
) -> str:
    """What `selftrain plan` prints for the student (training) and, of the same shape, the source (sampling); with
    `compile` ("train", "sample" or "all"), what `compiled.report` says of them, for TPUs in `slices`, or
    `compiled.measure` as JSON.

    Call it before anything asks JAX for its devices: it takes virtual ones.

    Raises:
      InputError: the mesh, the accelerator, its memory or the model is unknown, or the mesh does not fit the devices.
    """
    device = accelerators.accelerator(accelerator) if accelerator else None
    if device_memory and compile:
        raise InputError("--memory and --compile: the TPU compiler knows the memory of its devices; leave one out")
    if not compile and (slices is not None or as_json):
        raise InputError("--tpu-slices and --json are for --compile: add it, or leave them out")
    if device_memory:
        device = dataclasses.replace(
            device or Accelerator("", 0.0, 0), measured=accelerators.memory_bytes(device_memory)
        )
    if devices is not None and devices < 1:
        raise InputError(f"--devices={devices} must be at least 1")
    asked = MeshConfig.parse(mesh, "--mesh") if mesh else config.mesh
    sizes = dataclasses.astuple(asked)
    shape = asked.shape(devices or math.prod(size for size in sizes if size != -1))
    count = math.prod(shape)
    chips = compiled.find_devices(accelerator, count, slices or 1) if compile else []
    if not chips:
        virtual_devices(count)
    model = model_config(config)
    dtype = config.sample.dtype if config.sample.dtype != "auto" else "bfloat16" if device else "float32"
    placed = make_mesh(MeshConfig(*shape), chips or jax.devices()[:count])
    if chips:
        measured = compiled.measure(model, config.train, config.sample.sampling(), placed, dtype, accelerator, compile)
        if as_json:
            return json_text({"model": config.student or config.source, "parameters": model.num_params, **measured})
        found = compiled.report(measured)
    else:
        plan = make_plan(model, config.train, config.sample.sampling(), placed, dtype, device)
        found = format_plan(plan, placed, config, device, accelerator or "device")
    operations = model.train_flops_per_token(config.train.sequence_length)
    lines = [
        f"{model.num_params:,} parameters; {operations / 1e9:.3f} GFLOP to train on a token in rows of "
        f"{config.train.sequence_length}",
        *planting(config, model),
        *whole_heads(model, placed),
        found,
    ]
    if device and device.flops:
        lines.append(hours.of_run(config, model, device.flops, count))
    return "\n".join(lines)


def model_config(config: RunConfig) -> DecoderConfig:
    """The student's architecture; a preset, named as on the hub or by its last part, is known without its files."""
    reference = config.student or config.source
    if reference.startswith("lab:"):
        if config.lab is None or reference not in ("lab:base", "lab:other"):
            raise InputError(f"student {reference!r} is no model of the config's lab: lab:base and lab:other may be")
        model = getattr(config.lab, reference.removeprefix("lab:"))
        tokenizer = build_tokenizer(build_world(config.lab.world), model.tokenizer, model.bpe_vocab_size)
        return model.model_config(tokenizer.get_vocab_size())
    found = None if pathlib.Path(reference).is_dir() else published(reference)
    return found or hf.load_config(reference)


def make_plan(
    config: DecoderConfig,
    train: TrainConfig,
    sampling: SamplingConfig,
    mesh: Mesh,
    sampling_dtype: str,
    device: Accelerator | None = None,
) -> Plan:
    """The plan of one model on `mesh` (virtual devices will do), for devices like `device` or for CPUs."""
    ways, state = batch_ways(mesh), train_state(config, train, mesh)
    params, attention = memory.device_bytes(state.params), _attention(config, train, device)
    taken = {n * ways: train_temporaries(config, train, mesh, n * ways, attention) for n in (1, 8, 16)}
    compiling(f"a decode step (sample), {mesh.size} virtual devices")
    # In fp32 whatever the dtype: a CPU would convert a bfloat16 program's weights, and hold them twice.
    exact, model = sampling_weights(config, mesh, "float32"), Decoder(config)
    sizes = (8 * ways, 16 * ways)
    wave = Line.through({rows: memory.wave_bytes(exact, model, sampling, rows, mesh=mesh) for rows in sizes})
    cache, of_exact = (cache_bytes(config, sampling, mesh, dtype) for dtype in (sampling_dtype, "float32"))
    return Plan(
        params=params,
        gradients=params,
        optimizer=memory.device_bytes(state.opt_state),
        activations=Lines({rows: temporaries - params for rows, temporaries in taken.items()}),
        weights=memory.device_bytes(sampling_weights(config, mesh, sampling_dtype)),
        cache=cache,
        wave=Line(wave.at_zero, wave.per_row + (cache - of_exact) / ways),
        ways=ways,
    )


def _attention(config: DecoderConfig, train: TrainConfig, device: Accelerator | None) -> str:
    """What stands for attention in the step that is compiled for a CPU: XLA's own, or a kernel's outline."""
    packed, capped = train.document_boundaries, config.attention_softcap is not None
    if device is None:
        return "xla"
    asked = train.attention, train.dtype, config.head_dim, packed, capped
    return "xla" if attention_implementation(*asked, device=device) == "xla" else "outline"


def cache_bytes(config: DecoderConfig, sampling: SamplingConfig, mesh: Mesh, dtype: str) -> int:
    """Bytes of one row's keys and values in the last bucket, on each device that holds the row: 2 L S K H, heads spread
    over the tensor axis where it divides them. Layers with a window keep as much as others."""
    tensor = mesh.shape["tensor"]
    heads = config.num_kv_heads // (tensor if config.num_kv_heads % tensor == 0 else 1)
    slots = bucket_ends(sampling.num_fed)[-1]
    return 2 * config.num_layers * slots * heads * config.head_dim * jnp.dtype(dtype).itemsize


def planting(config: RunConfig, model: DecoderConfig) -> list[str]:
    """A line on what planting takes, where something is planted."""
    if (plant := config.plant) is None:
        return []
    operations = 2 * plant.tokens * model.train_flops_per_token(plant.train.sequence_length)
    return [
        f"planting: {plant.planted_tokens:,} of {plant.tokens:,} tokens; {plant.num_rows // plant.train.batch_size:,} "
        f"steps of the planted model and as many of its twin, {operations / 1e15:.3f} PFLOP in all"
    ]


def whole_heads(config: DecoderConfig, mesh: Mesh) -> list[str]:
    """A line for each kind of heads that the tensor axis does not divide."""
    tensor = mesh.shape["tensor"]
    kinds = {"attention": config.num_heads, "key and value": config.num_kv_heads}
    return [
        f"tensor={tensor} does not divide the {count} {kind} head{'s' * (count > 1)}: every device holds all of them"
        for kind, count in kinds.items()
        if count % tensor
    ]


def format_plan(plan: Plan, mesh: Mesh, config: RunConfig, device: Accelerator | None, name: str = "") -> str:
    """The plan as it is printed: each number with the setting that it follows from."""
    train, sample = config.train, config.sample

    def line(name, count, note=""):
        return f"  {name:34}{count / 2**30:9.3f} GiB{note}"

    ways = plan.ways
    rows = f"{ways} row{'s' * (ways > 1)}"
    lines = [
        f"per device, mesh {', '.join(f'{axis}={n}' for axis, n in mesh.shape.items())}:",
        "training",
        line("parameters (fp32)", plan.params, "  (student)"),
        line("gradients (fp32)", plan.gradients),
        line("optimizer (AdamW)", plan.optimizer),
        line(f"activations, slice of {rows}", plan.activations(ways), "  (an estimate, compiled for a CPU;"),
        line(f"  each further {rows}", ways * plan.activations.last.per_row, "   train.sequence_length, dtype, remat)"),
        "sampling",
        line("weights", plan.weights, "  (source, sample.dtype)"),
        line(f"cache, wave of {rows}", plan.cache, "  (sample.max_new_tokens, sample.dtype)"),
        line("  and logits and the like", max(ways * plan.wave.per_row - plan.cache, 0)),
    ]
    if device:
        most, wave = plan.largest_slice(device), plan.largest_wave(device)
        fits = f"{most} rows of {train.sequence_length} tokens" if most else "not one row per device: shard more"
        wave_fits = f"{wave} documents" if wave else "not one document per device: shard more (tensor)"
        fits += f" ({TRAIN_HEADROOM:.0%} of the memory)"
        wave_fits += f" ({memory.HEADROOM:.0%} of what the weights leave)"
        lines += [
            f"{mesh.size} x {name}, {device.memory / 2**30:.3f} GiB each",
            f"  largest training slice (train.batch_size / train.grad_accum): {fits}",
            f"  largest sampling wave (sample.batch_size): {wave_fits}",
            f"  training as it is set: {_training_fits(train, most, ways)}",
            f"  sampling as it is set: {_sampling_fits(sample.batch_size, wave)}",
        ]
    return "\n".join(lines)


def _training_fits(train: TrainConfig, most: int, ways: int) -> str:
    """Whether the slices of `train` fit where at most `most` rows do, and what would."""
    slices = train.grad_accum or 1  # what `training.loop` takes on accelerators
    rows = train.batch_size // slices
    asked = f"train.batch_size={train.batch_size} in {slices} slice{'s' * (slices > 1)} of {rows} rows"
    if rows % ways:
        return f"{asked} cannot be spread over {ways} devices: change train.batch_size, train.grad_accum or mesh"
    if rows <= most:
        return f"{asked} fits"
    sizes = (n for n in range(slices, train.batch_size + 1) if train.batch_size % n == 0)
    fitting = next((n for n in sizes if train.batch_size // n <= most and train.batch_size // n % ways == 0), None)
    way_out = (
        f"train.grad_accum={fitting} would" if fitting else "try more devices on the fsdp axis, or train.remat=True"
    )
    return f"{asked} does NOT fit; {way_out}"


def _sampling_fits(batch_size: int | str, most: int) -> str:
    asked = f"sample.batch_size={batch_size}"
    if not most:
        return f"{asked} does NOT fit: no document does"
    fits = batch_size == "auto" or batch_size <= most
    return f"{asked} fits" if fits else f"{asked} does NOT fit; {most} would, or auto"


def plan(arguments: argparse.Namespace, overrides: Sequence[str], argv: Sequence[str]) -> int:
    """`selftrain plan`."""
    config = load_config(arguments.config, overrides, study=None)
    if isinstance(config, RunConfig):
        a = arguments
        print(plan_run(config, a.mesh, a.accelerator, a.devices, a.memory, a.compile, a.tpu_slices, a.json))
    elif any(getattr(arguments, name) for name in ("mesh", "devices", "memory", "compile", "tpu_slices", "json")):
        raise InputError("of a study, plan counts device-hours: leave out all options but --accelerator")
    else:
        print(hours.plan_study(config, arguments.accelerator or "H100"))
    return 0
