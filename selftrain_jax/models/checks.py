"""What a model is given, and what it gives, before anything is concluded from it."""

import functools
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from selftrain_jax.core.errors import InputError
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.decoder import Params, param_shapes, unstack_layers


def check_params(params: Params, config: DecoderConfig, *, unstacked: bool = False) -> None:
    """Raises `InputError` unless `params` are those of a `Decoder` of `config`: none missing, of another shape, or
    unknown to it, which Flax would leave out without a word.

    Args:
      unstacked: they may be as `unstack_layers` makes them, too.
    """
    in_list = unstacked and isinstance(params, dict) and isinstance(params.get("layers"), (list, tuple))
    wanted, found = _wanted(config, in_list), _shapes(nn.unbox(params))
    for name in [*wanted, *found]:
        if wanted.get(name) != found.get(name):
            raise InputError(
                f"params are not those of a Decoder of this config: {name or type(params)} has shape "
                f"{found.get(name)}, not {wanted.get(name)}"
            )


@functools.lru_cache
def _wanted(config: DecoderConfig, in_list: bool) -> dict[str, tuple[int, ...]]:
    shapes = param_shapes(config)
    return _shapes(jax.eval_shape(unstack_layers, shapes) if in_list else shapes)


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in jax.tree.leaves_with_path(params)}


def check_finite(what: str, values: Any) -> None:
    """Raises `InputError` unless `values`, which a model gave, are all finite numbers."""
    if not np.isfinite(values).all():
        raise InputError(
            f"the model's {what} are not finite: its weights are damaged, diverged, or overflow in this dtype; take "
            "another checkpoint, or dtype float32"
        )
