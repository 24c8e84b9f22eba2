"""Documents are functions of (key, id, weights, settings), follow the model's exact distribution, and stop rightly."""

import contextlib
import dataclasses
import functools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats

from selftrain_jax.core.errors import InputError
from selftrain_jax.distributed.mesh import make_mesh, named_shardings, to_global
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.evaluation.score import score
from selftrain_jax.models.config import DecoderConfig, Layer, Rotary
from selftrain_jax.models.decoder import Decoder, param_axes
from selftrain_jax.sampling import placement, sampler, warp
from selftrain_jax.sampling.decode import draw_token, state_shardings
from selftrain_jax.sampling.sampler import sample, sample_waves
from selftrain_jax.sampling.settings import SamplingConfig
from tests.shapes import GROUPED, initial, wandering

VOCAB_LIMIT = 150
CONFIG = DecoderConfig(  # more than one block of 128 tokens, and padded rows; a context that is no power of two
    vocab_size=160,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    intermediate_size=64,
    max_position=80,
    pattern=(Layer(Rotary(0.5)),),
)
WHOLE = SamplingConfig(temperature=1.25, min_new_tokens=3, max_new_tokens=CONFIG.max_position)
KEY = jax.random.key(7)
EOS = CONFIG.eos_token_id
ALLOWED = np.arange(CONFIG.vocab_size) < VOCAB_LIMIT
IDS = [*range(68), 2**31 + 5, 2**32 - 1]


def make_params(config=CONFIG, eos=0.0, padded=0.0):
    """A model far from its initialization; `eos` and `padded` are added to the logits of EOS and of the padded rows."""
    params = wandering(config, embedding=4)
    shifts = np.zeros(config.vocab_size, np.float32)
    shifts[VOCAB_LIMIT:], shifts[EOS] = padded, eos
    norm, kernel = params["final_norm"], params["head"]["kernel"]  # the norm's first feature becomes the constant 1
    params["final_norm"] = {"scale": norm["scale"].at[0].set(0), "bias": norm["bias"].at[0].set(1)}
    params["head"] = {"kernel": kernel.at[0].set(shifts)}
    return params


@pytest.fixture(scope="module")
def params():
    """Padded rows would be drawn more often than not; EOS is likely enough for most documents to end."""
    return make_params(eos=-0.5, padded=3.0)


@pytest.fixture(scope="module")
def corpus(params):
    """The documents `IDS`, without a mesh, in waves of 64."""
    return sample(params, CONFIG, WHOLE, KEY, IDS, batch_size=64, allowed=ALLOWED)


def assert_same(found, expected, rows=slice(None)):
    for name in ("ids", "tokens", "lengths", "stopped"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name)[rows], err_msg=name)
    # Other batch shapes and shardings sum in another order: some roundings of log-probs of order 5.
    np.testing.assert_allclose(found.log_probs, expected.log_probs[rows], atol=2e-5)


def document(samples, row):
    return samples.tokens[row, : samples.lengths[row]]


@pytest.mark.everywhere
def test_documents_end_at_eos_or_at_the_limit(corpus):
    assert corpus.tokens.shape == corpus.log_probs.shape == (len(IDS), WHOLE.max_new_tokens)
    assert corpus.ids.tolist() == IDS
    for row, stopped in enumerate(corpus.stopped):
        tokens = document(corpus, row)
        assert EOS not in tokens[:-1] and (tokens[-1] == EOS) == stopped
        assert len(tokens) > WHOLE.min_new_tokens and (stopped or len(tokens) == WHOLE.max_new_tokens)
    beyond = np.arange(WHOLE.max_new_tokens) >= corpus.lengths[:, None]
    assert not corpus.tokens[beyond].any() and not corpus.log_probs[beyond].any()
    # What follows is only as good as this mixture: ends in each of the three buckets, and documents cut short.
    assert all(np.histogram(corpus.lengths[corpus.stopped], [0, 33, 65, 81])[0]) and 3 < (~corpus.stopped).sum() < 60


