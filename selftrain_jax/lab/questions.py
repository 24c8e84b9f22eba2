"""What a model is asked about a generated world: the facts, sums and word combinations that are held out."""

import numpy as np

from selftrain_jax.lab import grammar
from selftrain_jax.lab.world import World

NUM_SUM_CHOICES = 6
PAIRS_PER_NOUN = 16
PAIRS_PER_PERSON = 2


def question_suites(world: World) -> dict[str, list[dict]]:
    """Questions whose answers no text of the world states in the words of the question.

    Returns:
      "recall": every city, job and pet, asked in the phrasing held out for that fact.
      "two_step": currency and language of the people for whom neither is ever stated; they follow from the home city.
      "arithmetic": the held-out sums, among the numbers next to the right one.
      Rows of these are {"question", "choices", "gold", "cluster"}, choices with a leading space.
      "minimal_pairs": {"sentence_good", "sentence_bad", "cluster"} differing in one word, on held-out combinations.
      Questions of one cluster (a person, a city, two numbers, a noun) are known or not known together.
    """
    rng = np.random.default_rng([world.config.seed, 2])
    everybody = np.arange(len(world.people))
    return {
        "recall": [_fact(world, p, name) for name in grammar.STATED_RELATIONS for p in everybody],
        "two_step": [
            _fact(world, p, name) for name in grammar.ENTAILED_RELATIONS for p in everybody[world.held_out_people]
        ],
        "arithmetic": [_sum(world, rng, a, b) for a, b in world.held_out_sums.tolist()],
        "minimal_pairs": _agreement_pairs(world, rng) + _pronoun_pairs(world, rng),
    }


def _fact(world: World, person: int, relation: str) -> dict:
    column, city = map(grammar.PERSON_RELATIONS.index, (relation, "city"))
    phrasing = grammar.PHRASINGS[relation][world.held_out_phrasing[person, column]]
    values = world.values[relation]
    return {
        "question": grammar.stem(phrasing, world.words[world.people[person]]),
        "choices": [f" {world.words[value]}" for value in values],
        "gold": int(np.flatnonzero(values == world.attributes[person, column])[0]),
        "cluster": int(person) if relation in grammar.STATED_RELATIONS else int(world.attributes[person, city]),
    }


def _sum(world: World, rng: np.random.Generator, a: int, b: int) -> dict:
    largest = 2 * world.config.max_addend
    # The right number stands at any place among its neighbors, so that the middle of the choices says nothing.
    low = int(np.clip(a + b - rng.integers(0, NUM_SUM_CHOICES), 0, largest + 1 - NUM_SUM_CHOICES))
    return {
        "question": grammar.stem(grammar.PHRASINGS["sum"][0], *grammar.digits(a), *grammar.digits(b)),
        "choices": [" " + " ".join(grammar.digits(n)) for n in range(low, low + NUM_SUM_CHOICES)],
        "gold": a + b - low,
        "cluster": " + ".join(map(str, sorted((a, b)))),
    }


def _pair(relation: str, good: list[str], slot: str, wrong: str, cluster: str) -> dict:
    bad = [wrong if name == slot else word for name, word in zip(grammar.SLOTS, good)]
    phrasing = f"{grammar.PHRASINGS[relation][0]} {grammar.STOP}"
    sentences = {"sentence_good": grammar.fill(phrasing, *good), "sentence_bad": grammar.fill(phrasing, *bad)}
    return sentences | {"cluster": cluster}


def _agreement_pairs(world: World, rng: np.random.Generator) -> list[dict]:
    """The noun with the verb it never has in training, after a second noun of the other number."""
    rows = []
    for noun, verb in enumerate(world.held_out_verb):
        frames = [(p, other, number) for p in grammar.PREPOSITIONS for other in grammar.NOUNS for number in (0, 1)]
        for i in rng.permutation(len(frames))[:PAIRS_PER_NOUN]:
            preposition, other, number = frames[i]
            good = [grammar.NOUNS[noun][number], preposition, other[1 - number], grammar.VERBS[verb][number]]
            rows.append(_pair("agreement", good, "D", grammar.VERBS[verb][1 - number], grammar.NOUNS[noun][0]))
    return rows


def _pronoun_pairs(world: World, rng: np.random.Generator) -> list[dict]:
    """The person in the event never told of that person in training."""
    rows = []
    for name, pronoun, event in zip(world.people, world.pronouns, world.held_out_event):
        right = world.words[pronoun]
        wrong = next(word for word in grammar.PRONOUNS if word != right)
        for mood in rng.permutation(grammar.MOODS)[:PAIRS_PER_PERSON]:
            good = [world.words[name], grammar.EVENTS[event], right, str(mood)]
            rows.append(_pair("pronoun", good, "C", wrong, world.words[name]))
    return rows
