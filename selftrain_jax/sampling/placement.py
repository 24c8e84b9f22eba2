"""The weights as sampling reads them: their dtype, and where they lie on the mesh."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selftrain_jax.core.errors import InputError
from selftrain_jax.distributed.mesh import RULES
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.decoder import Params, param_shardings, unstack_layers

SAMPLING_RULES = RULES | {"embed": None}
"""Weights are whole on every device but for the tensor axis: gathering fsdp shards at every token would cost more."""


def default_dtype() -> Any:
    """bfloat16 on accelerators, float32 on CPUs, where bfloat16 is slower."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def prepare(params: Params, config: DecoderConfig, *, mesh: Mesh | None = None, dtype: Any = None) -> Params:
    """The weights as the decode loop reads them: in `dtype`, one dict per layer, placed by `SAMPLING_RULES`.

    For many calls of `sample` on the same weights, which would otherwise each do this. A no-op on its own result, which
    must be of the same dtype and mesh.
    """
    if isinstance(params["layers"], list):
        found = params["embed"]["embedding"].dtype
        if dtype is not None and found != jnp.dtype(dtype):
            raise InputError(f"the weights were prepared as {found}, not as {jnp.dtype(dtype)}; prepare them again")
        return params
    dtype = jnp.dtype(default_dtype() if dtype is None else dtype)
    placement = None
    if mesh is not None:
        params = jax.device_put(params, param_shardings(config, mesh, SAMPLING_RULES))
        placement = prepared_shardings(config, mesh)

    def convert(params):
        return unstack_layers(jax.tree.map(lambda x: x.astype(dtype), params))

    return jax.jit(convert, out_shardings=placement)(params)


def prepared_shardings(config: DecoderConfig, mesh: Mesh) -> Params:
    """Where the weights that `prepare` makes lie on `mesh`."""
    stacked = param_shardings(config, mesh, SAMPLING_RULES)
    one = jax.tree.map(lambda s: NamedSharding(mesh, PartitionSpec(*s.spec[1:])), stacked["layers"])
    return {**stacked, "layers": [one] * config.num_layers}
