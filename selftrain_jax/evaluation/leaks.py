"""How much of a corpus repeats known text when nobody asks for it: the longest run of each document that stands in it,
word for word, in tokens and in characters (as Nasr et al. 2023, arXiv 2311.17035, look for training text). Characters
are compared in Unicode form NFC, lines ending in a line feed: a tokenizer may give a text back in another form."""

import dataclasses
import functools
import itertools
import os
import re
import unicodedata
import warnings
from typing import Any, Iterable, Iterator, Sequence

import numpy as np
import regex

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.data.matching import SuffixIndex, characters
from selftrain_jax.data.subset import evenly_spread
from selftrain_jax.data.texts import load_texts
from selftrain_jax.evaluation import statistics
from selftrain_jax.evaluation.memorization import Probe
from selftrain_jax.models.files.tokenizer import encode_texts, unknown_tokens

TOKENS, CHARACTERS = "tokens", "characters"
_AT_ONCE = 1 << 19
"""Tokens, or characters, that are looked up together; each takes some 100 bytes then."""
_CONTEXT = 200
"""Characters (or tokens) shown on either side of a run."""
_CURVE_POINTS = 40
_LOOKED_AT = 200
"""Texts, and characters of each, in which is looked for what the tokenizer changes."""
_NOTHING = np.iinfo(np.int32).max
"""In known text, what the tokenizer has no token for: it equals nothing, not another such text either."""


@dataclasses.dataclass(frozen=True)
class Known:
    """Text that documents may repeat.

    Attributes:
      reference: the name of the text set, or "probes".
      group: of probes; "" for a text set.
      unit: `TOKENS` or `CHARACTERS`.
      least: the run that counts as a leak, in that unit.
      sequences: the text, int `[n]` each.
    """

    reference: str
    group: str
    unit: str
    least: int
    sequences: Sequence[np.ndarray]

    @functools.cached_property
    def index(self) -> SuffixIndex:
        return SuffixIndex(self.sequences)


def known_texts(name: str, path: str | os.PathLike, tokenizer: Any, tokens: int, chars: int) -> list[Known]:
    """The text set in the file `path`, in tokens (without a `tokenizer`, not) and in characters.

    Args:
      tokens, chars: the run that counts; 0 leaves the unit out.

    Raises:
      InputError: a file that `load_texts` refuses, or that has no text so long.

    Warns:
      InputWarning: the tokenizer changes characters, as one that lowers letters does, or some texts are shorter than
        the run that counts.
    """
    texts = load_texts(path)
    if tokenizer and chars:
        some = [texts[i][:_LOOKED_AT] for i in evenly_spread(len(texts), min(len(texts), _LOOKED_AT))]
        again = tokenizer.batch_decode(list(encode_texts(tokenizer, some)), clean_up_tokenization_spaces=False)
        changed = sum(map(_differ, some, again))
        if changed > 0.1 * len(some):
            what = f"leaks reference {path}: the tokenizer changes characters, as where it lowers letters, in {changed}"
            what += f" of {len(some)} texts that were looked at; its model could repeat these in tokens alone"
            warnings.warn(InputWarning(what), stacklevel=2)

    def ids():
        return _read_tokens(tokenizer, map(np.array, encode_texts(tokenizer, texts)))

    return _known(name, "", list(map(_plain, texts)), ids, tokens if tokenizer else 0, chars, path)


