import dataclasses
import shutil

import jax
import numpy as np
import pytest

from selftrain_jax import parallel
from selftrain_jax.data.corpus import read_corpus
from selftrain_jax.data.generate import sample_corpus
from selftrain_jax.errors import InputError
from selftrain_jax.evaluation.score import score
from selftrain_jax.models import hf
from selftrain_jax.models.tokenizer import load_tokenizer, tokenizer_fingerprint
from selftrain_jax.settings import SampleSettings

SETTINGS = SampleSettings(
    num_samples=20, seed=3, batch_size=8, shard_size=6, dtype="float32", min_new_tokens=2, max_new_tokens=24
)


@pytest.fixture(scope="module")
def corpus(model_directory, one_device, tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus")
    sample_corpus(model_directory, SETTINGS, path, mesh=one_device, name="self")
    return read_corpus(path)


def assert_same_tokens(found, wanted):
    assert [d.id for d in found] == [d.id for d in wanted]
    for a, b in zip(found, wanted):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        assert (a.stop_reason, a.text) == (b.stop_reason, b.text)
        # fp32 log-probabilities of at most log(130) = 5 nats, from matmuls of another batch shape.
        np.testing.assert_allclose(a.log_probs, b.log_probs, atol=1e-5)


def test_a_corpus_holds_the_documents_asked_for(corpus, model_directory):
    tokenizer = load_tokenizer(model_directory)
    assert [d.id for d in corpus] == list(range(20))
    assert len({d.text for d in corpus}) == 20
    for d in corpus:
        assert SETTINGS.min_new_tokens <= len(d.tokens) <= SETTINGS.max_new_tokens
        assert d.tokens.max() < len(tokenizer)
        ended = d.tokens[-1] == 0
        assert 0 not in d.tokens[:-1]
        assert d.stop_reason == ("eos" if ended else "length")
        assert ended or len(d.tokens) == SETTINGS.max_new_tokens
        assert d.text == tokenizer.decode(d.tokens[: len(d.tokens) - ended])


def test_stored_log_probabilities_are_those_of_a_teacher_forced_pass(corpus, model_directory):
    config, params = hf.load_pretrained(model_directory)
    scores = score(params, config, [np.concatenate([[0], d.tokens]) for d in corpus])
    for d, scored in zip(corpus, scores):
        # fp32, summed in another order than with a cache; ids past the tokenizer keep their share of the probability.
        np.testing.assert_allclose(d.log_probs, scored.log_probs, atol=1e-5)


def test_where_documents_come_from_is_on_record(corpus, model_directory):
    found = corpus.manifest["provenance"]
    assert found["model_fingerprint"] == hf.model_fingerprint(model_directory)
    assert found["tokenizer_fingerprint"] == tokenizer_fingerprint(model_directory)
    assert found["vocab_size"] == len(load_tokenizer(model_directory))
    assert found["settings"] == dataclasses.asdict(SETTINGS)


@pytest.mark.parametrize("changes", [dict(batch_size=20), dict(batch_size=3, shard_size=20), dict(shard_size=1)], ids=str)
def test_portions_change_nothing(corpus, model_directory, one_device, tmp_path, changes):
    sample_corpus(model_directory, dataclasses.replace(SETTINGS, **changes), tmp_path, mesh=one_device, name="self")
    assert_same_tokens(read_corpus(tmp_path), corpus)


def test_devices_change_nothing(corpus, model_directory, tmp_path):
    mesh = parallel.make_mesh(parallel.MeshConfig(4, 1, 2), jax.devices())
    sample_corpus(model_directory, SETTINGS, tmp_path, mesh=mesh, name="self")
    assert_same_tokens(read_corpus(tmp_path), corpus)


@pytest.mark.parametrize("changes", [dict(seed=4), dict(temperature=0.5)], ids=str)
def test_seed_and_temperature_change_the_documents(corpus, model_directory, one_device, tmp_path, changes):
    sample_corpus(model_directory, dataclasses.replace(SETTINGS, **changes), tmp_path, mesh=one_device, name="self")
    assert not {d.text for d in read_corpus(tmp_path)} & {d.text for d in corpus}


def test_only_missing_shards_are_drawn_again(corpus, model_directory, one_device, tmp_path):
    """Kept shards are not even touched; the whole equals an uninterrupted corpus."""
    shutil.copytree(corpus.path, tmp_path / "c")
    shards = sorted((tmp_path / "c").glob("*array_record*"))
    shards[1].unlink()
    shards[3].write_bytes(shards[3].read_bytes()[:100])
    (tmp_path / "c" / "manifest.json").unlink()
    kept = {s: s.stat() for s in (shards[0], shards[2])}
    manifest = sample_corpus(model_directory, SETTINGS, tmp_path / "c", mesh=one_device, name="self")
    assert_same_tokens(read_corpus(tmp_path / "c"), corpus)
    assert manifest == corpus.manifest
    for shard, before in kept.items():
        after = shard.stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dataclasses.replace(SETTINGS, max_new_tokens=33), "max_new_tokens=33 .* context of 32"),
        (dataclasses.replace(SETTINGS, shard_size=7), "layout"),
    ],
    ids=["beyond the context", "other shards on disk"],
)
def test_what_cannot_be_drawn_is_refused_and_the_corpus_stays(
    corpus, model_directory, one_device, tmp_path, settings, message
):
    shutil.copytree(corpus.path, tmp_path / "c")
    before = {p.name: p.read_bytes() for p in (tmp_path / "c").iterdir()}
    with pytest.raises(InputError, match=message):
        sample_corpus(model_directory, settings, tmp_path / "c", mesh=one_device, name="self")
    assert {p.name: p.read_bytes() for p in (tmp_path / "c").iterdir()} == before


def test_a_tokenizer_that_the_model_cannot_hold_is_refused(model_directory, one_device, tmp_path):
    config, params = hf.load_pretrained(model_directory)
    rows = 100
    small = dataclasses.replace(config, vocab_size=rows)
    params = params | {
        "embed": {"embedding": params["embed"]["embedding"][:rows]}, "head": {"kernel": params["head"]["kernel"][:, :rows]}
    }  # fmt: skip
    hf.save_pretrained(tmp_path / "small", small, params, model_directory)
    with pytest.raises(InputError, match="vocab_size=100"):
        sample_corpus(tmp_path / "small", SETTINGS, tmp_path / "c", mesh=one_device, name="self")
    assert not (tmp_path / "c").exists()
