import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selftrain_jax import parallel
from selftrain_jax.errors import InputError
from selftrain_jax.evaluation import score as score_module
from selftrain_jax.evaluation.score import TokenScores, score
from selftrain_jax.models.config import ModelConfig
from selftrain_jax.models.gpt_neox import GPTNeoX, init_params, param_axes

CONFIG = ModelConfig(  # the context is no multiple of the chunks and roundings of the scorer
    vocab_size=96, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64, max_position=89, rotary_pct=0.5
)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), init_params(CONFIG, jax.random.key(0))
    )


@pytest.fixture(scope="module")
def sequences():
    """From the shortest possible to one whose last token is predicted by a full context; 0 is a token like others."""
    rng = np.random.default_rng(1)
    lengths = [2, 90, 17, 3, 64, 66, 90, 33, 5, 16, 2, 81]
    return [*(rng.integers(0, CONFIG.vocab_size, n).astype(np.int32) for n in lengths), np.zeros(20, np.int32)]


@pytest.fixture(scope="module")
def starts(sequences):
    return [len(s) - 1 if i % 3 == 0 else max(len(s) // 2, 1) if i % 3 == 1 else 1 for i, s in enumerate(sequences)]


@pytest.fixture(scope="module")
def scores(params, sequences, starts):
    return score(params, CONFIG, sequences, starts, batch_size=64)


@functools.partial(jax.jit, static_argnames="config")
def full_logits(config, params, tokens):
    model = GPTNeoX(config)
    return model.apply({"params": params}, model.apply({"params": params}, tokens), method="logits")


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.ranks, b.ranks)
        # Log-probs of order 5 and margins of order 1: some fp32 roundings of a pass in another shape.
        np.testing.assert_allclose(a.log_probs, b.log_probs, atol=2e-5)
        np.testing.assert_allclose(a.margins, b.margins, atol=2e-5)


def test_scores_are_those_of_the_full_logits(params, sequences, starts, scores):
    padded = np.zeros((len(sequences), 90), np.int32)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
    logits = np.asarray(full_logits(CONFIG, params, padded[:, :-1]), np.float64)
    for row, (sequence, start, found) in enumerate(zip(sequences, starts, scores, strict=True)):
        assert len(found.log_probs) == len(found.ranks) == len(found.margins) == len(sequence) - start
        for i, token in enumerate(sequence[start:]):
            given = logits[row, start + i - 1]
            ranked = np.argsort(-given, kind="stable")
            # The logits are fp32 and come from passes of different shapes: a few units of 1e-6 each.
            assert found.log_probs[i] == pytest.approx(given[token] - np.logaddexp.reduce(given), abs=2e-5)
            assert found.ranks[i] == ranked.tolist().index(token)
            assert found.margins[i] == pytest.approx(given[ranked[0]] - given[ranked[1]], abs=2e-5)
            assert found.hits[i] == (token == given.argmax())


def test_ties_go_to_the_lowest_id():
    """A model whose logits are the same few numbers at every position."""
    config = ModelConfig(vocab_size=6, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=8, max_position=16)
    logits = np.array([1.0, 2.0, 0.0, 2.0, 1.0, 1.0])
    params = init_params(config, jax.random.key(0))
    params["final_norm"] = {"scale": jnp.zeros(16), "bias": jnp.zeros(16).at[0].set(1)}
    params["head"] = {"kernel": jnp.zeros((16, 6)).at[0].set(logits)}
    (found,) = score(params, config, [np.array([0, 0, 1, 2, 3, 4, 5])])
    assert found.ranks.tolist() == [2, 0, 5, 1, 3, 4]
    assert found.hits.tolist() == [False, True, False, False, False, False]
    assert found.margins.tolist() == [0.0] * 6
    # One rounding of fp32 each.
    np.testing.assert_allclose(found.log_probs, logits - np.logaddexp.reduce(logits), rtol=1e-6)


@pytest.mark.parametrize(
    "mesh_sizes, batch_size", [(None, 1), (None, 7), ((8, 1, 1), 1), ((8, 1, 1), 64), ((2, 2, 2), 7)], ids=str
)
def test_batch_size_and_mesh_change_nothing(params, sequences, starts, scores, mesh_sizes, batch_size):
    mesh = None
    if mesh_sizes:
        mesh = parallel.make_mesh(parallel.MeshConfig(*mesh_sizes))
        params = parallel.to_global(mesh, params, parallel.shardings(mesh, param_axes(CONFIG), params))
    # A few will do where every shape has to be compiled anew.
    rows = [0, 1, 4] if batch_size == 1 or mesh_sizes else range(len(sequences))
    found = score(
        params, CONFIG, [sequences[r] for r in rows], [starts[r] for r in rows], mesh=mesh, batch_size=batch_size
    )
    assert_same(found, [scores[r] for r in rows])


def test_order_does_not_matter(params, sequences, starts, scores):
    order = np.random.default_rng(2).permutation(len(sequences))
    found = score(params, CONFIG, [sequences[i] for i in order], [starts[i] for i in order], batch_size=64)
    assert_same(found, [scores[i] for i in order])


def test_a_later_start_gives_the_tail_of_the_same_scores(params, sequences, starts, scores):
    whole = score(params, CONFIG, sequences, batch_size=64)
    tails = [jax.tree.map(lambda x: x[start - 1 :], s) for s, start in zip(whole, starts)]
    assert_same(scores, tails)


def test_what_follows_a_token_does_not_change_its_score(params, sequences, scores):
    """Rows are padded on the right; real tokens there must make no difference either."""
    rng = np.random.default_rng(3)
    longer = [np.append(s, rng.integers(0, 96, 90 - len(s))).astype(np.int32) for s in sequences]
    found = score(params, CONFIG, longer, batch_size=64)
    whole = score(params, CONFIG, sequences, batch_size=64)
    assert_same([jax.tree.map(lambda x: x[: len(s) - 1], f) for f, s in zip(found, sequences)], whole)


def test_half_precision_keeps_fp32_results(params, sequences, starts, scores):
    found = score(params, CONFIG, sequences, starts, batch_size=64, dtype=jnp.bfloat16)
    assert all(s.log_probs.dtype == s.margins.dtype == np.float32 for s in found)
    difference = np.concatenate([a.log_probs - b.log_probs for a, b in zip(found, scores)])
    # bf16 keeps eight bits: hidden states of order 1 move by some 0.01, logits by several times that.
    assert 0 < np.abs(difference).mean() < 0.1


def test_nothing_to_score_is_no_error(params):
    assert score(params, CONFIG, []) == []


@pytest.mark.parametrize(
    "sequence, start, message",
    [
        ([5], 1, "sequence 1: cannot score from token 1 of 1"),
        ([], 1, "sequence 1: cannot score from token 1 of 0"),
        ([1, 2, 3], 0, "sequence 1: cannot score from token 0 of 3"),
        ([1, 2, 3], 3, "sequence 1: cannot score from token 3 of 3"),
        ([1] * 91, 1, "sequence 1 has 91 tokens.*context of 89"),
        ([1, 96], 1, "sequence 1 holds token ids outside.*96"),
        ([1, -1], 1, "sequence 1 holds token ids outside"),
        (np.array([1, 2**32 + 5]), 1, "sequence 1 holds token ids outside"),
        ([1, 2**40], 1, "sequence 1 holds token ids outside"),
        ([1.5, 2.0], 1, "sequence 1 .*integers"),
    ],
    ids=["short", "empty", "before", "behind", "long", "high", "negative", "wraps", "huge", "fractions"],
)
def test_bad_input_raises_before_any_device_work(monkeypatch, params, sequence, start, message):
    monkeypatch.setattr(score_module, "score_batch", lambda *_: pytest.fail("device work"))
    with pytest.raises(InputError, match=message):
        score(params, CONFIG, [[1, 2], sequence], [1, start])


def test_token_scores_are_a_pytree():
    """Other people's jitted code passes them around."""
    doubled = jax.tree.map(lambda x: 2 * x, TokenScores(np.ones(2), np.ones(2, np.int32), np.ones(2)))
    assert doubled.ranks.tolist() == [2, 2]
