"""The world's BPE tokenizer: text comes back, every word begins with a token of its own, and the questions still
split.
"""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.lab import grammar
from selftrain_jax.lab.documents import document_texts, generate_documents
from selftrain_jax.lab.planted import extraction_probes
from selftrain_jax.lab.questions import question_suites
from selftrain_jax.lab.settings import PretrainConfig, WorldConfig
from selftrain_jax.lab.tokenization import build_tokenizer, save_tokenizer, spell_documents
from selftrain_jax.lab.world import build_world
from selftrain_jax.models.files.tokenizer import check_tokenizer, encode_texts, load_tokenizer

CONFIG = WorldConfig(num_people=16, max_addend=9, repeats=(0, 1, 4), sequences_per_group=(5, 6, 3), seed=3)
SIZES = (64, 200, 5000)
"""Hardly any merges; some; every word is one token."""


@pytest.fixture(scope="module")
def world():
    return build_world(CONFIG)


@pytest.fixture(scope="module")
def texts(world):
    """All texts of validation, suites and planted sequences."""
    found = document_texts(world, *generate_documents(world, 300, "validation"))
    found += [world.text(sequence) for sequence in world.planted]
    for row in itertools.chain(*question_suites(world).values()):
        found += [row["question"] + choice for choice in row["choices"]] if "choices" in row else []
        found += [row["sentence_good"], row["sentence_bad"]] if "sentence_good" in row else []
    return found


@pytest.fixture(scope="module", params=SIZES)
def folder(request, world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return save_tokenizer(build_tokenizer(world, "bpe", request.param), folder / str(request.param))


def load(folder):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("loader", [load_tokenizer, load], ids=["ours", "AutoTokenizer"])
def test_every_text_comes_back_and_nothing_is_unknown(folder, loader, texts):
    tokenizer = loader(folder)
    encoded = encode_texts(tokenizer, texts)
    assert tokenizer.batch_decode(encoded) == texts
    assert not any({tokenizer.bos_token_id, tokenizer.unk_token_id} & set(ids) for ids in encoded)
    assert encoded == tokenizer(texts)["input_ids"]  # nothing is added


def test_end_of_text_is_id_0_and_a_document_after_it_begins_as_any(folder, world, texts):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == 0 and tokenizer.unk_token_id == 1
    first, second = tokenizer(texts[:2])["input_ids"]
    assert tokenizer(f"{texts[0]}{grammar.END_OF_TEXT}{texts[1]}")["input_ids"] == [*first, 0, *second]


def test_the_size_is_met_or_words_are_whole(folder, world):
    tokenizer, size = load_tokenizer(folder), int(folder.name)
    lengths = [len(ids) for ids in encode_texts(tokenizer, world.words[2:])]
    assert len(tokenizer) == size if size < 5000 else len(tokenizer) < size and max(lengths) == 1
    check_tokenizer(
        PretrainConfig(tokenizer="bpe", bpe_vocab_size=size).model_config(
            build_tokenizer(world, "bpe", size).get_vocab_size()
        ),
        tokenizer,
    )


def test_a_prompt_splits_from_its_choices(folder, world):
    tokenizer = load_tokenizer(folder)
    suites = question_suites(world)
    for row in suites["recall"] + suites["two_step"] + suites["arithmetic"]:
        question, *parts = encode_texts(tokenizer, [row["question"], *row["choices"]])
        wholes = encode_texts(tokenizer, [row["question"] + choice for choice in row["choices"]])
        assert wholes == [question + part for part in parts]


def test_probes_are_the_same_words_in_the_same_order_and_groups(folder, world):
    tokenizer = load_tokenizer(folder)
    old = extraction_probes(world.planted_texts(), build_tokenizer(world))
    new = extraction_probes(world.planted_texts(), tokenizer.backend_tokenizer)
    assert [probe["group"] for probe in new] == [probe["group"] for probe in old] and len(new) == 14
    for before, after in zip(old, new):
        assert before.keys() == after.keys()
        whole = world.text(before["prefix"] + before["suffix"])
        assert after["prefix"] + after["suffix"] == tokenizer(whole)["input_ids"]
        assert tokenizer.decode(after["prefix"]) == world.text(before["prefix"])
        assert tokenizer.decode(after["suffix"]) == world.text(before["suffix"])


def test_probes_in_words_are_the_worlds_own(world):
    tokenizer = build_tokenizer(world)
    probes = extraction_probes(world.planted_texts(), tokenizer)
    assert [probe["prefix"] + probe["suffix"] for probe in probes] == world.planted.tolist()
    nothing = build_world(WorldConfig(repeats=(), sequences_per_group=()))
    assert extraction_probes(nothing.planted_texts(), tokenizer) == []


def test_probes_in_the_words_of_another_world_are_refused(world):
    other = build_world(dataclasses.replace(CONFIG, seed=4))
    with pytest.raises(InputError, match="unknown words"):
        extraction_probes(world.planted_texts(), build_tokenizer(other))


def test_documents_are_spelled_as_their_texts_are_encoded(folder, world):
    tokens, offsets = generate_documents(world, 200, include_planted=True)
    spelled, places = spell_documents(world, load_tokenizer(folder).backend_tokenizer, tokens, offsets)
    assert spelled.dtype == np.int32 and places[-1] == len(spelled)
    encoded = encode_texts(load_tokenizer(folder), document_texts(world, tokens, offsets))
    assert [spelled[a:b].tolist() for a, b in zip(places[:-1], places[1:])] == [[*ids, 0] for ids in encoded]


def test_the_tokenizer_is_a_function_of_world_and_size(folder, world, tmp_path):
    again = save_tokenizer(build_tokenizer(build_world(CONFIG), "bpe", int(folder.name)), tmp_path)
    assert (again / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert json.loads((folder / "tokenizer.json").read_text())["model"]["type"] == "BPE"


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(tokenizer="bytes"), "tokenizer='bytes'"),
        (dict(tokenizer="bpe", bpe_vocab_size=63), "bpe_vocab_size=63"),
        (dict(bpe_vocab_size=0), "bpe_vocab_size=0"),
    ],
)
def test_an_unusable_setting_is_named(settings, message):
    with pytest.raises(InputError, match=message):
        PretrainConfig(**settings)
