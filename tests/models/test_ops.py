"""The numerical pieces equal their textbook definitions, computed in float64 by NumPy or in one piece by optax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from selftrain_jax.models import ops
from selftrain_jax.models.config import Rotary

EPS32, EPS_BF16 = 2.0**-23, 2.0**-8
B, T, D, V = 3, 12, 16, 50


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def projection():
    """hidden, kernel, targets and weights of which a third are zero."""
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.5, 2.0, (B, T)) * (rng.random((B, T)) > 1 / 3)
    return normal(B, T, D), normal(D, V, seed=1), rng.integers(0, V, (B, T)), weights.astype(np.float32)


def plain_cross_entropy(hidden, kernel, targets, weights, cap=None):
    logits = jnp.einsum("btd,dv->btv", hidden, kernel)
    if cap is not None:
        logits = cap * jnp.tanh(logits / cap)
    return jnp.sum(weights * optax.softmax_cross_entropy_with_integer_labels(logits, targets))


@pytest.mark.parametrize("chunk, cap", [*((chunk, None) for chunk in (1, 4, 5, 7, 12, 256)), (5, 3.0), (256, 3.0)])
def test_cross_entropy_and_its_gradients_equal_the_plain_ones(projection, chunk, cap):
    """Chunks of 5 and 7 leave a remainder. Bound: sums of at most B * T = 36 terms of order 1 in another order. Logits
    are of order 4, so that a cap of 3 bends most of them.
    """
    hidden, kernel, targets, weights = projection

    def scaled(loss, *last):  # the factor 3 shows whether the backward pass uses its cotangent
        return jax.value_and_grad(lambda h, k: 3 * loss(h, k, targets, weights, *last), argnums=(0, 1))(hidden, kernel)

    found, expected = scaled(ops.cross_entropy_sum, chunk, cap), scaled(plain_cross_entropy, cap)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=100 * EPS32), found, expected)
    assert np.abs(expected[1][0]).max() > 0.5  # gradients of order 1, so the bound means something


@pytest.mark.parametrize("cap", [None, 3.0])
def test_cross_entropy_of_half_precision_inputs_accumulates_in_fp32(projection, cap):
    hidden, kernel, targets, weights = projection
    half = hidden.astype(jnp.bfloat16)
    loss, gradients = jax.value_and_grad(ops.cross_entropy_sum, argnums=(0, 1))(half, kernel, targets, weights, 5, cap)
    assert loss.dtype == jnp.float32 and gradients[0].dtype == jnp.bfloat16 and gradients[1].dtype == jnp.float32
    rounded = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32) for x in (hidden, kernel)]
    expected = jax.value_and_grad(plain_cross_entropy, argnums=(0, 1))(*rounded, targets, weights, cap)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
    for found, reference in zip(gradients, expected[1]):  # d_logits is rounded to bf16 once, then the result
        scale = np.abs(reference).max()
        np.testing.assert_allclose(np.asarray(found, np.float32), reference, rtol=0, atol=3 * EPS_BF16 * scale)


@pytest.mark.parametrize("chunk", [T, 4])
def test_cross_entropy_of_half_precision_inputs_takes_tied_weights(projection, chunk):
    """Compiled as in training, where the gradient of the projection is transposed once more: a product that XLA's CPU
    back end refuses to write transposed.
    """
    hidden, kernel, targets, weights = projection

    def gradient(of, tied):
        def loss(h, k):
            return ops.cross_entropy_sum(h, k.T if tied else k, targets, weights, chunk)

        return jax.jit(jax.grad(loss, argnums=1))(hidden.astype(jnp.bfloat16), of)

    expected = gradient(kernel, False).T
    np.testing.assert_allclose(gradient(kernel.T, True), expected, rtol=1e-5, atol=100 * EPS32)


def test_cross_entropy_of_far_logits_is_finite():
    """Logits of +-1e4 overflow a softmax without its maximum taken out."""
    hidden = np.full((1, 1, 1), 1e4, np.float32)
    kernel = np.array([[1.0, -1.0]], np.float32)
    for target, expected in ((0, 0.0), (1, 2e4)):
        targets, weights = np.array([[target]]), np.ones((1, 1))
        loss, gradient = jax.value_and_grad(ops.cross_entropy_sum)(hidden, kernel, targets, weights)
        assert loss == expected and np.isfinite(gradient).all()


def test_whole_logits_never_exist():
    """Temporaries of loss and gradient together stay below one [B, T, V] array of fp32 logits."""
    b, t, d, v = 4, 256, 8, 1000
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((b, t, d), (d, v), (b, t))]

    def temporaries(loss):
        gradient = jax.grad(lambda h, k, w: loss(h, k, jnp.zeros((b, t), jnp.int32), w), argnums=(0, 1))
        return jax.jit(gradient).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    chunked = temporaries(lambda *args: ops.cross_entropy_sum(*args, 16))
    assert chunked < b * t * v * 4 / 4 < temporaries(plain_cross_entropy)


def direct_attention(q, k, v, segment_ids=None, *, scale=None, window=None, cap=None):
    """Softmax attention in float64 from whole score matrices; every head of keys and values is written out."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    index = np.arange(q.shape[1])
    distance = index[:, None] - index[None, :]
    allowed = (distance >= 0) & (distance < (window or len(index)))
    allowed = np.broadcast_to(allowed, (q.shape[0], *allowed.shape))
    if segment_ids is not None:
        allowed = allowed & (segment_ids[:, :, None] == segment_ids[:, None, :])
    scores = np.einsum("btnh,bsnh->bnts", q, k) * (scale or q.shape[-1] ** -0.5)
    if cap is not None:
        scores = cap * np.tanh(scores / cap)
    weights = np.where(allowed[:, None], np.exp(scores), 0)
    return np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v)


