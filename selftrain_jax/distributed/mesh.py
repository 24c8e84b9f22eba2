"""The device mesh, the table from logical axis names to mesh axes, and moving arrays on and off it.

A user's `pjit` is `jax.jit` with these shardings: one process and one device is the same program as a pod.
"""

import contextlib
import math
import os
from typing import Any, Callable, ContextManager, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from selftrain_jax.core.errors import InputError, one_line
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
"""Logical axis name -> mesh axis (or axes). Pass another table to shard differently; what it leaves out stays whole."""

_FLAGS = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_disable_jit": False,
    "jax_transfer_guard": "allow",
    **{f"jax_transfer_guard_{way}": "allow" for way in ("host_to_device", "device_to_device", "device_to_host")},
}
"""Flags, and variables of the environment, that would change a run's numbers or stop it, with what they are in a run.
"""


def configure_jax() -> None:
    """Readies JAX for a command: the compilation cache is on, and what decides numbers is as in every run.

    Raises:
      InputError: the environment asks for a precision of matrix products.
    """
    if (asked := jax.config.jax_default_matmul_precision) is not None:
        raise InputError(
            f"JAX_DEFAULT_MATMUL_PRECISION={asked} would change what is computed under the same settings: unset it, "
            "and choose a dtype (train.dtype, sample.dtype, evaluate.dtype) instead"
        )
    for name, value in _FLAGS.items():
        jax.config.update(name, value)
    enable_compilation_cache()


def exact_matmuls(dtype: Any) -> ContextManager:
    """A context in which fp32 matrices are multiplied in fp32: accelerators otherwise take TF32 or bf16 for it, which
    moves logits by far more than rounding does. Half precision is left as it is."""
    return jax.default_matmul_precision("highest") if jnp.dtype(dtype) == jnp.float32 else contextlib.nullcontext()


def find_devices() -> list[jax.Device]:
    """All devices; `InputError` where JAX finds none of the kind that it is told to use."""
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as e:  # an assertion fails where a plug-in finds no hardware
        platforms = jax.config.jax_platforms
        raise InputError(
            f"JAX finds no device with JAX_PLATFORMS={platforms or ''} ({one_line(e)[:300]}): unset it to take what "
            "there is, or check the driver"
        ) from None


