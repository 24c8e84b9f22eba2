"""Worlds of real text: every document has one role, every model sees the same windows, and the answers are right."""

import dataclasses
import functools
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from selftrain_jax.cli.config import load_config
from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.settings import build
from selftrain_jax.distributed.mesh import make_mesh
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.evaluation.likelihood import load_minimal_pairs, load_multiple_choice
from selftrain_jax.evaluation.memorization import load_probes
from selftrain_jax.lab import text_world
from selftrain_jax.lab.planted import encode
from selftrain_jax.lab.pretrain import pretrain_model
from selftrain_jax.lab.settings import LineageConfig, PretrainConfig, TextWorldConfig
from selftrain_jax.lab.text_world import build_text_world, model_tokenizer, training_documents
from selftrain_jax.lab.world_files import write_world
from selftrain_jax.models import hf
from selftrain_jax.models.files.tokenizer import check_tokenizer, encode_texts, load_tokenizer
from selftrain_jax.study.checks import check_study
from selftrain_jax.study.expand import Study
from selftrain_jax.training.settings import OptimizerConfig, TrainConfig

TRAIN = TrainConfig(
    batch_size=4,
    sequence_length=64,
    epochs=1,
    dtype="float32",
    remat=False,
    log_every=1,
    optimizer=OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup=0.0),
)
MODEL = PretrainConfig(hidden_size=16, num_layers=2, num_heads=2, max_position=128, num_documents=40, train=TRAIN)
OTHER = dataclasses.replace(
    MODEL, stream="b", num_documents=1000, tokenizer="bpe", bpe_vocab_size=300, include_planted=False
)
NUM_DOCUMENTS = 300


def documents():
    """English-like texts whose first word is their number and that differ everywhere."""
    rng = np.random.default_rng(7)
    syllables = [
        "ba",
        "con",
        "der",
        "fen",
        "gar",
        "hol",
        "in",
        "ker",
        "lo",
        "men",
        "nor",
        "par",
        "ri",
        "sta",
        "ton",
        "ver",
    ]
    words = ["".join(rng.choice(syllables, rng.integers(2, 4))) for _ in range(150)]
    weights = 1 / np.arange(1, len(words) + 1) ** 0.7
    for number in range(NUM_DOCUMENTS):
        drawn = rng.choice(words, 120, p=weights / weights.sum()).tolist()
        sentences = [" ".join(drawn[i : i + 12]) for i in range(0, len(drawn), 12)]
        yield f"n{number} " + ".\n".join(sentences) + "."


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents()))
    return path


def config(source, **changes):
    settings = (
        {"source": str(source)}
        | dict(
            streams=("train", "b"),
            vocab_size=500,
            max_document_tokens=64,
            num_questions=20,
            repeats=(0, 1, 3),
            sequences_per_group=(4, 4, 2),
            planted_length=24,
            planted_prefix=12,
        )
        | changes
    )
    return TextWorldConfig(**settings)


@pytest.fixture(scope="module")
def lineage(source):
    return LineageConfig(
        text=config(source), models={"a": MODEL, "b": OTHER}, validation_documents=20, control_documents=30
    )


@pytest.fixture(scope="module")
def lab(lineage, tmp_path_factory):
    """A folder with the world and both models."""
    lab = tmp_path_factory.mktemp("lab")
    write_world(lineage, lab / "world")
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    for name in lineage.models:
        pretrain_model(lineage, name, lab / "world", lab / name, mesh=mesh)
    return lab


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@functools.cache
def numbers():
    """Five words in a row -> the number of the document that has them."""
    split = [text.split() for text in documents()]
    return {tuple(words[i : i + 5]): n for n, words in enumerate(split) for i in range(len(words) - 4)}


def owners(texts):
    """Numbers of the source's documents that the texts come from, found by their words."""
    return {numbers()[tuple(text.split()[:5])] for text in texts if len(text.split()) >= 5}


def copied(tmp_path, change):
    """The world of a source that holds every text twice, the second time changed."""
    path = tmp_path / "copies.jsonl"
    texts = [text for one in documents() for text in (one, change(one))]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return build_text_world(config(path), 20)


