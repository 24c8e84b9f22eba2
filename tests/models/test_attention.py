"""Which attention runs where, and that every back end keeps packed documents apart or refuses to try."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.distributed.mesh import make_mesh, target_device
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.models import ops
from selftrain_jax.models.decoder import default_unroll
from selftrain_jax.models.splash import splash_attention
from tests.shapes import SMALL


def xla(q, k, v, segments, **switches):
    return ops.causal_attention(q, k, v, segments, "xla", **switches)


def splash(q, k, v, segments, **switches):
    return splash_attention(q, k, v, segments, interpret=True, **switches)


def rows(length=150, heads=2, head_dim=16, seed=0, kv_heads=None):
    """q, k, v, weights of the result, and segment ids."""
    rng, kv_heads = np.random.default_rng(seed), kv_heads or heads
    arrays = (rng.normal(size=(2, length, n, head_dim)).astype(np.float32) for n in (heads, kv_heads, kv_heads, heads))
    return *arrays, np.sort(rng.integers(0, 4, (2, length)).astype(np.int32), axis=1)


def value_and_gradients(attend, q, k, v, weights, segments, **switches):
    def loss(q, k, v):
        return jnp.sum(weights * attend(q, k, v, segments, **switches))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(q, k, v)


def assert_close(found, expected):
    """The value is a sum of up to 20,000 terms of order 1 in fp32, a gradient of some 100."""
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=2e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), found[1], expected[1])


@pytest.mark.parametrize("packed", [False, True])
def test_the_tpu_kernel_equals_the_plain_one(packed):
    """A length and a head size that both need padding."""
    *arrays, segments = rows()
    segments = segments if packed else None
    assert_close(value_and_gradients(splash, *arrays, segments), value_and_gradients(xla, *arrays, segments))


CAPPED = {"window": 40, "scale": 0.3, "cap": 0.8}  # scores are of order 1, rows are longer than a block of 128


@pytest.mark.parametrize(
    "heads, kv_heads, switches",
    [
        (4, 2, CAPPED),
        *(
            pytest.param(*case, marks=pytest.mark.large)
            for case in ((4, 1, CAPPED), (4, 4, CAPPED), (4, 2, {}), (4, 1, {"window": 1}), (2, 2, {"window": 128}))
        ),
    ],
    ids=str,
)
def test_the_tpu_kernel_knows_windows_caps_scales_and_groups(heads, kv_heads, switches):
    *arrays, segments = rows(heads=heads, kv_heads=kv_heads)
    expected = value_and_gradients(xla, *arrays, segments, **switches)
    assert_close(value_and_gradients(splash, *arrays, segments, **switches), expected)


@pytest.mark.parametrize(
    "tensor, heads, kv_heads, switches",
    [
        (2, 2, 2, {}),
        (4, 4, 2, CAPPED),
        *(pytest.param(*case, CAPPED, marks=pytest.mark.large) for case in ((2, 4, 2), (4, 4, 1))),
    ],
    ids=str,
)
def test_the_tpu_kernel_is_spread_over_rows_and_heads(tensor, heads, kv_heads, switches):
    """Also where the tensor axis does not divide the heads of keys and values."""
    *arrays, segments = rows(length=128, heads=heads, kv_heads=kv_heads)
    expected = value_and_gradients(xla, *arrays, segments, **switches)
    with jax.set_mesh(make_mesh(MeshConfig(2, 1, tensor), jax.devices()[: 2 * tensor])):
        found = value_and_gradients(splash, *arrays, segments, **switches)
    assert_close(found, expected)


@pytest.mark.parametrize("window", [None, 1, 9, 40])
def test_the_arguments_for_cudnn_mean_what_the_plain_path_does(monkeypatch, window):
    """JAX's own attention, told by the same arguments but to run here, on XLA; gradients too."""
    *arrays, _ = rows(length=40, heads=4, kv_heads=2)
    switches = {"window": window, "scale": 0.3}
    expected = value_and_gradients(xla, *arrays, None, **switches)
    attention, asked = jax.nn.dot_product_attention, []

    def here(*args, implementation, **kwargs):
        asked.append(implementation)
        return attention(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", here)
    monkeypatch.setattr(ops, "attention_implementation", lambda requested, *_: requested)

    def cudnn(q, k, v, segments, **switches):
        return ops.causal_attention(q, k, v, segments, "cudnn", **switches)

    assert_close(value_and_gradients(cudnn, *arrays, None, **switches), expected)
    assert set(asked) == {"cudnn"}


@pytest.mark.parametrize("head_dim", [32, 64, 80, 128, 256])
def test_the_tpu_kernel_lowers_for_tpus_with_every_head_size_of_pythia(head_dim):
    """No TPU is needed for that; what its compiler then says is not tested here."""
    x = jax.ShapeDtypeStruct((2, 2048, 2, head_dim), jnp.bfloat16)
    segments = jax.ShapeDtypeStruct((2, 2048), jnp.int32)
    gradients = jax.grad(lambda *args: splash_attention(*args).astype(jnp.float32).sum(), argnums=(0, 1, 2))
    lowered = jax.export.export(jax.jit(gradients), platforms=["tpu"])(x, x, x, segments)
    assert lowered.mlir_module().count("tpu_custom_call") == 3  # forward, dq, dkv


@pytest.mark.parametrize("attend", [xla, splash])
def test_documents_of_a_row_do_not_see_each_other(attend):
    """Changing one of two documents changes nothing in the other, in neither direction."""
    q, k, v, _, _ = rows(length=128)
    segments = np.repeat(np.int32([[0, 1]] * 2), [50, 78], axis=1)
    before = attend(q, k, v, segments)
    for other, mine in ((slice(0, 50), slice(50, 128)), (slice(50, 128), slice(0, 50))):
        changed = [x.copy() for x in (q, k, v)]
        for x in changed:
            x[:, other] += 1
        after = attend(*changed, segments)
        np.testing.assert_array_equal(before[:, mine], after[:, mine])
        assert np.abs(before[:, other] - after[:, other]).max() > 0.1


def device(platform, capability=None):
    return types.SimpleNamespace(platform=platform, compute_capability=capability)


@pytest.mark.parametrize(
    "where, dtype, head_dim, packed, capped, expected",
    [
        (device("cpu"), "float32", 64, False, False, "xla"),
        (device("tpu"), "bfloat16", 64, True, False, "splash"),
        (device("tpu"), "float32", 80, False, False, "splash"),
        (device("gpu", "9.0"), "bfloat16", 256, False, False, "cudnn"),
        (device("gpu", "8.0"), "bfloat16", 256, False, False, "xla"),
        (device("gpu", "8.0"), "bfloat16", 128, False, False, "cudnn"),
        (device("gpu", "9.0"), "float32", 64, False, False, "xla"),
        (device("gpu", "9.0"), "bfloat16", 64, True, False, "xla"),
        (device("gpu", "9.0"), "bfloat16", 256, False, True, "xla"),
        (device("tpu"), "bfloat16", 256, True, True, "splash"),
    ],
)
def test_the_device_chooses(monkeypatch, where, dtype, head_dim, packed, capped, expected):
    monkeypatch.setattr(jax, "devices", lambda: [where])
    assert ops.attention_implementation("auto", dtype, head_dim, packed, capped) == expected
    assert ops.attention_implementation("xla", dtype, head_dim, packed, capped) == "xla"


def test_the_devices_of_the_mesh_choose():
    """Not those that JAX would take by itself: a program may be made for devices that are not here."""
    tpus = jax.sharding.AbstractMesh(
        (4,), ("data",), abstract_device=jax.sharding.AbstractDevice("TPU v5 lite", None, "tpu")
    )
    asked = ("auto", "bfloat16", 64, True)
    with jax.sharding.use_abstract_mesh(tpus):
        assert ops.attention_implementation(*asked) == "splash"
        assert default_unroll(SMALL) == 1
        assert ops.attention_implementation(*asked, device=target_device(make_mesh())) == "xla"
    assert ops.attention_implementation(*asked) == "xla" and default_unroll(SMALL) == SMALL.num_layers


def test_layers_are_unrolled_on_a_gpu_that_has_long_to_train():
    gpus = jax.sharding.AbstractMesh(
        (1,), ("data",), abstract_device=jax.sharding.AbstractDevice("NVIDIA H200", 132, "gpu")
    )
    with jax.sharding.use_abstract_mesh(gpus):
        assert [default_unroll(SMALL, flops=flops) for flops in (0.0, 1e17, 3e17)] == [1, 1, SMALL.num_layers]
        assert default_unroll(SMALL, flops=3e17, remat=True) == 1
    assert default_unroll(SMALL, remat=True) == 1


@pytest.mark.parametrize(
    "where, asked, settings, message",
    [
        (
            device("cpu"),
            "cudnn",
            ("bfloat16", 64, False),
            "'cudnn' is not possible here: the device is a cpu, not a GPU",
        ),
        (device("gpu", "9.0"), "splash", ("bfloat16", 64, False), "'splash' .* the device is a gpu, not a TPU"),
        (device("gpu", "9.0"), "cudnn", ("float32", 64, False), "must be bfloat16 or float16, not float32"),
        (device("gpu", "8.0"), "cudnn", ("bfloat16", 256, False), "head_dim=256 must be a multiple of 8, at most 128"),
        (device("gpu", "9.0"), "cudnn", ("bfloat16", 64, True), "cannot keep packed documents apart"),
        (device("gpu", "9.0"), "cudnn", ("bfloat16", 64, False, True), "no soft-cap of scores, which this model asks"),
        (device("cpu"), "flash", ("float32", 64, False), "attention='flash' must be one of auto, xla, cudnn, splash"),
    ],
)
def test_what_cannot_be_is_refused(monkeypatch, where, asked, settings, message):
    monkeypatch.setattr(jax, "devices", lambda: [where])
    with pytest.raises(InputError, match=message):
        ops.attention_implementation(asked, *settings)
