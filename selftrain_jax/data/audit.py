"""Contamination audit: which documents share word n-grams with a benchmark.

Words are found like this: Unicode NFKC, lower case, removal of every punctuation mark, symbol, control and format
character (Unicode categories P*, S*, Cc, Cf) that is not white space, and a split at white space. So "Don't" is `dont`,
"a - b" is two words and "a-b" is one. The method is the n-gram overlap of Brown et al. 2020 (arXiv:2005.14165,
appendix C).
"""

import dataclasses
import os
import unicodedata
from typing import Any, Iterable, Mapping, Sequence

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.rows import read_rows
from selftrain_jax.data.settings import AuditConfig

_MAX_EXAMPLES = 20


@dataclasses.dataclass(frozen=True)
class BenchmarkCounts:
    """What one benchmark has in common with the documents.

    Attributes:
      flagged_documents: documents that share at least the threshold number of n-grams with it.
      matching_ngrams: its different n-grams that occur in any document.
      benchmark_ngrams: its different n-grams.
      texts: its texts.
      short_texts: those of them with fewer than n words, which contribute nothing.
    """

    flagged_documents: int
    matching_ngrams: int
    benchmark_ngrams: int
    texts: int
    short_texts: int


@dataclasses.dataclass(frozen=True)
class AuditResult:
    """Outcome of `audit`.

    Attributes:
      flagged: ids of the flagged documents, sorted.
      num_documents: documents scanned.
      benchmarks: counts by benchmark.
      matches: document id -> benchmark -> number of different n-grams shared; documents that share none are left out.
      examples: the first matches found, as {"id", "benchmark", "ngram"}; one per document and benchmark.
    """

    flagged: tuple[int, ...]
    num_documents: int
    benchmarks: dict[str, BenchmarkCounts]
    matches: dict[int, dict[str, int]]
    examples: tuple[dict[str, Any], ...]


class _Deletions(dict):
    """A `str.translate` table that decides about a character when it first meets it."""

    def __missing__(self, code: int) -> int | None:
        character = chr(code)
        category = unicodedata.category(character)
        delete = (category[0] in "PS" or category in ("Cc", "Cf")) and not character.isspace()
        self[code] = None if delete else code
        return self[code]


_DELETIONS = _Deletions()


def words(text: str) -> list[str]:
    """The words of `text` as the audit compares them; the module docstring defines them."""
    return unicodedata.normalize("NFKC", text).lower().translate(_DELETIONS).split()


def ngrams(sequence: Sequence, n: int) -> Iterable[tuple]:
    """All runs of `n` consecutive elements of `sequence`, in order."""
    return zip(*(sequence[start:] for start in range(n)))


def audit(documents: Iterable[Any], benchmarks: Mapping[str, Sequence[str]], config: AuditConfig) -> AuditResult:
    """Scans `documents` (anything with `id` and `text`) for word n-grams of `benchmarks` (name -> texts).

    N-grams are compared as they are, not as hashes, so every match is real. Memory grows with the benchmarks, by some
    0.2 GB per million words; documents are read once and not kept.
    """
    if not benchmarks:
        raise InputError("audit needs at least one benchmark to compare with: name one, or leave the audit out")
    owners, totals = _index(benchmarks, config.ngram)
    matches: dict[int, dict[str, int]] = {}
    flagged, examples, found = [], [], set()
    flagged_by = dict.fromkeys(benchmarks, 0)
    num_documents = 0
    for document in documents:
        num_documents += 1
        # A dict keeps the order of first occurrence, which makes the examples reproducible.
        shared = dict.fromkeys(gram for gram in ngrams(words(document.text), config.ngram) if gram in owners)
        if not shared:
            continue
        found.update(shared)
        counts: dict[str, int] = {}
        for gram in shared:
            for name in owners[gram]:
                if name not in counts and len(examples) < _MAX_EXAMPLES:
                    examples.append({"id": document.id, "benchmark": name, "ngram": " ".join(gram)})
                counts[name] = counts.get(name, 0) + 1
        matches[document.id] = counts
        over = [name for name, count in counts.items() if count >= config.threshold]
        for name in over:
            flagged_by[name] += 1
        if over:
            flagged.append(document.id)
    matching = dict.fromkeys(benchmarks, 0)
    for gram in found:
        for name in owners[gram]:
            matching[name] += 1
    return AuditResult(
        flagged=tuple(sorted(flagged)),
        num_documents=num_documents,
        benchmarks={
            name: BenchmarkCounts(flagged_documents=flagged_by[name], matching_ngrams=matching[name], **totals[name])
            for name in benchmarks
        },
        matches=matches,
        examples=tuple(examples),
    )


def _index(benchmarks: Mapping[str, Sequence[str]], n: int) -> tuple[dict[tuple, tuple[str, ...]], dict[str, dict]]:
    """n-gram -> names of the benchmarks that hold it, and the size of each benchmark."""
    owners: dict[tuple, tuple[str, ...]] = {}
    totals = {}
    vocabulary: dict[str, str] = {}
    for name, texts in benchmarks.items():
        # n-grams of one set of benchmarks share one tuple of names.
        extended = {(): (name,)}
        num_ngrams = short = 0
        for text in texts:
            # One string object per different word, not per occurrence.
            sequence = [vocabulary.setdefault(word, word) for word in words(text)]
            short += len(sequence) < n
            for gram in ngrams(sequence, n):
                names = owners.get(gram, ())
                if name not in names:
                    owners[gram] = extended.setdefault(names, names + (name,))
                    num_ngrams += 1
        totals[name] = {"benchmark_ngrams": num_ngrams, "texts": len(texts), "short_texts": short}
    return owners, totals


def load_benchmark_texts(path: str | os.PathLike) -> list[str]:
    """The texts of a JSON-lines benchmark: each string in a row and in its lists, except "id" and "source"."""
    texts = []
    for row in read_rows(path, what="benchmark"):
        if not isinstance(row, dict):
            raise InputError(f"benchmark {path}: every line must be a JSON object, found {type(row).__name__}")
        for field, value in row.items():
            if field not in ("id", "source"):
                texts += [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str)]
    if not texts:
        raise InputError(f"benchmark {path} holds no text: give each line a field with a string")
    return texts
