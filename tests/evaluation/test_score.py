import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.distributed.mesh import batch_sharding, batch_ways, make_mesh, named_shardings, to_global
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.evaluation import score as score_module
from selftrain_jax.evaluation.fans import fans
from selftrain_jax.evaluation.score import TokenScores, score
from selftrain_jax.models.config import DecoderConfig, Layer
from selftrain_jax.models.decoder import Decoder, param_axes
from selftrain_jax.sampling.settings import SamplingConfig
from tests.shapes import GROUPED, SMALL, initial, wandering

CONFIG = dataclasses.replace(SMALL, max_position=89)  # no multiple of the chunks and roundings of the scorer


@pytest.fixture(scope="module")
def params():
    return wandering(CONFIG)


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
    model = Decoder(config)
    return model.apply({"params": params}, model.apply({"params": params}, tokens), method="logits")


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.hits, b.hits)
        # Log-probs of order 5 and margins of order 1: some fp32 roundings of a pass in another shape.
        np.testing.assert_allclose(a.log_probs, b.log_probs, atol=2e-5)
        np.testing.assert_allclose(a.margins, b.margins, atol=2e-5)


@pytest.mark.everywhere
def test_scores_are_those_of_the_full_logits(params, sequences, starts, scores):
    padded = np.zeros((len(sequences), 90), np.int32)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
    logits = np.asarray(full_logits(CONFIG, params, padded[:, :-1]), np.float64)
    for row, (sequence, start, found) in enumerate(zip(sequences, starts, scores, strict=True)):
        assert len(found.log_probs) == len(found.hits) == len(found.margins) == len(sequence) - start
        for i, token in enumerate(sequence[start:]):
            given = logits[row, start + i - 1]
            ranked = np.argsort(-given, kind="stable")
            # The logits are fp32 and come from passes of different shapes: a few units of 1e-6 each.
            assert found.log_probs[i] == pytest.approx(given[token] - np.logaddexp.reduce(given), abs=2e-5)
            assert found.margins[i] == pytest.approx(given[ranked[0]] - given[ranked[1]], abs=2e-5)
            if token not in ranked[:2] or given[ranked[0]] - given[ranked[1]] > 4e-5:
                assert found.hits[i] == (token == ranked[0])


@pytest.mark.everywhere
@pytest.mark.parametrize("tile", [1, 2, 4, 512])
def test_ties_go_to_the_lowest_id(monkeypatch, tile):
    """A model whose logits are the same few numbers at every position; ties within and across the tiles of a CPU."""
    monkeypatch.setattr(score_module, "_TILE_ON_CPU", tile)
    score_module.score_batch.clear_cache()
    config = DecoderConfig(
        vocab_size=6, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=8, max_position=16
    )
    logits = np.array([1.0, 2.0, 0.0, 2.0, 1.0, 1.0])
    params = initial(config)
    params["final_norm"] = {"scale": jnp.zeros(16), "bias": jnp.zeros(16).at[0].set(1)}
    params["head"] = {"kernel": jnp.zeros((16, 6)).at[0].set(logits)}
    (found,) = score(params, config, [np.array([0, 0, 1, 2, 3, 4, 5])])
    assert found.hits.tolist() == [False, True, False, False, False, False]
    assert found.margins.tolist() == [0.0] * 6
    # One rounding of fp32 each.
    np.testing.assert_allclose(found.log_probs, logits - np.logaddexp.reduce(logits), rtol=1e-6)


def test_the_model_is_traced_on_the_mesh_of_its_rows(monkeypatch, params, sequences):
    """Attention kernels of TPUs are not partitioned by the compiler: they must know the mesh."""
    seen, whole = [], score_module.score_batch

    def record(*args, **kwargs):
        seen.append(dict(jax.sharding.get_abstract_mesh().shape))
        return whole(*args, **kwargs)

    monkeypatch.setattr(score_module, "score_batch", record)
    score(params, CONFIG, sequences[:2], mesh=make_mesh(MeshConfig(2, 1, 1), jax.devices()[:2]), batch_size=2)
    score(params, CONFIG, sequences[:2], batch_size=2)
    assert seen == [{"data": 2, "fsdp": 1, "tensor": 1}, {}]


@pytest.mark.parametrize(
    "mesh_sizes, batch_size", [(None, 1), (None, 7), ((8, 1, 1), 1), ((8, 1, 1), 64), ((2, 2, 2), 7)], ids=str
)
def test_batch_size_and_mesh_change_nothing(params, sequences, starts, scores, mesh_sizes, batch_size):
    mesh = None
    if mesh_sizes:
        mesh = make_mesh(MeshConfig(*mesh_sizes))
        params = to_global(mesh, params, named_shardings(mesh, param_axes(CONFIG), params))
    # A few will do where every shape has to be compiled anew.
    rows = [0, 1, 4] if batch_size == 1 or mesh_sizes else range(len(sequences))
    found = score(
        params, CONFIG, [sequences[r] for r in rows], [starts[r] for r in rows], mesh=mesh, batch_size=batch_size
    )
    assert_same(found, [scores[r] for r in rows])


