"""The generated world: nothing held out leaks, everything stated is true, planted counts are exact."""

import collections
import dataclasses
import itertools
import json
import re

import numpy as np
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.lab import grammar
from selftrain_jax.lab.documents import document_texts, generate_documents
from selftrain_jax.lab.planted import extraction_probes
from selftrain_jax.lab.questions import question_suites
from selftrain_jax.lab.settings import WorldConfig
from selftrain_jax.lab.tokenization import build_tokenizer, save_tokenizer
from selftrain_jax.lab.world import build_world
from selftrain_jax.lab.world_files import write_generated_world

CONFIG = WorldConfig(repeats=(0, 1, 4, 16), sequences_per_group=(5, 6, 3, 2), seed=3)


@pytest.fixture(scope="module")
def world():
    return build_world(CONFIG)


@pytest.fixture(scope="module")
def texts(world):
    """Ordinary documents of the three streams the lab uses."""
    streams = [generate_documents(world, 8000, stream) for stream in ("train", "control", "validation")]
    return [text for stream in streams for text in document_texts(world, *stream)]


@pytest.fixture(scope="module")
def sentences(texts):
    """(pattern name, phrasing number, slot words) of every sentence, pronouns resolved to the person named before."""
    patterns = []
    for name, phrasings in grammar.PHRASINGS.items():
        for number, phrasing in enumerate(phrasings):
            slots = [word if word not in grammar.SLOTS else rf"(?P<{word}>\S+)" for word in phrasing.split()]
            patterns.append((name, number, re.compile(" ".join(slots))))
    parsed = []
    for text in texts:
        named = None
        assert text.endswith(" .")
        for sentence in text.removesuffix(" .").split(" . "):
            matches = [(n, i, m.groupdict()) for n, i, p in patterns if (m := p.fullmatch(sentence))]
            assert len(matches) == 1, sentence
            name, number, slots = matches[0]
            if slots["A"] in grammar.PRONOUNS:
                slots |= {"A": named, "called": slots["A"]}
            named = slots["A"]
            parsed.append((name, number, slots))
    return parsed


def sum_of(slots):
    """The three numbers of a sum sentence."""
    return tuple(int(slots[tens] + slots[units]) for tens, units in ("AB", "CD", "EF"))


def facts_of(world):
    """(relation, subject) -> value, in words, for people and places."""
    facts = {}
    for column, relation in enumerate(grammar.PERSON_RELATIONS):
        for person, value in zip(world.people, world.attributes[:, column]):
            facts[relation, world.words[person]] = world.words[value]
    for relation, rows in world.geography.items():
        facts |= {(relation, world.words[place]): world.words[value] for place, value in rows}
    return facts


def pronouns_of(world):
    return {world.words[p]: world.words[pronoun] for p, pronoun in zip(world.people, world.pronouns)}


def test_the_seed_decides_everything(world):
    again, other = build_world(CONFIG), build_world(dataclasses.replace(CONFIG, seed=4))
    first = generate_documents(world, 500, include_planted=True)
    for a, b in zip(first, generate_documents(again, 500, include_planted=True)):
        np.testing.assert_array_equal(a, b)
    assert question_suites(world) == question_suites(again)
    assert question_suites(world) != question_suites(other)
    np.testing.assert_array_equal(world.planted, again.planted)
    assert not np.array_equal(world.planted, other.planted)


def test_streams_are_different_texts(world):
    train, control, numbered = (
        document_texts(world, *generate_documents(world, 300, stream)) for stream in ("train", "control", 7)
    )
    assert all(a != b for a, b in itertools.combinations((train, control, numbered), 2))


def test_a_homes_country_decides_currency_and_language(world):
    facts = facts_of(world)
    for person in (world.words[p] for p in world.people):
        country = facts["city_country", facts["city", person]]
        assert facts["currency", person] == facts["country_currency", country]
        assert facts["language", person] == facts["country_language", country]


