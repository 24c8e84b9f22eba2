"""One update means the same however its batch is cut up or spread, for any model."""

import dataclasses
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.distributed.mesh import RULES, make_mesh, replicated
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.models import decoder
from selftrain_jax.models.config import Layer
from selftrain_jax.training.optimizer import make_optimizer
from selftrain_jax.training.settings import OptimizerConfig
from selftrain_jax.training.step import (
    TrainState,
    make_train_step,
    next_token_loss,
    positions_in_segment,
    state_shardings,
)
from tests.shapes import GROUPED, SMALL, initial

CONFIG = SMALL
MODEL = decoder.Decoder(CONFIG)
STEPS = 2
# Sums of gradients in another order: some ten roundings of fp32 (2^-23 each) per entry of order 1 and step. The
# optimizer has no eps to divide by, so that rounding stays rounding.
TOLERANCE = 2e-6


def sgd():
    return optax.sgd(0.1, momentum=0.9)


def frozen_embedding():
    def labels(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "frozen" if path[0].key == "embed" else "trained", params
        )

    return optax.multi_transform({"trained": optax.adamw(1e-3), "frozen": optax.set_to_zero()}, labels)


@pytest.fixture(scope="module")
def params():
    return initial(CONFIG)


@pytest.fixture(scope="module")
def batches():
    """Rows of packed documents of very different lengths: slices and shards hold unequal numbers of targets."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, CONFIG.vocab_size, (STEPS, 8, 17), dtype=np.int32)
    boundary = rng.random(tokens.shape) < np.linspace(0, 0.9, 8)[:, None]
    return [{"tokens": t, "segment_ids": s} for t, s in zip(tokens, np.cumsum(boundary, axis=-1, dtype=np.int32))]


def run(params, batches, optimizer, mesh=None, config=CONFIG, **settings):
    """The state after all batches, and the metrics of each."""
    loss_fn = next_token_loss(decoder.Decoder(config), chunk=5)
    train_step = make_train_step(loss_fn, optimizer, mesh=mesh, **settings)
    state, history = TrainState.create(jax.tree.map(jnp.copy, params), optimizer), []
    if mesh is not None:
        state = jax.device_put(state, state_shardings(state, mesh, decoder.param_axes(config)))
    for batch in batches:
        state, metrics = train_step(state, batch)
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


@pytest.fixture(scope="module")
def plain(params, batches):
    """One device, whole batches."""
    return run(params, batches, sgd())


def assert_same_training(found, expected):
    for metrics, reference in zip(found[1], expected[1], strict=True):
        assert metrics == pytest.approx(reference, rel=1e-5)
    for attribute in ("params", "opt_state"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE),
            getattr(found[0], attribute),
            getattr(expected[0], attribute),
        )


def moved_leaves(state, expected):
    """Leaves that do not lie as `expected`."""
    leaves = zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(expected), strict=True)
    return [
        f"{jax.tree_util.keystr(path)}: {leaf.sharding.spec}, not {sharding.spec}"
        for (path, leaf), sharding in leaves
        if not leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    ]


@pytest.mark.parametrize("grad_accum", [1, 512])
def test_half_precision_adds_up_slices_and_norms_in_fp32(grad_accum):
    """In bfloat16 256 + 1 is 256: the mean of 512 gradients of 1 would be a half, the norm of 1,024 entries 16."""
    optimizer = optax.sgd(1.0)
    step = make_train_step(lambda w, batch: (jnp.sum(w * batch), batch.shape[0]), optimizer, grad_accum=grad_accum)
    params = jnp.full(1024, 4, jnp.bfloat16)
    state, metrics = step(TrainState.create(params, optimizer), jnp.ones((512, 1), jnp.bfloat16))
    assert state.params.dtype == jnp.bfloat16 and (state.params == 3).all()
    assert all(value.dtype == jnp.float32 for value in metrics.values())
    assert {name: float(metrics[name]) for name in ("grad_norm", "update_norm", "param_norm", "targets")} == {
        "grad_norm": 32,
        "update_norm": 32,
        "param_norm": 96,
        "targets": 512,
    }


@pytest.mark.everywhere
@pytest.mark.parametrize("grad_accum", [4, pytest.param(8, marks=pytest.mark.large)])
def test_cutting_the_batch_changes_nothing(params, batches, plain, grad_accum):
    assert_same_training(run(params, batches, sgd(), grad_accum=grad_accum), plain)


@pytest.mark.parametrize(
    "sizes, grad_accum",
    [pytest.param((8, 1, 1), 1, marks=pytest.mark.large), ((1, 4, 2), 1), ((2, 2, 2), 2)],
    ids=["data8", "fsdp4_tensor2", "2x2x2_cut"],
)
def test_any_mesh_equals_one_device(params, batches, plain, sizes, grad_accum):
    mesh = make_mesh(MeshConfig(*sizes))
    found = run(params, batches, sgd(), mesh=mesh, grad_accum=grad_accum)
    assert_same_training(found, plain)
    # The state stays where it was put: nothing is gathered, and nothing is compiled twice.
    expected = state_shardings(found[0], mesh, decoder.param_axes(CONFIG))
    assert not moved_leaves(found[0], expected)


@pytest.mark.parametrize("sizes", [(1, 2, 4), pytest.param((2, 2, 2), marks=pytest.mark.large)], ids=str)
def test_fewer_heads_of_keys_and_values_than_tensor_devices_stay_whole(batches, sizes):
    """Packed documents, windows, and norms over all heads, which the mesh takes apart."""
    params, mesh = initial(GROUPED), make_mesh(MeshConfig(*sizes))
    expected = run(params, batches, sgd(), config=GROUPED)
    found = run(params, batches, sgd(), mesh=mesh, config=GROUPED)
    assert_same_training(found, expected)
    assert not moved_leaves(found[0], state_shardings(found[0], mesh, decoder.param_axes(GROUPED)))
    layers = found[0].params["layers"]
    spread = [layers[name]["kernel"].sharding.spec[2] for name in ("q", "k", "v")]
    assert spread == (["tensor", None, None] if sizes[2] > GROUPED.num_kv_heads else ["tensor"] * 3)


@pytest.mark.parametrize(
    "optimizer",
    [sgd(), make_optimizer(OptimizerConfig(weight_decay=0.1), 10), optax.adafactor(1e-3)],
    ids=["sgd", "ours", "adafactor"],
)
def test_moments_lie_where_their_parameters_lie(optimizer):
    """A replicated moment would cost as much memory on every device as the whole model."""
    mesh = make_mesh(MeshConfig(1, 4, 2))
    state = jax.eval_shape(lambda: TrainState.create(decoder.init_params(CONFIG, jax.random.key(0)), optimizer))
    found = state_shardings(state, mesh, decoder.param_axes(CONFIG))
    shapes = {tuple(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)}
    placed = {tuple(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(found.params)}
    moments = 0
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(state.opt_state), jax.tree.leaves(found.opt_state), strict=True
    ):
        owner = next((p for p in shapes if tuple(path)[-len(p) :] == p and shapes[p] == leaf.shape), None)
        moments += owner is not None
        assert sharding == (placed[owner] if owner else replicated(mesh)), path
    assert moments >= len(shapes) - 1  # the embedding may be frozen


@pytest.mark.everywhere
def test_metrics_are_what_they_say(params, batches, plain):
    """Against one step by hand, from logits in one piece."""

    def mean_loss(params):
        tokens, segments = batches[0]["tokens"], batches[0]["segment_ids"]
        hidden = MODEL.apply(
            {"params": params},
            tokens[:, :-1],
            segment_ids=segments[:, :-1],
            positions=positions_in_segment(segments[:, :-1]),
        )
        logits = MODEL.apply({"params": params}, hidden, method="logits")
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        inside = segments[:, 1:] == segments[:, :-1]
        return jnp.sum(losses * inside) / jnp.sum(inside), jnp.sum(inside)

    (loss, targets), grads = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(params)
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    norm = optax.tree.norm
    expected = {
        "loss": loss,
        "targets": targets,
        "grad_norm": norm(grads),
        "update_norm": 0.1 * norm(grads),
        "param_norm": norm(moved),
    }
    assert plain[1][0] == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-5)
    assert plain[0].step == STEPS and plain[1][0]["targets"] < 8 * 16


@pytest.mark.everywhere
def test_the_state_is_donated(params, batches):
    state = TrainState.create(jax.tree.map(jnp.copy, params), sgd())
    make_train_step(next_token_loss(MODEL, chunk=5), sgd())(state, batches[0])
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize(
    "segments, expected",
    [
        ([0, 0, 0, 0], [0, 1, 2, 3]),
        ([3, 3, 7, 7], [0, 1, 0, 1]),
        ([1, 2, 3, 3], [0, 0, 0, 1]),
        ([5, 5, 1, 5], [0, 1, 0, 0]),
    ],
)
def test_positions_restart_with_every_document(segments, expected):
    np.testing.assert_array_equal(positions_in_segment(jnp.array([segments, segments])), [expected, expected])


@pytest.mark.everywhere
def test_packed_documents_have_the_loss_of_separate_ones(params):
    """The sum over documents trained on alone; the target across the boundary is nobody's."""
    tokens = np.random.default_rng(2).integers(0, CONFIG.vocab_size, (1, 17), dtype=np.int32)
    lengths = (6, 1, 10)
    segment_ids = np.repeat([0, 1, 2], lengths)[None]
    loss_fn = jax.jit(next_token_loss(MODEL, chunk=5))
    packed, targets = loss_fn(params, {"tokens": tokens, "segment_ids": segment_ids})
    first, last = loss_fn(params, {"tokens": tokens[:, :6]}), loss_fn(params, {"tokens": tokens[:, 7:]})
    assert targets == 5 + 9
    assert float(packed) == pytest.approx(float(first[0] + last[0]), rel=1e-6)
    joined, everything = loss_fn(params, {"tokens": tokens})
    assert everything == 16 and abs(joined / 16 - packed / 14) > 1e-3


