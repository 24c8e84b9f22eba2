"""Lineages: models of two families on one world, every one with its own tokenizer, and probes that stay the same
text.
"""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.settings import build
from selftrain_jax.distributed.mesh import make_mesh
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.evaluation.memorization import load_probes
from selftrain_jax.lab.pretrain import pretrain_model
from selftrain_jax.lab.questions import question_suites
from selftrain_jax.lab.settings import LineageConfig, PretrainConfig, WorldConfig
from selftrain_jax.lab.world import build_world
from selftrain_jax.lab.world_files import write_world
from selftrain_jax.models import hf
from selftrain_jax.models.config import Rotary
from selftrain_jax.models.files.tokenizer import check_tokenizer, encode_texts, load_tokenizer, tokenizer_fingerprint
from selftrain_jax.training.settings import OptimizerConfig, TrainConfig

SMALL = PretrainConfig(
    hidden_size=32,
    num_layers=1,
    num_heads=2,
    max_position=32,
    num_documents=40,
    train=TrainConfig(
        batch_size=8,
        sequence_length=32,
        epochs=1,
        dtype="float32",
        remat=False,
        log_every=1,
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup=0.0),
    ),
)
PIECES = dataclasses.replace(
    SMALL,
    stream="b",
    max_position=128,
    tokenizer="bpe",
    bpe_vocab_size=200,
    parallel_residual=False,
    rotary_pct=0.5,
    tie_embeddings=True,
)
LINEAGE = LineageConfig(
    world=WorldConfig(num_people=8, max_addend=4, repeats=(0, 4), sequences_per_group=2),
    models={
        "a": SMALL,
        "b": PIECES,
        "b_narrow": dataclasses.replace(PIECES, hidden_size=16),
        "b_short": dataclasses.replace(PIECES, max_position=64),
    },
    validation_documents=10,
    control_documents=20,
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with the world and the models "a", "b" and "b_narrow"."""
    lab = tmp_path_factory.mktemp("lab")
    write_world(LINEAGE, lab / "facts")
    for name in ("a", "b", "b_narrow"):
        train(lab, name)
    return lab


def train(lab, name):
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    pretrain_model(LINEAGE, name, lab / "facts", lab / name, mesh=mesh)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ["a", "b"])
def test_every_model_is_a_checkpoint_with_its_own_tokenizer(lab, name):
    transformers = pytest.importorskip("transformers")
    config, params = hf.load_pretrained(lab / name / "model")
    settings = LINEAGE.models[name]
    assert config == settings.model_config(config.vocab_size)
    for switch in ("parallel_residual", "tie_embeddings"):
        assert getattr(config, switch) == getattr(settings, switch)
    assert config.rotaries == (Rotary(settings.rotary_pct),)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    tokenizer = transformers.AutoTokenizer.from_pretrained(lab / name / "model")
    check_tokenizer(config, tokenizer)
    assert len(tokenizer) == config.vocab_size
    assert tokenizer.get_vocab() == load_tokenizer(lab / name / "model").get_vocab()
    for row in rows(lab / "facts" / "validation.jsonl"):
        assert tokenizer.decode(tokenizer(row["text"])["input_ids"]) == row["text"]


def test_the_switches_are_written_as_transformers_reads_them(lab):
    saved = json.loads((lab / "b" / "model" / "config.json").read_text())
    assert saved["use_parallel_residual"] is False and saved["rotary_pct"] == 0.5
    assert saved["tie_word_embeddings"] is True and saved["vocab_size"] == 200


def test_a_word_level_model_has_the_tokenizer_and_probes_of_the_world(lab):
    assert tokenizer_fingerprint(lab / "a" / "model") == tokenizer_fingerprint(lab / "facts" / "tokenizer")
    assert (lab / "a" / "probes.jsonl").read_bytes() == (lab / "facts" / "probes.jsonl").read_bytes()


def test_models_of_one_family_share_a_tokenizer_and_families_do_not(lab):
    prints = {name: tokenizer_fingerprint(lab / name / "model") for name in ("a", "b", "b_narrow")}
    assert prints["b"] == prints["b_narrow"] != prints["a"]


def test_probe_by_probe_all_models_have_the_same_text(lab):
    found = {}
    for name in ("a", "b", "b_narrow"):
        config = hf.load_config(lab / name / "model")
        tokenizer = load_tokenizer(lab / name / "model")
        probes = load_probes(lab / name / "probes.jsonl", config, add_bos=True)
        found[name] = [(p.group, tokenizer.decode(p.prefix), tokenizer.decode(p.suffix)) for p in probes]
    assert found["a"] == found["b"] == found["b_narrow"] and len(found["a"]) == 4


def test_the_questions_can_be_asked_of_a_model_with_pieces_of_words(lab):
    """A choice costs what its own tokens cost after BOS and the question."""
    from selftrain_jax.evaluation.likelihood import choice_log_probs
    from selftrain_jax.evaluation.score import score

    config, params = hf.load_pretrained(lab / "b" / "model")
    tokenizer = load_tokenizer(lab / "b" / "model")
    recall = question_suites(build_world(LINEAGE.world))["recall"][:4]
    found = choice_log_probs(
        functools.partial(score, params, config), config, tokenizer, recall, "{question}", add_bos=True
    )
    for row, log_probs in zip(recall, found):
        question, *choices = encode_texts(tokenizer, [row["question"], *row["choices"]])
        sequences = [np.array([0, *question, *choice]) for choice in choices]
        scores = score(params, config, sequences, [1 + len(question)] * len(choices))
        assert [len(s.log_probs) for s in scores] == [len(choice) for choice in choices]
        # The same float32 sums, batched with other rows: 1e-6 relative each, some ten tokens.
        np.testing.assert_allclose(log_probs, [s.log_probs.sum() for s in scores], rtol=1e-5)


def test_text_in_pieces_is_learned(lab):
    metrics = rows(lab / "b" / "metrics.jsonl")
    assert abs(metrics[0]["loss"] - np.log(200)) < 0.5 and metrics[-1]["loss"] < metrics[0]["loss"] - 0.3


def test_a_context_too_short_for_the_probes_is_refused_before_training(lab):
    with pytest.raises(InputError, match="b_short.*max_position=64 must be at least"):
        train(lab, "b_short")
    assert not (lab / "b_short").exists()


def test_an_unknown_model_and_a_missing_world_are_named(lab, tmp_path):
    with pytest.raises(InputError, match="'c' is unknown; the models are a, b"):
        train(lab, "c")
    with pytest.raises(InputError, match="write_world"):
        train(tmp_path, "a")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "models"),
        ({"models": {"world": {}}}, "world"),
        ({"models": {"a/b": {}}}, "a/b"),
        ({"models": {"a": {}}, "control_documents": -1}, "control_documents=-1"),
        ({"models": {"a": {"tokenizer": "bites"}}}, "bites"),
        ({"models": {"a": {"tie_embedings": True}}}, "tie_embeddings"),
    ],
)
def test_an_unusable_lineage_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        build(LineageConfig, settings)


def test_a_lineage_is_built_from_plain_settings():
    lineage = build(LineageConfig, {"models": {"b": {"tokenizer": "bpe", "rotary_pct": 1}}, "world": {"num_people": 8}})
    assert lineage.models == {"b": PretrainConfig(tokenizer="bpe", rotary_pct=1.0)}
    assert lineage.world.num_people == 8