def test_every_stated_fact_is_true(world, sentences):
    facts, pronouns = facts_of(world), pronouns_of(world)
    nouns, verbs = (
        {form: (i, number) for i, forms in enumerate(table) for number, form in enumerate(forms)}
        for table in (grammar.NOUNS, grammar.VERBS)
    )
    stated = set()
    for name, _, slots in sentences:
        if name == "sum":
            a, b, total = sum_of(slots)
            assert a + b == total
        elif name == "agreement":
            assert nouns[slots["A"]][1] == verbs[slots["D"]][1]
        elif name == "pronoun":
            assert slots["C"] == pronouns[slots["A"]]
        else:
            assert facts[name, slots["A"]] == slots["B"]
            stated.add((name, slots["A"]))
        assert slots.get("called", pronouns.get(slots["A"])) == pronouns.get(slots["A"])
    held_out = {world.words[p] for p in world.people[world.held_out_people]}
    expected = {key for key in facts if not (key[0] in grammar.ENTAILED_RELATIONS and key[1] in held_out)}
    assert stated == expected


def test_each_phrasing_is_used_but_never_for_the_facts_it_is_held_out_from(world, sentences):
    used = collections.defaultdict(set)
    for name, number, slots in sentences:
        used[name, slots["A"]].add(number)
    for column, relation in enumerate(grammar.STATED_RELATIONS):
        everything = set(range(len(grammar.PHRASINGS[relation])))
        for person, held_out in zip(world.people, world.held_out_phrasing[:, column]):
            assert used[relation, world.words[person]] == everything - {held_out}


def test_no_question_is_answered_in_any_text(world, texts):
    text = " . ".join(texts)
    suites = question_suites(world)
    for row in suites["recall"] + suites["two_step"] + suites["arithmetic"]:
        assert f" {row['question']} " not in text
    for row in suites["minimal_pairs"]:
        assert row["sentence_good"] not in text and row["sentence_bad"] not in text


def test_a_cluster_is_what_questions_have_in_common(world):
    suites = {
        name: collections.Counter(row["cluster"] for row in rows) for name, rows in question_suites(world).items()
    }
    assert set(suites["recall"].values()) == {3} and len(suites["recall"]) == len(world.people)
    homes = collections.Counter(world.attributes[world.held_out_people, 0].tolist())
    assert suites["two_step"] == {city: 2 * people for city, people in homes.items()}
    assert suites["arithmetic"] == collections.Counter(f"{min(p)} + {max(p)}" for p in world.held_out_sums.tolist())
    assert set(suites["minimal_pairs"].values()) == {16, 2}


def test_two_step_people_never_appear_with_a_currency_or_language(world, sentences):
    held_out = {world.words[p] for p in world.people[world.held_out_people]}
    told = {slots["A"] for name, _, slots in sentences if name in grammar.ENTAILED_RELATIONS}
    assert len(held_out) == 16 and told == {world.words[p] for p in world.people} - held_out


def test_held_out_sums_and_their_mirror_images_never_occur(world, sentences):
    added = {sum_of(slots)[:2] for name, _, slots in sentences if name == "sum"}
    held_out = {tuple(pair) for pair in world.held_out_sums.tolist()}
    assert len(held_out) >= 60 and held_out == {(b, a) for a, b in held_out}
    assert added == set(itertools.product(range(CONFIG.max_addend + 1), repeat=2)) - held_out


def test_held_out_combinations_of_words_never_occur(world, sentences):
    verb_of = {form: i for i, forms in enumerate(grammar.VERBS) for form in forms}
    noun_of = {form: i for i, forms in enumerate(grammar.NOUNS) for form in forms}
    verbs = {(noun_of[s["A"]], verb_of[s["D"]]) for name, _, s in sentences if name == "agreement"}
    assert verbs == set(itertools.product(range(8), repeat=2)) - set(enumerate(world.held_out_verb))
    events = {(s["A"], s["B"]) for name, _, s in sentences if name == "pronoun"}
    for person, event in zip(world.people, world.held_out_event):
        assert (world.words[person], grammar.EVENTS[event]) not in events


def test_planted_sequences_occur_exactly_as_often_as_their_group_says(world):
    tokens, offsets = generate_documents(world, 400, include_planted=True)
    documents = collections.Counter(tuple(tokens[a:b].tolist()) for a, b in zip(offsets[:-1], offsets[1:]))
    for sequence, repeats in zip(world.planted.tolist(), world.planted_repeats.tolist()):
        assert documents[(*sequence, 0)] == repeats
    assert collections.Counter(world.planted_repeats.tolist()) == {0: 5, 1: 6, 4: 3, 16: 2}
    assert len(offsets) - 1 == 400 + 1 * 6 + 4 * 3 + 16 * 2


