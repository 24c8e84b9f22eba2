"""How many rows of a wave fit into the device memory, from what the compiler says that a step needs."""

import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.randomness import pinned, seed_key
from selftrain_jax.distributed.mesh import padded_rows, target_device
from selftrain_jax.models.decoder import Decoder, Params
from selftrain_jax.sampling.decode import bucket_ends, decode_bucket, start, state_shardings
from selftrain_jax.sampling.settings import SamplingConfig

HEADROOM = 0.8
"""Share of the free memory that is planned for. Caches of growing sizes come and go, which leaves fragments: 0.92 ran
out of memory on a GPU. Waves this large read little else than their caches, so a smaller one is as fast per token."""
MOST_ROWS_ON_CPU = 256
"""More rows gain nothing on a CPU and delay the first documents."""


def compile_wave(
    weights: Params, model: Decoder, sampling: SamplingConfig, rows: int, *, mesh: Mesh | None = None
) -> tuple[jax.stages.Compiled, int, int]:
    """The last bucket of a wave of `rows`, compiled but not run, with its steps and the length of its cache. `weights`
    may be `jax.ShapeDtypeStruct`s with shardings.
    """
    limit = sampling.num_fed
    *_, before, end = 0, *bucket_ends(limit)
    steps = limit - max(before, sampling.start_length - 1)
    shapes = jax.eval_shape(lambda: start(model, jax.random.split(seed_key(0), rows), jnp.zeros(rows, bool), end))
    if mesh is not None:
        shapes = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, state_shardings(model, mesh)
        )
    allowed = jax.ShapeDtypeStruct((model.config.vocab_size,), bool)
    return decode_bucket.lower(model, sampling, weights, shapes, allowed, steps).compile(), steps, end


def wave_bytes(
    weights: Params, model: Decoder, sampling: SamplingConfig, rows: int, *, mesh: Mesh | None = None
) -> int:
    """Bytes per device that a wave of `rows` adds to the weights at its largest: the longest cache, and the compiled
    step's temporaries (logits, above all), which the wave needs anyhow."""
    used = compile_wave(weights, model, sampling, rows, mesh=mesh)[0].memory_analysis()
    return (
        used.argument_size_in_bytes
        - device_bytes(weights)
        + used.temp_size_in_bytes
        + used.output_size_in_bytes
        - used.alias_size_in_bytes
    )


def device_bytes(tree: Any) -> int:
    """Bytes on one device of arrays, or of `jax.ShapeDtypeStruct`s with shardings."""

    def one(leaf):
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(one(leaf) for leaf in jax.tree.leaves(tree))


@pinned()
def largest_wave(
    weights: Params, model: Decoder, sampling: SamplingConfig, num_samples: int, *, mesh: Mesh | None = None
) -> int:
    """The largest `batch_size` whose wave fits beside what is in the device memory now, at most `num_samples`.

    Raises:
      InputError: not even the smallest wave fits.
    """
    least = padded_rows(8, mesh)
    on_cpu = target_device(mesh).platform == "cpu"
    most = padded_rows(min(num_samples, MOST_ROWS_ON_CPU if on_cpu else num_samples), mesh)
    budget = HEADROOM * free_bytes(mesh)
    few = min(8 * least, most)
    known = {rows: wave_bytes(weights, model, sampling, rows, mesh=mesh) for rows in {few, 2 * few}}
    per_row = (known[2 * few] - known[few]) / few
    rows = min(most, int((budget - known[few]) / max(per_row, 1)) + few)
    while True:
        rows = max(rows // least * least, least) if rows < most else most
        if wave_bytes(weights, model, sampling, rows, mesh=mesh) <= budget:
            return rows
        if rows == least:
            raise InputError(
                f"sample batch_size='auto': the smallest wave ({least} rows of {sampling.max_new_tokens} tokens) "
                f"does not fit into the {budget / 2**30:.1f} GiB planned for it on the device: shard the model "
                "(mesh.tensor), or lower max_new_tokens"
            )
        rows = int(rows * 0.95)


def free_bytes(mesh: Mesh | None = None) -> int:
    """Memory that is free on the fullest device of the mesh; of the host, shared by its devices, on a CPU."""
    devices = mesh.local_devices if mesh is not None else jax.local_devices()[:1]
    stats = [device.memory_stats() for device in devices]
    if all(stats):
        free = min(s["bytes_limit"] - s["bytes_in_use"] for s in stats)
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // len(devices)
    if mesh is not None and len(devices) < mesh.size:  # every process must come to the same wave
        free = int(np.min(multihost_utils.process_allgather(np.float64(free))))
    return free