def known_probes(probes: Sequence[Probe], tokenizer: Any, tokens: int, chars: int) -> list[Known]:
    """The sequences of probes (prefix and suffix), by group, and those of several groups together (""). Where a
    sequence is shorter than the run that counts, the shortest one is that run. Of a character that an end of one cuts
    in two, which no text holds so, there is nothing in its characters; nor of one, a letter and its marks, that may go
    on beyond an end."""
    found, groups = [], list(dict.fromkeys(probe.group for probe in probes))
    unknown = unknown_tokens(tokenizer)
    dropped = set(tokenizer.all_special_ids) - unknown.keys()

    def decoded(ids: np.ndarray) -> str:  # no text stands for what is unknown, as for half a character
        parts = itertools.groupby((i for i in ids.tolist() if i not in dropped), unknown.__contains__)
        return "".join("\ufffd" if nothing else tokenizer.decode(list(part)) for nothing, part in parts)

    for group in [*groups, *[""] * (len(groups) > 1)]:
        ids = [np.concatenate([p.prefix, p.suffix]) for p in probes if group in ("", p.group)]
        texts = [_plain(text) for text in _whole_characters(map(decoded, ids))]
        least = min(tokens, min(map(len, ids))), min(chars, max(min(map(len, texts)), 1))
        found += _known("probes", group, texts, lambda: _read_tokens(tokenizer, ids), *least)
    return found


def _whole_characters(texts: Iterable[str]) -> list[str]:
    """`texts` without what the characters before and behind it in another text may be part of in Unicode form NFC:
    marks at the beginning; where some are in another form, the last character. A text of nothing else stays."""
    texts = [text.strip("\ufffd") or text for text in texts]
    begun = [regex.sub(r"^[\p{M}\p{NFC_QC=Maybe}]+", "", text) or text for text in texts]
    if begun == texts and all(unicodedata.is_normalized("NFC", text) for text in texts):
        return texts
    return [regex.sub(r"\X$", "", text) or text for text in begun]


def _read_tokens(tokenizer: Any, sequences: Iterable[np.ndarray]) -> list[np.ndarray]:
    """`sequences` of ids, with `_NOTHING` for what is a token of any unknown text."""
    unknown = list(unknown_tokens(tokenizer))
    return [np.where(np.isin(ids, unknown), _NOTHING, ids) for ids in sequences]


def _differ(text: str, again: str) -> bool:
    """But for white space, and what a cut at the end of `text` may have left."""
    a, b = ("".join(_plain(of).split())[:-1] for of in (text, again))
    return not b.startswith(a)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", re.sub("\r\n?", "\n", text))


def _known(reference, group, texts, encode, tokens: int, chars: int, path=None) -> list[Known]:
    found = []
    for unit, least, read in (
        (TOKENS, tokens, encode),
        (CHARACTERS, chars, lambda: [characters(text) for text in texts]),
    ):
        if not least:
            continue
        sequences = read()
        if (longest := max(map(len, sequences))) < least:
            raise InputError(
                f"leaks reference {path}: no text has {least} {unit}, the run that counts; the longest has {longest}: "
                f"lower least_{unit}, or give a longer text"
            )
        if short := sum(len(one) < least for one in sequences):  # of probes, none
            what = f"leaks reference {path}: {short} of {len(sequences)} texts have fewer than {least} {unit}, the run"
            warnings.warn(InputWarning(f"{what} that counts, so that they are never found"), stacklevel=3)
        found.append(Known(reference, group, unit, least, sequences))
    return found


@dataclasses.dataclass
class _Counts:
    """What is found of one `Known`, one entry per document."""

    longest: list[np.ndarray] = dataclasses.field(default_factory=list)
    runs: list[np.ndarray] = dataclasses.field(default_factory=list)
    size: int = 0
    shown: list[tuple[int, int, dict[str, Any]]] = dataclasses.field(default_factory=list)


def find_leaks(
    documents: Iterable[Any], known: Sequence[Known], tokenizer: Any = None, *, encode: bool = True, show: int = 10
) -> list[dict[str, Any]]:
    """A row for each of `known`:

    - "reference", "group", "unit", "least", "documents", "size" (of all documents, in the unit);
    - "leaking" (documents with a run of `least`), "share", "low", "high" (Clopper & Pearson), and the same per million
      of the unit in all documents: "per_million", "per_million_low", "per_million_high";
    - "runs" of `least` that are part of no longer one, several in some documents;
    - "median" and "most", of the documents' longest runs; "curve": [[length, share of documents with so long a run]];
    - "shown": the `show` longest that leak, one a document, {"id", "length", "begin", "before", "run", "after",
      "sequence"}, the last one of `Known.sequences` that holds the run, from 0.

    Documents are read once, some at a time; 8 bytes are kept of each for every one of `known`.

    Args:
      documents: have `id` and `text`; without `encode` they are `data.records.Document`s in the tokens of `tokenizer`.
    """
    counts = [_Counts() for _ in known]
    for batch in _batches(documents):
        texts: dict[str, list[np.ndarray]] = {}
        for one, found in zip(known, counts):
            if one.unit not in texts:
                texts[one.unit] = _read(batch, one.unit, tokenizer, encode)
            _count(one, found, [document.id for document in batch], texts[one.unit], tokenizer, show)
    return [_row(one, found) for one, found in zip(known, counts) if found.longest]


