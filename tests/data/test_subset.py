import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.data.packing import pack
from selftrain_jax.data.settings import SubsetConfig
from selftrain_jax.data.subset import check_repetition, draw_subset

LENGTHS = np.random.default_rng(0).integers(0, 30, 200)


def taken(lengths, order, last_length):
    return int((lengths[order[:-1]] + 1).sum()) + last_length + 1


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("num_tokens", [1, 2, 17, 500, 2001])
def test_the_number_of_tokens_is_exact(num_tokens, replacement):
    for seed in range(20):
        config = SubsetConfig(num_tokens, seed=seed, replacement=replacement)
        order, last_length = draw_subset(LENGTHS, config, 0)
        assert 0 <= last_length <= LENGTHS[order[-1]]
        assert taken(LENGTHS, order, last_length) == num_tokens
        assert ((0 <= order) & (order < len(LENGTHS))).all()


@hypothesis.given(
    st.lists(st.integers(0, 9), min_size=1), st.integers(1, 500), st.integers(0, 2**63 - 1), st.booleans()
)
def test_the_number_of_tokens_is_exact_for_any_corpus(lengths, num_tokens, seed, replacement):
    lengths = np.array(lengths)
    if not replacement:
        num_tokens = min(num_tokens, int((lengths + 1).sum()))
    order, last_length = draw_subset(lengths, SubsetConfig(num_tokens, seed=seed, replacement=replacement), 0)
    assert taken(lengths, order, last_length) == num_tokens and 0 <= last_length <= lengths[order[-1]]
    assert replacement or len(set(order)) == len(order)


def test_the_packed_stream_has_that_many_tokens():
    documents = [np.full(n, 7) for n in LENGTHS]
    order, last_length = draw_subset(LENGTHS, SubsetConfig(8 * 50 + 1), 0)
    chosen = [documents[i] for i in order]
    chosen[-1] = chosen[-1][:last_length]
    packed = pack(chosen, bos_token_id=0, sequence_length=8)
    assert (packed.tokens.shape, packed.dropped_tokens) == ((50, 9), 0)


def test_a_budget_beyond_the_corpus_repeats_documents():
    lengths = np.array([4, 0, 9])
    order, last_length = draw_subset(lengths, SubsetConfig(10_000), 0)
    assert taken(lengths, order, last_length) == 10_000


def test_a_budget_met_by_repeating_is_warned_of_then_refused():
    config = SubsetConfig(5_000, max_repetitions=20)
    check_repetition("control.jsonl", 40, 10, config)
    with pytest.warns(InputWarning, match="num_tokens=5000 of control.jsonl holds each of 10 documents 4.1 times"):
        check_repetition("control.jsonl", 41, 10, config)
    with pytest.raises(InputError, match=r"each of 3 documents 20.3 times .* more than max_repetitions=20: .* raise"):
        check_repetition("control.jsonl", 61, 3, config)


def test_draws_are_uniform_over_documents():
    """Long and short documents are drawn alike; 5 standard deviations of a binomial count leave 1 in 10^5 to chance."""
    lengths = np.tile([1, 50], 10)
    order, _ = draw_subset(lengths, SubsetConfig(500_000), 0)
    counts = np.bincount(order, minlength=20)
    expected = len(order) / 20
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected * 0.95)


def test_without_replacement_documents_occur_once_and_all_are_reachable():
    total = int((LENGTHS + 1).sum())
    order, last_length = draw_subset(LENGTHS, SubsetConfig(total, replacement=False), 0)
    assert sorted(order) == list(range(len(LENGTHS)))
    assert last_length == LENGTHS[order[-1]]
    with pytest.raises(InputError, match=f"num_tokens={total + 1} .* {total} tokens of own.jsonl: .*replacement=True"):
        draw_subset(LENGTHS, SubsetConfig(total + 1, replacement=False), 0, "own.jsonl")


@pytest.mark.parametrize("replacement", [True, False])
def test_a_subset_depends_on_seed_and_index_only(replacement):
    def draw(seed, index, num_subsets=3, num_tokens=400):
        order, _ = draw_subset(LENGTHS, SubsetConfig(num_tokens, num_subsets, seed, replacement), index)
        return order.tolist()

    assert draw(1, 2) == draw(1, 2) == draw(1, 2, num_subsets=9)
    assert len({tuple(draw(seed, index)) for seed in range(3) for index in range(3)}) == 9


def test_subsets_overlap_no_more_than_chance():
    """Two independent halves of n documents share n/4 on average, with a standard deviation of sqrt(n)/4."""
    lengths = np.zeros(10_000, np.int64)
    config = SubsetConfig(5_000, num_subsets=4, replacement=False)
    subsets = [set(draw_subset(lengths, config, i)[0].tolist()) for i in range(4)]
    for i in range(4):
        for j in range(i):
            assert abs(len(subsets[i] & subsets[j]) - 2_500) < 5 * 25


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="no documents"):
        draw_subset(np.array([], np.int64), SubsetConfig(5), 0)
    for lengths in (np.array([1.5]), np.array([3, -1])):
        with pytest.raises(InputError, match="non-negative integers"):
            draw_subset(lengths, SubsetConfig(5), 0)
    for index in (-1, 2):
        with pytest.raises(InputError, match="index"):
            draw_subset(LENGTHS, SubsetConfig(5, num_subsets=2), index)
    for arguments in ({"num_tokens": 0}, {"num_tokens": 5, "num_subsets": 0}, {"num_tokens": 5, "seed": -1}):
        with pytest.raises(InputError):
            SubsetConfig(**arguments)
