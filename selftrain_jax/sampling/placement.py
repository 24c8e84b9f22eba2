"""The weights as sampling reads them, their dtype, and where they lie on the mesh; and the ids that it may emit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool

from selftrain_jax.core.errors import InputError
from selftrain_jax.distributed.mesh import RULES, standard_mesh, target_device, within
from selftrain_jax.models.checks import check_params
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.decoder import Params, param_shardings, unstack_layers

SAMPLING_RULES = RULES | {"embed": None}
"""Weights are whole on every device but for the tensor axis: gathering fsdp shards at every token would cost more."""


def default_dtype(mesh: Mesh | None = None) -> Any:
    """bfloat16 on accelerators, float32 on CPUs, where bfloat16 is slower."""
    return jnp.float32 if target_device(mesh).platform == "cpu" else jnp.bfloat16


def usable_ids(config: DecoderConfig, allowed: Bool[np.ndarray, "V"] | None) -> Bool[np.ndarray, "V"]:
    """`allowed`, or all ids with None; `InputError` unless it says of each id of the vocabulary whether, and of one
    that, it may be emitted."""
    usable = np.ones(config.vocab_size, bool) if allowed is None else np.asarray(allowed)
    if usable.dtype != bool or usable.shape != (config.vocab_size,) or not usable.any():
        raise InputError(
            f"sample allowed must be {config.vocab_size} truth values, one for each id of the vocabulary, and not all "
            "False"
        )
    return usable


def prepare(
    params: Params, config: DecoderConfig, *, mesh: Mesh | None = None, rules: dict = RULES, dtype: Any = None
) -> Params:
    """The weights as the decode loop reads them: in `dtype`, one dict per layer, placed by `SAMPLING_RULES`.

    For many calls of `sample` on the same weights, which would otherwise each do this. A no-op on its own result, which
    must be of the same dtype and mesh. `mesh` and `rules` are those of `sampler.sample`.
    """
    mesh = standard_mesh(mesh, rules)
    check_params(params, config, unstacked=True)
    if isinstance(params["layers"], list):
        found = params["embed"]["embedding"].dtype
        if dtype is not None and found != jnp.dtype(dtype):
            raise InputError(f"the weights were prepared as {found}, not as {jnp.dtype(dtype)}; prepare them again")
        return params
    dtype = jnp.dtype(default_dtype(mesh) if dtype is None else dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(f"weights in {dtype} would lose what stands behind the point: give a floating dtype")

    def convert(params):
        return unstack_layers(jax.tree.map(lambda x: x.astype(dtype), params))

    if mesh is None:
        return jax.jit(convert)(params)
    with within(mesh):
        params = jax.device_put(params, param_shardings(config, mesh, SAMPLING_RULES))
        return jax.jit(convert, out_shardings=prepared_shardings(config, mesh))(params)


def prepared_shardings(config: DecoderConfig, mesh: Mesh) -> Params:
    """Where the weights that `prepare` makes lie on `mesh`."""
    stacked = param_shardings(config, mesh, SAMPLING_RULES)
    one = jax.tree.map(lambda s: NamedSharding(mesh, PartitionSpec(*s.spec[1:])), stacked["layers"])
    return {**stacked, "layers": [one] * config.num_layers}
