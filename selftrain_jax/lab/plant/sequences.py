"""The sequences that are planted: random words, biographies of invented people, passages of a file.

Each is a pure function of (seed, kind, number) and of what it is made from, whatever else is planted."""

import dataclasses
import re
import warnings
from typing import Any, Callable, Collection, Iterator, Sequence

import numpy as np
from jaxtyping import Bool

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.data.audit import ngrams, words
from selftrain_jax.data.packing import addressed_bits, permutation
from selftrain_jax.evaluation import memorization
from selftrain_jax.lab.plant.settings import KINDS, PlantConfig
from selftrain_jax.models.files.tokenizer import UNKNOWN_TOLD, encode_texts, unknown_share

CONTENT, PLACE, NEUTRAL = range(3)
"""The streams of random bits of a sequence; the two last ones have the copy behind its number."""

NGRAM = 8
"""Words in a row that a sequence may not share with the text, nor a passage with another: those of the strict held-out
filter."""
_FEWEST_WORDS = 64


@dataclasses.dataclass(frozen=True, eq=False)
class PlantedSequence:
    """A sequence of `PlantConfig.length` tokens.

    Attributes:
      kind, number: its address.
      repeats: how often it is inserted.
      relearned: whether `recovery` trains on it rather than measuring it.
      tokens: int32 `[length]`.
      document: number, from 1, of the text that a passage is of.
    """

    kind: str
    number: int
    repeats: int
    relearned: bool
    tokens: np.ndarray
    document: int | None = None

    @property
    def address(self) -> tuple[int, int]:
        return KINDS.index(self.kind), self.number


def make_sequences(
    config: PlantConfig,
    tokenizer: Any,
    texts: Sequence[str],
    passages: Sequence[str] = (),
    special_ids: Collection[int] = (),
) -> list[PlantedSequence]:
    """All sequences, kind by kind, group by group.

    Args:
      texts: what random words are taken from.
      passages: the texts that passages are windows of; no two windows overlap or repeat each other, none reaches over
        the end of a text.
      special_ids: as of `encode_texts`.

    Raises:
      InputError: too few different words or windows, a biography shorter than a sequence, or two equal probes.

    Warns:
      InputWarning: the tokenizer has no tokens for a part of what is written.
    """
    count, found = len(config.counts) * config.sequences, []
    for kind in config.kinds:
        if kind == "passages":
            written, made = passages, _windows(config, encode_texts(tokenizer, passages, special_ids), tokenizer, count)
        else:
            write = _words_of(texts, config.length) if kind == "words" else _biography
            written = [write(_draws(config.seed, kind, number)) for number in range(count)]
            made = [(np.array(ids, np.int32), None) for ids in encode_texts(tokenizer, written, special_ids)]
        if (unknown := unknown_share(tokenizer, written)) > UNKNOWN_TOLD:
            what = f"plant kind {kind!r}: {unknown:.1%} of its text is unknown to the tokenizer"
            warnings.warn(f"{what}, so that memory of the rest is measured", InputWarning, stacklevel=2)
        for number, (tokens, document) in enumerate(made):
            if len(tokens) < config.length:
                raise InputError(
                    f"plant kind {kind!r}: sequence {number} has {len(tokens)} tokens of {config.length} = 2 * "
                    "prefix_length + suffix_length: lower these"
                )
            group, place = divmod(number, config.sequences)
            tokens = tokens[: config.length]
            found.append(PlantedSequence(kind, number, config.counts[group], place % 2 == 1, tokens, document))
    _check_different(config, found)
    return found


def _check_different(config: PlantConfig, sequences: Sequence[PlantedSequence]) -> None:
    """A probe that two sequences share was read as often as both were inserted, not as often as its group says."""
    known: dict[bytes, PlantedSequence] = {}
    for one in sequences:
        if (other := known.setdefault(one.tokens[config.prefix_length :].tobytes(), one)) is not one:
            raise InputError(
                f"plant: {other.kind} number {other.number} and {one.kind} number {one.number} have the same prefix "
                "and suffix: raise prefix_length or suffix_length, or take another text or another plant.seed"
            )


def standing_in(
    documents: Sequence[np.ndarray], sequences: Sequence[np.ndarray], tokenizer: Any
) -> Bool[np.ndarray, " sequences"]:
    """Which of the sequences have `NGRAM` words in a row that stand in a document; of fewer words, all their ids."""
    wholes = [memorization.Probe(ids[:1], ids[1:]) for ids in sequences]
    return ~memorization.held_out(wholes, documents, tokenizer, (NGRAM,))[NGRAM]


