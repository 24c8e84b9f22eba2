"""`selftrain plan --compile`: the train step and the decode bucket as the TPU compiler makes them for chips that are
not there: what they take, what they send, and how fast they can be at best."""

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
from typing import Any, Callable

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

from selftrain_jax.cli.programs import TRAIN_HEADROOM, Line, compile_step, compiling, sampling_weights
from selftrain_jax.core.accelerators import ACCELERATORS, Accelerator
from selftrain_jax.core.errors import InputError, one_line
from selftrain_jax.core.hlo import BETWEEN, Traffic, traffic
from selftrain_jax.distributed.mesh import batch_ways
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.decoder import Decoder
from selftrain_jax.sampling import memory
from selftrain_jax.sampling.settings import SamplingConfig
from selftrain_jax.training.settings import TrainConfig

_TRIES = 4
"""Sizes compiled in search of the largest slice, beside the first."""
_ENOUGH = 0.9
"""Of the memory that is planned for: a size that takes so much ends the search."""
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
    def between(self) -> float:
        """Bytes received from other slices."""
        return sum(one.received for kind, one in self.traffic.items() if kind.endswith(BETWEEN))

    @property
    def received(self) -> float:
        """Bytes received within the slice."""
        return sum(one.received for one in self.traffic.values()) - self.between

    @classmethod
    def of(cls, compiled: jax.stages.Compiled, devices: int, slices: int) -> "Program":
        used = compiled.memory_analysis()
        return cls(
            used.argument_size_in_bytes,
            used.temp_size_in_bytes,
            used.output_size_in_bytes,
            used.alias_size_in_bytes,
            traffic(compiled.as_text(), devices, slices),
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


def find_devices(accelerator: str, devices: int, slices: int = 1) -> list[jax.Device]:
    """Chips that the TPU compiler knows and nobody has, in `slices` of the same shape that a data center's network
    joins.

    Raises:
      InputError: as `topology_name`; they are no multiple of `slices`; and where libtpu is missing or refuses them.
    """
    if slices < 1 or devices % slices:
        raise InputError(f"--tpu-slices={slices} must divide --devices={devices}")
    name, host = topology_name(accelerator, devices // slices)
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            "--compile needs the TPU compiler, which runs without a TPU: pip install 'selftrain_jax[tpu]'; without "
            "--compile, plan gives an estimate compiled for CPUs"
        )
    # There is no metadata server to ask what machine this is, no other worker, and no chip for one process at a time.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{accelerator}-{devices // slices}")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # without a TPU, what is kept cannot be read again
    whole = {"chip_config_name": "megacore"} if accelerator == "v4" else {}  # else each half of a chip is a device
    try:
        found = topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{accelerator}:{name}",
            chips_per_host_bounds=host,
            num_slices=slices,
            **whole,
        ).devices
    except (jax.errors.JaxRuntimeError, RuntimeError) as e:
        raise InputError(
            f"--compile: libtpu knows no {accelerator}:{name} ({one_line(e)[:200]}); take another --devices"
        ) from None
    return list(found)