@pytest.mark.parametrize("dtype, precision", [("float32", "highest"), ("bfloat16", None)])
def test_fp32_sampling_is_not_tf32_on_accelerators(params, monkeypatch, dtype, precision):
    class Asked(BaseException):
        pass

    def decode_bucket(*args):
        assert jax.config.jax_default_matmul_precision == precision
        raise Asked

    monkeypatch.setattr(sampler, "decode_bucket", decode_bucket)
    with pytest.raises(Asked):
        sample(params, CONFIG, WHOLE, KEY, IDS, batch_size=64, dtype=dtype)


@pytest.mark.everywhere
def test_padded_rows_of_the_vocabulary_are_never_emitted(params, corpus):
    assert corpus.tokens.max() < VOCAB_LIMIT
    free = sample(params, CONFIG, WHOLE, KEY, range(8), batch_size=64)
    assert (free.tokens >= VOCAB_LIMIT).sum() > 0.3 * free.lengths.sum()


@pytest.mark.everywhere
@pytest.mark.parametrize(
    "mesh_sizes, batch_size",
    [
        (None, 1),
        ((8, 1, 1), 7),
        ((2, 2, 2), 7),
        *(
            pytest.param(*case, marks=pytest.mark.large)
            for case in ((None, 7), ((8, 1, 1), 1), ((8, 1, 1), 64), ((2, 2, 2), 64))
        ),
    ],
    ids=str,
)
def test_batch_size_and_mesh_change_nothing(params, corpus, mesh_sizes, batch_size):
    mesh, rows = None, slice(0, 8) if batch_size == 1 else slice(None)
    if mesh_sizes:
        mesh = make_mesh(MeshConfig(*mesh_sizes))
        params = to_global(mesh, params, named_shardings(mesh, param_axes(CONFIG), params))
    found = sample(params, CONFIG, WHOLE, KEY, IDS[rows], mesh=mesh, batch_size=batch_size, allowed=ALLOWED)
    assert_same(found, corpus, rows)


@pytest.mark.large  # nearly every example compiles
@hypothesis.settings(max_examples=30)
@hypothesis.given(
    st.sampled_from([(8, 1, 1), (2, 2, 2), (1, 4, 2), (1, 1, 4)]),
    st.integers(1, 9),
    st.lists(st.integers(0, 69), min_size=1, max_size=12),
)
def test_any_mesh_batch_size_and_count_draw_the_same(params, corpus, mesh_sizes, batch_size, rows):
    mesh = make_mesh(MeshConfig(*mesh_sizes), jax.devices()[: math.prod(mesh_sizes)])
    ids = [IDS[row] for row in rows]
    assert_same(
        sample(params, CONFIG, WHOLE, KEY, ids, mesh=mesh, batch_size=batch_size, allowed=ALLOWED), corpus, rows
    )


@pytest.mark.parametrize("sizes", [(2, 1, 4), pytest.param((2, 2, 2), marks=pytest.mark.large)], ids=str)
def test_fewer_heads_of_keys_and_values_than_tensor_devices_change_nothing(sizes):
    """Documents run beyond the windows."""
    settings = dataclasses.replace(WHOLE, max_new_tokens=40)
    params, mesh = wandering(GROUPED), make_mesh(MeshConfig(*sizes))
    expected = sample(params, GROUPED, settings, KEY, IDS[:8], batch_size=8)
    assert_same(sample(params, GROUPED, settings, KEY, IDS[:8], mesh=mesh, batch_size=8), expected)
    assert len({tuple(document(expected, row).tolist()) for row in range(8)}) == 8 and expected.lengths.max() > 20
    placed = state_shardings(Decoder(GROUPED), mesh).cache.keys[0]
    assert placed.shard_shape((8, 2, 64, 8)) == ((4, 2, 64, 8) if sizes[2] == 4 else (2, 1, 64, 8))


