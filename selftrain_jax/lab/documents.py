"""Texts of a generated world, drawn directly as token ids.

A document is a row of sentences, a sentence a template with up to six slots. All sentences of all documents of a kind
are drawn at once as arrays of template numbers and slot values, and turned into tokens by one indexing operation.

Letters: N documents, J sentences per document at most, S slots.
"""

from typing import Mapping

import jaxtyping as jt
import numpy as np

from selftrain_jax.core.errors import InputError
from selftrain_jax.lab import grammar
from selftrain_jax.lab.planted import mixed_order
from selftrain_jax.lab.settings import check_mixture
from selftrain_jax.lab.world import World


def generate_documents(
    world: World,
    num_documents: int,
    stream: str | int = "train",
    include_planted: bool = False,
    mixture: Mapping[str, float] | None = None,
) -> tuple[jt.Int32[np.ndarray, "tokens"], jt.Int64[np.ndarray, "documents_plus_1"]]:
    """Independent documents of the world, a pure function of the world's settings and the arguments.

    Args:
      world: the world they tell about.
      num_documents: ordinary documents; planted ones come on top.
      stream: streams of different names ("train", "control", "validation", 7, ...) are independent draws.
      include_planted: mix every planted sequence in, each repetition as a document of its own at a random position.
      mixture: weights of the kinds of document, instead of the world's own.

    Returns:
      All tokens, each document closed by end-of-text (id 0), and offsets: document i is
      tokens[offsets[i]:offsets[i + 1]], its end-of-text included. No document begins with a BOS.

    Raises:
      InputError: num_documents is negative or the mixture is unusable.
    """
    if num_documents < 0:
        raise InputError(f"num_documents={num_documents} must be at least 0")
    mixture = world.config.mixture if mixture is None else mixture
    check_mixture(mixture)
    mixture = dict(sorted(mixture.items()))  # settings are the same in any order
    rng = np.random.default_rng([world.config.seed, 1, *str(stream).encode()])
    most = world.config.max_sentences
    template = np.zeros((num_documents, most), np.int64)
    slots = np.zeros((num_documents, most, len(grammar.SLOTS)), np.int32)
    weights = np.array(list(mixture.values()), float)
    kinds = rng.choice(len(weights), num_documents, p=weights / weights.sum())
    for i, kind in enumerate(mixture):
        chosen = np.flatnonzero(kinds == i)
        template[chosen], slots[chosen] = _SENTENCES[kind](world, rng, (len(chosen), most))
    sentences = rng.integers(world.config.min_sentences, most + 1, num_documents)
    rows = _fill(world.templates.rows, template, slots, sentences)
    if include_planted:
        rows = _mix(rng, rows, np.repeat(world.planted, world.planted_repeats, axis=0))
    used = rows != grammar.PAD
    offsets = np.concatenate([[0], np.cumsum(used.sum(1))]).astype(np.int64)
    return rows[used], offsets


def document_texts(world: World, tokens: np.ndarray, offsets: np.ndarray) -> list[str]:
    """The text of every document, without its end-of-text."""
    return [world.text(tokens[start : end - 1]) for start, end in zip(offsets[:-1], offsets[1:])]


def _fill(templates: np.ndarray, template: np.ndarray, slots: np.ndarray, sentences: np.ndarray) -> np.ndarray:
    """[N, J * width + 1] tokens, padded: the first `sentences` of each row's templates, filled in, then end-of-text."""
    filled = templates[template]  # N J W
    filled[np.arange(template.shape[1]) >= sentences[:, None]] = grammar.PAD
    n, j, w = np.nonzero((filled < 0) & (filled != grammar.PAD))
    filled[n, j, w] = slots[n, j, -1 - filled[n, j, w]]
    flat = filled.reshape(len(filled), template.shape[1] * templates.shape[1])
    return np.pad(flat, ((0, 0), (0, 1)))


def _mix(rng: np.random.Generator, rows: np.ndarray, planted: np.ndarray) -> np.ndarray:
    """`rows` in their order, with the rows of `planted` (each closed by end-of-text) inserted at random positions."""
    closed = np.pad(planted, ((0, 0), (0, 1)))
    width = max(rows.shape[1], closed.shape[1])
    parts = [np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=grammar.PAD) for x in (rows, closed)]
    return np.concatenate(parts)[mixed_order(rng, len(rows), len(planted))]


def _other_than(rng: np.random.Generator, excluded: np.ndarray, count: np.ndarray | int) -> np.ndarray:
    """Uniform over 0 ... count - 1 without `excluded`, elementwise."""
    drawn = rng.integers(0, count - 1, np.shape(excluded))
    return drawn + (drawn >= excluded)


