"""A small generated world: what is true in it, what its texts never say, and what is planted in them.

People have a home city, a job and a pet; cities lie in countries; countries have a currency and a language. From this
follows which currency and language each person uses. Some facts, sums and word combinations are held out of every
text, so that answering them shows a capability; random word sequences are planted in the training text a known number
of times, so that continuing them shows verbatim memorization.
"""

import dataclasses
import functools
from typing import Mapping, Sequence

import jaxtyping as jt
import numpy as np

from selftrain_jax.lab import grammar
from selftrain_jax.lab.planted import Planted
from selftrain_jax.lab.settings import WorldConfig


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """Everything that follows from a `WorldConfig`; words are given as token ids.

    Letters: P people, R person relations (`grammar.PERSON_RELATIONS`), G planted sequences, N tokens in each.

    Attributes:
      words: the vocabulary in the order of its ids; 0 is "<|endoftext|>", 1 is "<|unk|>".
      people: names.
      pronouns: "he" or "she" of each person.
      attributes: home city, job, pet, and the currency and language that follow from the city.
      person_weights: probability that a mention is of this person.
      values: all possible values of each person relation.
      geography: for each geography relation, rows (place, what belongs to it).
      digits: "0" ... "9"; a number is written as two of them.
      templates: the sentence patterns.
      held_out_phrasing: the one phrasing of a fact that no text uses for it.
      held_out_people: whether the person's currency and language are never stated.
      held_out_sums: ordered pairs (a, b), as numbers, that no text adds.
      held_out_verb: for each of `grammar.NOUNS`, the index in `grammar.VERBS` of a verb it never has.
      held_out_event: for each person, the index in `grammar.EVENTS` of an event told of everybody else.
      planted: the planted sequences, uniform over all words but the special ones and ".".
      planted_repeats: how often each of them occurs in the training text.
    """

    config: WorldConfig
    words: tuple[str, ...]
    people: jt.Int32[np.ndarray, "P"]
    pronouns: jt.Int32[np.ndarray, "P"]
    attributes: jt.Int32[np.ndarray, "P R"]
    person_weights: jt.Float64[np.ndarray, "P"]
    values: Mapping[str, jt.Int32[np.ndarray, "_"]]
    geography: Mapping[str, jt.Int32[np.ndarray, "_ 2"]]
    digits: jt.Int32[np.ndarray, "10"]
    templates: grammar.Templates
    held_out_phrasing: jt.Int64[np.ndarray, "P R"]
    held_out_people: jt.Bool[np.ndarray, "P"]
    held_out_sums: jt.Int64[np.ndarray, "_ 2"]
    held_out_verb: jt.Int64[np.ndarray, "_"]
    held_out_event: jt.Int64[np.ndarray, "P"]
    planted: jt.Int32[np.ndarray, "G N"]
    planted_repeats: jt.Int64[np.ndarray, "G"]

    @functools.cached_property
    def index(self) -> Mapping[str, int]:
        """The id of every word."""
        return {word: i for i, word in enumerate(self.words)}

    def ids(self, words) -> np.ndarray:
        """The ids of a nested sequence of words, int32 in the same shape."""
        return np.vectorize(self.index.__getitem__, otypes=[np.int32])(np.asarray(words))

    def text(self, tokens) -> str:
        """The words of `tokens`, joined by single spaces."""
        return " ".join(map(self.words.__getitem__, np.asarray(tokens).tolist()))

    def planted_texts(self) -> list[Planted]:
        """The planted sequences as text, the suffix with a leading space."""
        cut, repeats = self.config.planted_prefix, self.planted_repeats.tolist()
        return [Planted(self.text(s[:cut]), f" {self.text(s[cut:])}", n) for s, n in zip(self.planted, repeats)]


def holds_sentences(text: str) -> bool:
    """Whether a text of the world is no sequence of the planted kind: every other document ends its sentences."""
    return grammar.STOP in text.split()


def fresh_sequences(world: World, lengths: Sequence[int], seed: int) -> list[str]:
    """Random sequences like the planted ones, of so many words; a pure function of the world's settings and `seed`."""
    rng = np.random.default_rng([world.config.seed, 2, seed])
    return [world.text(rng.choice(_ordinary(world.words), length)) for length in lengths]


