"""The GPU kernel for one query against `ops.cached_attention`, its logic run on the CPU by Pallas's interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selftrain_jax.distributed.mesh import make_mesh
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.models import flash_decode, ops


def stored(rows, heads, kv_heads, length, head_dim):
    rng = np.random.default_rng(length + heads)
    shapes = (rows, 1, heads, head_dim), *((rows, kv_heads, length, head_dim),) * 2
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def both(arrays, position, **switches):
    found = flash_decode.flash_decode(*arrays, jnp.int32(position), **switches, interpret=True)
    return found, ops.cached_attention(*arrays, jnp.int32(position), **switches)


@pytest.mark.parametrize(
    "heads, kv_heads, length, head_dim, position, window, cap",
    [
        (4, 4, 128, 64, 77, None, None),  # one query per head, within the second block
        (4, 4, 32, 16, 0, None, None),  # the first token, in a cache shorter than a block
        (6, 2, 256, 32, 255, 50, None),  # three queries per head, a full cache, a window
        (14, 2, 384, 64, 191, 128, 20.0),  # a window that starts with a block, and a soft-cap
        (2, 2, 128, 16, 100, 1, None),  # itself alone
    ],
)
def test_equals_attention_to_the_filled_part(heads, kv_heads, length, head_dim, position, window, cap):
    arrays = stored(2, heads, kv_heads, length, head_dim)
    found, expected = both(arrays, position, scale=0.2, window=window, cap=cap)
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-6)


def test_unfilled_slots_are_not_read():
    q, k, v = stored(1, 2, 2, 128, 16)
    k, v = (x.at[:, :, 70:].set(jnp.nan) for x in (k, v))
    found, _ = both((q, k.at[:, :, 64:70].set(0.0), v.at[:, :, 64:70].set(0.0)), 63, scale=0.25)
    _, expected = both((q, k[:, :, :64], v[:, :, :64]), 63, scale=0.25)
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-6)


def test_devices_take_their_own_rows_and_heads():
    arrays = stored(4, 8, 2, 64, 16)
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        found, expected = jax.jit(lambda *args: both(args, 40, scale=0.25))(*arrays)
    assert "tensor" in str(found.sharding.spec)
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-6)


class Device:
    def __init__(self, platform, compute_capability="9.0"):
        self.platform, self.compute_capability = platform, compute_capability


@pytest.mark.parametrize(
    "queries, length, head_dim, dtype, device, expected",
    [
        (1, 128, 64, "bfloat16", Device("gpu"), True),
        (1, 32, 256, "float16", Device("gpu", "8.0"), True),
        (2, 128, 64, "bfloat16", Device("gpu"), False),
        (1, 128, 80, "bfloat16", Device("gpu"), False),
        (1, 96, 64, "bfloat16", Device("gpu"), False),
        (1, 128, 64, "float32", Device("gpu"), False),
        (1, 128, 64, "bfloat16", Device("gpu", "7.5"), False),
        (1, 128, 64, "bfloat16", Device("tpu"), False),
        (1, 128, 64, "bfloat16", jax.devices()[0], False),
    ],
)
def test_where_it_is_possible(queries, length, head_dim, dtype, device, expected):
    q, k = jnp.zeros((1, queries, 2, head_dim), dtype), jnp.zeros((1, 2, length, head_dim), dtype)
    assert flash_decode.possible(q, k, device) == expected
