"""What a model is asked about real text that no model has read: questions on its documents, and windows to be planted.

Words are what stands between white space, and questions have single spaces between them. All of it is a pure function
of the arguments."""

import collections
import re
from typing import Any, Mapping, Sequence

import numpy as np

from selftrain_jax.core.errors import InputError
from selftrain_jax.lab.planted import encode

QUESTION_WORDS, CONTINUATION_WORDS, NUM_CHOICES = 40, 12, 4
NEIGHBOURS = 12
"""Words nearest in frequency that the wrong answers of a cloze question are drawn from."""

_LEAST_COUNT = 3
_CLOZE_WORD = re.compile(r"[a-z]{4,}")
_PLAIN_WORD = re.compile(r"[a-z]+")
_SENTENCE_WORDS = range(6, 31)


class TokenCounts:
    """How many tokens a word is, each word encoded once."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._known: dict[str, int] = {}

    def __call__(self, words: Sequence[str]) -> np.ndarray:
        """int64, one per word; a space before a word counts."""
        new = [word for word in dict.fromkeys(words) if word not in self._known]
        self._known.update(zip(new, map(len, encode(self._tokenizer, new))))
        return np.fromiter((self._known[word] for word in words), np.int64, len(words))


def planted_window(
    text: str, tokenizer: Any, counts: TokenCounts, prefix_tokens: int, num_tokens: int, rng: np.random.Generator
) -> tuple[str, str] | None:
    """A window of whole words: (prefix, suffix) of exactly `prefix_tokens`, and together `num_tokens`, tokens.

    The suffix begins with a space after a word. Cut there, prefix and suffix have the tokens that they have together,
    and so they do under every byte-level tokenizer.

    Returns:
      None where the text has no such window.
    """
    words = text.split()
    first, ends = counts(words), np.cumsum(counts([f" {word}" for word in words]))
    for start in rng.permutation(len(words)):
        wanted = ends[start] - first[start] + np.array([prefix_tokens, num_tokens])
        cut, end = np.searchsorted(ends, wanted)
        if end < len(words) and (ends[[cut, end]] == wanted).all():
            prefix = " ".join(words[start : cut + 1])
            suffix = "".join(f" {word}" for word in words[cut + 1 : end + 1])
            parts = encode(tokenizer, [prefix, suffix, prefix + suffix])
            if parts[0] + parts[1] == parts[2] and len(parts[0]) == prefix_tokens and len(parts[2]) == num_tokens:
                return prefix, suffix
    return None


def familiar_words(texts: Sequence[str]) -> dict[str, int]:
    """Rank by falling frequency of the lower-case words of four and more letters that are not rare in `texts`."""
    counted = collections.Counter(word for text in texts for word in text.split() if _CLOZE_WORD.fullmatch(word))
    kept = sorted((-count, word) for word, count in counted.items() if count >= _LEAST_COUNT)
    return {word: rank for rank, (_, word) in enumerate(kept)}


def can_be_asked(text: str, familiar: Mapping[str, int]) -> bool:
    """Whether the document serves for a question of every suite."""
    words = text.split()
    long = len(words) >= QUESTION_WORDS + CONTINUATION_WORDS
    return long and bool(_cloze_places(words, familiar)) and bool(_exchanges(text))


def question_suites(texts: Sequence[str], familiar: Mapping[str, int], seed: int) -> dict[str, list[dict]]:
    """One question of every suite for each of `texts`, all of which `can_be_asked`.

    Returns:
      "continuation": the first 40 words of a document, and which of four times 12 words come next; the wrong ones stand
      at the same place of other documents. "cloze": 40 words, and which of four words of about the same frequency comes
      next; the wrong ones are not among the 40. Rows of these two are {"question", "choices", "gold"}, choices with a
      leading space. "word_order": {"sentence_good", "sentence_bad"}, a sentence and the same with two neighboring words
      exchanged.

    Raises:
      InputError: there are too few documents or familiar words to draw wrong answers from.
    """
    rng = np.random.default_rng([seed, 1])
    documents = [text.split() for text in texts]
    return {
        "continuation": [_continuation(documents, i, rng) for i in range(len(documents))],
        "cloze": [_cloze(words, familiar, rng) for words in documents],
        "word_order": [_word_order(text, rng) for text in texts],
    }


def _choices(right: str, wrong: Sequence[str], rng: np.random.Generator) -> dict:
    gold = int(rng.integers(NUM_CHOICES))
    choices = [f" {choice}" for choice in wrong]
    choices.insert(gold, f" {right}")
    return {"choices": choices, "gold": gold}


def _continuation(documents: Sequence[list[str]], i: int, rng: np.random.Generator) -> dict:
    end = QUESTION_WORDS + CONTINUATION_WORDS
    right = " ".join(documents[i][QUESTION_WORDS:end])
    wrong: list[str] = []
    for j in rng.permutation(len(documents)):
        other = " ".join(documents[j][QUESTION_WORDS:end])
        if len(wrong) < NUM_CHOICES - 1 and other not in (right, *wrong):
            wrong.append(other)
    if len(wrong) < NUM_CHOICES - 1:
        raise InputError(
            f"text world: {len(documents)} held-out documents are too few or too alike for {NUM_CHOICES} "
            "different continuations; raise num_questions, or give more text"
        )
    return {"question": " ".join(documents[i][:QUESTION_WORDS]), **_choices(right, wrong, rng)}


def _cloze_places(words: Sequence[str], familiar: Mapping[str, int]) -> list[int]:
    return [place for place in range(QUESTION_WORDS, len(words)) if words[place] in familiar]


def _cloze(words: Sequence[str], familiar: Mapping[str, int], rng: np.random.Generator) -> dict:
    place = int(rng.choice(_cloze_places(words, familiar)))
    passage, right = words[place - QUESTION_WORDS : place], words[place]
    # Of the nearest 2 x 64 words by rank at most 40 stand in the passage.
    ranked, rank = list(familiar), familiar[right]
    near = sorted(ranked[max(rank - 64, 0) : rank + 65], key=lambda word: abs(familiar[word] - rank))
    near = [word for word in near if word != right and word not in passage][:NEIGHBOURS]
    if len(near) < NUM_CHOICES - 1:
        raise InputError(
            f"text world: {len(familiar)} words that occur {_LEAST_COUNT} times are too few for cloze "
            "questions; give more text"
        )
    wrong = [near[j] for j in rng.permutation(len(near))[: NUM_CHOICES - 1]]
    return {"question": " ".join(passage), **_choices(right, wrong, rng)}


def _exchanges(text: str) -> list[tuple[list[str], int]]:
    """Every sentence with every place, but its first, where two different plain words can be exchanged."""
    found = []
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        words = sentence.split()
        if len(words) in _SENTENCE_WORDS and words[-1][-1] in ".!?":
            plain = [_PLAIN_WORD.fullmatch(word) for word in words]
            places = (i for i in range(1, len(words) - 1) if plain[i] and plain[i + 1] and words[i] != words[i + 1])
            found += [(words, i) for i in places]
    return found


def _word_order(text: str, rng: np.random.Generator) -> dict:
    found = _exchanges(text)
    words, i = found[rng.integers(len(found))]
    bad = [*words[:i], words[i + 1], words[i], *words[i + 2 :]]
    return {"sentence_good": " ".join(words), "sentence_bad": " ".join(bad)}
