"""Random keys that follow from a seed alone, and draws that follow from keys alone, whatever JAX's flags say."""

import contextlib
from typing import Any, Iterator

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.settings import check_seed


def seed_key(seed: int) -> PRNGKeyArray:
    """The threefry key of `seed`, from 0 to 2^63 - 1; a different one for each.

    `jax.random.key` gives the same for seeds below 2^32, as long as neither flags nor environment ask for another kind.
    """
    check_seed("random key", seed)
    return jax.random.wrap_key_data(np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32), impl="threefry2x32")


def check_keys(who: str, keys: Any, shape: tuple[int, ...] = ()) -> None:
    """Raises `InputError` unless `keys` are threefry keys of this shape: what another generator draws for a row depends
    on the rows beside it.
    """
    if not jax.dtypes.issubdtype(getattr(keys, "dtype", None), jax.dtypes.prng_key):
        raise InputError(f"{who} must be one of jax.random.key or core.randomness.seed_key, not a number or array")
    if (kind := str(jax.random.key_impl(keys))) != "threefry2x32":
        raise InputError(f"{who} must be of threefry2x32, as by core.randomness.seed_key, not of {kind}")
    if keys.shape != shape:
        raise InputError(f"{who} must be of shape {shape}, not {keys.shape}")


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """A context, or a decorator, in which the same keys give the same draws under any flags of JAX."""
    with (
        jax.enable_x64(False),
        jax.threefry_partitionable(True),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield
