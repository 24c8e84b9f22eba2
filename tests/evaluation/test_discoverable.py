"""Extraction by sampling, against samples."""

import functools
import math

import jax
import numpy as np
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.evaluation.discoverable import (
    discoverable,
    queries_needed,
    sampled_suffix_log_probs,
    success_probability,
)
from selftrain_jax.evaluation.memorization import Probe, extract
from selftrain_jax.evaluation.score import score
from selftrain_jax.models.decoder import Decoder
from selftrain_jax.sampling import warp
from selftrain_jax.sampling.settings import SamplingConfig
from tests.shapes import ONE_LAYER, initial

CONFIG = ONE_LAYER
MODEL = Decoder(CONFIG)
DRAWS = 20_000
TOP_K = SamplingConfig(temperature=0.8, top_k=6, min_new_tokens=0)


@pytest.fixture(scope="module")
def params():
    params = initial(CONFIG)
    params["head"]["kernel"] *= 6  # spread logits: some suffixes are likely, some are not
    return params


@functools.partial(jax.jit, static_argnames=("sampling", "num_tokens"))
def sample(params, prefix, key, sampling, num_tokens):
    """`[DRAWS, num_tokens]` continuations, drawn by the sampler's own functions from the whole model run on every
    row.
    """
    tokens = jax.numpy.tile(prefix, (DRAWS, 1))
    for t in range(num_tokens):
        hidden = MODEL.apply({"params": params}, tokens)[:, -1]
        logits = MODEL.apply({"params": params}, hidden, method="logits")
        warped = warp.warp(logits, sampling, jax.numpy.ones(CONFIG.vocab_size, bool), jax.numpy.array(False), ())
        drawn = warp.draw(warped, jax.random.uniform(jax.random.fold_in(key, t), (DRAWS, 2)))
        tokens = jax.numpy.concatenate([tokens, drawn[:, None]], axis=1)
    return tokens[:, len(prefix) :]


@pytest.mark.parametrize(
    "sampling",
    [
        pytest.param(TOP_K, id="k"),
        pytest.param(SamplingConfig(temperature=1.3, top_p=0.9, min_new_tokens=0), id="p", marks=pytest.mark.large),
    ],
)
def test_20000_samples_agree_with_the_teacher_forced_pass(capsys, params, sampling):
    prefix = np.array([3, 17, 40], np.int32)
    # Frequent and rare continuations of other draws (the luckiest of these ones would be too frequent in them), and one
    # that is never drawn where top-k cuts.
    kinds, counts = np.unique(sample(params, prefix, jax.random.key(2), sampling, 3), axis=0, return_counts=True)
    order = np.argsort(-counts)
    chosen = [*kinds[order[[0, 1, 2, 5, 10, 20, 40]]], np.array([kinds[order[0]][0], 1, 1])]
    drawn = np.asarray(sample(params, prefix, jax.random.key(1), sampling, 3))
    counts = [int((drawn == suffix).all(axis=1).sum()) for suffix in chosen]
    scorer = functools.partial(score, params, CONFIG, batch_size=8)
    log_probs = sampled_suffix_log_probs(
        scorer, [Probe(prefix, suffix.astype(np.int32)) for suffix in chosen], sampling
    )
    deviations = []
    for count, p in zip(counts, np.exp(log_probs)):
        error = math.sqrt(p * (1 - p) / DRAWS)
        deviations.append(abs(count / DRAWS - p) / error if error else np.inf if count else 0.0)
    with capsys.disabled():
        print(f"\np_z {np.exp(log_probs).round(4)}: off by {np.round(deviations, 1)} standard errors", end=" ")
    assert max(deviations) < 3 and np.exp(log_probs[0]) > 0.01


def test_top_1_is_greedy_extraction(params):
    rng = np.random.default_rng(0)
    probes = [Probe(p, s) for p, s in zip(rng.integers(0, 64, (300, 3)), rng.integers(0, 64, (300, 1)))]
    scorer = functools.partial(score, params, CONFIG, batch_size=64)
    log_probs = sampled_suffix_log_probs(scorer, probes, SamplingConfig(temperature=0.5, top_k=1, min_new_tokens=0))
    found = extract(scorer, probes)
    exact = found.exact
    assert not found.ambiguous().any()  # two passes
    assert exact.any() and np.array_equal(log_probs == 0, exact) and np.array_equal(log_probs == -np.inf, ~exact)


@pytest.mark.parametrize(
    "p_z, p, n", [(0.5, 0.75, 2), (0.5, 0.5, 1), (0.1, 0.5, 7), (0.9, 0.999, 3), (1.0, 0.99, 1), (0.0, 0.1, math.inf)]
)
def test_queries_by_hand(p_z, p, n):
    log_p = math.log(p_z) if p_z else -math.inf
    assert queries_needed([log_p], p).tolist() == [n]
    assert discoverable([log_p], n, p).all() if n < math.inf else not discoverable([log_p], 1e300, p).any()
    if 1 < n < math.inf:
        assert success_probability([log_p], n)[0] >= p - 1e-12 > success_probability([log_p], n - 1)[0]
        assert not discoverable([log_p], n - 1, p).any()


def test_tiny_probabilities_keep_their_digits():
    # log p_z = -100: n = -log(1 - p) e^100, to first order in p_z.
    assert queries_needed([-100.0], 0.5)[0] == pytest.approx(math.log(2) * math.exp(100), rel=1e-11)
    assert success_probability([-100.0], math.exp(95))[0] == pytest.approx(-math.expm1(-math.exp(-5)))
    # Below what a double can hold as a probability.
    assert queries_needed([-700.0], 0.1)[0] == pytest.approx(-math.log(0.9) * math.exp(700), rel=1e-9)
    assert queries_needed([-800.0], 0.1)[0] == math.inf and success_probability([-800.0], 1e300)[0] < 1e-40
    # Both sides of the switch to first order.
    near = queries_needed([-39.999999, -40.000001], 0.5)
    assert near[1] / near[0] == pytest.approx(math.exp(2e-6), rel=1e-6)
    assert np.isfinite(queries_needed([1e-7], 0.5)).all()  # a certain suffix, rounded up


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: queries_needed([-1.0], 1.0), "p=1.0 must lie between 0 and 1"),
        (lambda: queries_needed([-1.0], 0.0), "p=0.0"),
        (lambda: success_probability([-1.0], 0), "n=0 samples"),
        (lambda: discoverable([-1.0], 0.5, 0.5), "n=0.5 samples"),
    ],
)
def test_bad_settings_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_nearly_certain_suffixes_keep_their_digits():
    """p_z = 1 - 1e-12 fails once in 10^12 samples: two are needed for p = 1 - 1e-13 (by hand)."""
    assert queries_needed([-1e-12], 1 - 1e-13).tolist() == [2]
    assert queries_needed([-1e-12], 1 - 1e-11).tolist() == [1]


def test_what_is_no_number_is_refused():
    with pytest.raises(InputError, match="not numbers"):
        queries_needed([np.nan], 0.5)
    for formula in (lambda: success_probability([-1.0], np.inf), lambda: discoverable([-np.inf], np.inf, 0.5)):
        with pytest.raises(InputError, match="n=inf samples"):
            formula()
