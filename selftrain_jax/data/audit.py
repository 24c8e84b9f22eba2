"""Contamination audit: which documents share word n-grams with a benchmark.

Words are found like this: Unicode NFKC, lower case, removal of every punctuation mark, symbol, control and format
character (Unicode categories P*, S*, Cc, Cf) that is not white space, and of what chooses the form of another character
(Default_Ignorable_Code_Point, as behind an emoji), and a split at white space. So "Don't" is `dont`, "a - b" is two
words and "a-b" is one. U+200B and the Ethiopic wordspace are white space here. Where a script puts no
space between words (`_UNSPACED`), every letter or digit, with its marks, is a word. The method is the n-gram overlap of
Brown et al. 2020 (arXiv:2005.14165, appendix C).
"""

import dataclasses
import itertools
import os
import unicodedata
import warnings
from typing import Any, Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import regex

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.rows import has_text, read_rows
from selftrain_jax.data.ngram_filter import NgramFilter, in_blocks
from selftrain_jax.data.settings import AuditConfig

_MAX_EXAMPLES = 20
_SCRIPTS = (
    "Han Hiragana Katakana Bopomofo Yi Thai Lao Khmer Myanmar Tibetan Tai_Le New_Tai_Lue Tai_Tham Tai_Viet Cham "
    "Javanese Balinese"
)
_UNSPACED = regex.compile(r"(?V1)[[%s]&&[\p{L}\p{N}]]" % "".join(rf"\p{{scx={s}}}" for s in _SCRIPTS.split()))
_IGNORABLE = regex.compile(r"\p{Default_Ignorable_Code_Point}")
_MARKED = regex.compile(r"\x00(.\p{M}*)")
_ID = regex.compile(r"(?:(?:^|[\W_])(?i:ids?)|\p{Ll}I[dD]s?|^cluster)$")
_LONG_WORD = 16
"""Characters per word above which a text has no words in it, or none that are separated."""


@dataclasses.dataclass(frozen=True)
class BenchmarkCounts:
    """What one benchmark has in common with the documents.

    Attributes:
      flagged_documents: documents that share at least the threshold number of n-grams with it.
      matching_ngrams: its different n-grams that occur in any document.
      benchmark_ngrams: its different n-grams.
      texts: its texts.
      short_texts: those of them with fewer than n words, which count as one n-gram each, matched whole.
      unindexed_texts: those of one word or none (none, for unigrams), which nothing can match.
    """

    flagged_documents: int
    matching_ngrams: int
    benchmark_ngrams: int
    texts: int
    short_texts: int
    unindexed_texts: int