@pytest.mark.parametrize("types, set_it", [("Explicit", True), ("Auto", False)])
def test_a_mesh_of_ones_own_serves(params, corpus, types, set_it):
    """Axes of other names and in another order, of both types, with and without `jax.set_mesh`."""
    mesh = jax.make_mesh((2, 4), ("model", "replica"), axis_types=(jax.sharding.AxisType[types],) * 2)
    with jax.set_mesh(mesh) if set_it else contextlib.nullcontext():
        placed = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        rules = {"batch": "replica", "heads": "model"}
        short = dataclasses.replace(WHOLE, max_new_tokens=12)
        found = sample(placed, CONFIG, short, KEY, IDS[:4], mesh=mesh, rules=rules, batch_size=4, allowed=ALLOWED)
    np.testing.assert_array_equal(found.tokens, corpus.tokens[:4, :12])


def test_weights_on_the_host_or_one_device_serve_any_mesh(params, corpus):
    mesh = make_mesh(MeshConfig(8, 1, 1))
    for placed in (jax.tree.map(np.asarray, params), params):
        found = sample(placed, CONFIG, WHOLE, KEY, IDS[:8], mesh=mesh, batch_size=8, allowed=ALLOWED)
        assert_same(found, corpus, slice(0, 8))


@pytest.mark.parametrize("rows", [[5], [40, 2, 69, 11, 68], [3, 3], list(range(69, -1, -1))], ids=len)
def test_any_ids_in_any_order_give_the_same_documents(params, corpus, rows):
    """Also fewer ids than rows of the wave."""
    ids = [IDS[row] for row in rows]
    assert_same(sample(params, CONFIG, WHOLE, KEY, ids, batch_size=64, allowed=ALLOWED), corpus, rows)


def test_one_row_that_runs_to_the_end_survives_the_others(params, corpus):
    longest = int(np.flatnonzero(~corpus.stopped)[0])
    short = np.flatnonzero(corpus.lengths <= 32)[:20].tolist()
    rows = [*short[:7], longest, *short[7:]]
    found = sample(params, CONFIG, WHOLE, KEY, [IDS[r] for r in rows], batch_size=64, allowed=ALLOWED)
    assert_same(found, corpus, rows)
    assert (found.lengths > 32).tolist() == [row == longest for row in rows]


@pytest.mark.parametrize("least", [31, 32])
def test_all_rows_may_finish_at_once(least):
    """With the last token of the first bucket, or with the first one of the second."""
    settings = dataclasses.replace(WHOLE, min_new_tokens=least, max_new_tokens=40)
    found = sample(make_params(eos=50.0), CONFIG, settings, KEY, range(16), batch_size=16)
    assert found.lengths.tolist() == [least + 1] * 16 and found.stopped.all()
    assert (found.tokens[:, :least] != EOS).all()


def test_every_id_and_key_has_its_own_document(params, corpus):
    assert len({tuple(document(corpus, row).tolist()) for row in range(len(IDS))}) == len(IDS)
    other = sample(params, CONFIG, WHOLE, jax.random.key(8), range(8), batch_size=64, allowed=ALLOWED)
    assert not any(np.array_equal(document(other, row), document(corpus, row)) for row in range(8))


@jax.jit
def all_logits(params, tokens):
    """Of whole rows, without a cache."""
    model = Decoder(CONFIG)
    return model.apply({"params": params}, model.apply({"params": params}, tokens), method="logits")