def _slots(*columns: np.ndarray) -> np.ndarray:
    """The values of the leading slots, stacked, and zeros for the unused ones."""
    unused = np.zeros_like(columns[0])
    return np.stack([*columns, *[unused] * (len(grammar.SLOTS) - len(columns))], axis=-1)


def _about_people(
    world: World, rng: np.random.Generator, shape: tuple[int, int], relations: tuple[str, ...], told: np.ndarray
):
    """Sentences on `relations` of the people marked in `told`.

    Half of the sentences after the first stay with the person of the sentence before, and half of those call the
    person "he" or "she". The relation moves on in equal steps, so that up to len(relations) such sentences all differ.
    """
    names = grammar.PERSON_RELATIONS
    weights = np.where(told, world.person_weights, 0.0)
    person = rng.choice(len(world.people), shape, p=weights / weights.sum())
    relation = rng.integers(0, len(relations), shape)
    step = rng.integers(1, len(relations), shape[0])
    stays = rng.random(shape) < 0.5
    for j in range(1, shape[1]):
        person[:, j] = np.where(stays[:, j], person[:, j - 1], person[:, j])
        relation[:, j] = np.where(stays[:, j], (relation[:, j - 1] + step) % len(relations), relation[:, j])
    stays[:, 0] = False
    pronoun = stays & (rng.random(shape) < 0.5)
    column = np.array([names.index(name) for name in relations])[relation]
    counts = np.array([len(grammar.PHRASINGS[name]) for name in names])
    phrasing = _other_than(rng, world.held_out_phrasing[person, column], counts[column])
    first = np.array([world.templates.first[name] for name in names])
    subject = np.where(pronoun, world.pronouns[person], world.people[person])
    return first[column] + phrasing, _slots(subject, world.attributes[person, column])


def _facts(world: World, rng: np.random.Generator, shape: tuple[int, int]):
    return _about_people(world, rng, shape, grammar.STATED_RELATIONS, np.ones(len(world.people), bool))


def _two_step(world: World, rng: np.random.Generator, shape: tuple[int, int]):
    return _about_people(world, rng, shape, grammar.ENTAILED_RELATIONS, ~world.held_out_people)


def _geography(world: World, rng: np.random.Generator, shape: tuple[int, int]):
    names = grammar.GEOGRAPHY_RELATIONS
    facts = np.concatenate([world.geography[name] for name in names])
    relation_of = np.repeat(np.arange(len(names)), [len(world.geography[name]) for name in names])
    fact = rng.integers(0, len(facts), shape)
    relation = relation_of[fact]
    first = np.array([world.templates.first[name] for name in names])
    counts = np.array([len(grammar.PHRASINGS[name]) for name in names])
    return first[relation] + rng.integers(0, counts[relation]), _slots(*np.moveaxis(facts[fact], -1, 0))


def _arithmetic(world: World, rng: np.random.Generator, shape: tuple[int, int]):
    size = world.config.max_addend + 1
    allowed = np.ones((size, size), bool)
    allowed[tuple(world.held_out_sums.T)] = False
    pairs = np.argwhere(allowed)[rng.integers(0, allowed.sum(), shape)]
    digits = [world.digits[digit] for n in (pairs[..., 0], pairs[..., 1], pairs.sum(-1)) for digit in divmod(n, 10)]
    return np.full(shape, world.templates.first["sum"]), _slots(*digits)


def _grammar(world: World, rng: np.random.Generator, shape: tuple[int, int]):
    about_things = rng.random(shape) < 0.5
    slots = np.where(about_things[..., None], _agreement(world, rng, shape), _pronouns(world, rng, shape))
    first = world.templates.first
    return np.where(about_things, first["agreement"], first["pronoun"]), slots


def _agreement(world: World, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    nouns, verbs = world.ids(grammar.NOUNS), world.ids(grammar.VERBS)
    noun, other = rng.integers(0, len(nouns), (2, *shape))
    number, other_number = rng.integers(0, 2, (2, *shape))
    verb = _other_than(rng, world.held_out_verb[noun], len(verbs))
    preposition = world.ids(grammar.PREPOSITIONS)[rng.integers(0, len(grammar.PREPOSITIONS), shape)]
    return _slots(nouns[noun, number], preposition, nouns[other, other_number], verbs[verb, number])


def _pronouns(world: World, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    person = rng.choice(len(world.people), shape, p=world.person_weights)
    event = _other_than(rng, world.held_out_event[person], len(grammar.EVENTS))
    event = world.ids(grammar.EVENTS)[event]
    mood = world.ids(grammar.MOODS)[rng.integers(0, len(grammar.MOODS), shape)]
    return _slots(world.people[person], event, world.pronouns[person], mood)


_SENTENCES = dict(facts=_facts, geography=_geography, two_step=_two_step, arithmetic=_arithmetic, grammar=_grammar)
