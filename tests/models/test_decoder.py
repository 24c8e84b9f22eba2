"""The module's parameters are what they are said to be, and its compile-time switches change no result."""

import dataclasses
import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selftrain_jax.models import decoder, ops
from selftrain_jax.models.config import Layer
from selftrain_jax.training.step import next_token_loss, positions_in_segment
from tests.shapes import SMALL, initial

pytestmark = pytest.mark.everywhere

CONFIG = SMALL
TIED = dataclasses.replace(CONFIG, tie_embeddings=True)
D, V, L, N, H, F = 32, 96, 2, 4, 8, 64
DOCUMENTED = {
    "embed": {"embedding": (V, D)},
    "layers": {
        "attention_norm": {"scale": (L, D), "bias": (L, D)},
        "qkv": {"kernel": (L, D, 3, N, H), "bias": (L, 3, N, H)},
        "out": {"kernel": (L, N, H, D), "bias": (L, D)},
        "mlp_norm": {"scale": (L, D), "bias": (L, D)},
        "up": {"kernel": (L, D, F), "bias": (L, F)},
        "down": {"kernel": (L, F, D), "bias": (L, D)},
    },
    "final_norm": {"scale": (D,), "bias": (D,)},
    "head": {"kernel": (D, V)},
}
SIZES = {"embed": D, "vocab": V, "layers": L, "qkv": 3, "heads": N, "head_dim": H, "mlp": F}


def is_leaf(x):
    return isinstance(x, tuple)


@pytest.fixture(scope="module")
def params():
    """Parameters far from their initialization: attention is not uniform, biases and scales are not trivial."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        return 1 + 0.3 * noise if path[-1].key == "scale" else 0.3 * noise

    return jax.tree_util.tree_map_with_path(fill, decoder.param_shapes(CONFIG))


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(1).integers(0, V, (2, 24), dtype=np.int32)


@functools.partial(jax.jit, static_argnames="model")
def hidden_states(model, params, tokens, segment_ids=None):
    positions = None if segment_ids is None else positions_in_segment(segment_ids)
    return model.apply({"params": params}, tokens, segment_ids=segment_ids, positions=positions)


def loss_and_gradient(model, params, tokens):
    return jax.jit(jax.value_and_grad(next_token_loss(model), has_aux=True))(params, {"tokens": tokens})


def assert_close(left, right, relative):
    """Leaf by leaf within `relative` of the largest entry."""

    def check(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=relative * np.abs(np.asarray(b)).max())

    jax.tree.map(check, left, right)


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
def test_parameters_are_laid_out_as_documented(config):
    expected = {k: v for k, v in DOCUMENTED.items() if k != "head" or not config.tie_embeddings}
    params, shapes = decoder.init_params(config, jax.random.key(0)), decoder.param_shapes(config)
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, shapes) == expected
    assert {x.dtype for x in jax.tree.leaves((params, shapes))} == {np.dtype("float32")}
    # Every axis name stands for one size, so a wrong or swapped name shows.
    named = jax.tree.map(lambda names: tuple(SIZES[n] for n in names), decoder.param_axes(config), is_leaf=is_leaf)
    assert named == expected


def test_initialization_is_that_of_gpt_neox():
    """Small init sqrt(2 / 5D) inward, 2 / (L sqrt D) outward; 4,096 draws estimate a spread to 1.1 % (1 sigma)."""
    params = decoder.init_params(CONFIG, jax.random.key(0))
    layers, inward, outward = params["layers"], (2 / (5 * D)) ** 0.5, 2 / (L * D**0.5)
    for leaf, stddev in (
        (layers["qkv"], inward),
        (layers["up"], inward),
        (layers["down"], outward),
        (layers["out"], outward),
    ):
        assert np.std(leaf["kernel"]) == pytest.approx(stddev, rel=0.06)
        assert not np.array_equal(leaf["kernel"][0], leaf["kernel"][1])  # layers do not share their draw
        np.testing.assert_array_equal(leaf["bias"], 0)
    np.testing.assert_array_equal(layers["mlp_norm"]["scale"], 1)
    again, other = (decoder.init_params(CONFIG, jax.random.key(seed)) for seed in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert not np.array_equal(other["embed"]["embedding"], params["embed"]["embedding"])


@pytest.fixture(scope="module")
def plain(params, tokens):
    return loss_and_gradient(decoder.Decoder(CONFIG), params, tokens)


@pytest.mark.parametrize(
    "switch", [{"unroll": 2}, {"remat": True}, {"remat": True, "unroll": 2}], ids=["unroll", "remat", "both"]
)
def test_unrolling_and_remat_change_no_result(params, tokens, plain, switch):
    """The same operations, fused differently: some 20 roundings of fp32 along the way."""
    assert_close(loss_and_gradient(decoder.Decoder(CONFIG, **switch), params, tokens), plain, 1e-5)


def test_remat_recomputes_the_layers(params, tokens):
    """Activations kept for the backward pass are what remat saves."""

    def temporaries(remat):
        config = dataclasses.replace(CONFIG, num_layers=8)
        unroll = decoder.default_unroll(config, remat=remat)
        loss = next_token_loss(decoder.Decoder(config, remat=remat, unroll=unroll))
        batch = {"tokens": jax.ShapeDtypeStruct((16, 65), jnp.int32)}
        gradient = jax.jit(jax.grad(loss, has_aux=True)).lower(decoder.param_shapes(config), batch)
        return gradient.compile().memory_analysis().temp_size_in_bytes

    assert temporaries(True) < temporaries(False) / 2


@pytest.mark.parametrize("gated", [False, True], ids=["gelu", "gated"])
def test_a_layer_keeps_what_norms_and_activations_read_and_not_what_they_computed(gated):
    """For the gradient, in bfloat16: what two products read and make, and nothing of a layer's width in fp32."""
    changes = dict(norm="rms_norm", mlp_bias=False, activation="silu", gated=True, parallel_residual=False)
    config = dataclasses.replace(CONFIG, intermediate_size=80, **(changes if gated else {}))
    block = decoder.Block(config, config.layer(0), parent=None)
    layer = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), decoder.param_shapes(config)["layers"])
    x = jax.ShapeDtypeStruct((2, 24, D), jnp.bfloat16)

    def gradient(layer, x):
        tables = tuple(ops.rotary_tables(jnp.arange(24), config.rotary_dim(r), r) for r in config.rotaries)
        return jax.vjp(lambda p, x: block.apply({"params": p}, (x, None), tables, None, 0)[0][0], layer, x)[1]

    kept = [leaf for leaf in jax.tree.leaves(jax.eval_shape(gradient, layer, x)) if leaf.shape[:2] == (2, 24)]
    assert sum(leaf.shape[2:] == (80,) for leaf in kept) == (3 if gated else 2)
    assert not [leaf for leaf in kept if leaf.shape[2:] == (D,) and leaf.dtype != jnp.bfloat16]