def standing_in_streams(world):
    """Of windows and validation documents, how many stand in what models read, but for words at their ends."""
    read = "\n".join(" ".join(text.split()) for texts in world.streams.values() for text in texts)
    windows = [" ".join((p.prefix + p.suffix).split()[1:-1]) in read for p in world.planted]
    return sum(windows), sum(" ".join(text.split()) in read for text in world.validation)


@pytest.mark.parametrize(
    "change", [lambda t: t.replace("\n", "\r\n"), lambda t: t.replace(" ", "  ")], ids=["crlf", "two"]
)
def test_a_text_is_one_document_whatever_its_white_space(tmp_path, recwarn, change):
    """Else one of two is held out, and the other one read."""
    world = copied(tmp_path, change)
    assert standing_in_streams(world) == (0, 0) and not recwarn


def test_what_is_held_out_and_stands_in_near_copies_is_told(tmp_path):
    with pytest.warns(InputWarning, match="13 words in a row") as told:
        world = copied(tmp_path, lambda text: text + " Read more.")
    windows, validation = standing_in_streams(world)
    found = re.search(r"of (\d+) of 10 planted windows, (\d+) of 20 validation", str(told[0].message))
    assert 0 < windows <= int(found[1]) and 0 < validation <= int(found[2])


def test_the_files_are_a_function_of_text_and_seed(lab, lineage, source, tmp_path):
    shuffled = tmp_path / "shuffled.jsonl"
    shuffled.write_text("\n".join(sorted(source.read_text().splitlines(), reverse=True) * 2))
    same = dataclasses.replace(lineage, text=dataclasses.replace(lineage.text, source=str(shuffled)))
    write_world(same, tmp_path / "same")
    assert files(tmp_path / "same") == files(lab / "world")
    write_world(lineage.with_seed(1), tmp_path / "other")
    found, other = (files(folder) for folder in (lab / "world", tmp_path / "other"))
    assert found.keys() == other.keys()
    assert all(found[name] != other[name] for name in found if name.endswith("s.jsonl") or "documents" in name)


def test_no_document_has_two_roles(lab):
    world = lab / "world"
    text = lambda name: [row["text"] for row in rows(world / f"{name}.jsonl")]  # noqa: E731
    roles = {name: owners(text(name)) for name in ("validation", "control", "documents-train", "documents-b")}
    planted = rows(world / "planted.jsonl")
    roles["planted"] = owners([row["prefix"] + row["suffix"] for row in planted])
    choices = [row["choices"][row["gold"]] for row in rows(world / "suites/continuation.jsonl")]
    cloze = [row["question"] for row in rows(world / "suites/cloze.jsonl")]
    good = [row["sentence_good"] for row in rows(world / "suites/word_order.jsonl")]
    roles["suites"] = owners([*choices, *cloze, *good])
    assert len(roles["suites"]) == 20 and len(roles["planted"]) == len(planted) == 10
    assert sum(map(len, roles.values())) == len(set().union(*roles.values()))
    assert abs(len(roles["documents-train"]) - len(roles["documents-b"])) <= 1
    assert len(text("validation")) == 20 and len(text("control")) == 30


def test_pieces_keep_to_their_length_and_lose_no_word(lab, lineage):
    world = build_text_world(lineage.text, 20, 30)
    texts = list(documents())
    pieces = world.streams["train"]
    assert max(map(len, encode(world.tokenizer, pieces))) <= 64
    joined = " ".join(pieces).split()
    assert joined == [word for n in dict.fromkeys(n for p in pieces for n in owners([p])) for word in texts[n].split()]


def test_all_models_are_asked_for_the_same_text(lab, lineage):
    planted = rows(lab / "world" / "planted.jsonl")
    wanted = [(f"repeats={row['repeats']}", row["prefix"], row["suffix"]) for row in planted]
    for name in lineage.models:
        tokenizer = load_tokenizer(lab / name / "model")
        probes = load_probes(lab / name / "probes.jsonl", hf.load_config(lab / name / "model"), add_bos=True)
        assert [(p.group, tokenizer.decode(p.prefix), tokenizer.decode(p.suffix)) for p in probes] == wanted
        if name == "a":
            assert {(len(p.prefix), len(p.suffix)) for p in probes} == {(12, 12)}
    assert (lab / "a" / "probes.jsonl").read_bytes() == (lab / "world" / "probes.jsonl").read_bytes()
    texts = {" ".join(text.split()) for text in documents()}
    assert all(any(prefix + suffix in text for text in texts) for _, prefix, suffix in wanted)