def make_mesh(config: MeshConfig = MeshConfig(), devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh with axes `("data", "fsdp", "tensor")` over `devices` (default: all); TPU slices lie on the data axis.

    Raises:
      InputError: `config` does not fit the devices, or the slices do not divide its data axis.
    """
    devices = find_devices() if devices is None else devices
    shape, types = config.shape(len(devices)), (AxisType.Auto,) * 3
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if devices[0].platform != "tpu" or slices == 1:
        return jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=devices)
    if shape[0] % slices:
        raise InputError(
            f"mesh.data={shape[0]} must be a multiple of {slices}, the number of TPU slices: between them it is slow"
        )
    within_one = (shape[0] // slices, *shape[1:])
    placed = mesh_utils.create_hybrid_device_mesh(within_one, (slices, 1, 1), devices)
    return Mesh(placed, MESH_AXES, axis_types=types)


def target_device(mesh: Mesh | None = None) -> jax.Device:
    """A device that a program is made for, by which its back ends are chosen: one of `mesh`, of the mesh that is set
    (`jax.set_mesh`), or JAX's first. Under a mesh of another platform than JAX's default it has no more than its
    `platform` and `device_kind`."""
    if mesh is not None:
        return mesh.devices.flat[0]
    first = jax.devices()[0]
    here = jax.sharding.get_abstract_mesh().abstract_device
    return first if here is None or here.device_kind == first.device_kind else here


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
    spec = PartitionSpec(*(rules.get(name) for name in axes))
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


def check_mesh(mesh: Mesh, rules: dict = RULES) -> None:
    """Raises `InputError` for axes that are not of type Auto, and where `rules` name an axis that `mesh` lacks."""
    if set(mesh.axis_types) != {AxisType.Auto}:
        raise InputError(
            f"mesh axes {mesh.axis_names} are {', '.join(sorted({kind.name for kind in mesh.axis_types}))}: make the "
            "mesh with axis_types=(AxisType.Auto,) * number of axes, or by distributed.mesh.make_mesh"
        )
    _check_names(mesh, rules)


def _check_names(mesh: Mesh, rules: dict) -> None:
    for name, entry in rules.items():
        for axis in _mesh_axes(entry):
            if axis not in mesh.shape:
                raise InputError(
                    f"sharding rules: {name!r} lies on mesh axis {axis!r}, but the mesh has {mesh.axis_names}: make it "
                    f'by make_mesh, or pass rules= with its names, for example {{"batch": {mesh.axis_names[0]!r}}}'
                )


def shards_params(mesh: Mesh, rules: dict = RULES) -> bool:
    """Whether `rules` spread any axis of parameters over several devices of `mesh`."""
    of_params = (entry for name, entry in rules.items() if name not in ("batch", "time"))
    return any(mesh.shape[axis] > 1 for entry in of_params for axis in _mesh_axes(entry))


def within(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """A context in which `mesh` takes the place of one that the caller has set (`jax.set_mesh`), if any."""
    return contextlib.nullcontext() if mesh is None or jax.sharding.get_abstract_mesh().empty else jax.set_mesh(mesh)


def with_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """`jax.set_mesh(mesh)`, which models need when their rows are spread over it: back ends are chosen for its devices,
    and kernels run on each device's own rows. Nothing with None."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def standard_mesh(mesh: Mesh | None, rules: dict = RULES) -> Mesh | None:
    """The devices of any mesh under our axis names: what `rules` spread heads over is "tensor", all else "data"."""
    if mesh is None or (mesh.axis_names == MESH_AXES and set(mesh.axis_types) == {AxisType.Auto} and rules == RULES):
        return mesh
    tensor = [axis for axis in _mesh_axes(rules.get("heads")) if axis in mesh.shape]
    order = [*(axis for axis in mesh.axis_names if axis not in tensor), *tensor]
    devices = mesh.devices.transpose([mesh.axis_names.index(axis) for axis in order])
    devices = devices.reshape(-1, 1, math.prod(mesh.shape[axis] for axis in tensor))
    return Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def named_shardings(mesh: Mesh, axes: Any, shapes: Any, rules: dict = RULES) -> Any:
    """A `NamedSharding` per leaf of `axes` (tuples of logical names).

    A dimension that its mesh axes do not divide is left whole rather than refused: small models have few heads.

    Raises:
      InputError: the rules spread two dimensions of one array over one mesh axis, or name one that `mesh` lacks.
    """
    _check_names(mesh, rules)

    def one(names, leaf):
        spec = []
        for size, entry in zip(leaf.shape, partition_spec(names, rules)):
            spec.append(entry if size % math.prod(mesh.shape[axis] for axis in _mesh_axes(entry)) == 0 else None)
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(one, axes, shapes, is_leaf=lambda x: isinstance(x, tuple))


def batch_sharding(mesh: Mesh, rules: dict = RULES) -> NamedSharding:
    """Rows over the data-parallel axes, everything else whole; `InputError` as `check_mesh`."""
    check_mesh(mesh, rules)
    return NamedSharding(mesh, partition_spec(("batch",), rules))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_ways(mesh: Mesh, rules: dict = RULES) -> int:
    """How many ways the batch axis is split."""
    return math.prod(mesh.shape[axis] for axis in _mesh_axes(rules.get("batch")))


def padded_rows(rows: int, mesh: Mesh | None) -> int:
    """`rows`, rounded up to what the batch axis of `mesh` divides; `InputError` as `check_mesh`."""
    if mesh is None:
        return rows
    check_mesh(mesh)
    ways = batch_ways(mesh)
    return -(-rows // ways) * ways


def per_device(function: Callable, *arrays: jax.Array, axes: Sequence[tuple[str, ...]]) -> jax.Array:
    """`function(*arrays)`, computed by each device of the mesh that is set (`jax.set_mesh`) on its own part of the
    arrays, whose leading dimensions have the logical names `axes`. What comes out is spread as the first array is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size == 1 or not set(MESH_AXES) <= set(mesh.axis_names):
        return function(*arrays)
    specs = tuple(sharding.spec for sharding in named_shardings(mesh, list(axes), list(arrays)))
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)(*arrays)


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