@pytest.mark.parametrize("segments", [(1, 2, 1), (0, 1, 0)], ids=["repeated", "alternating"])
def test_a_segment_id_that_comes_again_is_another_document(params, segments):
    tokens = np.random.default_rng(2).integers(0, CONFIG.vocab_size, (2, 17), dtype=np.int32)
    found, expected = (
        next_token_loss(MODEL)(params, {"tokens": tokens, "segment_ids": np.tile(np.repeat(ids, (6, 5, 6)), (2, 1))})
        for ids in (segments, (1, 2, 3))
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("is_ours", [True, False], ids=["decoder", "function"])
@pytest.mark.parametrize("place", [0, 5, 16], ids=["first", "middle", "last"])
@pytest.mark.parametrize("token", [-1, -100, CONFIG.vocab_size])
def test_a_token_outside_of_the_vocabulary_is_not_read_as_another(params, token, place, is_ours):
    """Where it counts; -1, alone in its segment, does not."""

    def logits(params, tokens):
        return jax.nn.one_hot(tokens, CONFIG.vocab_size) * params["embed"]["embedding"][0, 0]

    tokens = np.random.default_rng(2).integers(0, CONFIG.vocab_size, (2, 17), dtype=np.int32)
    tokens[1, place] = token
    loss_fn = jax.jit(next_token_loss(MODEL if is_ours else logits))
    loss, targets = loss_fn(params, {"tokens": tokens})
    assert np.isnan(loss) and targets == 32
    if is_ours and token == -1:
        alone = np.where(np.arange(17) == place, 1, np.where(np.arange(17) < place, 0, 2))
        assert np.isfinite(loss_fn(params, {"tokens": tokens, "segment_ids": np.tile(alone, (2, 1))})[0])


def squared_error(params, batch):
    """Somebody else's model: a line, weighted."""
    errors = batch["x"] @ params["w"] + params["b"] - batch["y"]
    return jnp.sum(batch["weight"] * errors**2), jnp.sum(batch["weight"])


@pytest.mark.parametrize("mesh", [None, MeshConfig(8, 1, 1)], ids=["one_device", "data8"])
@pytest.mark.parametrize("grad_accum", [1, 2])
def test_other_peoples_models_train(mesh, grad_accum):
    """Gradient descent on least squares, against its closed form in float64."""
    rng = np.random.default_rng(0)
    x, y, weight = rng.normal(size=(16, 3)), rng.normal(size=16), rng.uniform(size=16)
    batch = jax.tree.map(np.float32, {"x": x, "y": y, "weight": weight})
    mesh = mesh and make_mesh(mesh)
    train_step = make_train_step(squared_error, optax.sgd(0.1), mesh=mesh, grad_accum=grad_accum)
    state = TrainState.create({"w": jnp.zeros(3), "b": jnp.zeros(())}, optax.sgd(0.1))
    w, b = np.zeros(3), 0.0
    for _ in range(5):
        error = weight / weight.sum() * (x @ w + b - y)
        w, b = w - 0.2 * x.T @ error, b - 0.2 * error.sum()
        state, metrics = train_step(state, batch)
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-5)
    np.testing.assert_allclose(state.params["b"], b, rtol=1e-5)
    assert float(metrics["targets"]) == pytest.approx(weight.sum(), rel=1e-6)