def test_the_right_answer_is_what_the_document_says(lab):
    texts = [" ".join(text.split()) for text in documents()]
    for suite, count in (("continuation", 12), ("cloze", 1)):
        questions = load_multiple_choice(lab / "world" / "suites" / f"{suite}.jsonl")
        assert len(questions) == 20 and len({row["gold"] for row in questions}) > 1
        for row in questions:
            assert len(row["question"].split()) == 40 and len(set(row["choices"])) == 4
            assert {len(choice.split()) for choice in row["choices"]} == {count}
            said = [any(row["question"] + choice in text for text in texts) for choice in row["choices"]]
            assert said == [i == row["gold"] for i in range(4)]
            if suite == "cloze":
                wrong = set(row["choices"]) - {row["choices"][row["gold"]]}
                assert not {choice.strip() for choice in wrong} & set(row["question"].split())
    for row in load_minimal_pairs(lab / "world" / "suites" / "word_order.jsonl"):
        good, bad = row["sentence_good"].split(), row["sentence_bad"].split()
        at = [i for i, (g, b) in enumerate(zip(good, bad)) if g != b]
        assert len(at) == 2 and at[1] == at[0] + 1 and [good[i] for i in at] == [bad[i] for i in at[::-1]]
        assert any(row["sentence_good"] in text for text in texts)


def test_a_model_reads_its_share_and_every_repetition(lab, lineage):
    tokenizer = model_tokenizer(lineage.text, MODEL, lab / "world")
    found = training_documents(lineage.text, MODEL, tokenizer, lab / "world")
    assert all(ids[-1] == 0 and 0 not in ids[:-1] for ids in found)
    read = [tokenizer.decode(ids[:-1].tolist()) for ids in found]
    planted = [row["prefix"] + row["suffix"] for row in rows(lab / "world" / "planted.jsonl")]
    assert [read.count(window) for window in planted] == [0] * 4 + [1] * 4 + [3] * 2
    share = [row["text"] for row in rows(lab / "world" / "documents-train.jsonl")]
    assert [text for text in read if text not in planted] == share[:40]
    longer = training_documents(lineage.text, OTHER, tokenizer, lab / "world")
    assert len(longer) == len(rows(lab / "world" / "documents-b.jsonl")) < OTHER.num_documents


def test_every_model_is_a_checkpoint_with_its_own_tokenizer(lab, lineage):
    transformers = pytest.importorskip("transformers")
    for name, size in (("a", 500), ("b", 300)):
        config, params = hf.load_pretrained(lab / name / "model")
        tokenizer = transformers.AutoTokenizer.from_pretrained(lab / name / "model")
        check_tokenizer(config, tokenizer)
        assert len(tokenizer) == config.vocab_size == size and tokenizer.bos_token_id == tokenizer.eos_token_id == 0
        assert (config.hidden_size, config.num_layers) == (16, 2)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
        odd = "Crème <|endoftext|>\n\n  brûlée"
        assert tokenizer.decode(encode_texts(tokenizer, [odd])[0]) == odd
        metrics = rows(lab / name / "metrics.jsonl")
        assert metrics[-1]["loss"] < metrics[0]["loss"] - 0.3  # from ln(vocabulary), in some ten steps


def test_a_folder_of_texts_and_a_given_tokenizer_do_as_well(lab, tmp_path):
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(documents()):
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    (tmp_path / "texts" / ".DS_Store").write_bytes(b"\xff no text")
    world = build_text_world(config(tmp_path / "texts", tokenizer=str(lab / "world" / "tokenizer")), 20)
    assert world.tokenizer.get_vocab_size() == 500 and len(world.validation) == 20 and not world.control
    assert set(text_world.inputs(world.config)) == {"source", "tokenizer"}


