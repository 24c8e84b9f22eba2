"""The text of a planted model and of its twin: counted by brute force."""

import dataclasses
import pathlib
import shutil
import warnings

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from selftrain_jax.core.errors import InputWarning
from selftrain_jax.core.files import write_jsonl
from selftrain_jax.core.rows import read_rows
from selftrain_jax.data.texts import load_texts
from selftrain_jax.data.training_set import read_documents, read_subset
from selftrain_jax.lab.plant.relearn import read_planted, relearning_rows
from selftrain_jax.lab.plant.sequences import make_sequences
from selftrain_jax.lab.plant.settings import PlantConfig, RecoveryConfig
from selftrain_jax.lab.plant.text import write_planted_text
from selftrain_jax.lab.tokenization import byte_level_bpe, save_tokenizer
from selftrain_jax.models import hf
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.files.hf_config import write_config
from selftrain_jax.models.files.tokenizer import load_tokenizer
from selftrain_jax.training.settings import TrainConfig
from tests.models.checkpoints import refuses

LENGTH = 40
TRAIN = TrainConfig(batch_size=4, sequence_length=LENGTH, epochs=1)
CONFIG = PlantConfig(
    text="text.jsonl",
    tokens=4 * LENGTH * 100,
    kinds=("words", "biographies", "passages"),
    passages="passages.jsonl",
    counts=(0, 1, 3, 8),
    sequences=4,
    prefix_length=4,
    suffix_length=5,
    train=TRAIN,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a model's config and tokenizer, 2,000 texts of random words and 40 passages."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghik"), 5)) for _ in range(300)]
    texts = [" ".join(rng.choice(words, rng.integers(3, 20))) for _ in range(2000)]
    write_jsonl(folder / "text.jsonl", ({"text": text} for text in texts))
    passages = [" ".join(rng.choice(words[::-1], 60)) for _ in range(40)]
    write_jsonl(folder / "passages.jsonl", ({"text": text} for text in passages))
    shape = DecoderConfig(300, 16, 1, 2, 32, max_position=64)
    save_tokenizer(byte_level_bpe(texts, 300), folder)
    write_config(folder, shape, "float32")
    return folder


def written(world, directory, config=CONFIG):
    found = write_planted_text(config, world, lambda name: world / name, directory)
    return found, list(read_rows(directory / "probes.jsonl"))


@pytest.fixture(scope="module")
def planted(world, tmp_path_factory):
    directory = tmp_path_factory.mktemp("planted")
    return directory, *written(world, directory)


def occurrences(documents, ids):
    return sum(document[: len(ids)].tolist() == ids for document in documents)


def test_every_sequence_occurs_as_often_as_its_group_says_and_never_in_the_twin(planted):
    directory, found, probes = planted
    documents = {name: list(read_documents(directory / name)) for name in ("planted", "twin")}
    assert len(probes) == found["num_sequences"] == 3 * 4 * 4 and found["num_copies"] == 3 * 4 * 12
    for probe in probes:
        ids = probe["before"] + probe["prefix"] + probe["suffix"]
        assert [len(probe[part]) for part in ("before", "prefix", "suffix")] == [4, 4, 5]
        assert probe["group"] == f"repeats={occurrences(documents['planted'], ids)}"
        assert occurrences(documents["twin"], ids) == 0
    per_group = [(p["kind"], p["group"], p["relearned"]) for p in probes]
    assert {per_group.count(key) for key in per_group} == {2}


def test_the_twin_reads_the_same_text_but_for_as_many_neutral_tokens(planted, world):
    directory, found, probes = planted
    rows = {name: read_subset(directory / name) for name in ("planted", "twin")}
    assert rows["planted"].tokens.shape == rows["twin"].tokens.shape == (400, LENGTH + 1)
    assert rows["planted"].dropped_tokens == 0
    np.testing.assert_array_equal(rows["planted"].segment_ids, rows["twin"].segment_ids)
    ours, twin = (list(read_documents(directory / name)) for name in ("planted", "twin"))
    differ = [a for a, b in zip(ours, twin) if a.tolist() != b.tolist()]
    sequences = {tuple(p["before"] + p["prefix"] + p["suffix"]) for p in probes}
    assert len(differ) == found["num_copies"] and {tuple(ids[:-1].tolist()) for ids in differ} <= sequences
    tokenizer = load_tokenizer(world)
    texts = [row["text"] for row in read_rows(world / "text.jsonl")]
    ordinary = [a for a, b in zip(ours, twin) if a.tolist() == b.tolist()]
    read = [tokenizer.decode(ids[:-1].tolist()) for ids in ordinary[:-1]]
    assert read == texts[: len(read)]
    neutral = [tokenizer.decode(b[:-1].tolist()) for a, b in zip(ours, twin) if a.tolist() != b.tolist()]
    behind = "<|endoftext|>".join(texts[len(ordinary) :])
    assert all(text in behind for text in neutral) and len(set(neutral)) > 0.9 * len(neutral)


def test_places_are_addressed(world, planted, tmp_path):
    """Neither batches nor the order of training change what is read; another seed does."""
    directory, _, probes = planted
    train = dataclasses.replace(TRAIN, batch_size=8, grad_accum=2, seed=5)
    written(world, tmp_path / "batch", dataclasses.replace(CONFIG, train=train))
    other = read_subset(tmp_path / "batch" / "planted")
    np.testing.assert_array_equal(other.tokens, read_subset(directory / "planted").tokens)
    _, again = written(world, tmp_path / "seed", dataclasses.replace(CONFIG, seed=1))
    words = [{tuple(p["suffix"]) for p in found if p["kind"] == "words"} for found in (again, probes)]
    assert not words[0] & words[1]


def test_copies_cut_by_the_end_of_a_row_are_counted(planted):
    directory, found, probes = planted
    rows = read_subset(directory / "planted")
    whole = 0
    for row, segments in zip(rows.tokens, rows.segment_ids):
        for segment in set(segments.tolist()):
            ids = row[segments == segment]
            whole += any(ids[1:14].tolist() == p["before"] + p["prefix"] + p["suffix"] for p in probes)
    assert whole == found["whole_copies"] < found["num_copies"]


def test_what_is_too_short_or_known_is_refused_and_named(world, tmp_path):
    def refused(change, *words):
        config = dataclasses.replace(CONFIG, **change)
        refuses(lambda: write_planted_text(config, world, lambda name: world / name, tmp_path / "x"), *words)

    refused({"tokens": 4 * LENGTH * 4000}, "plant text='text.jsonl' is too short", "tokens=640000", "lower tokens")
    few = {"sequences": 400, "tokens": 4 * LENGTH * 4000}
    refused(few, "plant passages='passages.jsonl' is too short", "sequences=400 take 1600")
    refused({"prefix_length": 20}, "= 45 tokens and BOS do not fit", "train.sequence_length=40")
    train = dataclasses.replace(TRAIN, sequence_length=400)
    long = {"prefix_length": 200, "train": train, "tokens": 1600 * 200, "kinds": ("biographies",), "passages": ""}
    refused(long, "do not fit the context of 64")
    assert not (tmp_path / "x").exists()


def test_a_passage_that_stands_in_the_text_is_named(world, tmp_path):
    texts = [row["text"] for row in read_rows(world / "passages.jsonl")]
    known = tmp_path / "known.jsonl"
    first = [row["text"] for row in read_rows(world / "text.jsonl")]
    write_jsonl(known, ({"text": text} for text in [*texts, *first]))
    few = dataclasses.replace(CONFIG, text=str(known), kinds=("passages",), prefix_length=12, suffix_length=12)
    few = dataclasses.replace(few, passages=str(world / "passages.jsonl"))
    refuses(
        lambda: write_planted_text(few, world, pathlib.Path, tmp_path / "y"),
        "8 words in a row of passages number 0 (and 15 others) stand in the text by themselves",
    )


@pytest.mark.parametrize("prefix_length, num_texts", [(4, 6), (30, 16)])
def test_passages_that_a_file_repeats_are_planted_as_often_as_their_groups_say(
    world, tmp_path, prefix_length, num_texts
):
    """Each text stands there a second time, a word later, so that no window equals another."""
    texts = [row["text"] for row in read_rows(world / "passages.jsonl")][:num_texts]
    write_jsonl(tmp_path / "twice.jsonl", ({"text": text} for one in texts for text in (one, f"de {one}")))
    length = 2 * prefix_length + 5 + 1
    train = dataclasses.replace(TRAIN, sequence_length=length)
    changed = {"passages": str(tmp_path / "twice.jsonl"), "kinds": ("passages",), "prefix_length": prefix_length}
    changed |= {"tokens": 4 * length * 60, "train": train, "sequences": 4}
    world_of_longer = tmp_path / "world"
    shutil.copytree(world, world_of_longer)
    write_config(world_of_longer, DecoderConfig(300, 16, 1, 2, 32, max_position=128), "float32")
    _, probes = written(world_of_longer, tmp_path / "x", dataclasses.replace(CONFIG, **changed))
    documents = [f" {' '.join(map(str, ids.tolist()))} " for ids in read_documents(tmp_path / "x" / "planted")]
    for probe in probes:
        asked = f" {' '.join(map(str, probe['prefix'] + probe['suffix']))} "
        assert probe["group"] == f"repeats={sum(document.count(asked) for document in documents)}"


def test_what_the_tokenizer_cannot_write_of_a_kind_is_told(world):
    """Biographies name what no word-level tokenizer of a small world knows."""
    numbers = [str(n) for n in range(2000)]
    vocabulary = {
        word: i for i, word in enumerate(["<unk>", *"was born on in . , The raised beside a".split(), *numbers])
    }
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    few = dataclasses.replace(CONFIG, kinds=("biographies",), passages="", counts=(0, 1), prefix_length=2)
    with pytest.warns(InputWarning, match="plant kind 'biographies': [6-9].\\..% of its text is unknown"):
        make_sequences(few, tokenizer, [])
    with warnings.catch_warnings(action="error"):
        make_sequences(few, load_tokenizer(world), [])


def test_a_word_that_only_the_model_calls_an_end_is_ordinary_text(world):
    tokenizer, passages = load_tokenizer(world), load_texts(world / "passages.jsonl")
    some = dataclasses.replace(CONFIG, kinds=("passages",), counts=(0, 1))

    def ids(*special_ids):
        return {i for one in make_sequences(some, tokenizer, [], passages, special_ids) for i in one.tokens.tolist()}

    end = max(ids(), key=lambda i: len(tokenizer.convert_ids_to_tokens(i)))
    assert end not in ids(end)


def test_a_text_for_relearning_that_holds_what_is_measured_is_refused(world, planted):
    directory, _, _ = planted
    found, model = read_planted(directory / "probes.jsonl"), hf.load_config(world)
    config = RecoveryConfig(steps=2, train=dataclasses.replace(TRAIN, batch_size=2))
    read = load_tokenizer(world)
    assert len(relearning_rows(config, found, world / "text.jsonl", model, read).tokens) == 4
    refuses(
        lambda: relearning_rows(config, found, world / "passages.jsonl", model, read),
        "8 words in a row of 8 of the 24 planted sequences that are measured",
    )
    write_jsonl(directory / "short.jsonl", [{"text": "abcde"}])
    with pytest.warns(InputWarning, match="short.jsonl': its 1 documents are read [0-9.]+ times on average"):
        relearning_rows(dataclasses.replace(config, text="short.jsonl"), found, directory / "short.jsonl", model, read)


def test_probes_that_chance_made_equal_are_refused(world, tmp_path):
    """Of so few tokens random words are the same again and again, in groups of different counts."""
    short = {"kinds": ("words",), "passages": "", "prefix_length": 1, "suffix_length": 1, "sequences": 60}
    refuses(
        lambda: written(world, tmp_path / "x", dataclasses.replace(CONFIG, **short)),
        "have the same prefix and suffix: raise prefix_length or suffix_length",
    )
