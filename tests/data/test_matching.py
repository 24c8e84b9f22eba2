"""Longest matches, against all substrings."""

import numpy as np
import pytest

from selftrain_jax.data.matching import SuffixIndex, characters, suffix_array


@pytest.mark.parametrize("size, letters", [(0, 2), (1, 2), (2, 1), (60, 1), (200, 2), (200, 30)])
def test_suffixes_are_sorted(size, letters):
    text = np.random.default_rng(size).integers(0, letters, size)
    assert suffix_array(text).tolist() == sorted(range(size), key=lambda i: text[i:].tolist())


def substrings(sequences):
    return {s[i:j] for s in map(tuple, sequences) for i in range(len(s)) for j in range(i + 1, len(s) + 1)}


@pytest.mark.parametrize("letters", [2, 3, 50])
def test_longest_runs_equal_those_of_all_substrings(letters):
    rng = np.random.default_rng(letters)
    sequences = [rng.integers(0, letters, n) for n in (0, 1, 30, 40, 7)]
    texts = [rng.integers(0, letters + 1, n) for n in (0, 25, 1, 60)] + [sequences[3], sequences[3][5:20]]
    given = [sequences[2], sequences[2], *sequences]
    index, known = SuffixIndex(given), substrings(sequences)
    lengths, places = index.longest(texts)
    joined = np.concatenate([np.append(s, -1) for s in index.sequences])
    start = 0
    for text in map(tuple, texts):
        for i in range(len(text)):
            runs = [j - i for j in range(i + 1, len(text) + 1) if text[i:j] in known]
            length, place = lengths[start + i], places[start + i]
            assert length == max(runs, default=0)
            assert not length or tuple(joined[place : place + length]) == text[i : i + length]
            if length:
                inside = joined[place : place + length]
                assert (inside >= 0).all()  # within one sequence
                assert tuple(inside) in substrings([given[index.sequence_of(place)]])
        assert lengths[start + len(text)] == 0
        start += len(text) + 1
    assert len(index.sequences) == 5  # copies are kept once


def test_runs_do_not_cross_from_one_sequence_into_the_next():
    index = SuffixIndex([characters("ab"), characters("cd\N{GRINNING FACE}")])
    assert index.longest([characters("abcd\N{GRINNING FACE}")])[0].tolist() == [2, 1, 3, 2, 1, 0]
    assert SuffixIndex([]).longest([characters("a")])[0].tolist() == [0, 0]


def test_what_is_no_token_is_in_no_sequence():
    """Rows may be filled up with -1, which stands behind the first sequence, too."""
    index = SuffixIndex([np.array([5, 6]), np.array([7, 8])])
    assert index.longest([np.array([5, 6, -1, 7, -2])])[0].tolist() == [2, 1, 0, 1, 0, 0]