def test_flax_users_can_bring_their_own_module():
    """Parameters and optimizer come from elsewhere; any pytree of parameters will do."""
    module = nn.Dense(1)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 3)))

    def loss_fn(params, batch):
        return jnp.sum((module.apply(params[0], batch["x"])[:, 0] - batch["y"]) ** 2), jnp.float32(len(batch["y"]))

    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 3)).astype(np.float32)
    optimizer = optax.adam(0.1)
    state, train_step = TrainState.create((variables,), optimizer), make_train_step(loss_fn, optimizer)
    for _ in range(100):
        state, metrics = train_step(state, {"x": x, "y": x @ np.float32([1, -2, 3])})
    assert metrics["loss"] < 0.1 and state.step == 100


@pytest.mark.parametrize("gives", ["logits", "hidden states and kernel"])
def test_a_function_of_parameters_and_tokens_is_a_model(params, batches, gives):
    """Ours, taken apart and given as a plain function, trains as the module does."""

    def apply_fn(params, tokens):
        hidden = MODEL.apply({"params": params}, tokens)
        kernel = params["head"]["kernel"]
        return hidden @ kernel if gives == "logits" else (hidden, kernel)

    batch = {"tokens": batches[0]["tokens"]}
    expected = jax.value_and_grad(lambda p: next_token_loss(MODEL)(p, batch)[0])(params)
    found = jax.value_and_grad(lambda p: next_token_loss(apply_fn, chunk=7)(p, batch)[0])(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), found, expected)
    with pytest.raises(InputError, match="segment_ids need a model that takes them"):
        next_token_loss(apply_fn)(params, batches[0])


