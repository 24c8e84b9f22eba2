"""Numerical pieces of the model as free functions.

Letters used in einsum strings and shape comments throughout the package:
B batch, T time (queries), S time (keys), D model, N heads, K heads of keys and values, G = N / K, H head,
F feed-forward, V vocabulary, L layers.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from selftrain_jax.core.errors import InputError
from selftrain_jax.distributed.mesh import target_device
from selftrain_jax.models.config import ATTENTION, LinearScaling, Llama3Scaling, Rotary, YarnScaling
from selftrain_jax.models.contraction import contract, dense
from selftrain_jax.models.outline import attention_outline
from selftrain_jax.models.splash import splash_attention

ATTENTION_BLOCK = 256


def rotary_tables(positions: Int[Array, "*BT"], dim: int, rotary: Rotary) -> tuple[Array, Array]:
    """Cosine and sine tables `[..., T, dim]` in fp32 (Su et al. 2021, RoFormer, section 3.4; NeoX half-split layout).

    fp32 whatever the compute dtype: half-precision angles are wrong by up to 0.78 in cosine within 2,048 positions.
    """
    inverse_frequency = rotary.base ** (-jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
    inverse_frequency, sharpening = _scaled(inverse_frequency, dim, rotary)
    angles = positions[..., None].astype(jnp.float32) * inverse_frequency
    angles = jnp.concatenate([angles, angles], axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return (cos, sin) if sharpening == 1 else (cos * sharpening, sin * sharpening)


def _scaled(inverse_frequency: Float[Array, "R"], dim: int, rotary: Rotary) -> tuple[Float[Array, "R"], float]:
    """The frequencies of a model whose context was extended, and what cosine and sine are multiplied by."""
    match rotary.scaling:
        case None:
            return inverse_frequency, 1.0
        case LinearScaling(factor):
            return inverse_frequency / factor, 1.0
        case Llama3Scaling(factor, low, high, context):
            # Turns within the original context: below `low` interpolated, above `high` kept, a straight line between.
            turns = context * inverse_frequency / (2 * math.pi)
            kept = jnp.clip((turns - low) / (high - low), 0, 1)
            return inverse_frequency * (kept + (1 - kept) / factor), 1.0
        case YarnScaling(factor, context, sharpening, fast, slow):
            # Pairs of dimensions that make `fast` turns within the original context and more are kept, those of `slow`
            # and less interpolated (section 3.2); the root of the scores' inverse temperature is of section 3.4.
            pairs = (
                dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(rotary.base)) for turns in (fast, slow)
            )
            first, last = max(math.floor(next(pairs)), 0), min(math.ceil(next(pairs)), dim - 1)
            ramp = (jnp.arange(dim // 2, dtype=jnp.float32) - first) / (last - first or 0.001)
            kept = 1 - jnp.clip(ramp, 0, 1)
            implied = 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0
            return inverse_frequency * (kept + (1 - kept) / factor), implied if sharpening is None else sharpening


def apply_rotary(x: Float[Array, "B T N H"], cos: Float[Array, "*BT R"], sin: Float[Array, "*BT R"]) -> Array:
    """Rotates the first R dimensions of every head; the remaining H - R pass through."""
    rotary_dim = cos.shape[-1]
    if rotary_dim == 0:
        return x
    rotated, passed = x[..., :rotary_dim].astype(jnp.float32), x[..., rotary_dim:]
    first, second = jnp.split(rotated, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    rotated = rotated * cos[..., None, :] + turned * sin[..., None, :]
    return jnp.concatenate([rotated.astype(x.dtype), passed], axis=-1)


def layer_norm(x: Float[Array, "*B D"], scale: Float[Array, "D"], bias: Float[Array, "D"], eps: float) -> Array:
    """Layer normalization (Ba et al. 2016) with fp32 statistics, returned in the dtype of `x`."""
    x32 = x.astype(jnp.float32)
    mean = jnp.mean(x32, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x32 - mean), axis=-1, keepdims=True)
    normed = (x32 - mean) * jax.lax.rsqrt(variance + eps)
    return (normed * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def rms_norm(x: Float[Array, "*B D"], scale: Float[Array, "*D"], eps: float) -> Array:
    """Root mean square normalization (Zhang & Sennrich 2019) over the axes of `scale`, with fp32 statistics, returned
    in the dtype of `x`."""
    x32, axes = x.astype(jnp.float32), tuple(range(-scale.ndim, 0))
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=axes, keepdims=True) + eps)
    return (normed * scale.astype(jnp.float32)).astype(x.dtype)


_ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
}


def activate(name: str, x: Float[Array, "*B F"], gated: Float[Array, "*B F"] | None = None) -> Array:
    """The activation `name` of `x`, times what it gates."""
    activated = _ACTIVATIONS[name](x)
    return activated if gated is None else activated * gated


def softcap(x: Array, cap: float | None) -> Array:
    """`x`, bent so that it stays within +-`cap` (Gemma 2); `x` itself with None."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def attention_implementation(
    requested: str, dtype: Any, head_dim: int, packed: bool, capped: bool = False, device: Any = None
) -> str:
    """Which back end `requested`, one of `ATTENTION`, means here; "auto" takes the device's own kernel wherever it can.

    Args:
      packed: documents share rows and must not see each other. cuDNN's kernel has no such mask.
      capped: scores go through a soft-cap. cuDNN's kernel has none.
      device: for what (default: `target_device()`); an `accelerators.Accelerator` will do.

    Raises:
      InputError: `requested` is unknown, or cannot be here; the line says why.
    """
    if requested not in ATTENTION:
        raise InputError(f"attention={requested!r} must be one of {', '.join(ATTENTION)}")
    device = device or target_device()
    capability = float(getattr(device, "compute_capability", 0) or 0)
    most = 256 if capability >= 9 else 128
    against = {
        "cudnn": {
            f"the device is a {device.platform}, not a GPU": device.platform != "gpu",
            f"its dtype must be bfloat16 or float16, not {jnp.dtype(dtype).name}": jnp.dtype(dtype).itemsize != 2,
            f"head_dim={head_dim} must be a multiple of 8, at most {most} on this GPU": head_dim % 8 or head_dim > most,
            "it cannot keep packed documents apart (document_boundaries)": packed,
            "it has no soft-cap of scores, which this model asks for": capped,
        },
        "splash": {f"the device is a {device.platform}, not a TPU": device.platform != "tpu"},
    }
    reasons = {name: [reason for reason, holds in each.items() if holds] for name, each in against.items()}
    if requested == "auto":
        return next((name for name, found in reasons.items() if not found), "xla")
    if reasons.get(requested):
        raise InputError(f"attention={requested!r} is not possible here: {reasons[requested][0]}; use 'auto' or 'xla'")
    return requested


