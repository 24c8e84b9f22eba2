"""THE loop of every evaluation: ragged items sorted by length, computed batch by batch, results in the order given."""

import contextlib
from typing import Any, Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from selftrain_jax.core.errors import InputError
from selftrain_jax.distributed.mesh import batch_sharding, exact_matmuls, to_global, to_host

_ROUND = 16  # longer sequences are rounded to it at least: few shapes to compile


def in_batches(
    compute: Callable[[list[int]], Any],
    lengths: Sequence[Any],
    rows: int,
    *,
    dtype: Any = None,
    finish: Callable[[int, Any], Any] = lambda i, found: found,
) -> list[Any]:
    """What `compute` finds for each item, in the order of `lengths`.

    Args:
      compute: takes the indices of the items of one batch, at most `rows`; returns arrays with one row per item first
        (rows behind them are ignored), or a list with one entry per item.
      lengths: sort key of every item; a batch holds neighbours in that order.
      rows: items per batch.
      dtype: compute in `exact_matmuls` of it.
      finish: called with an item's index and what was found for it, as numpy arrays; its result is kept instead.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    results: list[Any] = [None] * len(order)
    pending: list[tuple[list[int], Any]] = []

    def unpack(chosen, found):
        found = found if isinstance(found, list) else jax.tree.map(to_host, found)
        for row, i in enumerate(chosen):
            one = found[row] if isinstance(found, list) else jax.tree.map(lambda x: x[row], found)
            results[i] = finish(i, one)

    for begin in range(0, len(order), rows):
        chosen = order[begin : begin + rows]
        with contextlib.nullcontext() if dtype is None else exact_matmuls(dtype):
            pending.append((chosen, compute(chosen)))
        # Keep the device busy while the host unpacks; over several processes, programs in flight together may deadlock.
        in_flight = 2 if jax.process_count() == 1 and not isinstance(pending[-1][1], list) else 0
        while len(pending) > in_flight:
            unpack(*pending.pop(0))
    for batch in pending:
        unpack(*batch)
    return results


def padded_batch(
    mesh: Mesh | None, rows: int, width: int, sequences: Sequence[np.ndarray], *columns: Sequence[int]
) -> tuple[Any, ...]:
    """`sequences` as int32 `[rows, width]`, zeros behind them, and each of `columns` as int32 `[rows]`, ones behind it;
    with their rows spread over `mesh`."""
    tokens = np.zeros((rows, width), np.int32)
    for row, sequence in zip(tokens, sequences):
        row[: len(sequence)] = sequence
    arrays = (tokens, *(np.array([*column, *[1] * (rows - len(column))], np.int32) for column in columns))
    return arrays if mesh is None else to_global(mesh, arrays, batch_sharding(mesh))


def rounded_length(length: int) -> int:
    """A row length that holds `length` tokens: few different ones, none an eighth too long beyond 128."""
    if length <= _ROUND:
        return 1 << (length - 1).bit_length()
    unit = max(_ROUND, 1 << max(length.bit_length() - 4, 0))
    return -(-length // unit) * unit


def check_batch_size(batch_size: int) -> None:
    """Raises `InputError` below 1."""
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} must be at least 1")
