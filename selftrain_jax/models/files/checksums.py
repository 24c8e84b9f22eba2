"""Checksums of parameters: Orbax and its storage layer give back what is on disk, whatever has become of it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def checksums(tree: Any) -> np.ndarray:
    """uint32 `[leaves]`: per array, the sum of its bit patterns, each times an odd number that depends on its place.

    Integer sums come out the same in any order, so a checksum does not depend on the mesh.
    """
    leaves = jax.tree.leaves(tree)
    # One program for all: several at once, each with its own collectives, may wait for each other across processes.
    # Arrays of the host go to the device one by one.
    parts = [leaves] if all(isinstance(leaf, jax.Array) for leaf in leaves) else [[leaf] for leaf in leaves]
    return np.concatenate([_checksums(part) for part in parts])


@jax.jit
def _checksums(leaves):
    return jnp.stack([_checksum(leaf) for leaf in leaves])


def _checksum(x):
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = jax.lax.bitcast_convert_type(x, {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize])
    place = jnp.uint32(1)
    for axis, multiplier in enumerate((2, 65_538, 4_098, 1_030, 262)[: x.ndim]):
        place = place + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(multiplier)
    return jnp.sum(x.astype(jnp.uint32) * place, dtype=jnp.uint32)


def first_other(tree: Any, expected: Any) -> str:
    """The path of the first leaf whose checksum is not the `expected` one; "" where all are."""
    wrong = np.flatnonzero(checksums(tree) != np.asarray(expected))
    return jax.tree_util.keystr(jax.tree.leaves_with_path(tree)[wrong[0]][0]) if wrong.size else ""
