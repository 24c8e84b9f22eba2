"""Products of matrices with fp32 sums, laid out for the matrix units of a CPU where it has some."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from selftrain_jax.distributed.mesh import target_device


def contract(equation: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """`einsum(equation, a, b)`, summed and returned in fp32; no axis may be in all three.

    XLA's CPU back end gives a product in bfloat16 to the processor's matrix unit (AMX) only if both factors lie row by
    row in memory and the result is fp32. Others it computes in fp32, three times as slowly, and a result that is to be
    transposed not at all. So the factors are written as it wants them.
    """
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    if not _half_on_cpu(a):
        return einsum(equation, a, b)
    if jax.sharding.get_abstract_mesh().size > 1:
        return jax.lax.optimization_barrier(einsum(equation, a, b))
    left, right, out = _axes(equation)
    sizes = dict(zip(left + right, a.shape + b.shape))
    rows, summed, columns = (
        [x for x in axes if x in among] for axes, among in ((left, out), (left, right), (right, out))
    )
    a, b = jnp.einsum(f"{left}->{''.join(rows + summed)}", a), jnp.einsum(f"{right}->{''.join(summed + columns)}", b)
    inner = math.prod(sizes[x] for x in summed)
    product = _row_major(einsum("mk,kn->mn", _row_major(a.reshape(-1, inner)), _row_major(b.reshape(inner, -1))))
    return jnp.einsum(f"{''.join(rows + columns)}->{out}", product.reshape([sizes[x] for x in rows + columns]))


def _axes(equation: str) -> tuple[str, str, str]:
    """The letters of both factors and of the product."""
    factors, out = equation.split("->")
    return *factors.split(","), out


def _half_on_cpu(x: Float[Array, "..."]) -> bool:
    return x.dtype == jnp.bfloat16 and target_device().platform == "cpu"


def _row_major(x: Float[Array, "M N"]) -> Float[Array, "M N"]:
    return jax.lax.optimization_barrier(with_layout_constraint(x, Layout((0, 1))))


def dense(equation: str, x: Float[Array, "..."], kernel: Float[Array, "..."]) -> Float[Array, "..."]:
    """`einsum(equation, x, kernel)` in the dtype of `x`, and so its gradients."""
    kernel = kernel.astype(x.dtype)
    return _dense(equation, x, kernel) if _half_on_cpu(x) else jnp.einsum(equation, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dense(equation, x, kernel):
    return contract(equation, x, kernel).astype(x.dtype)


def _forward(equation, x, kernel):
    return _dense(equation, x, kernel), (x, kernel)


def _backward(equation, saved, cotangent):
    (x, kernel), (left, right, out) = saved, _axes(equation)
    d_x = contract(f"{out},{right}->{left}", cotangent, kernel)
    return d_x.astype(x.dtype), contract(f"{left},{out}->{right}", x, cotangent).astype(kernel.dtype)


_dense.defvjp(_forward, _backward)