def measure(
    config: DecoderConfig,
    train: TrainConfig,
    sampling: SamplingConfig,
    mesh: Mesh,
    dtype: str,
    accelerator: str,
    what: str = "all",
) -> dict[str, Any]:
    """What `selftrain plan --compile=WHAT --json` prints, in bytes and seconds per device; takes minutes.

    `training` and `sampling`, of which `what` may be one alone ("train", without the largest slice "step"; "sample"),
    are None where the least rows do not fit. `rows` are counted over all devices together and spread `ways`; `ways`
    rows more take `ways * per_row` bytes on each device.
    """
    slices = len({getattr(chip, "slice_index", 0) for chip in mesh.devices.flat})
    found = {
        "libtpu": importlib.metadata.version("libtpu"),
        "accelerator": accelerator,
        "devices": mesh.size,
        "tpu_slices": slices,
        "topology": topology_name(accelerator, mesh.size // slices)[0],
        "mesh": dict(mesh.shape),
    }
    device = ACCELERATORS[accelerator]
    if what != "sample":
        found["training"] = _training(config, train, mesh, device, slices, search=what != "step")
    if what in ("all", "sample"):
        found["sampling"] = _sampling(config, sampling, mesh, device, slices, dtype)
    return found


def _training(
    config: DecoderConfig, train: TrainConfig, mesh: Mesh, device: Accelerator, slices: int, search: bool
) -> dict[str, Any] | None:
    ways, length, accumulated = batch_ways(mesh), train.sequence_length, 2 if train.grad_accum > 1 else 1

    def step(rows):
        return Program.of(compile_step(config, train, mesh, rows, train.attention), mesh.size, slices)

    if not (first := _first(step, (4 * ways, ways), device.memory)):
        return None
    rows, program = first
    largest = _largest(step, rows, program, ways, TRAIN_HEADROOM * device.memory) if search else {}
    again = 4 / 3 if train.remat else 1
    flops = accumulated * rows * length * config.train_flops_per_token(length) * again / mesh.size
    moved = program.arguments + program.output + 2 * program.temporaries
    return {
        "rows": rows,
        "ways": ways,
        "slices": accumulated,
        "length": length,
        **largest,
        **_used(program, device, flops, moved, accumulated * rows * length),
    }


def _sampling(
    config: DecoderConfig, sampling: SamplingConfig, mesh: Mesh, device: Accelerator, slices: int, dtype: str
) -> dict[str, Any] | None:
    ways, weights = batch_ways(mesh), sampling_weights(config, mesh, dtype)
    model, of_weights = Decoder(config, dtype=jnp.dtype(dtype)), memory.device_bytes(weights)
    known: dict[str, int] = {}

    def bucket(rows):
        compiling(f"the last bucket of a wave of {rows} documents (sample)")
        compiled, known["steps"], known["cache"] = memory.compile_wave(weights, model, sampling, rows, mesh=mesh)
        return Program.of(compiled, mesh.size, slices)

    if not (first := _first(bucket, (32 * ways, 8 * ways), device.memory)):
        return None
    rows, program = first
    steps = known["steps"]
    flops = steps * rows * config.train_flops_per_token(known["cache"]) / 3 / mesh.size
    # Cache and temporaries grow with the rows, weights do not.
    line = Line(of_weights, (program.total - of_weights) / rows)
    budget = of_weights + memory.HEADROOM * (device.memory - of_weights)
    return {
        "rows": rows,
        "ways": ways,
        **known,
        "weights": of_weights,
        "per_row": line.per_row,
        "budget": budget,
        "largest": line.largest(budget, ways),
        **_used(program, device, flops, steps * program.arguments, steps * rows),
    }


def report(found: dict[str, Any]) -> str:
    """What `selftrain plan --compile` prints of what `measure` found."""
    device = ACCELERATORS[found["accelerator"]]
    joined = f", {found['tpu_slices']} slices" if found["tpu_slices"] > 1 else ""
    lines = [
        f"compiled by libtpu {found['libtpu']} for {found['devices']} x {found['accelerator']} ({found['topology']}"
        f"{joined}), mesh {', '.join(f'{axis}={n}' for axis, n in found['mesh'].items())}; nothing was run; per device:"
    ]
    for work, none in (("training", "not one row"), ("sampling", "not 8 documents")):
        if work not in found:
            continue
        if (of_work := found[work]) is None:
            lines += [work, f"  {none} per device: shard more"]
        elif work == "training":
            rows, length = of_work["slices"] * of_work["rows"], of_work["length"]
            lines += [f"training, a step of {rows} rows of {length} tokens"]
            lines += _lines(of_work, f"slice: {{}} rows of {length} tokens")
        else:
            text = f"{of_work['steps']} steps of {of_work['rows']} documents against a cache of {of_work['cache']}"
            lines += [f"sampling, {text}", *_lines(of_work, "wave: {} documents")]
    between = f", between slices at {device.network / 1e9:g} GB/s" if joined else ""
    lines.append(
        "assumed: operations of the model (a training that recomputes does a third more) at the data sheet's "
        f"{device.flops / 1e12:.0f} TFLOP/s; arguments read and output written once, temporaries written and read once "
        f"(sampling: arguments read at every step) at {device.bandwidth / 1e9:.0f} GB/s; rings over all links at "
        f"{device.interconnect / 1e9:.0f} GB/s{between}; all at the same time"
        + "; the largest slice was compiled" * ("largest" in (found.get("training") or ()))
        + "; the largest wave is extrapolated: cache and temporaries by the row" * bool(found.get("sampling"))
    )
    return "\n".join(lines)


def _program(compile_rows: Callable[[int], Program], rows: int) -> Program | None:
    """None where the compiler refuses: the temporaries alone do not fit into the device memory."""
    try:
        return compile_rows(rows)
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e) and "Ran out of memory" not in str(e):
            raise
        return None