class Branches(NamedTuple):
    """Rows that hold several continuations of one beginning, each of which sees the beginning and itself."""

    branch: Int[Array, "B T"]  # which continuation, from 2 on; 1: the beginning, which all see; 0: padding
    positions: Int[Array, "B T"]  # in what is continued, not in the row


def causal_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    apart: Int[Array, "B T"] | Branches | None = None,
    implementation: str = "auto",
    *,
    scale: float | None = None,
    window: int | None = None,
    cap: float | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention of every position to itself and what came before it, as far as `apart` lets it.

    "xla": queries go in blocks of `ATTENTION_BLOCK` and each block reads only the keys that it may see, so what the
    mask hides is mostly never computed and the largest temporary is `[B, N, block, T]`. "cudnn": flash attention on a
    GPU. "splash": `splash.splash_attention`, on a TPU. (And "outline", which is no setting: `attention_outline`.)

    Args:
      apart: ids of segments, of which none sees another; or `Branches`, which "xla" alone can do.
      scale: of the scores; None: H ** -0.5.
      window: how many positions each one sees, itself included; None: all.
      cap: soft-cap of the scaled scores.
    """
    if implementation == "outline":
        return attention_outline(q, k, v)
    branched = isinstance(apart, Branches)
    requested = "xla" if branched else implementation
    chosen = attention_implementation(requested, q.dtype, q.shape[-1], apart is not None, cap is not None)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if chosen == "cudnn":
        near = None if window is None else (window - 1, 0)
        return jax.nn.dot_product_attention(
            q, k, v, scale=scale, is_causal=True, local_window_size=near, implementation="cudnn"
        )
    if chosen == "splash":
        return splash_attention(q, k, v, apart, scale=scale, window=window, cap=cap)
    length = q.shape[1]
    blocks = []
    for start in range(0, length, ATTENTION_BLOCK):
        stop = min(start + ATTENTION_BLOCK, length)
        first = 0 if window is None or branched else max(start - window + 1, 0)
        here, there = slice(start, stop), slice(first, stop)
        if branched:
            mask = _mask(apart.positions[:, here], apart.positions[:, there], window)
            mask &= _equal(apart.branch, here, there) | (apart.branch[:, None, there] == 1)
        else:
            mask = _mask(jnp.arange(start, stop), jnp.arange(first, stop), window)
            if apart is not None:
                mask = mask & _equal(apart, here, there)
        blocks.append(_attend(q[:, here], k[:, there], v[:, there], "bskh", mask, scale, cap))
    return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=1)


def cached_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    position: Int[Array, ""],
    *,
    scale: float | None = None,
    window: int | None = None,
    cap: float | None = None,
) -> Float[Array, "B T N H"]:
    """Attention of T new queries, the first at `position`, to a cache whose later slots are not yet filled."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    mask = _mask(position + jnp.arange(q.shape[1]), jnp.arange(k.shape[2]), window)
    return _attend(q, k, v, "bksh", mask, scale, cap)


