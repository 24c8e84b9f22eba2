"""The device mesh, the table from logical axis names to mesh axes, and moving arrays on and off it.

A user's `pjit` is `jax.jit` with these shardings: one process and one device is the same program as a pod.
"""

import contextlib
import math
import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from selftrain_jax.core.errors import InputError
from selftrain_jax.distributed.settings import MESH_AXES, MeshConfig

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
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
}
"""Logical axis name -> mesh axis (or axes). Pass another table to shard differently."""


def make_mesh(config: MeshConfig = MeshConfig(), devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh with axes `("data", "fsdp", "tensor")` over `devices` (default: all)."""
    devices = jax.devices() if devices is None else devices
    shape = config.shape(len(devices))
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def describe(mesh: Mesh | None, workdir: Any) -> str:
    """One line: processes, devices, mesh, and where the run writes."""
    count = jax.process_count()
    parts = [f"{count} process{'es' * (count > 1)}"]
    if mesh is not None:
        device = mesh.devices.flat[0]
        parts.append(f"{mesh.size} x {device.device_kind}")
        parts.append("mesh " + ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items()))
    return "; ".join([*parts, f"writing to {workdir}"])


def virtual_devices(count: int) -> None:
    """Makes `count` CPU devices out of this machine, whatever it has; for compiling what is never run.

    Raises:
      InputError: JAX has counted its devices already, and there are fewer.
    """
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)
        jax.config.update("jax_platforms", "cpu")
    if len(jax.devices()) < count:
        raise InputError(
            f"{count} virtual devices are needed, but JAX runs with {len(jax.devices())}: ask in a new process"
        )


def local_mesh(mesh: Mesh) -> Mesh:
    """The devices of this process as a mesh with the tensor axis of `mesh`, the rest on the fsdp axis, so that weights
    are spread over them; `mesh` itself if the tensor axis does not fit there.

    For work that processes do each for themselves, as sampling and evaluating a model that one host can hold.
    """
    own, tensor = jax.local_devices(), mesh.shape["tensor"]
    if jax.process_count() == 1 or len(own) % tensor:
        return mesh
    return make_mesh(MeshConfig(data=1, fsdp=-1, tensor=tensor), own)


def is_local(mesh: Mesh | None) -> bool:
    """Whether no other process has a part in this mesh."""
    return mesh is None or all(device.process_index == jax.process_index() for device in mesh.devices.flat)


def enable_compilation_cache() -> None:
    """Turns on JAX's persistent compilation cache, unless one is set: a second start costs seconds, not minutes."""
    if not jax.config.jax_compilation_cache_dir and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        if os.path.isabs(cache):  # else there is no home
            jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "selftrain_jax", "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def partition_spec(axes: tuple[str | None, ...], rules: dict = RULES) -> PartitionSpec:
    """The mesh axes of an array whose dimensions carry these logical names.

    Raises:
      InputError: the rules spread two of these dimensions over one mesh axis.
    """
    spec = PartitionSpec(*(None if name is None else rules[name] for name in axes))
    taken: dict[str, str] = {}
    for name, entry in zip(axes, spec):
        for part in _mesh_axes(entry):
            if part in taken:
                raise InputError(
                    f"sharding rules: {taken[part]!r} and {name!r} are axes of one array, {axes}, and both lie on mesh "
                    f"axis {part!r}; give one of them another mesh axis, or None"
                )
            taken[part] = name
    return spec


def _mesh_axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry or ()


def named_shardings(mesh: Mesh, axes: Any, shapes: Any, rules: dict = RULES) -> Any:
    """A `NamedSharding` per leaf of `axes` (tuples of logical names).

    A dimension that its mesh axes do not divide is left whole rather than refused: small models have few heads.

    Raises:
      InputError: the rules spread two dimensions of one array over one mesh axis.
    """

    def one(names, leaf):
        spec = []
        for size, entry in zip(leaf.shape, partition_spec(names, rules)):
            spec.append(entry if size % math.prod(mesh.shape[axis] for axis in _mesh_axes(entry)) == 0 else None)
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


def padded_rows(rows: int, mesh: Mesh | None) -> int:
    """`rows`, rounded up to what the batch axis of `mesh` divides."""
    ways = 1 if mesh is None else batch_ways(mesh)
    return -(-rows // ways) * ways


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins the sharding of an activation where a mesh is set (`jax.set_mesh`); elsewhere a no-op."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not set(MESH_AXES) <= set(mesh.axis_names) or x.shape[0] % batch_ways(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes))


def to_global(mesh: Mesh, tree: Any, sharding: Any) -> Any:
    """Host arrays, equal on every process, or arrays that lie on the mesh already, as global arrays with `sharding`
    (one, or one per leaf)."""
    if isinstance(sharding, NamedSharding):
        sharding = jax.tree.map(lambda _: sharding, tree)

    def put(x, s):
        if s.is_fully_addressable or not getattr(x, "is_fully_addressable", True):
            return jax.device_put(x, s)
        return jax.make_array_from_callback(x.shape, s, lambda index: np.asarray(x)[index])

    return jax.tree.map(put, tree, sharding)


def to_host(x: Any) -> np.ndarray:
    """A numpy array of the whole of `x`, on every process that shares it."""
    if getattr(x, "is_fully_addressable", True):
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)
