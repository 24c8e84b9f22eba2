"""`selftrain plan --compile`: the train step and the decode bucket as the TPU compiler makes them for chips that are
not there: what they take, what they send, and how fast they can be at best."""

import dataclasses
import importlib.metadata
import importlib.util
import os
from typing import Callable

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

from selftrain_jax.cli.programs import TRAIN_HEADROOM, Line, compile_step, sampling_weights
from selftrain_jax.core.accelerators import ACCELERATORS, Accelerator
from selftrain_jax.core.errors import InputError, one_line
from selftrain_jax.core.hlo import Traffic, traffic
from selftrain_jax.distributed.mesh import batch_ways
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.decoder import Decoder
from selftrain_jax.sampling import memory
from selftrain_jax.sampling.settings import SamplingConfig
from selftrain_jax.training.settings import TrainConfig

TPUS = tuple(name for name, device in ACCELERATORS.items() if device.interconnect)


@dataclasses.dataclass(frozen=True)
class Program:
    """Of one compiled program; bytes per device."""

    arguments: int
    temporaries: int
    output: int
    aliased: int  # of the output, what takes the place of arguments
    traffic: dict[str, Traffic]

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries + self.output - self.aliased

    @property
    def received(self) -> float:
        return sum(kind.received for kind in self.traffic.values())

    @classmethod
    def of(cls, compiled: jax.stages.Compiled, devices: int) -> "Program":
        used = compiled.memory_analysis()
        return cls(
            used.argument_size_in_bytes,
            used.temp_size_in_bytes,
            used.output_size_in_bytes,
            used.alias_size_in_bytes,
            traffic(compiled.as_text(), devices),
        )


def topology_name(accelerator: str, devices: int) -> tuple[str, tuple[int, ...]]:
    """The usual shape of so many chips, and which part of it one host has.

    Raises:
      InputError: it is no TPU, or the number is no power of two that is sold.
    """
    if accelerator not in TPUS:
        raise InputError(f"--compile needs --accelerator, one of {', '.join(TPUS)}, not {accelerator or 'none'}")
    flat = accelerator in ("v5e", "v6e")
    power = devices.bit_length() - 1
    if devices != 1 << power or (flat and devices > 256):
        raise InputError(
            f"--devices={devices} must be a power of two{' up to 256, one slice,' * flat} to compile for {accelerator}"
        )
    axes = 2 if flat else 3
    sizes = sorted((1 << (power + i) // axes for i in range(axes)), reverse=not flat and devices < 8)
    return "x".join(map(str, sizes)), (*(min(size, 2) for size in sizes[:2]), 1)


def find_devices(accelerator: str, devices: int) -> list[jax.Device]:
    """Chips that the TPU compiler knows and nobody has.

    Raises:
      InputError: as `topology_name`; and where libtpu is missing or refuses the shape.
    """
    name, host = topology_name(accelerator, devices)
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            "--compile needs the TPU compiler, which runs without a TPU: pip install 'selftrain_jax[tpu]'; without "
            "--compile, plan gives an estimate compiled for CPUs"
        )
    # There is no metadata server to ask what machine this is, nor other workers.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{accelerator}-{devices}")
    jax.config.update("jax_platforms", "cpu")
    whole = {"chip_config_name": "megacore"} if accelerator == "v4" else {}  # else each half of a chip is a device
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{accelerator}:{name}", chips_per_host_bounds=host, **whole
        ).devices
    except (jax.errors.JaxRuntimeError, RuntimeError) as e:
        raise InputError(
            f"--compile: libtpu knows no {accelerator}:{name} ({one_line(e)[:200]}); take another --devices"
        ) from None
    return list(found)