def test_the_step_does_not_import_a_model():
    code = "import sys, selftrain_jax.training.step; print('selftrain_jax.models.decoder' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_parts_of_a_model_can_be_frozen_on_a_mesh(params, batches):
    """The state stays where it was put, whatever optax wraps around it: the second step compiles nothing new."""
    mesh = make_mesh(MeshConfig(1, 4, 2))
    state = TrainState.create(jax.tree.map(jnp.asarray, params), frozen_embedding())
    placement = state_shardings(state, mesh, decoder.param_axes(CONFIG))
    found, _ = run(params, batches, frozen_embedding(), mesh=mesh)
    assert not moved_leaves(found, placement)
    np.testing.assert_array_equal(found.params["embed"]["embedding"], params["embed"]["embedding"])
    assert np.abs(found.params["head"]["kernel"] - params["head"]["kernel"]).max() > 1e-4


def test_a_batch_without_a_target_changes_nothing(params, batches):
    alone = {"tokens": batches[0]["tokens"], "segment_ids": np.arange(8 * 17, dtype=np.int32).reshape(8, 17)}
    state, history = run(params, [alone], sgd())
    assert history[0]["loss"] == history[0]["targets"] == 0
    jax.tree.map(np.testing.assert_array_equal, state.params, params)


def test_half_precision_parameters_take_many_targets():
    """Their number may be more than half precision holds."""

    def loss_fn(params, batch):
        return jnp.sum(params["w"] * batch["x"]).astype(jnp.float32), 100_000

    state = TrainState.create({"w": jnp.ones((), jnp.float16)}, optax.sgd(1.0))
    with pytest.warns(InputWarning, match="parameters in float16 lose .* keep them in float32"):
        state, metrics = make_train_step(loss_fn, optax.sgd(1.0))(state, {"x": jnp.full(8, 2000, jnp.float16)})
    assert float(metrics["grad_norm"]) == pytest.approx(0.16, rel=1e-2)
    assert float(state.params["w"]) == pytest.approx(0.84, rel=1e-2)