def heads(length, num_heads=3, kv_heads=3, batch=2):
    """q, k and v with heads of 8."""
    return tuple(normal(batch, length, n, 8, seed=seed) for seed, n in enumerate((num_heads, kv_heads, kv_heads)))


SWITCHES = [{}, {"window": 1}, {"window": 3}, {"window": 6, "scale": 0.5, "cap": 0.7}, {"window": 10}]


@pytest.mark.parametrize("block, kv_heads", [(3, 1), (4, 2), (5, 4), (256, 2)])
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
def test_blocked_attention_equals_the_direct_one(monkeypatch, block, packed, kv_heads):
    """10 positions in blocks of 4 leave a short one; packed documents end inside blocks. Bound: some 50 roundings."""
    monkeypatch.setattr(ops, "ATTENTION_BLOCK", block)
    arrays = heads(10, 4, kv_heads)
    segment_ids = np.array([[0] * 3 + [1] * 6 + [2], [5] * 10]) if packed else None
    found = jax.jit(lambda *qkv: [ops.causal_attention(*qkv, segment_ids, **switches) for switches in SWITCHES])
    for switches, attended in zip(SWITCHES, found(*arrays), strict=True):
        expected = direct_attention(*arrays, segment_ids, **switches)
        np.testing.assert_allclose(attended, expected, rtol=0, atol=50 * EPS32, err_msg=str(switches))


@pytest.mark.parametrize("window", [None, 7, ops.ATTENTION_BLOCK, ops.ATTENTION_BLOCK + 2])
def test_rows_longer_than_a_block_use_the_real_block_size(window):
    arrays = heads(2 * ops.ATTENTION_BLOCK + 3, 2, 1, batch=1)
    found = jax.jit(functools.partial(ops.causal_attention, window=window))(*arrays)
    np.testing.assert_allclose(found, direct_attention(*arrays, window=window), rtol=0, atol=50 * EPS32)


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_cached_attention_does_not_read_unfilled_slots(kv_heads):
    q, k, v = heads(7, 4, kv_heads)
    unfilled = np.full((2, kv_heads, 4, 8), 1e3, np.float32)
    stored = [np.concatenate([np.swapaxes(x, 1, 2), unfilled], axis=2) for x in (k, v)]
    found = jax.jit(lambda *args: [ops.cached_attention(*args, **switches) for switches in SWITCHES])
    for switches, attended in zip(SWITCHES, found(q[:, 5:], *stored, jnp.int32(5)), strict=True):
        expected = direct_attention(q, k, v, **switches)[:, 5:]
        np.testing.assert_allclose(attended, expected, rtol=0, atol=50 * EPS32, err_msg=str(switches))