def _attend(q, k, v, stored: str, mask: Bool[Array, "*B T S"], scale: float, cap: float | None):
    """`q` [B, T, N, H] on `k` and `v`, whose axes `stored` names, of which each head serves N / K heads of `q`."""
    heads = k.shape[stored.index("k")]
    g = "" if heads == q.shape[2] else "g"
    mask = mask if mask.ndim == 2 else mask[:, None, None] if g else mask[:, None]
    split = q.reshape(*q.shape[:2], heads, -1, q.shape[-1]) if g else q
    scores = jnp.einsum(f"btk{g}h,{stored}->bk{g}ts", split, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, softcap(scores * scale, cap), jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return jnp.einsum(f"bk{g}ts,{stored}->btk{g}h", weights, v).reshape(q.shape)


def _mask(queries: Int[Array, "*B T"], keys: Int[Array, "*B S"], window: int | None) -> Bool[Array, "*B T S"]:
    """Which key positions each query position may see."""
    return visible(queries[..., :, None] - keys[..., None, :], window)


def visible(distance: Int[Array, "*S"], window: int | None) -> Bool[Array, "*S"]:
    """Whether a query sees the keys that lie `distance` before it."""
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def _equal(ids: Int[Array, "B T"], queries: slice, keys: slice) -> Bool[Array, "B T S"]:
    return ids[:, queries, None] == ids[:, None, keys]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def cross_entropy_sum(
    hidden: Float[Array, "B T D"],
    kernel: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    chunk: int = 256,
    cap: float | None = None,
) -> Float[Array, ""]:
    """Sum over positions of `weights * -log softmax(softcap(hidden @ kernel, cap))[targets]`, in nats and fp32.

    Logits exist for `chunk` time steps at a time. The forward pass already forms the gradients with respect to
    `hidden` and `kernel` chunk by chunk, so the backward pass only scales them: `[B, T, V]` never exists and the
    projection is computed once. `targets` and `weights` get no gradient.
    """
    return _cross_entropy_forward(hidden, kernel, targets, weights, chunk, cap)[0]


def _cross_entropy_forward(hidden, kernel, targets, weights, chunk, cap):
    length = hidden.shape[1]
    kernel_used = kernel.astype(hidden.dtype)

    def one_chunk(h, target, weight):
        logits = softcap(contract("btd,dv->btv", h, kernel_used), cap)
        top, target, weight = jnp.max(logits, axis=-1, keepdims=True), target[..., None], weight[..., None]
        odds = jnp.exp(logits - top)  # for the loss and its gradient: a CPU spends more on it than on the products
        total = jnp.sum(odds, axis=-1, keepdims=True)
        picked = jnp.take_along_axis(logits, target, axis=-1)
        loss = jnp.sum(weight * (jnp.log(total) + top - picked))
        d_logits = odds * (weight / total) - weight * (jnp.arange(logits.shape[-1]) == target)
        if cap is not None:
            d_logits = d_logits * (1 - jnp.square(logits / cap))
        d_logits = d_logits.astype(h.dtype)
        d_hidden = dense("btv,dv->btd", d_logits, kernel_used)
        return loss, d_hidden, contract("btd,btv->dv", h, d_logits)

    scanned = length // chunk * chunk if length >= 2 * chunk else 0
    loss, d_kernel, d_hidden = jnp.float32(0), jnp.zeros(kernel.shape, jnp.float32), []
    if scanned:

        def split(x):
            return jnp.moveaxis(x[:, :scanned].reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

        def body(carry, xs):
            part, dh, dk = one_chunk(*xs)
            return (carry[0] + part, carry[1] + dk), dh

        (loss, d_kernel), stacked = jax.lax.scan(body, (loss, d_kernel), [*map(split, (hidden, targets, weights))])
        d_hidden.append(jnp.moveaxis(stacked, 0, 1).reshape(hidden.shape[0], scanned, -1))
    if scanned < length:
        part, dh, dk = one_chunk(hidden[:, scanned:], targets[:, scanned:], weights[:, scanned:])
        loss, d_kernel = loss + part, d_kernel + dk
        d_hidden.append(dh)
    return loss, (jnp.concatenate(d_hidden, axis=1), d_kernel.astype(kernel.dtype))


def _cross_entropy_backward(chunk, cap, gradients, cotangent):
    d_hidden, d_kernel = gradients
    return (d_hidden * cotangent).astype(d_hidden.dtype), (d_kernel * cotangent).astype(d_kernel.dtype), None, None


cross_entropy_sum.defvjp(_cross_entropy_forward, _cross_entropy_backward)
