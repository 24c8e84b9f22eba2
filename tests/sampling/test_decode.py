import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selftrain_jax.models.decoder import Decoder
from selftrain_jax.sampling import decode
from selftrain_jax.sampling.decode import FIRST_BUCKET, decode_bucket, resize
from selftrain_jax.sampling.settings import SamplingConfig
from tests.shapes import SMALL, wandering

CONFIG = SMALL
MODEL = Decoder(CONFIG)
ALLOWED = jnp.ones(CONFIG.vocab_size, bool)
EOS = CONFIG.eos_token_id


def make_params(shifts=None):
    """A model far from its initialization, so that it wanders; `shifts` [V] are added to its logits."""
    params = wandering(CONFIG, embedding=16)
    if shifts is not None:  # the first feature of the final norm becomes the constant 1
        norm, kernel = params["final_norm"], params["head"]["kernel"]
        params["final_norm"] = {"scale": norm["scale"].at[0].set(0), "bias": norm["bias"].at[0].set(1)}
        params["head"] = {"kernel": kernel.at[0].set(jnp.asarray(shifts, jnp.float32))}
    return params


@pytest.fixture(scope="module")
def params():
    return make_params()


@jax.jit
def full_logits(params, tokens):
    """Logits of a whole pass without a cache."""
    return MODEL.apply({"params": params}, MODEL.apply({"params": params}, tokens), method="logits")


def start(rows, seed=0):
    return decode.start(MODEL, jax.random.split(jax.random.key(seed), rows), jnp.zeros(rows, bool))


def sampling(**settings):
    return SamplingConfig(**{"temperature": 1.0, "min_new_tokens": 0, "max_new_tokens": 64} | settings)


def test_a_bucket_reports_the_models_own_log_probs(params):
    """Whatever warps the draw: temperature and filters change which token comes, not the number stored with it."""
    config = sampling(temperature=1.7, top_k=30, top_p=0.9)
    state, tokens, log_probs = decode_bucket(MODEL, config, params, start(8), ALLOWED, 20)
    tokens, log_probs = np.asarray(tokens).T, np.asarray(log_probs).T
    inputs = np.concatenate([np.zeros((8, 1), np.int32), tokens[:, :-1]], axis=1)
    expected = jax.nn.log_softmax(full_logits(params, inputs))
    expected = np.take_along_axis(np.asarray(expected), tokens[..., None], axis=-1)[..., 0]
    lengths = [np.append(np.flatnonzero(row == EOS), len(row) - 1)[0] + 1 for row in tokens]
    for row, n in enumerate(lengths):
        # Log-probs of order 5 in fp32, summed in another order with and without a cache.
        np.testing.assert_allclose(log_probs[row, :n], expected[row, :n], atol=1e-4)
    np.testing.assert_array_equal(state.done, [(row == EOS).any() for row in tokens])
    assert int(state.position) == 20


def test_buckets_continue_where_the_last_one_stopped(params):
    config = sampling()
    forbidden = ALLOWED.at[EOS].set(False)  # nobody stops
    whole = start(4)
    whole = whole.replace(cache=resize([whole.cache], 64, None))
    _, tokens, log_probs = decode_bucket(MODEL, config, params, whole, forbidden, 50)

    state, head, head_log_probs = decode_bucket(MODEL, config, params, start(4), forbidden, FIRST_BUCKET)
    kept = jnp.array([3, 1])
    state = state.replace(
        cache=resize([state.cache], 64, kept), last=state.last[kept], done=state.done[kept], keys=state.keys[kept]
    )
    _, tail, tail_log_probs = decode_bucket(MODEL, config, params, state, forbidden, 50 - FIRST_BUCKET)
    np.testing.assert_array_equal(head, tokens[:FIRST_BUCKET])
    np.testing.assert_array_equal(tail, tokens[FIRST_BUCKET:, kept])
    # Another batch and cache shape sums in another order.
    np.testing.assert_allclose(head_log_probs, log_probs[:FIRST_BUCKET], atol=1e-5)
    np.testing.assert_allclose(tail_log_probs, log_probs[FIRST_BUCKET:, kept], atol=1e-5)


@pytest.mark.parametrize("least", [0, 1, 5])
def test_eos_comes_as_soon_as_it_may_and_the_loop_stops_with_the_last_row(least):
    """A model that always wants EOS: tokens 0 ... min_new_tokens - 1 are something else, the next one is EOS."""
    params = make_params(shifts=40.0 * (np.arange(CONFIG.vocab_size) == EOS))
    state, tokens, _ = decode_bucket(MODEL, sampling(min_new_tokens=least), params, start(16), ALLOWED, FIRST_BUCKET)
    assert (np.asarray(tokens[:least]) != EOS).all() and (np.asarray(tokens[least]) == EOS).all()
    assert np.asarray(state.done).all() and int(state.position) == least + 1


def test_rows_that_are_done_do_not_keep_the_loop_going(params):
    state = decode.start(MODEL, start(3).keys, jnp.ones(3, bool))
    state, _, _ = decode_bucket(MODEL, sampling(), params, state, ALLOWED, FIRST_BUCKET)
    assert int(state.position) == 0


def test_a_token_depends_on_its_own_logits_key_and_index_only():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(64, CONFIG.vocab_size)), jnp.float32)
    keys, order = jax.random.split(jax.random.key(1), 64), rng.permutation(64)[:40]

    def draw(logits, keys, t):
        return np.asarray(decode.draw_token(logits, sampling(), ALLOWED, keys, jnp.int32(t), (EOS,)))

    np.testing.assert_array_equal(draw(logits[order], keys[order], 3), draw(logits, keys, 3)[order])
    # Fresh randomness for every index and key: rows of some 60 likely tokens agree by chance one time in 60.
    assert (draw(logits, keys, 4) == draw(logits, keys, 3)).sum() < 10
    assert (draw(logits, keys[::-1], 3) == draw(logits, keys, 3)).sum() < 10
