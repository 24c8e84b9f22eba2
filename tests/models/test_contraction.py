"""Products in bfloat16 on a CPU are those of `einsum`, whatever way of laying them out its matrix unit asks for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selftrain_jax.distributed.mesh import make_mesh
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.models.contraction import contract, dense

EQUATIONS = {  # those of the decoder: heads together, heads apart, heads joined, feed-forward
    "btd,dcnh->btcnh": ((2, 8, 16), (16, 3, 4, 6)),
    "btd,dnh->btnh": ((2, 8, 16), (16, 4, 6)),
    "btnh,nhd->btd": ((2, 8, 4, 6), (4, 6, 16)),
    "btd,df->btf": ((2, 8, 16), (16, 24)),
}


def operands(equation):
    rng = np.random.default_rng(0)
    x, kernel = (rng.normal(size=shape).astype(np.float32) for shape in EQUATIONS[equation])
    return jnp.asarray(x, jnp.bfloat16), kernel


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("equation", EQUATIONS)
def test_values_and_gradients_equal_einsums(equation, devices):
    """Tolerance: one rounding to bfloat16, of sums of at most 24 terms."""
    x, kernel = operands(equation)

    def measured(product):
        def loss(x, kernel):
            return jnp.sum(jnp.square(product(equation, x, kernel).astype(jnp.float32)))

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, kernel)

    shape = MeshConfig(data=2, fsdp=2, tensor=2) if devices == 8 else MeshConfig()
    with jax.set_mesh(make_mesh(shape, jax.devices()[:devices])):
        found = measured(dense)
        expected = measured(lambda equation, x, kernel: jnp.einsum(equation, x, kernel.astype(x.dtype)))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=2.0**-7, atol=2.0**-7 * np.abs(b).max())


@pytest.mark.parametrize("equation", EQUATIONS)
def test_sums_are_fp32_and_may_be_transposed(equation):
    x, kernel = operands(equation)
    kernel = jnp.asarray(kernel, jnp.bfloat16)
    found = jax.jit(lambda x, kernel: contract(equation, x, kernel).T)(x, kernel)
    expected = np.einsum(equation, *(np.asarray(a, np.float32) for a in (x, kernel))).T
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_other_dtypes_are_left_to_einsum():
    x, kernel = jnp.ones((2, 3, 4)), jnp.ones((4, 5))
    text = str(jax.make_jaxpr(lambda x, kernel: dense("btd,df->btf", x, kernel))(x, kernel))
    assert "optimization_barrier" not in text and "custom_vjp" not in text
