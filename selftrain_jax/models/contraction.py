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
    if a.dtype != jnp.bfloat16 or target_device().platform != "cpu":
        return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        return jax.lax.optimization_barrier(jnp.einsum(equation, a, b, preferred_element_type=jnp.float32))
    (left, right), out = equation.split("->")[0].split(","), equation.split("->")[1]
    sizes = dict(zip(left + right, a.shape + b.shape))
    rows, summed, columns = (
        [x for x in axes if x in among] for axes, among in ((left, out), (left, right), (right, out))
    )
    a, b = jnp.einsum(f"{left}->{''.join(rows + summed)}", a), jnp.einsum(f"{right}->{''.join(summed + columns)}", b)
    inner = math.prod(sizes[x] for x in summed)
    product = jnp.matmul(
        _row_major(a.reshape(-1, inner)), _row_major(b.reshape(inner, -1)), preferred_element_type=jnp.float32
    )
    product = _row_major(product).reshape([sizes[x] for x in rows + columns])
    return jnp.einsum(f"{''.join(rows + columns)}->{out}", product)


def _row_major(x: Float[Array, "M N"]) -> Float[Array, "M N"]:
    return jax.lax.optimization_barrier(with_layout_constraint(x, Layout((0, 1))))


def dense(equation: str, x: Float[Array, "..."], kernel: Float[Array, "..."]) -> Float[Array, "..."]:
    """`einsum(equation, x, kernel)` in the dtype of `x`, and so its gradients."""
    kernel = kernel.astype(x.dtype)
    if x.dtype != jnp.bfloat16 or target_device().platform != "cpu":
        return jnp.einsum(equation, x, kernel)
    return _dense(equation, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dense(equation, x, kernel):
    return contract(equation, x, kernel).astype(x.dtype)


def _forward(equation, x, kernel):
    return _dense(equation, x, kernel), (x, kernel)


def _backward(equation, saved, cotangent):
    (left, right), out = equation.split("->")[0].split(","), equation.split("->")[1]
    x, kernel = saved
    d_x = contract(f"{out},{right}->{left}", cotangent, kernel)
    return d_x.astype(x.dtype), contract(f"{left},{out}->{right}", x, cotangent).astype(kernel.dtype)


_dense.defvjp(_forward, _backward)