def _first(compile_rows: Callable[[int], Program], sizes: tuple[int, ...], room: float) -> tuple[int, Program] | None:
    """The first of the sizes whose program takes no more than `room`, with it."""
    for rows in sizes:
        if (program := _program(compile_rows, rows)) and program.total <= room:
            return rows, program
    return None


def _largest(
    compile_rows: Callable[[int], Program], rows: int, program: Program, ways: int, budget: float
) -> dict[str, Any]:
    """The most rows that were compiled and fit the budget: found by up to `_TRIES` sizes beside `program`, of `rows`.

    A straight line through two sizes (at first from the arguments alone, as if of no rows) says what to compile next,
    no more: with few rows another part of the step may be the one that takes most memory (a large vocabulary's weights,
    gathered, rather than activations), and where memory is short the compiler takes less.
    """
    totals: dict[int, float] = {0: program.arguments, rows: program.total}
    if rows < 4 * ways:
        totals[4 * ways] = math.inf
    for tries in range(_TRIES + 1):
        most = max((size for size, total in totals.items() if total <= budget), default=0)
        least = min((size for size, total in totals.items() if total > budget), default=math.inf)
        line = _through(totals, budget)
        if tries == _TRIES or least - most <= ways or totals[most] > _ENOUGH * budget:
            break
        asked = line.largest(budget, ways) if line else math.inf
        if least == math.inf:
            asked = min(max(asked, most + ways), 8 * max(most, ways))
        elif not most < asked < least:
            asked = (most + least) // 2 // ways * ways
        totals[asked] = found.total if (found := _program(compile_rows, asked)) else math.inf
    return {
        "per_row": line.per_row if line else None,
        "budget": budget,
        "largest": most,
        "compiled": totals[most] if most else None,
    }


def _through(totals: dict[int, float], budget: float) -> Line | None:
    """The line through the two sizes that come nearest to the budget, of those that compiled; None where more rows take
    no more memory."""
    known = [(rows, total) for rows, total in totals.items() if total < math.inf]
    line = Line.through(dict(sorted(known, key=lambda point: abs(point[1] - budget))[:2]))
    return line if line.per_row > 0 else None


def _used(program: Program, device: Accelerator, flops: float, moved: float, tokens: int) -> dict[str, Any]:
    """Memory, collectives, and the least time that tokens can take."""
    times = {
        "compute": flops / device.flops,
        "memory": moved / device.bandwidth,
        "interconnect": program.received / device.interconnect,
    }
    if program.between:
        times["network"] = program.between / device.network
    return {
        **dataclasses.asdict(program),
        "total": program.total,
        "flops": flops,
        "seconds": times,
        "tokens_per_second": tokens / max(times.values()),
    }


def _lines(found: dict[str, Any], text: str) -> list[str]:
    kinds = {
        "arguments": "arguments",
        "temporaries": "temporaries",
        "output": "output",
        "  in place of arguments": "aliased",
    }
    lines = [f"  {name:34}{found[key] / 2**30:9.3f} GiB" for name, key in kinds.items()]
    if found.get("per_row") is not None:
        rows = f"each further {found['ways']} rows"
        lines.append(f"  {rows:34}{found['per_row'] * found['ways'] / 2**30:9.3f} GiB")
    if "largest" in found:
        compiled = f"compiled: {found['compiled'] / 2**30:.1f} GiB " if found.get("compiled") else ""
        lines.append(f"  largest {text.format(found['largest'])} ({compiled}in {found['budget'] / 2**30:.1f} GiB)")
    for kind, one in sorted(found["traffic"].items(), key=lambda item: -item[1]["received"]):
        times = f"{kind}, {one['count']} times"
        lines.append(f"  {times:34}{one['received'] / 2**30:9.3f} GiB received")
    times = ", ".join(f"{name} {time:.3g} s" for name, time in found["seconds"].items())
    lines.append(f"  roofline: {times}: at most {found['tokens_per_second']:,.0f} tokens/s over all devices")
    return lines