@pytest.mark.parametrize("sizes", [(1, 2, 4), pytest.param((2, 2, 2), marks=pytest.mark.large)], ids=str)
def test_fewer_heads_of_keys_and_values_than_tensor_devices_change_nothing(sequences, sizes):
    params, sequences = wandering(GROUPED), [s[: GROUPED.max_position] for s in sequences[:6]]
    expected = score(params, GROUPED, sequences, batch_size=8)
    assert_same(score(params, GROUPED, sequences, mesh=make_mesh(MeshConfig(*sizes)), batch_size=8), expected)


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


@pytest.mark.parametrize("dtype, precision", [(jnp.float32, "highest"), (jnp.bfloat16, None)])
def test_fp32_means_fp32_on_accelerators_too(monkeypatch, params, dtype, precision):
    seen = []

    def record(*_, **__):
        seen.append(jax.config.jax_default_matmul_precision)
        return TokenScores(*(np.zeros((1, 1)),) * 3)

    monkeypatch.setattr(score_module, "score_batch", record)
    score(params, CONFIG, [[1, 2]], batch_size=1, dtype=dtype)
    assert seen == [precision]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_that_gives_no_numbers_is_refused(params, value):
    """No logit is ahead of a NaN: every token would count as a hit, and the model as one that knows all by heart."""
    broken = {
        **params,
        "final_norm": {**params["final_norm"], "scale": np.full_like(params["final_norm"]["scale"], value)},
    }
    with pytest.raises(InputError, match="log-probabilities of sequence 0 are not finite: .*diverged"):
        score(broken, CONFIG, [[1, 2, 3]])


def test_an_impossible_batch_size_is_refused(params):
    with pytest.raises(InputError, match="batch_size=0 must be at least 1"):
        score(params, CONFIG, [[1, 2]], batch_size=0)


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
    monkeypatch.setattr(score_module, "score_batch", lambda *_, **__: pytest.fail("device work"))
    with pytest.raises(InputError, match=message):
        score(params, CONFIG, [[1, 2], sequence], [1, start])


SAMPLING = SamplingConfig(temperature=0.7, top_k=5, top_p=0.9, min_new_tokens=0)


@pytest.fixture(scope="module")
def full_scores(params, sequences, starts):
    """With everything that can be asked for."""
    return score(params, CONFIG, sequences, starts, batch_size=64, moments=True, sampling=SAMPLING)


@pytest.mark.everywhere
def test_moments_and_sampled_log_probs_are_those_of_the_full_logits(params, sequences, starts, scores, full_scores):
    padded = np.zeros((len(sequences), 90), np.int32)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
    logits = np.asarray(full_logits(CONFIG, params, padded[:, :-1]), np.float64)
    log_probs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    assert_same(full_scores, scores)
    impossible = 0
    for row, (sequence, start, found) in enumerate(zip(sequences, starts, full_scores, strict=True)):
        given = log_probs[row, start - 1 : len(sequence) - 1]
        means = (np.exp(given) * given).sum(-1)
        # Sums over 96 fp32 products of order 1, and logits that differ by some 1e-6 between passes of other shapes.
        np.testing.assert_allclose(found.means, means, atol=2e-5)
        np.testing.assert_allclose(found.variances, (np.exp(given) * (given - means[:, None]) ** 2).sum(-1), atol=1e-4)
        for i, token in enumerate(sequence[start:]):
            tempered = given[i] / SAMPLING.temperature
            order = np.argsort(-tempered, kind="stable")[: SAMPLING.top_k]
            probs = np.exp(tempered[order]) / np.exp(tempered[order]).sum()
            kept = order[: int(np.argmax(np.cumsum(probs) >= SAMPLING.top_p)) + 1]
            expected = tempered[token] - np.logaddexp.reduce(tempered[kept]) if token in kept else -np.inf
            assert found.sampled_log_probs[i] == pytest.approx(expected, abs=2e-5)
            impossible += token not in kept
    assert 0 < impossible < sum(len(s) - t for s, t in zip(sequences, starts))


def test_variance_keeps_its_digits_where_one_token_is_nearly_certain():
    """The textbook E[x^2] - E[x]^2 would come out as rounding noise here, possibly negative."""
    config = DecoderConfig(
        vocab_size=6, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=8, max_position=16
    )
    logits = np.array([1000.0, 988.0, 985.0, 985.0, 985.0, 980.0])
    params = initial(config)
    params["final_norm"] = {"scale": jnp.zeros(16), "bias": jnp.zeros(16).at[0].set(1)}
    params["head"] = {"kernel": jnp.zeros((16, 6)).at[0].set(logits)}
    (found,) = score(params, config, [np.array([0, 1])], moments=True)
    log_probs = logits - np.logaddexp.reduce(logits)
    mean = np.sum(np.exp(log_probs) * log_probs)
    # fp32 logits of 1000 are 6e-5 apart, which is all that the expected log-prob of order 1e-4 can be off by.
    assert found.means[0] == pytest.approx(mean, abs=6e-5)
    assert found.variances[0] == pytest.approx(np.sum(np.exp(log_probs) * (log_probs - mean) ** 2), rel=1e-3)