@pytest.mark.parametrize(
    "start, top_k", [((7,), 0), ((7, 9, 11), 0), ((7, 9, 11), 1), (tuple(range(90, 130)), 0)], ids=str
)
def test_documents_after_a_start_are_draws_from_a_plain_pass_over_start_and_document(params, start, top_k):
    """New token t is drawn with `fold_in(key, t)` however long the start is, also one longer than the first bucket."""
    settings = dataclasses.replace(WHOLE, start=start, top_k=top_k, max_new_tokens=10)
    found = sample(params, CONFIG, settings, KEY, range(8), batch_size=8, allowed=ALLOWED)
    rows = np.zeros((8, CONFIG.max_position), np.int32)
    rows[:, : len(start)] = start
    rows[:, len(start) : len(start) + 10] = found.tokens
    logits = all_logits(params, rows)[:, len(start) - 1 : len(start) + 9]
    for row in range(8):
        keys = jnp.broadcast_to(jax.random.fold_in(KEY, row), 10)
        drawn = draw_token(logits[row], settings, jnp.asarray(ALLOWED), keys, jnp.arange(10), CONFIG.stop_ids)
        length = found.lengths[row]
        np.testing.assert_array_equal(drawn[:length], document(found, row))
        log_probs = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits[row])), found.tokens[row][:, None], axis=1)
        # As for stored and rescored log-probabilities below.
        np.testing.assert_allclose(found.log_probs[row, :length], log_probs[:length, 0], atol=1e-4)


def test_the_model_s_own_start_token_may_be_named(params, corpus):
    settings = dataclasses.replace(WHOLE, start=(CONFIG.bos_token_id,), max_new_tokens=20)
    found = sample(params, CONFIG, settings, KEY, IDS, batch_size=64, allowed=ALLOWED)
    np.testing.assert_array_equal(found.tokens, corpus.tokens[:, :20])
    np.testing.assert_array_equal(found.log_probs, corpus.log_probs[:, :20])


def test_any_stop_token_ends_a_document_and_none_comes_too_early(params):
    config, settings = (
        dataclasses.replace(CONFIG, stop_token_ids=(17, 33)),
        dataclasses.replace(WHOLE, max_new_tokens=30),
    )
    found = sample(params, config, settings, KEY, IDS, batch_size=64, allowed=ALLOWED)
    stops, reasons = set(config.stop_ids), set()
    for row, stopped in enumerate(found.stopped):
        tokens = document(found, row).tolist()
        assert not stops & {*tokens[:-1]} and (tokens[-1] in stops) == stopped
        assert len(tokens) > settings.min_new_tokens and (stopped or len(tokens) == 30)
        reasons |= stops & {tokens[-1]}
    assert reasons == stops


def test_holes_of_the_vocabulary_are_never_emitted(params):
    holes = ALLOWED & (np.arange(CONFIG.vocab_size) % 3 > 0)
    found = sample(params, CONFIG, WHOLE, KEY, range(8), batch_size=64, allowed=holes)
    assert holes[np.concatenate([document(found, row) for row in range(8)])].all()


def test_waves_are_the_corpus_piece_by_piece(params, corpus):
    waves = list(sample_waves(params, CONFIG, WHOLE, KEY, IDS[:17], batch_size=7, allowed=ALLOWED))
    assert [len(wave.ids) for wave in waves] == [7, 7, 3]
    joined = sampler.Samples(*(np.concatenate(parts) for parts in zip(*(vars(w).values() for w in waves))))
    assert_same(joined, corpus, slice(0, 17))


def rescore(params, samples):
    documents = [np.append(CONFIG.bos_token_id, document(samples, row)) for row in range(len(samples.ids))]
    return score(params, CONFIG, documents, batch_size=70)


@pytest.mark.everywhere
def test_stored_log_probs_are_those_of_rescoring(params, corpus):
    """The untempered model over its whole vocabulary, although draws were tempered and filtered."""
    filtered = dataclasses.replace(WHOLE, temperature=0.7, top_k=20, top_p=0.95, max_new_tokens=20)
    narrow = sample(params, CONFIG, filtered, KEY, range(16), batch_size=16, allowed=ALLOWED)
    for samples in (corpus, narrow):
        for row, rescored in enumerate(rescore(params, samples)):
            # 1e-4 is some ten times what fp32 loses between a pass with a cache and one without.
            np.testing.assert_allclose(samples.log_probs[row, : samples.lengths[row]], rescored.log_probs, atol=1e-4)