def test_texts_of_another_split_are_not_read(tmp_path):
    for name in ("train", "valid", "test"):
        (tmp_path / f"wiki.{name}.txt").write_text(f"text of {name}")
    (tmp_path / "README.md").write_text("about it")
    for split, name in (("train", "train"), ("validation", "valid")):
        source = text_world._open(config(tmp_path, split=split))
        assert list(source.texts("text")) == [f"text of {name}"]
    (tmp_path / "notes.txt").write_text("of no split")
    with pytest.warns(InputWarning, match="not read, since of no split or another kind: notes.txt"):
        text_world._open(config(tmp_path))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"vocab_size": 256}, "vocab_size=256 must lie in"),
        ({"planted_prefix": 64}, "planted_prefix=64"),
        ({"repeats": (1, 1)}, "repeats"),
        ({"sequences_per_group": (1, 2)}, "sequences_per_group"),
        ({"streams": ()}, "streams"),
        ({"streams": ("a", "a")}, "none twice"),
        ({"streams": ("a/b",)}, "a/b"),
        ({"num_questions": 1}, "num_questions=1"),
        ({"seed": -1}, "seed=-1"),
        ({"sorce": "x"}, "source"),
    ],
)
def test_an_unusable_world_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        build(TextWorldConfig, settings)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"models": {"a": {"mixture": {"facts": 1.0}}}}, "mixture"),
        ({"models": {"a": {"stream": "c"}}}, "stream='c'"),
        ({"models": {"a": {"tokenizer": "bpe", "bpe_vocab_size": 200}}}, "bpe_vocab_size=200"),
        ({"models": {"a": {}}, "world": {"num_people": 8}}, "world and text"),
        ({"models": {"a": {"preset": "pythia-15m"}}}, "pythia-15m"),
        ({"models": {"a": {"preset": "pythia-14m", "num_layers": 2}}}, "leave out num_layers=2"),
    ],
)
def test_a_lineage_that_does_not_fit_its_text_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        build(LineageConfig, {"text": {}} | settings)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"source": ""}, "source is empty: set it"),
        ({"source": "nowhere"}, "not found: nowhere"),
        ({"field": "body"}, "no field='body'"),
        ({"num_questions": 300}, "too small.* of 300 documents long enough"),
        ({"sequences_per_group": 100}, "of 300 planted windows"),
        ({"tokenizer": "nowhere"}, "tokenizer not found"),
    ],
)
def test_text_that_cannot_be_used_is_named(source, changes, message):
    with pytest.raises(InputError, match=message):
        build_text_world(dataclasses.replace(config(source), **changes), 10)


def test_a_preset_gives_the_shape_and_changes_nothing_elsewhere():
    tokenizer = build_tokenizer_stub(777)
    found = PretrainConfig(preset="pythia-70m", max_position=512).model_config(tokenizer.get_vocab_size())
    shape = (found.vocab_size, found.hidden_size, found.num_layers, found.num_heads, found.intermediate_size)
    assert shape == (777, 512, 6, 8, 2048) and found.max_position == 512


def build_tokenizer_stub(size):
    class Stub:
        get_vocab_size = staticmethod(lambda: size)

    return Stub()


def test_a_study_asks_for_its_text_before_any_work_and_refuses_a_changed_one(source, tmp_path):
    path = str(pathlib.Path(__file__).parents[2] / "configs" / "lab_gpu.py")
    with pytest.raises(InputError, match="lab.text.source"):
        check_study(Study(load_config(path, study=True), tmp_path / "study"))
    assert not (tmp_path / "study").exists()

    copy = tmp_path / "texts.jsonl"
    copy.write_bytes(source.read_bytes())
    study = Study(load_config(path, [f"--config.lab.text.source={copy}"], study=True), tmp_path / "study")
    check_study(study)
    world = next(stage for unit in study.units for stage in unit.stages if stage.name == "lab/0/world")
    started = tmp_path / "study" / "lab/0/world" / "started.json"
    started.parent.mkdir(parents=True)
    started.write_text(json.dumps({"settings": world.settings, "inputs": {**world.externals()}}))
    check_study(study)
    copy.write_text(copy.read_text().replace("n0 ", "n1000 "))
    with pytest.raises(InputError, match="lab/0/world .*its input source has changed"):
        check_study(study)