Draw = Callable[[int], int]
"""Gives a whole number below its argument."""


def _draws(seed: int, kind: str, number: int) -> Draw:
    bits = addressed_bits(seed, CONTENT, KINDS.index(kind), number)
    return lambda below: int(bits.random_raw() % below)


def _words_of(texts: Sequence[str], count: int) -> Callable[[Draw], str]:
    known = sorted({word for text in texts for word in re.findall(r"[^\W\d_]{3,}", text)})
    if len(known) < _FEWEST_WORDS:
        raise InputError(f"plant text has {len(known)} different words of three letters: {_FEWEST_WORDS} are needed")
    return lambda draw: " ".join(known[draw(len(known))] for _ in range(count))


def _windows(
    config: PlantConfig, encoded: Sequence[Sequence[int]], tokenizer: Any, count: int
) -> list[tuple[np.ndarray, int | None]]:
    places = [(i, at) for i, ids in enumerate(encoded) for at in range(0, len(ids) - config.length + 1, config.length)]
    order = permutation(addressed_bits(config.seed, CONTENT, KINDS.index("passages")), len(places))
    chosen, known = [], set()
    for i, at in (places[n] for n in order):
        ids = encoded[i][at : at + config.length]
        # What two windows share was read as often as both were inserted.
        if known.isdisjoint(runs := set(_runs(config, tokenizer, ids))):
            known |= runs
            chosen.append((np.array(ids, np.int32), i + 1))
            if len(chosen) == count:
                return chosen
    raise InputError(
        f"plant passages={config.passages!r} is too short: it has {len(places)} windows of {config.length} tokens, "
        f"{len(chosen)} of them without {NGRAM} words in a row of another, and {len(config.counts)} counts of "
        f"sequences={config.sequences} take {count}"
    )


def _runs(config: PlantConfig, tokenizer: Any, ids: Sequence[int]) -> Iterator[tuple]:
    """All runs of `NGRAM` words; of fewer words, all runs of as many tokens as a probe has."""
    found = words(tokenizer.decode(ids))
    if len(found) >= NGRAM:
        yield from ngrams(found, NGRAM)
    yield from ngrams(ids, config.length - config.prefix_length)


_SYLLABLES = "bar bel cor dal den fen gar hol jun kel lor mar nev ost per quin ras sel tor ul ven wil yar zan".split()
_MONTHS = "January February March April May June July August September October November December".split()
_TRADES = (
    "baker brewer carpenter chemist clerk cook dentist farmer glazier judge librarian mason nurse painter pilot "
    "plumber potter printer sailor surveyor tailor teacher translator weaver"
).split()
_THINGS = (
    "amber basalt cedar copper cotton flint granite honey indigo ivory linen maple ochre pearl quartz silk".split()
)
_LIFE = (
    "{name} was born on {day} {month} {year} in {place}.",
    "The {trade} {parent} raised {short} in {place} beside a house of {thing}.",
    "At the age of {age} {short} moved to {place} and became a {trade}.",
    "In {year} {short} married {other}, a {trade} from {place}.",
    "They kept {age} pieces of {thing} and {age} of {thing} in a room at number {age}.",
    "The company {place} and {place} employed {short} for {age} years, first as a {trade}, then as a {trade}.",
    "On {day} {month} {year} {short} found {thing} near {place}.",
    "A book on {thing} and {thing} made {other} of {place} a friend.",
    "{short} left {place} for {place} on {day} {month} and returned {age} months later with a {trade} named {other}.",
    "{name} died on {day} {month} {year} in {place}.",
)


def _biography(draw: Draw) -> str:
    """Facts of nobody, each drawn uniformly: none follows from another."""

    def of(options: Sequence[str]) -> str:
        return options[draw(len(options))]

    def name(parts: int) -> str:
        return "".join(of(_SYLLABLES) for _ in range(parts)).capitalize()

    first, last = name(2), name(3)
    fields = {
        "day": lambda: str(1 + draw(28)),
        "month": lambda: of(_MONTHS),
        "year": lambda: str(1900 + draw(100)),
        "age": lambda: str(11 + draw(80)),
        "place": lambda: name(3),
        "parent": lambda: name(2),
        "other": lambda: f"{name(2)} {name(2)}",
        "trade": lambda: of(_TRADES),
        "thing": lambda: of(_THINGS),
        "short": lambda: first,
        "name": lambda: f"{first} {last}",
    }
    return " ".join(re.sub(r"{(\w+)}", lambda found: fields[found[1]](), sentence) for sentence in _LIFE)