def test_rotary_tables_are_exact_to_fp32_over_the_context():
    """Angles up to 2,048 are known to half a spacing of fp32 there, 2^-14; frequency and product add as much each."""
    positions, dim, base = np.arange(2048), 16, 10_000.0
    cos, sin = ops.rotary_tables(jnp.asarray(positions), dim, Rotary(base=base))
    angles = positions[:, None] * base ** (-np.arange(0, dim, 2) / dim)
    angles = np.concatenate([angles, angles], axis=-1)
    assert cos.dtype == sin.dtype == jnp.float32
    np.testing.assert_allclose(cos, np.cos(angles), rtol=0, atol=2.0**-11)
    np.testing.assert_allclose(sin, np.sin(angles), rtol=0, atol=2.0**-11)


def test_rotation_leaves_the_rest_of_a_head_and_keeps_lengths():
    x = normal(1, 9, 2, 16)
    rotated = np.asarray(ops.apply_rotary(x, *ops.rotary_tables(jnp.arange(9), 4, Rotary())))
    np.testing.assert_array_equal(rotated[..., 4:], x[..., 4:])
    np.testing.assert_array_equal(rotated[:, 0], x[:, 0])
    # The pair (i, i + R/2) turns together.
    pairs = [np.hypot(y[..., :2], y[..., 2:4]) for y in (rotated, x)]
    np.testing.assert_allclose(*pairs, rtol=1e-5)
    assert np.abs(rotated[:, 1:, :, :4] - x[:, 1:, :, :4]).max() > 0.5
    assert ops.apply_rotary(x, *ops.rotary_tables(jnp.arange(9), 0, Rotary())) is x


def test_rotated_products_depend_on_the_distance_only():
    """Position 1,000 costs 2^-14 of angle per factor; the products sum 8 terms of order 1."""
    q, k = normal(1, 1, 1, 8), normal(1, 1, 1, 8, seed=1)

    def turn(x, position):
        return ops.apply_rotary(x, *ops.rotary_tables(jnp.array([position]), 8, Rotary()))

    def product(at_q, at_k):
        return float(jnp.sum(turn(q, at_q) * turn(k, at_k)))

    assert product(7, 3) == pytest.approx(product(1007, 1003), abs=8 * 2 * 2.0**-13)
    assert abs(product(7, 3) - product(8, 3)) > 0.1


def test_half_precision_heads_are_rotated_in_fp32():
    """One rounding of the result to bf16, not of the tables: rounded angles would be off by whole radians."""
    x = jnp.asarray(normal(1, 2048, 1, 8), jnp.bfloat16)
    tables = ops.rotary_tables(jnp.arange(2048), 8, Rotary())
    found = ops.apply_rotary(x, *tables)
    expected = ops.apply_rotary(x.astype(jnp.float32), *tables)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, rtol=EPS_BF16, atol=1e-6)


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 20 * EPS32), (jnp.bfloat16, EPS_BF16)])
def test_layer_norm_has_fp32_statistics(dtype, tolerance):
    """Half precision costs the rounding of the result only, also for a mean that is large against the spread."""
    x = jnp.asarray(normal(4, 64) + 8, dtype)
    scale, bias = normal(64, seed=1), normal(64, seed=2)
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 0.5)
    found = ops.layer_norm(x, scale, bias, 0.5)
    assert found.dtype == dtype
    expected = exact * scale + bias
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=0, atol=tolerance * np.abs(expected).max())
