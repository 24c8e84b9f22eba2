"""No text that holds a sequence is missed, and few others pass."""

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from selftrain_jax.data.ngram_filter import NgramFilter, in_blocks

# Every white space of Unicode, a letter beyond 16 bits and half a pair of surrogates among the characters.
SPACES = [chr(code) for code in range(0x110000) if chr(code).isspace()]
CHARACTERS = ["a", "b", "é", "東", "\U0001f600", "\ud800", *SPACES]


def holds(text: str, sequences: list[tuple[str, ...]]) -> bool:
    words = text.split()
    runs = {tuple(words[i : i + n]) for n in {len(s) for s in sequences} for i in range(len(words) - n + 1)}
    return not runs.isdisjoint(sequences)


@given(
    st.lists(st.text(st.sampled_from(CHARACTERS), max_size=30), max_size=6),
    st.lists(st.lists(st.sampled_from(["a", "b", "ab", "é", "東\U0001f600", "\ud800"]), min_size=1, max_size=6)),
)
def test_whatever_holds_a_sequence_passes(texts, sequences):
    sequences = [tuple(sequence) for sequence in sequences]
    texts = [*texts, *(f"{text}\u3000{chr(0x85).join(s)}\n" for text, s in zip(texts, sequences))]
    passes = NgramFilter(sequences).passing(texts)
    assert passes.shape == (len(texts),)
    assert all(passed for text, passed in zip(texts, passes) if holds(text, sequences))


def test_hardly_any_other_passes():
    """Of 3,000 texts of the same 200 words as the sequences, of all lengths."""
    rng = random.Random(0)
    vocabulary = [f"w{i}" for i in range(200)]
    sequences = [tuple(rng.choices(vocabulary, k=rng.choice([3, 5, 13]))) for _ in range(5_000)]
    texts = [" ".join(rng.choices(vocabulary, k=100)) for _ in range(3_000)]
    texts[7] += " " + " ".join(sequences[0])
    passes = np.concatenate([NgramFilter(sequences).passing(block) for block in in_blocks(texts, len)])
    expected = np.array([holds(text, sequences) for text in texts])
    assert expected[7] and expected.sum() > 2 and not (expected & ~passes).any()
    assert (passes & ~expected).sum() <= 20


def test_nothing_sought_and_nothing_to_read():
    assert NgramFilter([]).passing(["a b", ""]).tolist() == [False, False]
    assert NgramFilter([("a",)]).passing([]).tolist() == [] and NgramFilter([("a",)]).passing([""]).tolist() == [False]
    assert NgramFilter([("a", "b")]).passing(["x" * 300_000 + " a b", "b", "a"]).tolist() == [True, False, False]
