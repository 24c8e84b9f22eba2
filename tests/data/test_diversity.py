import collections
import math

import numpy as np
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.data.diversity import distinct_n, diversity, unigram_entropy


@pytest.fixture(scope="module")
def documents():
    """Of all lengths from 0 on, with few different tokens, so that n-grams repeat within and across documents."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 4, n).astype(np.int32) for n in (0, 1, 2, 3, 30, 7, 0, 90, 1)]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 31])
def test_distinct_n_counts_ngrams_inside_documents(documents, n):
    grams = [tuple(d[i : i + n].tolist()) for d in documents for i in range(len(d) - n + 1)]
    assert distinct_n(documents, n) == len(set(grams)) / len(grams)


def test_entropy_is_that_of_the_frequencies(documents):
    counts = collections.Counter(np.concatenate(documents).tolist())
    shares = [count / counts.total() for count in counts.values()]
    assert unigram_entropy(documents) == pytest.approx(-sum(p * math.log2(p) for p in shares), abs=1e-12)
    # Eight equally frequent tokens: three bits. One token: none.
    assert unigram_entropy([np.arange(8), np.arange(8)]) == 3
    assert unigram_entropy([np.full(9, 7)]) == 0


@pytest.mark.parametrize("num_tokens", [1, 3, 17, 134])
def test_a_budget_of_tokens_cuts_the_corpus(documents, num_tokens):
    cut, left = [], num_tokens
    for document in documents:
        cut.append(document[:left])
        left -= len(cut[-1])
    found = diversity(documents, num_tokens=num_tokens)
    assert found == diversity(cut) | {"mean_length": 134 / 9}


def test_diversity_is_its_parts(documents):
    found = diversity(documents)
    assert found == {
        **{f"distinct_{n}": distinct_n(documents, n) for n in (1, 2, 3, 4)},
        "entropy": unigram_entropy(documents),
        "mean_length": 134 / 9,
    }


def test_repetition_lowers_every_measure():
    rng = np.random.default_rng(1)
    varied = [rng.integers(0, 1000, 50) for _ in range(20)]
    collapsed = [varied[0]] * 20
    a, b = diversity(varied), diversity(collapsed)
    assert all(b[name] < a[name] for name in a if name != "mean_length") and a["mean_length"] == b["mean_length"] == 50


def test_distinct_n_depends_on_size_but_not_at_one_budget():
    rng = np.random.default_rng(2)
    documents = [rng.integers(0, 50, 40) for _ in range(100)]
    assert distinct_n(documents, 2) < 0.75 * distinct_n(documents[:10], 2)
    assert distinct_n(documents, 2, num_tokens=400) == distinct_n(documents[:10], 2)


def test_what_cannot_be_measured_is_none():
    empty = [np.zeros(0, np.int32)] * 3
    assert set(diversity(empty).values()) == {None, 0.0} and unigram_entropy(empty) is None
    assert distinct_n([np.array([1, 2, 3])] * 2, 4) is None


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: diversity([]), "no documents"),
        (lambda: distinct_n([np.array([1])], 0), "n=0"),
        (lambda: unigram_entropy([np.array([1])], num_tokens=0), "num_tokens=0"),
        (lambda: diversity([np.array([1, 2])], num_tokens=3), "num_tokens=3 is more than the 2 tokens"),
        (lambda: diversity([np.array([1]), np.array([0.5])]), "document 1 .*float64.* must be a vector of token ids"),
        (lambda: diversity([np.array([[1]])]), "document 0 of shape"),
        (lambda: diversity([np.array([-1])]), "document 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
