"""The device mesh, the table from logical axis names to mesh axes, and moving arrays on and off it.

A user's `pjit` is `jax.jit` with these shardings: one process and one device is the same program as a pod.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import re
from typing import Any, Iterator

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from selftrain_jax.errors import InputError, PeerLost, one_line

MESH_AXES = ("data", "fsdp", "tensor")
PEER_TIMEOUT = 30
"""Seconds without a sign of life after which a process of the job counts as dead."""

RULES: dict[str, str | tuple[str, ...] | None] = {
    # activations
    "batch": ("data", "fsdp"),
    "time": None,
    # parameters
    "layers": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "qkv": None,
    "heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
}
"""Logical axis name -> mesh axis (or axes). Pass another table to shard differently."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one of them may be -1, "all that remain"."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = dataclasses.asdict(self)
        if sum(size == -1 for size in sizes.values()) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
            raise InputError(f"mesh {sizes} must hold positive sizes, at most one of them -1 (all remaining devices)")

    def shape(self, num_devices: int) -> tuple[int, int, int]:
        """Concrete (data, fsdp, tensor) for `num_devices`; `InputError` when they do not multiply out."""
        sizes = [self.data, self.fsdp, self.tensor]
        known = math.prod(size for size in sizes if size != -1)
        if -1 in sizes and num_devices % known == 0:
            sizes[sizes.index(-1)] = num_devices // known
        if math.prod(sizes) != num_devices:
            raise InputError(
                f"mesh data={self.data}, fsdp={self.fsdp}, tensor={self.tensor} does not fit {num_devices} device(s): "
                "the product must equal the device count (use -1 for one axis)"
            )
        return tuple(sizes)


def make_mesh(config: MeshConfig = MeshConfig(), devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh with axes `("data", "fsdp", "tensor")` over `devices` (default: all)."""
    devices = jax.devices() if devices is None else devices
    shape = config.shape(len(devices))
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def initialize(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins this process to the others of its job; call it before anything asks JAX for its devices.

    The arguments are those of `jax.distributed.initialize`. A process that dies is noticed within `PEER_TIMEOUT` seconds,
    instead of JAX's 100.
    """
    jax.distributed.initialize(
        coordinator_address, num_processes, process_id,
        heartbeat_timeout_seconds=PEER_TIMEOUT, shutdown_timeout_seconds=PEER_TIMEOUT,
    )  # fmt: skip


@contextlib.contextmanager
def naming_lost_peers(doing: str) -> Iterator[None]:
    """In a job of several processes, turns the runtime's error of a broken connection into `PeerLost`.

    `doing` begins the message. Nothing that waits for the other processes may follow.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as e:
        lost = re.search("gloo|nccl|connection|heartbeat|unavailable|deadline|barrier", str(e), re.IGNORECASE)
        if jax.process_count() == 1 or not lost:
            raise
        raise PeerLost(
            f"{doing}: another process of the job is gone, or its network ({one_line(e)[:200]}). Start all "
            f"{jax.process_count()} again: the same command goes on from what is saved"
        ) from e


def enable_compilation_cache() -> None:
    """Turns on JAX's persistent compilation cache, unless one is set: a second start costs seconds, not minutes."""
    if not jax.config.jax_compilation_cache_dir and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "selftrain_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def partition_spec(axes: tuple[str | None, ...], rules: dict = RULES) -> PartitionSpec:
    """The mesh axes of an array whose dimensions carry these logical names."""
    return PartitionSpec(*(None if name is None else rules[name] for name in axes))


def shardings(mesh: Mesh, axes: Any, shapes: Any, rules: dict = RULES) -> Any:
    """A `NamedSharding` per leaf of `axes` (tuples of logical names).

    A dimension that its mesh axes do not divide is left whole rather than refused: small models have few heads.
    """

    def one(names, leaf):
        spec = []
        for size, entry in zip(leaf.shape, partition_spec(names, rules)):
            parts = (entry,) if isinstance(entry, str) else entry or ()
            spec.append(entry if size % math.prod(mesh.shape[p] for p in parts) == 0 else None)
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(one, axes, shapes, is_leaf=lambda x: isinstance(x, tuple))


def batch_sharding(mesh: Mesh, rules: dict = RULES) -> NamedSharding:
    """Rows over the data-parallel axes, everything else whole."""
    return NamedSharding(mesh, partition_spec(("batch",), rules))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_ways(mesh: Mesh) -> int:
    """How many ways the batch axis is split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins the sharding of an activation where a mesh is set (`jax.set_mesh`); elsewhere a no-op."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not set(MESH_AXES) <= set(mesh.axis_names) or x.shape[0] % batch_ways(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes))


def to_global(mesh: Mesh, tree: Any, sharding: Any) -> Any:
    """Host arrays, equal on every process, as global arrays with `sharding` (one, or one per leaf)."""
    if isinstance(sharding, NamedSharding):
        sharding = jax.tree.map(lambda _: sharding, tree)

    def put(x, s):
        if s.is_fully_addressable:
            return jax.device_put(x, s)
        return jax.make_array_from_callback(x.shape, s, lambda index: np.asarray(x)[index])

    return jax.tree.map(put, tree, sharding)