class Phrases:
    """Sequences of two or more words, found wherever they stand as a contiguous run."""

    def __init__(self, phrases: Iterable[tuple[str, ...]] = ()):
        self._phrases: set[tuple[str, ...]] = set()
        self._lengths: dict[tuple[str, str], set[int]] = {}  # by the first two words
        for phrase in phrases:
            self.add(phrase)

    def add(self, phrase: tuple[str, ...]) -> None:
        self._phrases.add(phrase)
        self._lengths.setdefault(phrase[:2], set()).add(len(phrase))

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return iter(self._phrases)

    def found_in(self, sequence: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """The phrases in `sequence` by their place, each as often as it stands there."""
        for start, pair in enumerate(zip(sequence, sequence[1:])):
            for length in sorted(self._lengths.get(pair, ())):
                if (phrase := tuple(sequence[start : start + length])) in self._phrases:
                    yield phrase


@dataclasses.dataclass(frozen=True)
class AuditResult:
    """Outcome of `audit`.

    Attributes:
      flagged: ids of the flagged documents, sorted.
      left_out: those of them that a benchmark outside `AuditConfig.count_only` flags.
      num_documents: documents scanned.
      benchmarks: counts by benchmark.
      matches: document id -> benchmark -> number of different n-grams shared; documents that share none are left out.
      examples: the first matches found, as {"id", "benchmark", "ngram"}; one per document and benchmark.
    """

    flagged: tuple[int, ...]
    left_out: tuple[int, ...]
    num_documents: int
    benchmarks: dict[str, BenchmarkCounts]
    matches: dict[int, dict[str, int]]
    examples: tuple[dict[str, Any], ...]


class _Table(dict):
    """A `str.translate` table that decides about a character when it first meets it; `\\0` marks the `_UNSPACED`."""

    def __missing__(self, code: int) -> int | str | None:
        character = chr(code)
        category = unicodedata.category(character)
        delete = category[0] in "PS" or category in ("Cc", "Cf") or _IGNORABLE.match(character)
        delete = delete and not character.isspace()
        self[code] = None if delete else f"\0{character}" if _UNSPACED.match(character) else code
        return self[code]


_TABLE = _Table(str.maketrans("\u200b\u1361", "  "))


def words(text: str) -> list[str]:
    """The words of `text` as the audit compares them; the module docstring defines them."""
    return _folded(text).split()


def _folded(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).lower().translate(_TABLE)
    return _MARKED.sub(r" \1 ", text) if "\0" in text else text


def ngrams(sequence: Sequence, n: int) -> Iterable[tuple]:
    """All runs of `n` consecutive elements of `sequence`, in order."""
    return zip(*(sequence[start:] for start in range(n)))


def audit(documents: Iterable[Any], benchmarks: Mapping[str, Sequence[str]], config: AuditConfig) -> AuditResult:
    """Scans `documents` (anything with `id` and `text`) for word n-grams of `benchmarks` (name -> texts).

    A text of fewer than n words is matched whole, as one n-gram. N-grams are compared as they are, not as hashes, so
    every match is real. Memory grows with the benchmarks, by some 0.2 GB per million words; documents are read once and
    not kept.

    Warns:
      InputWarning: a benchmark holds nothing that could match, or long texts that have too few words for it.
    """
    if not benchmarks:
        raise InputError("audit needs at least one benchmark to compare with: name one, or leave the audit out")
    owners, shorter, totals = _index(benchmarks, config.ngram)
    matches: dict[int, dict[str, int]] = {}
    flagged, left_out, examples, found = [], [], [], set()
    flagged_by = dict.fromkeys(benchmarks, 0)
    num_documents = 0

    def counted():
        nonlocal num_documents
        for document in documents:
            num_documents += 1
            yield document.text, document

    for sequence, document in _candidates(counted(), owners):
        # A dict keeps the order of first occurrence, which makes the examples reproducible.
        shared = dict.fromkeys(gram for gram in ngrams(sequence, config.ngram) if gram in owners)
        shared |= dict.fromkeys(shorter.found_in(sequence))
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
        if set(over).difference(config.count_only):
            left_out.append(document.id)
    matching = dict.fromkeys(benchmarks, 0)
    for gram in found:
        for name in owners[gram]:
            matching[name] += 1
    return AuditResult(
        flagged=tuple(sorted(flagged)),
        left_out=tuple(sorted(left_out)),
        num_documents=num_documents,
        benchmarks={
            name: BenchmarkCounts(flagged_documents=flagged_by[name], matching_ngrams=matching[name], **totals[name])
            for name in benchmarks
        },
        matches=matches,
        examples=tuple(examples),
    )


def _candidates(texts: Iterable[tuple[str, Any]], sequences: Iterable[tuple[str, ...]]) -> Iterator[tuple[list, Any]]:
    """The words of each text that may hold one of `sequences`, and what came with it. Nearly all others are left out,
    which saves most of the time."""
    sought = NgramFilter(sequences)
    for block in in_blocks(((_folded(text), owner) for text, owner in texts), lambda pair: len(pair[0])):
        for (text, owner), passes in zip(block, sought.passing([text for text, _ in block])):
            if passes:
                yield text.split(), owner


def _index(
    benchmarks: Mapping[str, Sequence[str]], n: int
) -> tuple[dict[tuple, tuple[str, ...]], Phrases, dict[str, dict]]:
    """n-gram, or whole text of fewer words -> names of the benchmarks that hold it; the whole texts among them; and the
    size of each benchmark."""
    owners: dict[tuple, tuple[str, ...]] = {}
    shorter, totals = Phrases(), {}
    vocabulary: dict[str, str] = {}
    for name, texts in benchmarks.items():
        # n-grams of one set of benchmarks share one tuple of names.
        extended = {(): (name,)}
        num_ngrams = short = unindexed = joined = 0
        for text in texts:
            # One string object per different word, not per occurrence.
            sequence = tuple(vocabulary.setdefault(word, word) for word in words(text))
            if len(sequence) < n:
                short += 1
                joined += sum(map(len, sequence)) >= _LONG_WORD * n
                if len(sequence) < 2:
                    unindexed += 1
                    continue
                shorter.add(sequence)
            for gram in ngrams(sequence, min(n, len(sequence))):
                names = owners.get(gram, ())
                if name not in names:
                    owners[gram] = extended.setdefault(names, names + (name,))
                    num_ngrams += 1
        what = f"of {len(texts)} texts of benchmark {name}"
        counts = {"texts": len(texts), "short_texts": short, "unindexed_texts": unindexed}
        totals[name] = {"benchmark_ngrams": num_ngrams} | counts
        if joined:
            more = "although they are long, so their words are not told apart, and nothing but the whole can match them"
            warnings.warn(f"audit: {joined} {what} have fewer than ngram={n} words {more}", InputWarning, stacklevel=3)
        elif unindexed > 0.1 * len(texts):
            more = "have fewer than two words, and nothing can match them: join them with what they answer"
            warnings.warn(f"audit: {unindexed} {what} {more}", InputWarning, stacklevel=3)
    return owners, shorter, totals


def item_texts(row: Mapping[str, Any], template: str = "{question}") -> list[list[str]] | None:
    """How an item of a suite may stand in a text: of multiple choice each choice behind the question, plainly and as
    the prompt `template` puts it; of a minimal pair the two sentences. None for a row that is neither."""
    question, choices = row.get("question"), row.get("choices")
    if isinstance(question, str) and isinstance(choices, list) and all(isinstance(c, str) for c in choices):
        prompts = dict.fromkeys((question, template.format(question=question)))
        return [[f"{prompt} {choice.strip()}" for prompt in prompts] for choice in choices]
    pair = [row.get("sentence_good"), row.get("sentence_bad")]
    return [[sentence] for sentence in pair] if all(isinstance(sentence, str) for sentence in pair) else None


def contaminated_items(
    suites: Mapping[str, Sequence[Mapping[str, Any]]], documents: Iterable[str], template: str = "{question}"
) -> dict[str, list[bool]]:
    """By suite, for every item: whether its question with its right answer, or its good sentence, stands in a document,
    all words in order (`item_texts`)."""
    sought = {
        name: [[tuple(words(text)) for text in item_texts(row, template)[row.get("gold", 0)]] for row in rows]
        for name, rows in suites.items()
    }
    return _standing(sought, documents)


def overlapping(texts: Mapping[str, Sequence[str]], documents: Iterable[str], n: int) -> dict[str, list[bool]]:
    """By name, for every text: whether `n` words in a row of it (of fewer words, all) stand in a document; of one word
    or none, False."""

    def runs(sequence):
        return set(ngrams(sequence, min(n, len(sequence)))) if len(sequence) > 1 else set()

    return _standing({name: [runs(words(text)) for text in of] for name, of in texts.items()}, documents)


def shared_part(texts: Sequence[str], documents: Iterable[str], n: int) -> float:
    """The share of `texts`, in runs of `n` words one behind the other, that stands in a document however both are cut
    into documents; what is left at the end of a text does not count."""
    runs = [{run} for text in texts for run in itertools.islice(ngrams(words(text), n), 0, None, n)]
    return float(np.mean(_standing({"": runs}, documents)[""])) if runs else 0.0


def _standing(
    sought: Mapping[str, Sequence[Collection[tuple[str, ...]]]], documents: Iterable[str]
) -> dict[str, list[bool]]:
    """By name, for every item: whether one of its phrases of two words and more stands in a document."""
    phrases = Phrases(p for items in sought.values() for item in items for p in item if len(p) > 1)
    candidates = _candidates(((text, None) for text in documents), phrases)
    found = {phrase for sequence, _ in candidates for phrase in phrases.found_in(sequence)}
    return {name: [not found.isdisjoint(item) for item in items] for name, items in sought.items()}


def load_benchmark_texts(path: str | os.PathLike, join_fields: bool = True, template: str = "{question}") -> list[str]:
    """The texts of a benchmark's rows: all `item_texts`, and with `join_fields` all strings of a row as one text, in
    order; without it each string that is part of no such item. Strings are looked for however deep, names of several
    words within an object of a row too, but not in a field called "id", "..._id" or "...Id"."""
    texts: list[str] = []
    for row in read_rows(path, what="benchmark"):
        if not isinstance(row, dict):
            raise InputError(f"benchmark {path}: every row must be a JSON object, found {type(row).__name__}")
        items = [text for side in item_texts(row, template) or () for text in side]
        found = list(_strings(row))
        if join_fields:
            others = [" ".join(found)] * bool(found)
        else:
            others = [text for text in found if not any(text in item for item in items)]
        texts += dict.fromkeys([*items, *others]) if items else others
    if not any(map(has_text, texts)):
        raise InputError(f"benchmark {path} holds no text: give each row a field with a string")
    return texts


def _strings(row: dict) -> Iterator[str]:
    waiting: list[Any] = [row]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            for name, inner in reversed(value.items()):
                if not _ID.search(name):
                    # TruthfulQA has {"an answer": 1, "another answer": 0}.
                    waiting += [inner, *([name] if value is not row and len(words(name)) > 1 else [])]
        elif isinstance(value, list):
            waiting += reversed(value)
