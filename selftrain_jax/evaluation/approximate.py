"""Nearly verbatim: how close the text of a free-running continuation comes to the true one."""

import collections
import dataclasses
import difflib
import os
from typing import Any, Sequence

import numpy as np

from selftrain_jax.evaluation.memorization import Probe

BLEU_THRESHOLD = 0.75
"""Above it a continuation counts as memorized approximately (Ippolito et al. 2023, arXiv 2210.17546)."""


@dataclasses.dataclass(frozen=True)
class ApproximateMatch:
    """Outcome per probe."""

    bleu: np.ndarray  # float64 [n]; in [0, 1]
    edit_similarity: np.ndarray  # float64 [n]; 1 - characters to change / characters of the longer text, in [0, 1]
    common_run: np.ndarray  # int64 [n]; tokens of the longest run that both share, wherever it stands in either

    @property
    def memorized(self) -> np.ndarray:
        """bool `[n]`: approximately memorized by the rule BLEU > 0.75."""
        return self.bleu > BLEU_THRESHOLD


def approximate_match(probes: Sequence[Probe], continuations: Sequence[np.ndarray], tokenizer: Any) -> ApproximateMatch:
    """Compares the decoded text of every continuation (from `free_running.continue_greedily`) with that of the suffix.

    Exact match is blind to a changed comma; Ippolito et al. (2023, arXiv 2210.17546) count a continuation as memorized
    when its BLEU with the true one exceeds 0.75. BLEU is over words (text between white space), the edit distance over
    characters, the longest common substring over tokens. Texts are what follows the prefix's: a SentencePiece tokenizer
    decodes a suffix alone without the space before it.
    """
    prefixes = [np.asarray(p.prefix).tolist() for p in probes]
    written = _following(tokenizer, prefixes, [c.tolist() for c in continuations])
    true = _following(tokenizer, prefixes, [np.asarray(p.suffix).tolist() for p in probes])
    return ApproximateMatch(
        bleu=np.array([bleu(a.split(), b.split()) for a, b in zip(written, true, strict=True)]),
        edit_similarity=np.array([1 - normalized_edit_distance(a, b) for a, b in zip(written, true)]),
        common_run=np.array([_common_run(c, p.suffix) for p, c in zip(probes, continuations)]),
    )


def _following(tokenizer: Any, prefixes: Sequence[list[int]], ids: Sequence[list[int]]) -> list[str]:
    """The text that `ids` add to that of their prefix, with a character that the border cuts in two."""
    before, whole = map(tokenizer.batch_decode, (prefixes, [a + b for a, b in zip(prefixes, ids, strict=True)]))
    return [text[len(os.path.commonprefix([start, text])) :] for start, text in zip(before, whole)]


def _common_run(a: np.ndarray, b: np.ndarray) -> int:
    return difflib.SequenceMatcher(None, a.tolist(), np.asarray(b).tolist(), autojunk=False).find_longest_match().size


def edit_distance(a: str, b: str) -> int:
    """Fewest characters to insert, delete or replace to turn `a` into `b` (Levenshtein 1966)."""
    x, y = (np.array([ord(c) for c in text], np.int64) for text in (a, b))
    steps = np.arange(len(y) + 1)
    row = steps
    for i, character in enumerate(x, 1):
        changed = np.empty_like(row)
        changed[0] = i
        changed[1:] = np.minimum(row[1:] + 1, row[:-1] + (y != character))
        # Insertions run along the row: each entry is the least of all to its left plus the way from there.
        row = np.minimum.accumulate(changed - steps) + steps
    return int(row[-1])


def normalized_edit_distance(a: str, b: str) -> float:
    """`edit_distance` divided by the length of the longer text: 0 for equal texts, 1 for texts that share nothing."""
    return edit_distance(a, b) / max(len(a), len(b), 1)


def bleu(candidate: Sequence, reference: Sequence, max_order: int = 4) -> float:
    """Sentence BLEU of two sequences of words, in [0, 1], without smoothing (Papineni et al. 2002, section 2).

    Brevity penalty min(1, exp(1 - r / c)) times the geometric mean of the clipped n-gram precisions for n = 1 ... 4.
    Where either text is shorter than n words that order is left out, so that equal texts always score 1; an order
    without a single match makes it 0."""
    if not candidate or not reference:
        return float(len(candidate) == len(reference))
    precisions = []
    for n in range(1, min(max_order, len(candidate), len(reference)) + 1):
        found, known = (
            collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
            for words in (candidate, reference)
        )
        precisions.append(sum((found & known).values()) / found.total())
    if not min(precisions):
        return 0.0
    brevity = min(1.0, float(np.exp(1 - len(reference) / len(candidate))))
    return brevity * float(np.exp(np.mean(np.log(precisions))))