def test_no_position_sees_what_comes_after(params, tokens):
    changed = tokens.copy()
    changed[:, 10:] = (changed[:, 10:] + 1) % V
    before, after = (np.asarray(hidden_states(decoder.Decoder(CONFIG), params, t)) for t in (tokens, changed))
    np.testing.assert_array_equal(before[:, :10], after[:, :10])
    assert np.abs(before[:, 10:] - after[:, 10:]).max(axis=(0, 2)).min() > 0.1


@pytest.fixture(params=[5, 256], ids=["block5", "one_block"])
def attention_block(request, monkeypatch):
    """Packed documents must stay apart also where a document ends inside a block of queries."""
    monkeypatch.setattr(ops, "ATTENTION_BLOCK", request.param)
    hidden_states.clear_cache()
    yield
    hidden_states.clear_cache()


def test_packed_documents_do_not_see_each_other(params, tokens, attention_block):
    """Whatever document A says, B has the same bits; and they are those of B alone, up to the rounding of fp32."""
    model, end = decoder.Decoder(CONFIG), 11
    segment_ids = np.repeat([[0, 1]], 2, axis=0).repeat([end, 24 - end], axis=1)
    changed = tokens.copy()
    changed[:, :end] = (changed[:, :end] + 1) % V
    packed, other = (np.asarray(hidden_states(model, params, t, segment_ids)) for t in (tokens, changed))
    np.testing.assert_array_equal(packed[:, end:], other[:, end:])
    assert_close(packed[:, end:], np.asarray(hidden_states(model, params, tokens[:, end:])), 1e-5)
    assert_close(packed[:, :end], np.asarray(hidden_states(model, params, tokens[:, :end])), 1e-5)
    # The same change shows at once where nothing keeps the documents apart.
    joined, other = (np.asarray(hidden_states(model, params, t)) for t in (tokens, changed))
    assert np.abs(joined[:, end:] - other[:, end:]).max() > 0.1
    assert np.abs(joined[:, end:] - packed[:, end:]).max() > 0.1


def test_logits_are_fp32_whatever_the_compute_dtype(params, tokens):
    model = decoder.Decoder(CONFIG, dtype=jnp.bfloat16)
    hidden = hidden_states(model, params, tokens)
    logits = model.apply({"params": params}, hidden, method="logits")
    assert hidden.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    expected = np.asarray(hidden, np.float32) @ params["head"]["kernel"]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_tied_logits_use_the_embedding(tokens):
    params, model = initial(TIED), decoder.Decoder(TIED)
    hidden = hidden_states(model, params, tokens)
    logits = model.apply({"params": params}, hidden, method="logits")
    np.testing.assert_allclose(logits, hidden @ params["embed"]["embedding"].T, rtol=0, atol=1e-5)


def run_python(code):
    # No such platform: whatever starts a backend fails.
    environment = os.environ | {"JAX_PLATFORMS": "no_such_platform"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600)


def test_imports_are_cheap():
    """The package loads neither jax nor transformers; the model and the train step start no backend."""
    code = """
import sys
import selftrain_jax
assert not {"jax", "flax", "transformers"} & set(sys.modules)
import selftrain_jax.models.decoder, selftrain_jax.training.loop
assert not {"transformers", "tensorflow_datasets", "torch", "matplotlib", "scipy.stats"} & set(sys.modules)
print("imported")
import jax
jax.devices()
"""
    done = run_python(code)
    assert done.stdout == "imported\n", done.stderr
    assert "no_such_platform" in done.stderr  # so a backend that started earlier would have shown


def test_a_pass_by_hand_gives_nothing_where_there_is_no_position_or_no_room():
    learned = dataclasses.replace(CONFIG, learned_positions=True, pattern=(Layer(None),), max_position=16)
    params = jax.tree.map(jnp.asarray, initial(learned))

    def read(length):
        return decoder.Decoder(learned).apply({"params": params}, jnp.zeros((1, length), jnp.int32))

    def written(position):
        tokens, cache = np.zeros((1, 3), np.int32), decoder.KVCache.zeros(CONFIG, 1, 8)
        return jax.jit(decoder.continue_cached, static_argnums=0)(
            decoder.Decoder(CONFIG), initial(CONFIG), tokens, cache, position
        )[0]

    assert np.isfinite(read(16)).all() and np.isnan(read(18)[:, 16:]).all()
    assert np.isfinite(written(5)).all() and np.isnan(written(6)).all()
