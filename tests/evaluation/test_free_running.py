"""Greedy decoding in bulk against a straightforward loop, and against the teacher-forced pass that replaces it."""

import functools

import jax
import numpy as np
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.evaluation.free_running import continue_greedily, graded_score
from selftrain_jax.evaluation.memorization import MARGIN_NOISE, Probe, extract
from selftrain_jax.evaluation.score import score
from selftrain_jax.models.config import DecoderConfig, Layer, Rotary
from selftrain_jax.models.decoder import Decoder
from tests.evaluation.overfitted import overfitted

CONFIG = DecoderConfig(
    vocab_size=64,
    hidden_size=32,
    num_layers=1,
    num_heads=4,
    intermediate_size=64,
    max_position=23,
    pattern=(Layer(Rotary(0.5)),),
)
LENGTH = 24
MODEL = Decoder(CONFIG)


@jax.jit
def full_logits(params, tokens):
    return MODEL.apply({"params": params}, MODEL.apply({"params": params}, tokens), method="logits")


@pytest.fixture(scope="module")
def sequences():
    return np.random.default_rng(0).integers(1, CONFIG.vocab_size, size=(250, LENGTH), dtype=np.int32)


@pytest.fixture(scope="module")
def params(sequences):
    """Overfitted on the first 40 sequences."""
    return overfitted(CONFIG, sequences[:40], 60)


@pytest.fixture(scope="module")
def probes(sequences):
    """2,000: trained sequences, the same with one wrong token somewhere, and unknown ones, cut at eight places."""
    rng = np.random.default_rng(1)
    texts = [*sequences[:40], *sequences[:40], *sequences[:40], *sequences[40:170]]
    cut = np.array([4, 5, 7, 8, 9, 11, 13, 15])
    found = []
    for i, text in enumerate(texts):
        for at in cut:
            text = text.copy()
            if 40 <= i < 120:
                where = rng.integers(at, LENGTH)
                text[where] = text[where] % (CONFIG.vocab_size - 1) + 1
            found.append(Probe(text[:at], text[at:]))
    return found


@pytest.fixture(scope="module")
def reference(params, probes):
    """What a loop writes that runs the whole model anew for every token."""
    tokens = np.zeros((len(probes), LENGTH), np.int32)
    starts = np.array([len(p.prefix) for p in probes])
    for row, p in enumerate(probes):
        tokens[row, : len(p.prefix)] = p.prefix
    for position in range(1, LENGTH):
        best = np.asarray(full_logits(params, tokens[:, :-1]))[:, position - 1].argmax(axis=-1)
        tokens[:, position] = np.where(position < starts, tokens[:, position], best)
    return [row[start:] for row, start in zip(tokens, starts)]


@pytest.fixture(scope="module")
def written(params, probes):
    return continue_greedily(params, CONFIG, probes, batch_size=256)


@pytest.fixture(scope="module")
def found(params, probes):
    return extract(functools.partial(score, params, CONFIG, batch_size=256), probes)


def test_teacher_forcing_equals_free_running_on_2000_probes(capsys, probes, written, found):
    assert len(probes) == 2000
    agrees = [p.suffix == w for p, w in zip(probes, written)]
    exact = np.array([a.all() for a in agrees])
    first_mismatch = np.array([len(a) if a.all() else np.argmin(a) for a in agrees])
    differ = (found.exact != exact) | (found.first_mismatch != first_mismatch)
    ambiguous = found.ambiguous()
    with capsys.disabled():
        print(f"\n2,000 probes: {exact.sum()} exact, {ambiguous.sum()} ambiguous, {differ.sum()} differ", end=" ")
    assert not (differ & ~ambiguous).any()
    # A mixture on which a wrong rule would show, and few enough ambiguous ones that the above says something.
    assert 300 < exact.sum() < 800 and ((first_mismatch > 0) & ~exact).sum() > 300 and ambiguous.sum() < 40


def test_without_an_allowance_for_noise_nothing_is_ambiguous(found):
    assert not found.ambiguous(0.0).any() and found.ambiguous(np.inf).all() and MARGIN_NOISE["float32"] == 1e-4


def same_but_for_near_ties(a, b, found):
    """Whether the continuations are equal, apart from probes where a near tie may go either way."""
    return all(np.array_equal(x, y) for x, y, close in zip(a, b, found.ambiguous()) if not close)


def near_ties(params, probes, written):
    """Probes whose own continuation hangs on a margin below the noise."""
    own = [Probe(p.prefix, w) for p, w in zip(probes, written)]
    return extract(functools.partial(score, params, CONFIG, batch_size=256), own)


def test_graded_score_equals_a_straightforward_loop(params, probes, reference, written):
    own = near_ties(params, probes, written)
    assert own.exact[~own.ambiguous()].all()  # what it wrote is what greedy decoding writes
    assert same_but_for_near_ties(written, reference, own)
    expected = np.array([sum(x == y for x, y in zip(p.suffix, r)) / len(p.suffix) for p, r in zip(probes, reference)])
    graded = graded_score(probes, written)
    clear = ~own.ambiguous()
    np.testing.assert_array_equal(graded[clear], expected[clear])
    assert clear.mean() > 0.98 and 0.1 < graded.mean() < 0.9


def test_graded_is_neither_exact_match_nor_the_teacher_forced_share(probes, written, found):
    graded = graded_score(probes, written)
    assert (graded[found.exact] == 1).all() and (graded[~found.exact] < 1).all()
    assert (graded != found.token_share).sum() > 100
    slipped = [Probe(np.array([1]), np.array([5, 6, 7, 8]))]
    assert graded_score(slipped, [np.array([9, 5, 6, 7])]).tolist() == [0.0]


def test_lists_are_graded_like_arrays():
    assert graded_score([Probe([1], [5, 6])], [[5, 7]]).tolist() == [0.5]


@pytest.mark.parametrize("written", [[5], [], [5, 5, 5, 5]], ids=["broadcast", "empty", "long"])
def test_a_continuation_of_another_length_is_refused(written):
    with pytest.raises(InputError, match="continuation 0 has shape"):
        graded_score([Probe(np.array([1]), np.array([5, 6, 5]))], [np.array(written, int)])


def test_bos_takes_part_in_the_prefix(params, probes):
    few = probes[:8]
    cut = [Probe(p.prefix[1:], p.suffix) for p in few]
    found = continue_greedily(params, CONFIG, cut, bos_token_id=5, batch_size=256)
    same = continue_greedily(params, CONFIG, [Probe(np.append(5, p.prefix), p.suffix) for p in cut], batch_size=256)
    for a, b in zip(found, same):
        np.testing.assert_array_equal(a, b)