SMALL = DecoderConfig(
    vocab_size=12,
    hidden_size=32,
    num_layers=1,
    num_heads=4,
    intermediate_size=64,
    max_position=16,
    pattern=(Layer(Rotary(0.5)),),
)


@functools.partial(jax.jit, static_argnames="config")
def next_logits(config, params, tokens):
    model = Decoder(config)
    return model.apply({"params": params}, model.apply({"params": params}, tokens)[:, -1], method="logits")


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 2.0},
        pytest.param({"temperature": 1.3, "min_new_tokens": 1}, marks=pytest.mark.large),
        {"temperature": 3.0, "min_new_tokens": 2, "top_k": 4},
        {"temperature": 2.0, "top_k": 7, "top_p": 0.9},
        pytest.param({"temperature": 1.0, "top_p": 0.8}, marks=pytest.mark.large),
    ],
    ids=str,
)
def test_frequencies_are_the_models_probabilities(settings):
    """Documents of at most two tokens, over a vocabulary of ten: (EOS) and every pair has a known probability."""
    config = SamplingConfig(**{"min_new_tokens": 0, "max_new_tokens": 2} | settings)
    params, limit, n = make_params(SMALL), 10, 50_000

    @jax.jit
    def distribution(prefixes, t):
        warped = warp.warp(
            next_logits(SMALL, params, prefixes), config, jnp.arange(12) < limit, t < config.min_new_tokens, (EOS,)
        )
        return jax.nn.softmax(warped)

    def probabilities(prefixes, t):
        return np.asarray(distribution(jnp.asarray(prefixes), t), np.float64)

    first = probabilities([[SMALL.bos_token_id]], 0)[0]
    pairs = first[:, None] * probabilities([[SMALL.bos_token_id, token] for token in range(SMALL.vocab_size)], 1)
    pairs[EOS] = 0
    pairs[EOS, 0] = first[EOS]  # nothing follows EOS

    drawn = sample(params, SMALL, config, KEY, range(n), batch_size=10_000, allowed=np.arange(12) < limit)
    for probs, counts in (
        (first, np.bincount(drawn.tokens[:, 0], minlength=SMALL.vocab_size)),
        (pairs.ravel(), np.bincount(drawn.tokens @ [SMALL.vocab_size, 1], minlength=SMALL.vocab_size**2)),
    ):
        assert not counts[probs == 0].any()
        rare = probs * n < 8  # share one cell: the chi-square approximation wants five or so expected draws in each
        observed, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, probs * n))
        observed, expected = observed[expected > 0], expected[expected > 0]
        assert len(observed) > 3
        # fp32 probabilities sum to one only within 1e-7; scipy wants equal totals.
        assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


def test_prepared_weights_serve_their_own_dtype_only(params, corpus):
    weights = placement.prepare(params, CONFIG, dtype=jnp.float32)
    assert_same(sample(weights, CONFIG, WHOLE, KEY, IDS[:8], batch_size=64, allowed=ALLOWED), corpus, slice(0, 8))
    with pytest.raises(InputError, match="prepared as float32, not as bfloat16"):
        sample(weights, CONFIG, WHOLE, KEY, IDS[:8], dtype=jnp.bfloat16)


def test_half_precision_models_can_be_sampled(params):
    settings = dataclasses.replace(WHOLE, max_new_tokens=20)
    drawn = sample(params, CONFIG, settings, KEY, range(16), batch_size=16, dtype=jnp.bfloat16)
    for row, rescored in enumerate(rescore(params, drawn)):
        # bf16 keeps eight bits: logits of order 5 move by a few hundredths, some by more.
        difference = drawn.log_probs[row, : drawn.lengths[row]] - rescored.log_probs
        assert 0 < np.abs(difference).mean() < 0.1