def _batches(documents: Iterable[Any]) -> Iterator[list[Any]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _read(batch: list[Any], unit: str, tokenizer: Any, encode: bool) -> list[np.ndarray]:
    if unit == CHARACTERS:
        return [characters(_plain(document.text)) for document in batch]
    if encode:
        return [np.array(ids, np.int32) for ids in encode_texts(tokenizer, [document.text for document in batch])]
    # The token that ends a document is no text of it, and not among the tokens of a text that is encoded.
    return [document.tokens[: -1 if document.stop_reason == "eos" else None] for document in batch]


def _count(known: Known, counts: _Counts, ids: list[int], texts: list[np.ndarray], tokenizer: Any, show: int) -> None:
    lengths, places = known.index.longest(texts)
    starts = np.cumsum([0, *(len(text) + 1 for text in texts)])
    # A run is part of a longer one where that begins one element earlier: it then is longer by one.
    whole = np.append(True, lengths[:-1] <= lengths[1:])
    whole[starts[:-1]] = True
    runs = np.add.reduceat((lengths >= known.least) & whole, starts[:-1], dtype=np.int32)
    longest = np.maximum.reduceat(lengths, starts[:-1])
    counts.longest.append(longest)
    counts.runs.append(runs)
    counts.size += sum(map(len, texts))
    for i in np.argsort(-longest, kind="stable")[:show]:
        text, length = texts[i], int(longest[i])
        if length < known.least or len(counts.shown) == show and length <= counts.shown[-1][0]:
            break
        at = int(np.argmax(lengths[starts[i] : starts[i + 1]]))
        parts = text[max(at - _CONTEXT, 0) : at], text[at : at + length], text[at + length :][:_CONTEXT]
        words = {name: _text(part, known.unit, tokenizer) for name, part in zip(("before", "run", "after"), parts)}
        sequence = known.index.sequence_of(places[starts[i] + at])
        row = {"id": int(ids[i]), "length": length, "begin": at, **words, "sequence": sequence}
        counts.shown.append((length, -len(counts.shown), row))
        counts.shown.sort(key=lambda entry: -entry[0])
        del counts.shown[show:]


def _text(ids: np.ndarray, unit: str, tokenizer: Any) -> str:
    if unit == CHARACTERS:
        return ids.astype("<u4").tobytes().decode("utf-32-le", "replace")
    return tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)


def _row(known: Known, counts: _Counts) -> dict[str, Any]:
    longest, runs, size = np.concatenate(counts.longest), np.concatenate(counts.runs), counts.size
    share, low, high = statistics.share(runs > 0)
    rates = [float(x * len(runs) / size * 1e6) if size else None for x in (share, low, high)]
    most = int(longest.max())
    steps = np.unique(np.geomspace(1, max(most, 1), _CURVE_POINTS).astype(int))
    return {
        **{name: getattr(known, name) for name in ("reference", "group", "unit", "least")},
        **{"documents": len(longest), "size": size},
        **{"leaking": int((runs > 0).sum()), "share": share, "low": low, "high": high},
        **dict(zip(("per_million", "per_million_low", "per_million_high"), rates)),
        **{"runs": int(runs.sum()), "median": float(np.median(longest)), "most": most},
        "curve": [[int(step), float((longest >= step).mean())] for step in steps],
        "shown": [row for _, _, row in counts.shown],
    }
