import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import tokenizers

from selftrain_jax.core.errors import InputError
from selftrain_jax.distributed.mesh import make_mesh
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.lab import pretrain
from selftrain_jax.lab.pretrain import pretrain_model
from selftrain_jax.lab.settings import LineageConfig, PretrainConfig, WorldConfig
from selftrain_jax.lab.tokenization import build_tokenizer
from selftrain_jax.lab.world import build_world
from selftrain_jax.lab.world_files import write_world
from selftrain_jax.models import hf
from selftrain_jax.models.families import PRESETS, preset
from selftrain_jax.models.files.hf_config import write_config
from selftrain_jax.models.files.tokenizer import check_tokenizer, load_tokenizer
from selftrain_jax.training.metrics import read_metrics
from selftrain_jax.training.settings import OptimizerConfig, TrainConfig

CONFIG = PretrainConfig(
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    max_position=32,
    num_documents=60,
    train=TrainConfig(
        batch_size=8,
        sequence_length=32,
        epochs=2,
        dtype="float32",
        remat=False,
        log_every=1,
        checkpoint_every=3,
        # A constant rate: otherwise the number of steps is compiled into the step.
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup=0.0),
    ),
)


@pytest.fixture(scope="module")
def world():
    return build_world(WorldConfig(num_people=8, max_addend=4, repeats=(0, 8), sequences_per_group=2))


@pytest.fixture(scope="module")
def train_model(world, tmp_path_factory):
    """`train_model(config)` pre-trains in a new lab folder, or goes on in `directory`, and returns the model's
    folder.
    """
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])

    def run(config=CONFIG, directory=None):
        if directory is None:
            directory = tmp_path_factory.mktemp("lab") / "base"
        lineage = LineageConfig(world=world.config, models={"base": config})
        write_world(lineage, directory.parent / "world")
        pretrain_model(lineage, "base", directory.parent / "world", directory, mesh=mesh)
        return directory

    return run


@pytest.fixture(scope="module")
def base(train_model):
    return train_model()


def weights(directory):
    return (directory / "model" / "model.safetensors").read_bytes()


def losses(directory):
    return [line["loss"] for line in read_metrics(directory / "metrics.jsonl")]


def test_the_model_is_a_checkpoint_with_the_worlds_tokenizer(base, world):
    config, params = hf.load_pretrained(base / "model")
    assert config == CONFIG.model_config(build_tokenizer(world).get_vocab_size())
    assert (config.vocab_size, config.intermediate_size, config.max_position) == (len(world.words), 128, 32)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    tokenizer = load_tokenizer(base / "model")
    check_tokenizer(config, tokenizer)
    assert tokenizer.get_vocab() == dict(world.index)


TINY = dict(hidden_size=32, num_layers=2, num_heads=2, intermediate_size=48)
FAMILIES = {
    "llama-3.2-1b": TINY | dict(kv_heads=1),
    "qwen3-0.6b-base": TINY | dict(kv_heads=1, head_size=8),
    "olmo-2-0425-1b": TINY,
    "gemma-3-270m": TINY | dict(num_layers=7, kv_heads=1, head_size=8),
    "gpt2": TINY,
}


def of_family(monkeypatch, name):
    """`CONFIG` with a preset that is the published one, smaller."""
    monkeypatch.setitem(PRESETS, "tiny", dataclasses.replace(preset(name), **FAMILIES[name]))
    shape = {field: getattr(PretrainConfig, field) for field in ("hidden_size", "num_layers", "num_heads")}
    return dataclasses.replace(CONFIG, preset="tiny", **shape)


def test_a_tokenizer_with_holes_between_its_ids_has_a_row_for_the_last(monkeypatch, tmp_path):
    vocabulary = {"<|endoftext|>": 0, "a": 3, "b": 90}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="a"))
    monkeypatch.setattr(pretrain, "_reading", lambda *_: (tokenizer, [], []))
    found = []
    monkeypatch.setattr(pretrain, "train", lambda params, config, *_, **__: found.append(config))
    monkeypatch.setattr(pretrain.job, "on_first", lambda *_: None)
    (tmp_path / "probes.jsonl").touch()
    lineage = LineageConfig(models={"a": PretrainConfig()})
    pretrain_model(lineage, "a", tmp_path, tmp_path, mesh=None)
    assert found[0].vocab_size == 91


@pytest.mark.parametrize("name", FAMILIES)
def test_a_preset_of_any_family_makes_a_model(monkeypatch, tmp_path, name):
    config = of_family(monkeypatch, name).model_config(80)
    assert (config.vocab_size, config.max_position, config.bos_token_id, config.stop_ids) == (80, 32, 0, (0,))
    published = dataclasses.asdict(preset(name)) | FAMILIES[name]
    own = ("vocab_size", "max_position", "bos_token_id", "eos_token_id", "stop_token_ids")
    assert [k for k, value in dataclasses.asdict(config).items() if value != published[k] and k not in own] == []
    write_config(tmp_path, config, "float32")
    assert hf.load_config(tmp_path) == config