def report(
    config: DecoderConfig, train: TrainConfig, sampling: SamplingConfig, mesh: Mesh, dtype: str, accelerator: str
) -> str:
    """What `selftrain plan --compile` prints; takes minutes for large models."""
    device, ways = ACCELERATORS[accelerator], batch_ways(mesh)
    lines = [
        f"compiled by libtpu {importlib.metadata.version('libtpu')} for {mesh.size} x {accelerator} "
        f"({topology_name(accelerator, mesh.size)[0]}), mesh "
        f"{', '.join(f'{axis}={n}' for axis, n in mesh.shape.items())}; nothing was run; per device:"
    ]

    def step(rows):
        return Program.of(compile_step(config, train, mesh, rows, train.attention), mesh.size)

    slices = 2 if train.grad_accum > 1 else 1
    length = train.sequence_length
    programs = _two(step, (ways, 4 * ways))
    if not programs:
        lines += ["training", f"  not one row of {length} tokens per device: shard more"]
    else:
        rows = max(programs)
        again = 4 / 3 if train.remat else 1
        flops = slices * rows * length * config.train_flops_per_token(length) * again / mesh.size
        program = programs[rows]
        moved = program.arguments + program.output + 2 * program.temporaries
        lines += [f"training, a step of {slices * rows} rows of {length} tokens", *_memory(program)]
        lines += _largest(programs, ways, TRAIN_HEADROOM * device.memory, f"slice: {{}} rows of {length} tokens")
        lines += _roofline(program, device, flops, moved, slices * rows * length)

    weights = sampling_weights(config, mesh, dtype)
    model = Decoder(config, dtype=jnp.dtype(dtype))
    known: dict[str, int] = {}

    def bucket(rows):
        compiled, known["steps"], known["cache"] = memory.compile_wave(weights, model, sampling, rows, mesh=mesh)
        return Program.of(compiled, mesh.size)

    programs = _two(bucket, (8 * ways, 32 * ways))
    if not programs:
        return "\n".join([*lines, "sampling", "  not 8 documents per device: shard more (tensor)"])
    rows, steps = max(programs), known["steps"]
    program, of_weights = programs[rows], memory.device_bytes(weights)
    flops = steps * rows * config.train_flops_per_token(known["cache"]) / 3 / mesh.size
    lines += [f"sampling, {steps} steps of {rows} documents against a cache of {known['cache']}", *_memory(program)]
    budget = of_weights + memory.HEADROOM * (device.memory - of_weights)
    lines += _largest(programs, ways, budget, "wave: {} documents")
    lines += _roofline(program, device, flops, steps * program.arguments, steps * rows)
    lines += [
        "assumed: operations of the model (a training that recomputes does a third more) at the data sheet's "
        f"{device.flops / 1e12:.0f} TFLOP/s; arguments read and output written once, temporaries written and read once "
        f"(sampling: arguments read at every step) at {device.bandwidth / 1e9:.0f} GB/s; rings over all links at "
        f"{device.interconnect / 1e9:.0f} GB/s; all three at the same time. Rows by a straight line through the "
        "compiled sizes: an extrapolation."
    ]
    return "\n".join(lines)


def _two(compile_rows: Callable[[int], Program], sizes: tuple[int, int]) -> dict[int, Program]:
    """Rows -> program, of those sizes that fit into the device memory: the compiler refuses others."""
    programs = {}
    for rows in sizes:
        try:
            programs[rows] = compile_rows(rows)
        except jax.errors.JaxRuntimeError as e:
            if "RESOURCE_EXHAUSTED" not in str(e) and "Ran out of memory" not in str(e):
                raise
            break
    return programs


def _memory(program: Program) -> list[str]:
    kinds = {
        "arguments": program.arguments,
        "temporaries": program.temporaries,
        "output": program.output,
        "  in place of arguments": program.aliased,
    }
    return [f"  {name:34}{size / 2**30:9.3f} GiB" for name, size in kinds.items()]


def _largest(programs: dict[int, Program], ways: int, budget: float, text: str) -> list[str]:
    (few, low), (many, high) = min(programs.items()), max(programs.items())
    if few == many:
        fits = few if low.total <= budget else 0
        return [f"  largest {text.format(fits)} (the next size compiled does not fit)"]
    slope = (high.total - low.total) / (many - few)
    if slope <= 0:  # a small model, of which a few rows more change nothing
        return [f"  largest {text.split(':')[0]}: not known, since {few} rows take as much memory as {many}"]
    fits = Line(low.total - slope * few, slope).largest(budget, ways)
    return [
        f"  {f'each further {ways} rows':34}{ways * slope / 2**30:9.3f} GiB",
        f"  largest {text.format(fits)} (in {budget / 2**30:.1f} GiB)",
    ]


def _roofline(program: Program, device: Accelerator, flops: float, moved: float, tokens: int) -> list[str]:
    """Lines for the collectives, and for the least time that tokens can take."""
    times = {
        "compute": flops / device.flops,
        "memory": moved / device.bandwidth,
        "interconnect": program.received / device.interconnect,
    }
    least = max(times.values())
    return [
        *(
            f"  {kind + f', {one.count} times':34}{one.received / 2**30:9.3f} GiB received"
            for kind, one in sorted(program.traffic.items(), key=lambda item: -item[1].received)
        ),
        f"  roofline: {', '.join(f'{name} {time:.3g} s' for name, time in times.items())}: "
        f"at most {tokens / least:,.0f} tokens/s over all devices",
    ]