def test_planting_leaves_the_ordinary_documents_as_they_are(world):
    planted = {world.text(sequence) for sequence in world.planted}
    mixed = document_texts(world, *generate_documents(world, 400, include_planted=True))
    assert [text for text in mixed if text not in planted] == document_texts(world, *generate_documents(world, 400))
    places = [i for i, text in enumerate(mixed) if text in planted]
    assert min(places) < 100 and max(places) > 350


def test_probes_are_the_planted_sequences(world):
    probes = extraction_probes(world.planted_texts(), build_tokenizer(world))
    assert [probe["prefix"] + probe["suffix"] for probe in probes] == world.planted.tolist()
    assert {len(probe["prefix"]) for probe in probes} == {16}
    assert collections.Counter(probe["group"] for probe in probes) == {
        "repeats=0": 5,
        "repeats=1": 6,
        "repeats=4": 3,
        "repeats=16": 2,
    }
    assert len({tuple(probe["prefix"]) for probe in probes}) == len(probes)


def test_documents_are_short_and_closed_by_end_of_text(world):
    tokens, offsets = generate_documents(world, 5000)
    assert tokens.dtype == np.int32 and offsets[0] == 0 and offsets[-1] == len(tokens)
    assert np.all(tokens[offsets[1:] - 1] == 0) and np.count_nonzero(tokens == 0) == 5000
    lengths = np.diff(offsets)
    assert lengths.min() >= 8 and lengths.max() <= 37 and 15 < lengths.mean() < 25


def test_the_order_of_a_mixture_changes_nothing(world):
    """Nor does it in the record of a stage, which is taken for the same world."""
    mixture = world.config.mixture
    assert list(mixture) != sorted(mixture)
    told = [
        document_texts(world, *generate_documents(world, 40, mixture=given))
        for given in (None, mixture, dict(sorted(mixture.items())), dict(reversed(mixture.items())))
    ]
    assert all(texts == told[0] for texts in told)


def test_another_mixture_tells_of_other_things(world):
    texts = document_texts(world, *generate_documents(world, 200, mixture={"arithmetic": 1, "facts": 0}))
    assert all(" plus " in text for text in texts)


def test_rare_people_are_mentioned_less_but_not_seldom(world, sentences):
    counts = collections.Counter(slots["A"] for name, _, slots in sentences if name in grammar.STATED_RELATIONS)
    counts = [counts[world.words[p]] for p in world.people[np.argsort(-world.person_weights)]]
    # The rarest of 64 is mentioned 64 ** -0.5 = 1/8 as often as the most frequent.
    assert 5 < counts[0] / counts[-1] < 12


def test_the_world_is_balanced(world):
    for column, relation in enumerate(grammar.STATED_RELATIONS):
        assert set(np.unique(world.attributes[:, column], return_counts=True)[1]) == {8}
        assert set(world.attributes[:, column]) == set(world.values[relation])
    homes = world.attributes[world.held_out_people, 0]
    assert set(np.unique(homes, return_counts=True)[1]) == {2}
    assert len(set(world.words)) == len(world.words) and 200 <= len(world.words) <= 350


def test_suites_are_well_formed(world):
    suites, facts = question_suites(world), facts_of(world)
    assert {name: len(rows) for name, rows in suites.items()} == {
        "recall": 192,
        "two_step": 32,
        "arithmetic": len(world.held_out_sums),
        "minimal_pairs": 256,
    }
    for name in ("recall", "two_step", "arithmetic"):
        assert len({row["question"] for row in suites[name]}) == len(suites[name])
        for row in suites[name]:
            assert 0 <= row["gold"] < len(row["choices"]) == len(set(row["choices"]))
            answer, first = row["choices"][row["gold"]][1:], row["question"].split()[0]
            if name == "arithmetic":
                a, b = re.fullmatch(r"(\d \d) plus (\d \d) is", row["question"]).groups()
                assert all(re.fullmatch(r" \d \d", choice) for choice in row["choices"])
                assert int(answer.replace(" ", "")) == int(a.replace(" ", "")) + int(b.replace(" ", ""))
            else:
                assert all(re.fullmatch(r" [a-z]+", choice) for choice in row["choices"])
                assert answer in {facts[relation, first] for relation in grammar.PERSON_RELATIONS}
    # Always choosing the same place must not pay off.
    places = collections.Counter(row["gold"] for row in suites["arithmetic"])
    assert max(places.values()) < 0.4 * len(suites["arithmetic"])


