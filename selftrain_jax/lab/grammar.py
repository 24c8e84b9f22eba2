"""The words and sentence patterns of the generated language.

A phrasing is a string of lower-case words in which the capitals A to F are slots. Every sentence ends with the
word ".". Compiled, a phrasing is one row of an integer table, so that many sentences are filled in by array indexing.
"""

import dataclasses
from typing import Iterator, Mapping, Sequence

import jaxtyping as jt
import numpy as np

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unk|>"
STOP = "."
SLOTS = "ABCDEF"
PAD = -len(SLOTS) - 1
"""Marks unused columns of a template; -1 ... -6 are the slots A ... F, and everything from 0 up is a token id."""

PERSON_RELATIONS = ("city", "job", "pet", "currency", "language")
STATED_RELATIONS = PERSON_RELATIONS[:3]
ENTAILED_RELATIONS = PERSON_RELATIONS[3:]

PHRASINGS: dict[str, tuple[str, ...]] = {
    # A person (A) and the value of one attribute (B).
    "city": ("A lives in B", "A has a house in B", "A comes from B", "A rents rooms in B", "A sleeps in B every night"),
    "job": (
        "A works as a B",
        "A is a good B",
        "A earns money as a B",
        "A trained to be a B",
        "A got hired as a B again",
    ),
    "pet": ("A owns a B", "A keeps a B", "A has a pet B", "A feeds a small B", "A plays with a B every day"),
    "currency": ("A pays in B", "A carries B", "A saves some B", "A counts B every day"),
    "language": ("A speaks B", "A writes in B", "A sings in B", "A reads B every night"),
    # A place (A) and what belongs to it (B).
    "city_country": ("A is a city in B", "A belongs to B", "the city A lies in B", "maps show A in B"),
    "country_currency": ("people in A pay in B", "the money of A is B", "shops in A take B", "banks in A print B"),
    "country_language": (
        "people in A speak B",
        "the language of A is B",
        "books from A are in B",
        "schools in A teach B",
    ),
    # Tens and units of two addends and their sum. As single words, a small model learns the table by heart instead.
    "sum": ("A B plus C D is E F",),
    # Noun, preposition, a second noun of either number, verb agreeing with the first.
    "agreement": ("the A B the C D",),
    # Person, event, pronoun agreeing with the person, mood.
    "pronoun": ("A B because C was D",),
}

GEOGRAPHY_RELATIONS = ("city_country", "country_currency", "country_language")
PRONOUNS = ("he", "she")
DIGITS = tuple("0123456789")

# All begin with a consonant sound, so that "a" is always the right article.
JOBS = tuple(
    "baker teacher doctor farmer painter driver lawyer singer tailor miner sailor judge nurse writer "
    "dancer barber".split()
)
PETS = tuple(
    "cat dog parrot rabbit turtle hamster goldfish pony lizard pigeon ferret mouse snake canary gecko goose".split()
)
# Nouns are (singular, plural), verbs (after a singular, after a plural).
NOUNS = tuple((noun, f"{noun}s") for noun in "tree river tower garden bridge lamp wheel boat".split())
VERBS = tuple((f"{verb}s", verb) for verb in "fall move shine grow break turn stand burn".split())
PREPOSITIONS = ("near", "behind", "beside", "above")
EVENTS = ("smiled", "cried", "waited", "shouted", "danced", "slept", "stopped", "laughed")
MOODS = ("happy", "tired", "hungry", "late", "angry", "lost", "early", "proud")

_CONSONANTS = "bdfgklmnprstvz"
_VOWELS = "aeiou"


def fixed_words(num_jobs: int, num_pets: int) -> list[str]:
    """Every word that does not depend on the seed, each once, in a stable order; all but the names."""
    words = [word for phrasings in PHRASINGS.values() for phrasing in phrasings for word in phrasing.split()]
    words = [STOP, *PRONOUNS, *(word for word in words if word not in SLOTS)]
    words += [*DIGITS, *JOBS[:num_jobs], *PETS[:num_pets], *PREPOSITIONS, *EVENTS, *MOODS]
    words += [form for forms in NOUNS + VERBS for form in forms]
    return list(dict.fromkeys(words))


def invented_words(rng: np.random.Generator, taken: Sequence[str]) -> Iterator[str]:
    """Endless pronounceable words, consonant-vowel two or three times, none of them twice or in `taken`."""
    seen = set(taken)
    while True:
        syllables = 2 + int(rng.random() < 0.3)
        word = "".join(rng.choice(list(_CONSONANTS)) + rng.choice(list(_VOWELS)) for _ in range(syllables))
        if word not in seen:
            seen.add(word)
            yield word


@dataclasses.dataclass(frozen=True, eq=False)
class Templates:
    """All phrasings as token ids.

    Attributes:
      rows: [number of phrasings, longest] token ids, slots as -1 ... -6, `PAD` at the end of short rows.
      first: the row of phrasing 0 of each entry of `PHRASINGS`; the others follow it.
    """

    rows: jt.Int32[np.ndarray, "S W"]
    first: Mapping[str, int]


def compile_templates(index: Mapping[str, int]) -> Templates:
    """The table of all phrasings, each closed by ".", under the word ids `index`."""
    symbols = {**index, **{slot: -1 - i for i, slot in enumerate(SLOTS)}}
    first, rows = {}, []
    for name, phrasings in PHRASINGS.items():
        first[name] = len(rows)
        rows += [[symbols[word] for word in f"{phrasing} {STOP}".split()] for phrasing in phrasings]
    width = max(map(len, rows))
    return Templates(np.array([row + [PAD] * (width - len(row)) for row in rows], np.int32), first)


def fill(phrasing: str, *values: str) -> str:
    """The sentence, without its ".", that `phrasing` makes of `values` in the order of the slots."""
    slots = dict(zip(SLOTS, values))
    return " ".join(slots.get(word, word) for word in phrasing.split())


def stem(phrasing: str, *values: str) -> str:
    """`phrasing` with its first slots filled, up to the first slot left over: the question whose answer goes there."""
    words = phrasing.split()
    return fill(" ".join(words[: words.index(SLOTS[len(values)])]), *values)


def digits(number: int) -> tuple[str, str]:
    """Tens and units of a number below 100, as words."""
    return DIGITS[number // 10], DIGITS[number % 10]
