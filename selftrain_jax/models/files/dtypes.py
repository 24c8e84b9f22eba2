"""The number formats of weights, and casts between them in which no number becomes infinite."""

from typing import Any

import ml_dtypes
import numpy as np

from selftrain_jax.core.errors import InputError

DTYPES = ("float32", "bfloat16", "float16", "float64")
"""Of stored weights. What a model computes in is one of `core.settings.COMPUTE_DTYPES`."""


def to_dtype(dtype: Any) -> np.dtype:
    """`dtype`, a name or a type, as numpy's; None is float32. Raises `InputError` when it is none of `DTYPES`."""
    try:
        found = np.dtype(np.float32 if dtype is None else dtype)
    except TypeError:
        found = None
    if found is None or found.name not in DTYPES:
        raise InputError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}")
    return found


def narrower(dtype: Any, than: Any) -> bool:
    """Whether the largest number of `dtype` is smaller than that of `than`."""
    return float(ml_dtypes.finfo(dtype).max) < float(ml_dtypes.finfo(than).max)


def cast(values: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """`values` in `dtype`; `InputError` naming the tensor `name` when a finite number would become infinite."""
    with np.errstate(over="ignore"):
        out = values.astype(dtype)
    lost = np.isfinite(values) & ~np.isfinite(out)
    if lost.any():
        largest = float(np.max(np.abs(values[lost])))
        raise InputError(
            f"tensor {name} holds {largest:.4g}, which is too large for {dtype.name}; choose a wider dtype"
        )
    return out