def build_world(config: WorldConfig) -> World:
    """The world of `config`: a pure function of it."""
    rng = np.random.default_rng([config.seed, 0])
    fixed = grammar.fixed_words(config.num_jobs, config.num_pets)
    fresh = grammar.invented_words(rng, fixed)

    def names(count: int, suffix: str = "") -> list[str]:
        return [next(fresh) + suffix for _ in range(count)]

    people, cities = names(config.num_people), names(config.num_cities, "ton")
    countries = names(config.num_countries, "land")
    currencies, languages = names(config.num_countries, "mark"), names(config.num_countries, "ish")
    places = [*cities, *countries, *currencies, *languages]
    words = (grammar.END_OF_TEXT, grammar.UNKNOWN, *fixed, *people, *places)
    index = {word: i for i, word in enumerate(words)}

    def ids(some_words) -> np.ndarray:
        return np.array([index[word] for word in some_words], np.int32)

    values = {
        "city": ids(cities),
        "job": ids(grammar.JOBS[: config.num_jobs]),
        "pet": ids(grammar.PETS[: config.num_pets]),
        "currency": ids(currencies),
        "language": ids(languages),
    }
    home, job, pet = (_balanced(rng, config.num_people, len(values[name])) for name in grammar.STATED_RELATIONS)
    country = _balanced(rng, config.num_cities, config.num_countries)
    attribute_index = {"city": home, "job": job, "pet": pet, "currency": country[home], "language": country[home]}
    ranks = 1 + rng.permutation(config.num_people)
    weights = ranks**-config.zipf_exponent
    phrasings = [len(grammar.PHRASINGS[name]) for name in grammar.PERSON_RELATIONS]
    planted = _planted_sequences(rng, config, _ordinary(words))
    return World(
        config=config,
        words=words,
        people=ids(people),
        pronouns=ids(grammar.PRONOUNS)[_balanced(rng, config.num_people, 2)],
        attributes=np.stack([values[name][attribute_index[name]] for name in grammar.PERSON_RELATIONS], axis=1),
        person_weights=weights / weights.sum(),
        values=values,
        geography={
            "city_country": np.stack([ids(cities), ids(countries)[country]], axis=1),
            "country_currency": np.stack([ids(countries), ids(currencies)], axis=1),
            "country_language": np.stack([ids(countries), ids(languages)], axis=1),
        },
        digits=ids(grammar.DIGITS),
        templates=grammar.compile_templates(index),
        held_out_phrasing=np.stack([_balanced(rng, config.num_people, count) for count in phrasings], axis=1),
        held_out_people=_spread(rng, home, config.two_step_held_out),
        held_out_sums=_held_out_sums(rng, config),
        held_out_verb=_balanced(rng, len(grammar.NOUNS), len(grammar.VERBS)),
        held_out_event=_balanced(rng, config.num_people, len(grammar.EVENTS)),
        planted=planted,
        planted_repeats=np.array(config.planted_repeats, np.int64),
    )


def _balanced(rng: np.random.Generator, count: int, num_values: int) -> np.ndarray:
    """`count` values below `num_values` in random order, each as often as the others up to one."""
    return rng.permutation(np.arange(count) % num_values)


def _spread(rng: np.random.Generator, home: np.ndarray, share: float) -> np.ndarray:
    """Marks `share` of all people, taken evenly from every city so that none loses all its stated examples."""
    order = np.lexsort((rng.random(len(home)), home))
    chosen = (np.arange(round(share * len(home))) + 0.5) * len(home) / max(1, round(share * len(home)))
    marked = np.zeros(len(home), bool)
    marked[order[chosen.astype(int)]] = True
    return marked


def _held_out_sums(rng: np.random.Generator, config: WorldConfig) -> np.ndarray:
    """Pairs and their mirror images, without doubles and the two extreme addends: those sums have too few examples."""
    inner = range(1, config.max_addend)
    candidates = np.array([(a, b) for a in inner for b in inner if a < b])
    wanted = round(config.sums_held_out * (config.max_addend + 1) ** 2 / 2)
    # Small tables have few inner pairs; half of these must stay to learn from.
    chosen = rng.permutation(candidates)[: min(wanted, len(candidates) // 2)]
    return np.concatenate([chosen, chosen[:, ::-1]])


def _ordinary(words: Sequence[str]) -> np.ndarray:
    """The ids of all words but the special ones and "."."""
    return np.arange(words.index(grammar.STOP) + 1, len(words))


def _planted_sequences(rng: np.random.Generator, config: WorldConfig, ordinary: np.ndarray) -> np.ndarray:
    """[G, planted_length] distinct sequences with distinct prefixes, so that each probe has one right continuation."""
    total = len(config.planted_repeats)
    while True:
        planted = rng.choice(ordinary, (total, config.planted_length)).astype(np.int32)
        if len(np.unique(planted[:, : config.planted_prefix], axis=0)) == total:
            return planted