@pytest.mark.parametrize("asked, least", [({}, 50), ({"max_new_tokens": 16}, 16), ({"min_new_tokens": 0}, 0)])
def test_the_least_length_fits_the_longest(asked, least):
    assert SamplingConfig(**asked).min_new_tokens == least
    with pytest.raises(InputError, match="min_new_tokens=50 must lie between 0 and max_new_tokens=16"):
        SamplingConfig(min_new_tokens=50, max_new_tokens=16)


@pytest.mark.parametrize(
    "weights, message",
    [
        (lambda params, tokens: tokens, r"\['embed'\]\['embedding'\] has shape None"),
        ({"w": np.ones(3)}, r"\['embed'\]\['embedding'\] has shape None"),
        (initial(GROUPED), "not those of a Decoder of this config"),
    ],
    ids=["function", "own", "another"],
)
def test_only_a_decoders_own_weights_are_sampled(weights, message):
    with pytest.raises(InputError, match=message):
        sample(weights, CONFIG, WHOLE, KEY, [0])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"ids": []}, "sample ids"),
        ({"ids": [-1]}, "sample ids"),
        ({"ids": [0, 2**32]}, "sample ids"),
        ({"ids": [[0, 1]]}, "sample ids"),
        ({"ids": [0.5]}, "sample ids"),
        ({"key": 7}, "sample key must be one of jax.random.key or core.randomness.seed_key"),
        ({"key": np.array([0, 7], np.uint32)}, "sample key"),
        ({"key": jax.random.key(7, impl="rbg")}, "sample key must be of threefry2x32, .* not of rbg"),
        ({"key": jax.random.split(KEY)}, r"sample key must be of shape \(\), not \(2,\)"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": True}, "batch_size=True"),
        ({"batch_size": "many"}, "batch_size='many'"),
        ({"allowed": np.arange(160) == EOS}, "min_new_tokens=3 needs a token that does not end"),
        ({"allowed": np.zeros(160, bool)}, "allowed must be 160 truth values"),
        ({"allowed": np.ones(161, bool)}, "allowed must be 160 truth values"),
        ({"allowed": np.ones(160)}, "allowed must be 160 truth values"),
        ({"sampling_config": dataclasses.replace(WHOLE, start=(1, 160))}, r"start=\(1, 160\).*vocabulary of 160"),
        ({"sampling_config": dataclasses.replace(WHOLE, start=("a",))}, r"start=\('a',\).*start_ids"),
        ({"sampling_config": dataclasses.replace(WHOLE, start=(1, 2))}, "start of 2 tokens and max_new_tokens=80.*80"),
        ({"sampling_config": dataclasses.replace(WHOLE, max_new_tokens=81)}, "max_new_tokens=81.*80 tokens"),
    ],
    ids=str,
)
@pytest.mark.parametrize("function", [sample, sample_waves])
def test_bad_input_raises_before_any_device_work(monkeypatch, function, change, message):
    monkeypatch.setattr(sampler, "_wave", lambda *_: pytest.fail("device work"))
    arguments = {"model_config": CONFIG, "sampling_config": WHOLE, "key": KEY, "ids": [0]} | change
    with pytest.raises(InputError, match=message):
        function(None, **arguments)


def test_a_model_that_gives_no_numbers_draws_nothing(params):
    """Each document would be one token long: no weight is above a NaN, and the lowest id ends a document."""
    broken = {**params, "final_norm": jax.tree.map(lambda x: np.full_like(x, np.nan), params["final_norm"])}
    with pytest.raises(InputError, match="log-probabilities of sample 0 are not finite"):
        sample(broken, CONFIG, SamplingConfig(max_new_tokens=4), KEY, [0])


def test_weights_are_not_made_whole_numbers(params):
    with pytest.raises(InputError, match="weights in int32"):
        sample(params, CONFIG, SamplingConfig(max_new_tokens=4), KEY, [0], dtype="int32")
