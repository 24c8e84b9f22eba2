"""The schedule has its documented shape; decay and clipping act where they should and nowhere else."""

import jax
import numpy as np
import optax
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.models import decoder
from selftrain_jax.models.config import DecoderConfig, Layer, Rotary
from selftrain_jax.training.optimizer import make_optimizer, make_schedule
from selftrain_jax.training.settings import OptimizerConfig

PEAK = 1e-2
MODEL = DecoderConfig(
    vocab_size=20, hidden_size=8, num_layers=2, num_heads=2, intermediate_size=16, pattern=(Layer(Rotary(0.5)),)
)
PARAMS = {"a": {"kernel": np.array([[1.0, -2.0]], np.float32)}}


@pytest.mark.parametrize(
    "settings, expected",
    [
        # step -> share of the peak, of 100 steps
        ({}, {0: 0.1, 4: 0.5, 9: 1, 10: 1, 55: 0.5, 100: 0}),
        ({"final_lr_ratio": 0.2}, {0: 0.1, 9: 1, 55: 0.6, 100: 0.2, 150: 0.2}),
        ({"warmup": 0.0}, {0: 1, 50: 0.5, 75: 0.5 - 0.5**1.5, 100: 0}),
        ({"warmup": 0.01}, {0: 1, 1: 1, 100: 0}),
        ({"warmup": 0.02}, {0: 0.5, 1: 1, 2: 1, 51: 0.5}),
        ({"warmup": 1.0}, {0: 0.01, 49: 0.5, 99: 1}),
        ({"schedule": "constant"}, {0: 0.1, 9: 1, 10: 1, 99: 1}),
        ({"schedule": "constant", "warmup": 0.0}, {0: 1, 99: 1}),
    ],
    ids=str,
)
def test_the_schedule_warms_up_and_decays(settings, expected):
    """Bound: the cosine is evaluated in fp32."""
    schedule = make_schedule(OptimizerConfig(learning_rate=PEAK, **settings), 100)
    for step, share in expected.items():
        assert float(schedule(step)) == pytest.approx(share * PEAK, rel=1e-5, abs=1e-6 * PEAK), step


@pytest.mark.parametrize("num_steps", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["cosine", "constant"])
def test_no_step_is_wasted(num_steps, warmup, kind):
    """Every learning rate is positive and at most the peak, which some step reaches."""
    schedule = make_schedule(OptimizerConfig(learning_rate=PEAK, warmup=warmup, schedule=kind), num_steps)
    rates = np.array([float(schedule(step)) for step in range(num_steps)])
    assert (rates > 0).all() and rates.max() == pytest.approx(PEAK)


def updates(config, gradients, params=PARAMS):
    """The update of every gradient in turn, at constant parameters."""
    optimizer = make_optimizer(config, len(gradients))
    state, found = optimizer.init(params), []
    for gradient in gradients:
        update, state = optimizer.update(gradient, state, params)
        found.append(update)
    return found


def flat(**settings):
    return OptimizerConfig(learning_rate=PEAK, schedule="constant", warmup=0.0, **settings)


def test_updates_are_those_of_adamw():
    """The recursion of Kingma & Ba (2015, algorithm 1) in float64. Bound: 1 - beta2^t loses three digits of fp32."""
    rng = np.random.default_rng(0)
    config = flat(beta1=0.8, beta2=0.99, eps=0.1, clip_norm=0.0)
    gradients = rng.normal(size=(4, 1, 2)).astype(np.float32)
    found = updates(config, [{"a": {"kernel": g}} for g in gradients])
    mean = square = 0
    for t, g in enumerate(gradients.astype(np.float64), 1):
        mean, square = 0.8 * mean + 0.2 * g, 0.99 * square + 0.01 * g**2
        expected = -PEAK * (mean / (1 - 0.8**t)) / (np.sqrt(square / (1 - 0.99**t)) + 0.1)
        np.testing.assert_allclose(found[t - 1]["a"]["kernel"], expected, rtol=1e-4)


def test_weight_decay_acts_on_matrices_only():
    """At zero gradient a matrix shrinks by learning_rate * weight_decay; scales and biases, of whatever rank, stay."""
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), decoder.param_shapes(MODEL))
    found = updates(flat(weight_decay=0.5), [jax.tree.map(np.zeros_like, params)], params)[0]
    for path, update in jax.tree_util.tree_leaves_with_path(found):
        matrix = path[-1].key in ("kernel", "embedding")
        np.testing.assert_allclose(update, -PEAK * 0.5 if matrix else 0, rtol=1e-6, err_msg=str(path))


def test_weight_decay_is_decoupled_from_the_gradient():
    gradient = {"a": {"kernel": np.array([[3.0, -1.0]], np.float32)}}
    with_decay, without = (updates(flat(weight_decay=w), [gradient])[0]["a"]["kernel"] for w in (0.5, 0.0))
    np.testing.assert_allclose(with_decay - without, -PEAK * 0.5 * PARAMS["a"]["kernel"], rtol=1e-4)


def test_clipping_bounds_the_global_norm():
    """With eps = 1 the update shows the size of the gradient: over the bound it does not matter, below it does."""
    direction = {"a": {"kernel": np.array([[3.0, 0.0]], np.float32)}, "b": {"kernel": np.array([[4.0]], np.float32)}}
    assert optax.tree.norm(direction) == 5

    def first(size, clip_norm):
        gradient = jax.tree.map(lambda g: g * size, direction)
        return updates(flat(eps=1.0, clip_norm=clip_norm), [gradient], direction)[0]

    def same(left, right):
        return all(jax.tree.leaves(jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-5), left, right)))

    assert same(first(1, 2.0), first(100, 2.0)) and same(first(1, 2.0), first(0.4, 0.0))
    assert same(first(0.3, 2.0), first(0.3, 0.0))  # a norm of 1.5 is left alone
    assert not same(first(1, 0.0), first(100, 0.0))  # 0 turns clipping off


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 0.0},
        {"learning_rate": -1e-3},
        {"learning_rate": float("nan")},
        {"schedule": "linear"},
        {"warmup": 1.1},
        {"final_lr_ratio": -0.1},
        {"beta1": 1.0},
        {"beta2": -0.5},
        {"eps": -1e-8},
        {"weight_decay": -0.1},
        {"clip_norm": -1.0},
    ],
    ids=str,
)
def test_bad_settings_are_refused_by_name(settings):
    ((name, value),) = settings.items()
    with pytest.raises(InputError, match=f"{name}={value!r}"):
        OptimizerConfig(**settings)
