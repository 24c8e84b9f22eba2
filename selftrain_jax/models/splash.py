"""Attention by JAX's Pallas "splash" kernel for TPUs, which never holds the scores in memory and knows packed
documents.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from selftrain_jax.distributed.mesh import per_device

_LANES = 128  # the kernel's unit along time, and along a head


def splash_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"] | None = None,
    *,
    scale: float | None = None,
    window: int | None = None,
    cap: float | None = None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """`ops.causal_attention` as one kernel; on a mesh, each device takes its own rows and heads.

    Time and heads are padded to multiples of 128. Heads of keys and values that the mesh's tensor axis does not divide
    are repeated for each query head. `interpret` runs the kernel's logic on any device, slowly.
    """
    head_dim, dtype = q.shape[-1], q.dtype
    segments = jnp.zeros(q.shape[:2], jnp.int32) if segment_ids is None else segment_ids
    if k.shape[2] % jax.sharding.get_abstract_mesh().shape.get("tensor", 1):
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    q = (q.astype(jnp.float32) * (head_dim**-0.5 if scale is None else scale)).astype(dtype)
    more_time, more_head = -q.shape[1] % _LANES, -head_dim % _LANES
    padding = ((0, 0), (0, 0), (0, more_time), (0, more_head))
    q, k, v = (jnp.pad(jnp.swapaxes(x, 1, 2), padding) for x in (q, k, v))
    # What pads the end comes after every real query, so the causal mask hides it.
    segments = jnp.pad(segments, ((0, 0), (0, more_time)), mode="edge")

    def local(q, k, v, segments):
        return _kernel(q.shape[1], k.shape[1], q.shape[2], window, cap, interpret)(q, k, v, segments)

    mixed = per_device(local, q, k, v, segments, axes=[("batch", "heads")] * 3 + [("batch",)])
    mixed = jnp.swapaxes(mixed, 1, 2)
    return mixed[:, : mixed.shape[1] - more_time, :, :head_dim]


def _kernel(num_heads: int, kv_heads: int, length: int, window: int | None, cap: float | None, interpret: bool):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    block = math.gcd(length, 4 * _LANES)
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    sizes = splash_attention_kernel.BlockSizes(
        **{name: block for name in (*names, "block_q_dq", "block_kv_dq")}, use_fused_bwd_kernel=False
    )
    shape, group = (length, length), num_heads // kv_heads
    mask = splash_attention_mask.CausalMask(shape)
    if window is not None:
        mask = splash_attention_mask.LocalMask(shape, (window - 1, 0), offset=0)
    make = splash_attention_kernel.make_splash_mha if group == 1 else splash_attention_kernel.make_splash_mqa
    kernel = make(
        splash_attention_mask.MultiHeadMask([mask] * (num_heads if group == 1 else group)),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=cap,
        interpret=interpret,
    )

    def one_row(q, k, v, segments):  # q [N, T, H], k and v [K, T, H]
        ids = splash_attention_kernel.SegmentIds(segments, segments)
        if group == 1:
            return kernel(q, k, v, ids)
        grouped = q.reshape(kv_heads, group, *q.shape[1:])
        return jax.vmap(kernel, (0, 0, 0, None))(grouped, k, v, ids).reshape(q.shape)

    return jax.vmap(one_row)
