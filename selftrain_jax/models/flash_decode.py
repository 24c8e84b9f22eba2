"""Attention of one new query per row to its cache, as one GPU kernel (Pallas, by way of Triton)."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from selftrain_jax.distributed.mesh import per_device
from selftrain_jax.models import ops

BLOCK = 64  # cache positions that are read at once
_LEAST_DOT = 16  # rows of the smallest matrix product that Triton has


def flash_decode(
    q: Float[Array, "B 1 N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    position: Int[Array, ""] | int,
    *,
    scale: float | None = None,
    window: int | None = None,
    cap: float | None = None,
    interpret: bool = False,
) -> Float[Array, "B 1 N H"]:
    """`ops.cached_attention` of one query: the filled part of the cache, and no more, is read, and once.

    The softmax is built up block by block (Milakov & Gimelshein 2018, Online normalizer calculation for softmax), in
    fp32. On a mesh, each device takes its own rows and heads. `interpret` runs the kernel's logic anywhere, slowly.
    """
    grouped = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
    scale = q.shape[3] ** -0.5 if scale is None else scale
    local = functools.partial(_call, scale=scale, window=window, cap=cap, interpret=interpret)
    axes = [("batch", "kv_heads")] * 3 + [()]
    return per_device(local, grouped, k, v, jnp.asarray(position, jnp.int32), axes=axes).reshape(q.shape)


def possible(q: Float[Array, "B T N H"], k: Float[Array, "B K S H"], device: jax.Device) -> bool:
    """Whether the kernel takes these: one query in half precision, on a GPU that Triton knows, with heads and a cache
    that its blocks, powers of two, make up."""
    (_, queries, _, head_dim), length = q.shape, k.shape[2]
    fitting = 16 <= head_dim <= 256 and head_dim.bit_count() == 1 and length >= 16 and length % _block(length) == 0
    on_gpu = device.platform == "gpu" and float(getattr(device, "compute_capability", 0)) >= 8
    return queries == 1 and q.dtype.itemsize == 2 and on_gpu and fitting


def _block(length: int) -> int:
    return min(BLOCK, 1 << length.bit_length() - 1)


def _call(q, k, v, position, *, scale, window, cap, interpret):
    """`flash_decode` on one device, of queries `[B, K, G, H]`."""
    rows, kv_heads, group, head_dim = q.shape
    length = k.shape[2]
    # Several queries of one head are a matrix product; a single one is as fast without, and nothing is padded.
    dot = group > 1
    padded = max(_LEAST_DOT, pl.next_power_of_2(group)) if dot else group
    q = jnp.pad(q, ((0, 0), (0, 0), (0, padded - group), (0, 0)))
    store = pl.BlockSpec((None, None, length, head_dim), lambda b, n: (b, n, 0, 0))
    heads = pl.BlockSpec((None, None, padded, head_dim), lambda b, n: (b, n, 0, 0))
    out = pl.pallas_call(
        functools.partial(_kernel, block=_block(length), dot=dot, scale=scale, window=window, cap=cap),
        grid=(rows, kv_heads),
        in_specs=[pl.BlockSpec((1,), lambda b, n: (0,)), heads, store, store],
        out_specs=heads,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="flash_decode",
    )(position.reshape(1), q, k, v)
    return out[:, :, :group]


def _kernel(position_ref, q_ref, k_ref, v_ref, out_ref, *, block, dot, scale, window, cap):
    """One row and one head of keys and values: queries [G, H], keys and values [S, H]."""
    position, q = position_ref[0], q_ref[...]
    group, head_dim = q.shape
    first = 0 if window is None else jnp.maximum(position - window + 1, 0) // block

    def one_block(i, carry):
        highest, total, mixed = carry
        at = pl.ds(i * block, block)
        k, v = k_ref[at, :], v_ref[at, :]
        if dot:
            scores = triton.dot(q, k.T)
        else:
            scores = jnp.sum(q.astype(jnp.float32) * k.astype(jnp.float32), axis=1)[None, :]
        scores = ops.softcap(scores * scale, cap)
        seen = ops.visible(position - (i * block + jnp.arange(block)), window)
        scores = jnp.where(seen[None, :], scores, -jnp.inf)
        above = jnp.maximum(highest, jnp.max(scores, axis=1))
        weights, shrink = jnp.exp(scores - above[:, None]), jnp.exp(highest - above)
        if dot:
            added = triton.dot(weights.astype(v.dtype), v)
        else:
            added = jnp.sum(weights[0][:, None] * v.astype(jnp.float32), axis=0)[None, :]
        return above, total * shrink + jnp.sum(weights, axis=1), mixed * shrink[:, None] + added

    start = (
        jnp.full((group,), jnp.finfo(jnp.float32).min, jnp.float32),
        jnp.zeros((group,), jnp.float32),
        jnp.zeros((group, head_dim), jnp.float32),
    )
    _, total, mixed = jax.lax.fori_loop(first, position // block + 1, one_block, start)
    out_ref[...] = (mixed / total[:, None]).astype(out_ref.dtype)
