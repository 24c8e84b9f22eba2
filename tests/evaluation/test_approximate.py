import functools
import math
import random
import string

import numpy as np
import pytest
import tokenizers
import transformers

from selftrain_jax.evaluation.approximate import approximate_match, bleu, edit_distance, normalized_edit_distance
from selftrain_jax.evaluation.memorization import Probe


def by_definition(a, b):
    @functools.cache
    def cost(i, j):
        if not i or not j:
            return i + j
        return min(cost(i - 1, j) + 1, cost(i, j - 1) + 1, cost(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return cost(len(a), len(b))


def test_edit_distance_equals_its_recursive_definition():
    rng = random.Random(0)
    for _ in range(200):
        a, b = ("".join(rng.choices("abé\N{GRINNING FACE}", k=rng.randrange(9))) for _ in range(2))
        assert edit_distance(a, b) == by_definition(a, b)


def test_edit_distance_of_longer_texts():
    rng = random.Random(1)
    a = "".join(rng.choices(string.ascii_lowercase, k=120))
    b = a[:30] + "XY" + a[33:90] + "Z" + a[90:]
    assert edit_distance(a, b) == by_definition(a, b) == 4
    assert edit_distance("kitten", "sitting") == 3 and normalized_edit_distance("kitten", "sitting") == pytest.approx(
        3 / 7
    )
    assert normalized_edit_distance("", "") == 0 and normalized_edit_distance("", "ab") == 1


def test_edit_similarity_agrees_with_rapidfuzz():
    rapidfuzz = pytest.importorskip("rapidfuzz", reason="comes with the extra `test`")
    rng = random.Random(2)
    for _ in range(100):
        a, b = ("".join(rng.choices("abcd é", k=rng.randrange(60))) for _ in range(2))
        expected = rapidfuzz.distance.Levenshtein.normalized_similarity(a, b)
        assert 1 - normalized_edit_distance(a, b) == pytest.approx(expected, abs=1e-12)


def test_the_longest_common_substring_equals_that_of_all_substrings():
    rng = np.random.default_rng(0)
    suffixes, written = rng.integers(0, 4, (2, 100, 11))
    found = approximate_match([Probe(np.array([0]), s) for s in suffixes], list(written), Words()).common_run
    for run, a, b in zip(found, suffixes, written):
        of_a, of_b = ({tuple(x[i:j]) for i in range(12) for j in range(i, 12)} for x in (a, b))
        assert run == max(map(len, of_a & of_b))
    assert len(set(found.tolist())) > 3


def test_bleu_by_hand():
    true = "the cat is on the mat".split()
    # Papineni et al. 2002: seven times "the", of which the reference has two.
    assert bleu(["the"] * 7, true, max_order=1) == pytest.approx(2 / 7)
    assert bleu(true, true) == pytest.approx(1) and bleu("a dog was in a house".split(), true) == 0
    # One word replaced in the middle: 5/6 words, 3/5 pairs, 2/4 triples, 1/3 quadruples match; equal lengths.
    changed = "the cat is on a mat".split()
    assert bleu(changed, true) == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    # One word missing at the end: all n-grams match, and 5 words against 6 cost e^(1 - 6/5).
    assert bleu(true[:-1], true) == pytest.approx(math.exp(-0.2))
    assert bleu([*true, "x"], true) == pytest.approx((6 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** 0.25)


def test_short_texts_are_judged_by_the_orders_that_they_have():
    assert bleu(["a"], ["a"]) == bleu(list("ab"), list("ab")) == pytest.approx(1)
    assert bleu([], []) == 1 and bleu([], ["a"]) == bleu(["a"], []) == 0


def test_bleu_agrees_with_sacrebleu():
    sacrebleu = pytest.importorskip(
        "sacrebleu", reason="sacrebleu comes with lm-evaluation-harness, which is not installed"
    )
    metric = sacrebleu.metrics.BLEU(tokenize="none", smooth_method="none", effective_order=True)
    rng = random.Random(0)
    for _ in range(100):
        a, b = (rng.choices("abc", k=rng.randrange(6, 20)) for _ in range(2))
        assert bleu(a, b) == pytest.approx(metric.sentence_score(" ".join(a), [" ".join(b)]).score / 100, abs=1e-9)


class Words:
    """Token i is the i-th word."""

    words = "zero one two three four five six seven eight nine ten eleven".split()

    def batch_decode(self, ids):
        return [" ".join(self.words[i] for i in row) for row in ids]


def test_a_changed_word_is_memorized_approximately_and_another_text_is_not():
    suffix = np.arange(1, 12)
    nearly, other = suffix.copy(), suffix[::-1]
    nearly[-1] = 0
    found = approximate_match([Probe(np.array([0]), suffix)] * 3, [suffix, nearly, other], Words())
    assert found.memorized.tolist() == [True, True, False]
    assert found.bleu == pytest.approx([1, (10 / 11 * 9 / 10 * 8 / 9 * 7 / 8) ** 0.25, 0])
    assert found.edit_similarity[0] == 1 > found.edit_similarity[1] > 0.8 > found.edit_similarity[2]


def test_a_missing_space_counts_where_a_tokenizer_decodes_a_suffix_alone_without_it():
    """SentencePiece drops the space before a text, here before every suffix."""
    spelled = tokenizers.Tokenizer(tokenizers.models.WordLevel({"\u2581the": 0, "\u2581cat": 1, "cat": 2}, "cat"))
    spelled.decoder = tokenizers.decoders.Metaspace(prepend_scheme="always")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=spelled)
    probe = Probe(np.array([0]), np.array([1, 0]))
    found = approximate_match([probe] * 2, [np.array([1, 0]), np.array([2, 0])], tokenizer)
    assert found.edit_similarity == pytest.approx([1, 7 / 8])  # " cat the" and "cat the"


def test_a_character_that_the_border_cuts_in_two_is_the_suffixs():
    level = tokenizers.pre_tokenizers.ByteLevel
    spelled = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(sorted(level.alphabet()))}, []))
    spelled.pre_tokenizer, spelled.decoder = level(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=spelled)
    first, *rest = tokenizer.encode("\u00e9abc")
    _, other = tokenizer.encode("\u00e8")
    probe = Probe(np.array([first]), np.array(rest))
    found = approximate_match([probe] * 2, [np.array(rest), np.array([other, *rest[1:]])], tokenizer)
    assert found.edit_similarity == pytest.approx([1, 3 / 4])
