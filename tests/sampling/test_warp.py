import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from selftrain_jax.core.errors import InputError
from selftrain_jax.sampling import warp
from selftrain_jax.sampling.settings import SamplingConfig

PLAIN = SamplingConfig(temperature=1.0, min_new_tokens=0, max_new_tokens=8)
EOS = 0


def warped(logits, allowed=None, forbid_eos=False, **settings):
    allowed = np.ones(logits.shape[1], bool) if allowed is None else allowed
    config = dataclasses.replace(PLAIN, **settings)
    return np.asarray(warp.warp(jnp.asarray(logits), config, jnp.asarray(allowed), jnp.bool_(forbid_eos), (EOS,)))


def reference(logits, config, allowed, forbid_eos):
    """The same in float64 with sorting, one row at a time."""
    rows = []
    for row in logits.astype(np.float64) / config.temperature:
        row[~allowed] = -np.inf
        if forbid_eos:
            row[EOS] = -np.inf
        order = np.argsort(-row, kind="stable")
        if config.top_k:
            row[order[config.top_k :]] = -np.inf
        if config.top_p < 1:
            probs = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
            ranked = np.sort(probs)[::-1]
            last = ranked[np.argmax(np.cumsum(ranked) >= config.top_p)]
            row[probs < last] = -np.inf
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("forbid_eos", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 1.25])
@pytest.mark.parametrize("top_k, top_p", [(0, 1.0), (1, 1.0), (7, 1.0), (500, 1.0), (0, 0.9), (0, 0.37), (20, 0.8)])
def test_warping_equals_sorting(top_k, top_p, temperature, forbid_eos):
    logits = np.random.default_rng(0).normal(scale=2, size=(40, 200)).astype(np.float32)
    logits[:, EOS] += 4  # often the most likely token, so that forbidding it matters
    logits[:, 190:] += 8  # padded rows of the embedding would win everything
    allowed = np.arange(200) < 190
    config = dataclasses.replace(PLAIN, temperature=temperature, top_k=top_k, top_p=top_p)
    found = warped(logits, allowed, forbid_eos, temperature=temperature, top_k=top_k, top_p=top_p)
    # One fp32 division apart; kept and dropped tokens are the same.
    np.testing.assert_allclose(found, reference(logits, config, allowed, forbid_eos), rtol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_top_k_keeps_exactly_k_and_the_lowest_ids_among_equals(k):
    logits = np.random.default_rng(1).integers(-2, 3, size=(50, 40)).astype(np.float32)
    kept = np.isfinite(warped(logits, top_k=k))
    assert (kept.sum(axis=1) == k).all()
    for row, mask in zip(logits, kept):
        assert set(np.flatnonzero(mask)) == set(np.argsort(-row, kind="stable")[:k])


def test_top_k_of_one_is_greedy_whatever_the_uniforms():
    rng = np.random.default_rng(2)
    logits = rng.integers(-3, 4, size=(300, 200)).astype(np.float32)
    drawn = warp.draw(jnp.asarray(warped(logits, top_k=1)), jnp.asarray(rng.random((300, 2), np.float32)))
    np.testing.assert_array_equal(drawn, logits.argmax(axis=1))


@pytest.mark.parametrize("p", [1e-6, 0.2, 0.6, 0.95, 0.9999])
def test_the_nucleus_is_the_smallest_set_that_reaches_p(p):
    logits = np.random.default_rng(3).normal(scale=3, size=(64, 1000)).astype(np.float32)
    kept = np.isfinite(warped(logits, top_p=p))
    for row, mask in zip(logits.astype(np.float64), kept):
        probs = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        assert probs[mask].min() > probs[~mask].max(initial=0)
        # The mass is summed in fp32: good to 1e-6.
        assert probs[mask].sum() >= p - 1e-6
        assert probs[mask].sum() - probs[mask].min() < p + 1e-6


def test_equals_at_the_border_of_the_nucleus_stay_together():
    probs = np.array([[0.4, 0.2, 0.2, 0.2]], np.float32)
    assert np.isfinite(warped(np.log(probs), top_p=0.5)).tolist() == [[True] * 4]
    assert np.isfinite(warped(np.log(probs), top_p=0.3)).tolist() == [[True, False, False, False]]


def test_top_p_counts_what_top_k_left():
    # Alone, 0.5 needs two tokens to reach 0.6; of the two that top-k leaves, the first holds 0.5 / 0.8 = 0.625.
    logits = np.log(np.array([[0.5, 0.3, 0.2]], np.float32))
    assert np.isfinite(warped(logits, top_p=0.6)).tolist() == [[True, True, False]]
    assert np.isfinite(warped(logits, top_k=2, top_p=0.6)).tolist() == [[True, False, False]]


def test_the_top_token_survives_every_filter():
    """Also where the fp32 total of many small probabilities stays below p."""
    logits = np.zeros((3, 50_000), np.float32)
    logits[1, 123] = 1e-3
    logits[2, 7] = 80
    for p in (1e-9, 0.5, float(np.nextafter(np.float32(1), np.float32(0)))):
        kept = np.isfinite(warped(logits, top_p=p))
        assert kept.any(axis=1).all() and kept[1, 123] and kept[2, 7]


def distribution(name, size):
    rng = np.random.default_rng(4)
    if name == "uniform":
        weights = np.ones(size)
    elif name == "peaked":
        weights = np.exp(3 * rng.normal(size=size))
    elif name == "long tail":
        weights = 1 / rng.permutation(np.arange(1, size + 1))
    else:  # "sparse": whole blocks of tokens are impossible
        weights = np.zeros(size)
        weights[rng.choice(size, 10, replace=False)] = 1 + rng.random(10)
    return weights / weights.sum()


@pytest.mark.parametrize("name", ["uniform", "peaked", "long tail", "sparse"])
@pytest.mark.parametrize("size", [100, 700])  # one block of the search, and several with a part of one
def test_draws_follow_the_distribution(name, size):
    probs, n = distribution(name, size), 60_000
    uniforms = jax.random.uniform(jax.random.key(size), (n, 2))
    with np.errstate(divide="ignore"):
        logits = jnp.asarray(np.log(probs), jnp.float32)
    drawn = jax.jit(lambda u: jax.lax.map(lambda v: warp.draw(logits[None], v[None])[0], u, batch_size=5000))(uniforms)
    counts = np.bincount(drawn, minlength=size)
    assert len(counts) == size and not counts[probs == 0].any()
    # Rare tokens share one cell: the chi-square approximation wants five or so expected draws in each.
    rare = probs * n < 8
    observed, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, probs * n))
    if expected[-1] == 0:
        observed, expected = observed[:-1], expected[:-1]
    assert len(observed) == 1 or stats.chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_impossible_tokens_are_never_drawn(seed):
    """Uniforms on the very borders between tokens, where the rounding of a cumulative sum decides."""
    rng = np.random.default_rng(seed)
    size = 50_304
    ids = np.sort(rng.choice(size, 120, replace=False))
    logits = np.full(size, -np.inf, np.float32)
    logits[ids] = rng.normal(scale=2, size=len(ids))
    weights = np.exp(logits.astype(np.float64))
    borders = (np.cumsum(weights) / weights.sum())[ids].astype(np.float32)
    near = np.concatenate([borders + np.float32(ulps * 2**-24) for ulps in range(-4, 5)])
    near = np.append(near[(near >= 0) & (near < 1)], [0, 1 - 2**-24]).astype(np.float32)
    pairs = np.concatenate([np.stack([near, np.full_like(near, inner)], 1) for inner in (0.0, 1 - 2**-24)])
    one = jax.jit(lambda us: jax.lax.map(lambda u: warp.draw(jnp.asarray(logits)[None], u[None])[0], us, batch_size=64))
    drawn = np.asarray(one(jnp.asarray(pairs)))
    assert set(drawn.tolist()) <= set(ids.tolist())
    assert len(set(drawn.tolist())) > 60


@pytest.mark.parametrize(
    "setting, value",
    [
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", float("nan")),
        ("max_new_tokens", 0),
        ("min_new_tokens", -1),
        ("min_new_tokens", 9),
    ],
)
def test_an_unusable_setting_is_named_with_its_value(setting, value):
    with pytest.raises(InputError, match=f"{setting}={value}"):
        dataclasses.replace(PLAIN, **{setting: value})


@pytest.mark.parametrize("start", [(), "", ("",), ("a", ""), -1, (1.5,), (True,)], ids=str)
def test_an_unusable_start_is_named_with_its_value(start):
    with pytest.raises(InputError, match="sample start=.* must be 'auto', or token ids and texts"):
        dataclasses.replace(PLAIN, start=start)


def test_one_text_or_id_is_a_start_of_one():
    assert dataclasses.replace(PLAIN, start="\n").start == ("\n",) and dataclasses.replace(PLAIN, start=5).start == (5,)
    assert dataclasses.replace(PLAIN, start=["\n", 5]).start == ("\n", 5) and PLAIN.start == "auto"


def test_the_way_to_greedy_decoding_is_shown():
    with pytest.raises(InputError, match="top_k=1"):
        SamplingConfig(temperature=0.0)