def test_what_is_not_asked_for_is_not_computed(scores):
    assert all(s.means is s.variances is s.sampled_log_probs is None for s in scores)


@pytest.mark.parametrize("mesh_sizes, moments", [(None, False), (None, True), ((2, 2, 2), False)], ids=str)
def test_logits_take_bounded_memory_whatever_the_batch(monkeypatch, mesh_sizes, moments):
    monkeypatch.setattr(score_module, "_LOGIT_BYTES", 1 << 20)
    config = DecoderConfig(
        vocab_size=8192, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=8, max_position=65
    )
    params, model, ways = initial(config), Decoder(config), 1
    place = lambda tokens: tokens  # noqa: E731
    if mesh_sizes:
        mesh = make_mesh(MeshConfig(*mesh_sizes))
        params = to_global(mesh, params, named_shardings(mesh, param_axes(config), params))
        ways = batch_ways(mesh)
        place = functools.partial(to_global, mesh, sharding=batch_sharding(mesh))

    def temporary_bytes(rows):
        tokens, at, targets = (place(np.zeros((rows, n), np.int32)) for n in (65, 33, 33))
        lowered = score_module.score_batch.lower(model, params, tokens, at, targets, moments=moments, ways=ways)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    # All logits at once would be 64 rows x 33 positions x 32 KiB = 69 MB on each device. What the layers themselves
    # need (attention weights, hidden states) is 6 MB here.
    assert temporary_bytes(64 * ways) < 12e6


def test_token_scores_are_a_pytree():
    """Other people's jitted code passes them around."""
    doubled = jax.tree.map(lambda x: 2 * x, TokenScores(np.ones(2), np.ones(2, bool), np.ones(2)))
    assert doubled.margins.tolist() == [2, 2]


LEARNED = dataclasses.replace(SMALL, pattern=(Layer(None),), learned_positions=True)


@pytest.mark.everywhere
@pytest.mark.parametrize("config", [SMALL, GROUPED, LEARNED], ids=["rotary", "windows", "learned"])
def test_what_sequences_share_is_read_once(monkeypatch, config):
    rng = np.random.default_rng(2)
    question, sentence, long = (rng.integers(0, config.vocab_size, n) for n in (12, 9, 30))
    ends = [rng.integers(0, config.vocab_size, n) for n in (3, 1, 5, 4, 2, 6, 20, 21)]
    choices = [np.append(question, end) for end in ends[:3]]
    pair = [np.append(sentence, end) for end in ends[3:5]]  # what they share is scored too
    apart = [np.append(long, end) for end in ends[6:]]  # too long together
    sequences = [*choices, *pair, ends[5], ends[5], question[:2], *apart]
    starts = [12, 12, 12, 1, 1, 1, 3, 1, 30, 30]
    rows = [(fan.members, len(fan.tokens)) for fan in fans(sequences, starts, 64)]
    lengths = [12 + 2 + 0 + 4, 9 + 3 + 1, 5, 1, 49, 50]
    assert rows == list(zip([range(3), range(3, 5), range(5, 7), range(7, 8), range(8, 9), range(9, 10)], lengths))

    params = wandering(config)
    monkeypatch.setattr(score_module, "_ROW", 64)
    shared = score(params, config, sequences, starts, batch_size=16)
    monkeypatch.setattr(score_module, "fans", lambda sequences, starts, longest: fans(sequences, starts, 0))
    assert_same(shared, score(params, config, sequences, starts, batch_size=16))


def test_equal_sequences_are_scored_once(monkeypatch, params):
    """In two places of a row, or of two batches, they may differ by a rounding, which would decide between two choices
    that the tokenizer does not tell apart."""
    rng, laid_out = np.random.default_rng(3), []
    question = rng.integers(0, 64, 6)
    one, other, third = (np.append(question, rng.integers(0, 64, 4)) for _ in range(3))
    monkeypatch.setattr(
        score_module, "fans", lambda sequences, *rest: laid_out.append(len(sequences)) or fans(sequences, *rest)
    )
    sequences, starts = [one, other, other.astype(np.int64), third, other, one], [6, 6, 6, 6, 5, 6]
    found = score(params, CONFIG, sequences, starts, batch_size=2)
    assert laid_out == [4]  # the same tokens from another start are others
    assert [len(s.log_probs) for s in found] == [4, 4, 4, 4, 5, 4]
    for a, b in ((0, 5), (1, 2)):
        np.testing.assert_array_equal(found[a].log_probs, found[b].log_probs)
    assert_same([found[3]], score(params, CONFIG, [third], [6], batch_size=2))