def test_minimal_pairs_differ_in_one_word_and_the_good_one_agrees(world):
    pronouns = pronouns_of(world)
    rows = question_suites(world)["minimal_pairs"]
    assert len({row["sentence_good"] for row in rows}) == len(rows)
    for row in rows:
        good, bad = row["sentence_good"].split(), row["sentence_bad"].split()
        different = [(g, b) for g, b in zip(good, bad) if g != b]
        assert len(good) == len(bad) and len(different) == 1
        if "because" in good:
            assert pronouns[good[0]] == different[0][0] and different[0][1] in grammar.PRONOUNS
        else:
            assert good[1].endswith("s") != different[0][0].endswith("s")


def test_the_tokenizer_has_the_ids_of_the_world(world, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        save_tokenizer(build_tokenizer(world), tmp_path / "tokenizer")
    )
    assert tokenizer.get_vocab() == dict(world.index)
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == 0
    assert tokenizer.unk_token_id == 1 and tokenizer.pad_token_id is None
    tokens, offsets = generate_documents(world, 200, include_planted=True)
    for start, end, text in zip(offsets[:-1], offsets[1:], document_texts(world, tokens, offsets)):
        document = tokens[start : end - 1].tolist()
        assert tokenizer(text)["input_ids"] == document
        assert tokenizer.decode(document) == text
        assert tokenizer(f"{text}{grammar.END_OF_TEXT}")["input_ids"] == [*document, 0]
    suites = question_suites(world)
    for row in suites["recall"] + suites["two_step"] + suites["arithmetic"]:
        for choice in row["choices"]:
            joined = tokenizer(row["question"] + choice)["input_ids"]
            assert joined == tokenizer(row["question"])["input_ids"] + tokenizer(choice)["input_ids"]
            assert tokenizer.unk_token_id not in joined


def test_world_files_hold_what_the_functions_return(world, tmp_path):
    paths = write_generated_world(world, tmp_path / "world", validation_documents=20, control_documents=10)

    def rows(name):
        return [json.loads(line) for line in paths[name].read_text().splitlines()]

    for name, suite in question_suites(world).items():
        assert rows(name) == suite
    assert rows("probes") == extraction_probes(world.planted_texts(), build_tokenizer(world))
    for stream, count in (("validation", 20), ("control", 10)):
        texts = document_texts(world, *generate_documents(world, count, stream))
        assert rows(stream) == [{"text": text} for text in texts]
    assert "control" not in write_generated_world(world, tmp_path / "world", validation_documents=1)
    assert not [path for path in (tmp_path / "world").rglob("*") if path.name.endswith(".tmp")]


def test_a_small_world_and_a_large_one_can_be_built():
    for config in (
        WorldConfig(num_people=8, num_cities=2, num_countries=2, max_addend=4, repeats=(0, 2), sequences_per_group=2),
        WorldConfig(num_people=200, num_cities=20, num_countries=5, num_jobs=16, num_pets=16, max_sentences=9),
        WorldConfig(repeats=(), sequences_per_group=()),
    ):
        world = build_world(config)
        tokens, offsets = generate_documents(world, 50, include_planted=True)
        assert len(offsets) == 51 + world.planted_repeats.sum() and tokens.max() < len(world.words)
        assert len(world.held_out_sums) > 0
    assert len(generate_documents(world, 0)[0]) == 0


@pytest.mark.parametrize(
    "setting, value",
    [
        ("num_people", 4),
        ("num_countries", 9),
        ("num_jobs", 99),
        ("zipf_exponent", -1.0),
        ("min_sentences", 5),
        ("planted_prefix", 32),
        ("repeats", (4, 4)),
        ("repeats", (-1,)),
        ("sequences_per_group", (1, 2)),
        ("sequences_per_group", 0),
        ("mixture", {"fact": 1.0}),
        ("mixture", {"facts": 0.0}),
        ("mixture", {"facts": float("nan")}),
        ("seed", -1),
    ],
)
def test_an_unusable_setting_is_named(setting, value):
    with pytest.raises(InputError, match=setting):
        WorldConfig(**{setting: value})


def test_unusable_arguments_are_refused(world):
    with pytest.raises(InputError, match="num_documents"):
        generate_documents(world, -1)
    with pytest.raises(InputError, match="mixture"):
        generate_documents(world, 10, mixture={"poems": 1})