@pytest.mark.parametrize(
    "batch, message",
    [
        (
            {"tokens": np.zeros((2, 4), np.int32), "segment_ids": np.zeros((1, 4), np.int32)},
            r"segment_ids of shape \(1, 4\), not \(2, 4\)",
        ),
        ({"tokens": np.zeros((2, 1), np.int32)}, r"tokens of shape \(2, 1\) .* must be ids \[B, T \+ 1\]"),
        ({"tokens": np.zeros((2, 4), np.int32), "weights": np.ones((2, 4))}, "entry 'weights' is not read"),
        ({"tokens": np.zeros((2, 4))}, "dtype float64 must be ids"),
        ({"ids": np.zeros((2, 4), np.int32)}, 'must be a dict with "tokens"'),
        (np.zeros((2, 4), np.int32), 'must be a dict with "tokens"'),
    ],
)
def test_batches_that_would_be_misread_are_refused(params, batch, message):
    with pytest.raises(InputError, match=message):
        next_token_loss(MODEL)(params, batch)


def test_rows_longer_than_the_learned_positions_are_refused():
    config = dataclasses.replace(CONFIG, learned_positions=True, pattern=(Layer(None),), max_position=16)
    params, tokens = initial(config), np.zeros((1, 18), np.int32)
    loss_fn = jax.jit(next_token_loss(decoder.Decoder(config)))
    assert np.isfinite(loss_fn(params, {"tokens": tokens[:, :17]})[0])
    with pytest.raises(InputError, match="rows of 17 tokens for a model that learned 16 positions"):
        loss_fn(params, {"tokens": tokens})
    assert np.isfinite(loss_fn(params, {"tokens": tokens, "segment_ids": np.arange(18)[None] // 9})[0])


def test_other_modules_come_as_functions():
    with pytest.raises(InputError, match="Dense is not a Decoder: pass a function"):
        next_token_loss(nn.Dense(3))
    with pytest.raises(InputError, match="chunk=0"):
        next_token_loss(MODEL, chunk=0)


def test_batches_that_cannot_be_cut_are_refused(params, batches):
    with pytest.raises(InputError, match="grad_accum=0"):
        make_train_step(squared_error, sgd(), grad_accum=0)
    state = TrainState.create(params, sgd())
    with pytest.raises(InputError, match="8 rows.*grad_accum=3"):
        make_train_step(next_token_loss(MODEL), sgd(), grad_accum=3)(state, batches[0])


@pytest.mark.parametrize(
    "loss",
    [lambda params, batch: jnp.float32(3), lambda params, batch: (jnp.ones(8), jnp.ones(8))],
    ids=["one", "rows"],
)
def test_a_loss_of_another_form_is_refused(params, batches, loss):
    with pytest.raises(InputError, match="loss_fn must return two scalars"):
        make_train_step(loss, sgd())(TrainState.create(params, sgd()), batches[0])


def test_a_batch_that_the_devices_do_not_divide_is_refused(params):
    step = make_train_step(next_token_loss(MODEL), sgd(), mesh=make_mesh(MeshConfig(1, 4, 2)))
    with pytest.raises(InputError, match="batch of 6 rows cannot be spread over 4 devices"):
        step(TrainState.create(params, sgd()), {"tokens": np.zeros((6, 9), np.int32)})


@pytest.mark.parametrize(
    "types, rules, message",
    [
        ("Auto", RULES, "'batch' lies on mesh axis 'data', but the mesh has .'replica',.: .*pass rules="),
        ("Explicit", {"batch": "replica"}, "axes .'replica',. are Explicit: make the mesh with axis_types="),
    ],
)
def test_a_mesh_that_the_step_cannot_use_is_refused(types, rules, message):
    mesh = jax.make_mesh((8,), ("replica",), axis_types=(jax.sharding.AxisType[types],))
    with pytest.raises(InputError, match=message):
        make_train_step(squared_error, sgd(), mesh=mesh, rules=rules)


@pytest.mark.filterwarnings("error")
def test_a_state_that_is_whole_on_devices_which_could_share_it_is_warned_of():
    mesh, optimizer = make_mesh(MeshConfig(1, 4, 2)), optax.sgd(0.1)
    batch = {"x": np.ones((8, 8), np.float32), "y": np.ones(8, np.float32), "weight": np.ones(8, np.float32)}
    state = TrainState.create({"w": np.zeros(8, np.float32), "b": np.float32(0)}, optimizer)
    placed = jax.device_put(state, state_shardings(state, mesh, {"w": ("embed",), "b": ()}))
    make_train_step(squared_error, optimizer, mesh=mesh)(placed, batch)
    state = state.replace(step=np.int32(0))
    make_train_step(squared_error, optimizer, mesh=mesh, rules={"batch": "fsdp"})(state, batch)
    with pytest.warns(InputWarning, match="all of the state lies on every device of mesh .*state_shardings"):
        make_train_step(squared_error, optimizer, mesh=mesh)(state, batch)


@pytest.mark.parametrize("mesh", [None, MeshConfig(data=-1)], ids=["alone", "mesh"])
def test_an_array_that_is_filled_again_while_the_step_runs_changes_nothing(mesh):
    """As loaders do; on a CPU, JAX reads arrays that begin at a multiple of 64 bytes where they lie."""
    raw = np.empty(8 * 65 * 4 + 64, np.uint8)
    begin = -raw.ctypes.data % 64
    buffer = raw[begin : begin + 8 * 65 * 4].view(np.int32).reshape(8, 65)
    slow = jnp.ones((1, 20_000))

    def loss(params, batch):
        return jnp.sum(jnp.sin(batch["x"].astype(jnp.float32)[..., None] * slow)) * params, jnp.float32(1)

    def losses(give):
        step = make_train_step(loss, optax.sgd(0.0), mesh=mesh and make_mesh(mesh))
        state, found = TrainState.create(jnp.float32(1), optax.sgd(0.0)), []
        for number in range(4):
            state, metrics = step(state, {"x": give(number)})
            found.append(metrics["loss"])
        return [float(x) for x in found]

    def again(number):
        buffer[...] = number
        return buffer

    assert losses(again) == losses(lambda number: np.full((8, 65), number, np.int32))