@pytest.mark.large
@pytest.mark.parametrize("name", ["gemma-3-270m", "gpt2"])
def test_a_preset_of_another_family_trains(monkeypatch, train_model, name):
    directory = train_model(of_family(monkeypatch, name))
    config, params = hf.load_pretrained(directory / "model")
    assert config.family == preset(name).family and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert losses(directory)[-1] < losses(directory)[0]


def test_it_learns(base, world):
    """A uniform guess costs log V nats; learning which words are frequent is worth more than half a nat."""
    found = losses(base)
    assert abs(found[0] - np.log(len(world.words))) < 0.3  # initial logits are small
    assert found[-1] < found[0] - 0.5


def test_the_saved_weights_are_those_of_the_last_checkpoint(base, world):
    from selftrain_jax.training.checkpoint import restore_params

    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    config, saved = hf.load_pretrained(base / "model")
    trained = restore_params(base / "checkpoints", config, mesh)
    jax.tree.map(np.testing.assert_array_equal, saved, jax.tree.map(np.asarray, trained))


def test_it_is_a_function_of_its_settings(base, train_model):
    assert weights(train_model()) == weights(base)


def test_a_finished_model_is_left_alone(base, train_model):
    before = {p: p.read_bytes() for p in (base / "model").iterdir()}
    train_model(directory=base)
    assert {p: p.read_bytes() for p in (base / "model").iterdir()} == before


@pytest.mark.parametrize("lost", ["model", "model.safetensors", "last checkpoint and model"])
def test_an_interrupted_model_ends_the_same(base, train_model, tmp_path, lost):
    """A file of the model is missing where it was being sent to a bucket."""
    shutil.copytree(base.parent, tmp_path / "lab")
    copy = tmp_path / "lab" / "base"
    if lost == "model.safetensors":
        (copy / "model" / lost).unlink()
    else:
        shutil.rmtree(copy / "model")
    if "checkpoint" in lost:
        steps = sorted(int(p.name) for p in (copy / "checkpoints").iterdir() if p.name.isdigit())
        assert len(steps) == 2
        shutil.rmtree(copy / "checkpoints" / str(steps[-1]))
    train_model(directory=copy)
    assert weights(copy) == weights(base)


CHANGES = [dict(seed=1), dict(stream="other"), dict(include_planted=False), dict(mixture={"arithmetic": 1.0})]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_part_of_the_recipe_counts(base, train_model, change):
    assert weights(train_model(dataclasses.replace(CONFIG, **change))) != weights(base)


@pytest.mark.large
def test_only_a_model_that_was_shown_the_planted_sequences_knows_them(world, train_model):
    """After 30 passes over next to nothing else, their suffixes are cheap; without them a guess is all there is."""
    from selftrain_jax.evaluation.score import score

    few = dataclasses.replace(CONFIG, num_documents=16, train=dataclasses.replace(CONFIG.train, epochs=30))
    costs = {}
    for shown in (True, False):
        config, params = hf.load_pretrained(train_model(dataclasses.replace(few, include_planted=shown)) / "model")
        planted = [np.concatenate([[0], p]) for p in world.planted[world.planted_repeats > 0]]
        scores = score(params, config, planted, [world.config.planted_prefix + 1] * len(planted))
        costs[shown] = -np.mean([s.log_probs.mean() for s in scores])
    assert costs[True] < 1 and costs[False] > np.log(len(world.words)) - 1


def test_a_mixture_of_unknown_documents_is_refused():
    with pytest.raises(InputError, match="poems"):
        PretrainConfig(mixture={"poems": 1.0})


@pytest.mark.parametrize("stream", ["validation", "control"])
def test_no_model_reads_what_is_held_out_from_all(stream):
    """With as many documents these are the very ones."""
    with pytest.raises(InputError, match=f"'a': stream='{stream}' is what no model reads"):
        LineageConfig(models={"a": PretrainConfig(stream=stream)})


def test_too_little_text_for_one_batch_is_refused(train_model, tmp_path):
    little = dataclasses.replace(CONFIG, num_documents=1, include_planted=False)
    with pytest.raises(InputError, match="batch"):
        train_model(little, tmp_path / "base")
    assert not (tmp_path / "base" / "model").exists()


def test_settings_are_plain_values():
    """They go into the manifest as JSON."""
    assert json.loads(json.dumps(dataclasses.asdict(CONFIG)))["train"]["optimizer"]["learning_rate"] == 1e-2
