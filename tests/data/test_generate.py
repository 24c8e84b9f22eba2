import dataclasses
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.data.corpus import CorpusWriter, corpus_fingerprint, read_corpus
from selftrain_jax.data.generate import sample_corpus
from selftrain_jax.distributed.mesh import make_mesh
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.evaluation.score import score
from selftrain_jax.models import hf
from selftrain_jax.models.files.fingerprints import model_fingerprint
from selftrain_jax.models.files.tokenizer import load_tokenizer, tokenizer_fingerprint
from selftrain_jax.sampling import sampler
from selftrain_jax.sampling.settings import SampleSettings

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
    assert found["model_fingerprint"] == model_fingerprint(model_directory)
    assert found["tokenizer_fingerprint"] == tokenizer_fingerprint(model_directory)
    assert found["vocab_size"] == len(load_tokenizer(model_directory))
    assert found["settings"] == dataclasses.asdict(SETTINGS)
    assert (found["start_ids"], found["stop_ids"], found["document_end_id"]) == ([0], [0], 0)


def test_documents_begin_after_the_start_that_is_asked_for(corpus, world, model_directory, one_device, tmp_path):
    first, *_, last = load_tokenizer(model_directory).get_vocab()
    settings = dataclasses.replace(SETTINGS, start=(first, last), max_new_tokens=24, num_samples=8)
    found = sample_corpus(model_directory, settings, tmp_path / "c", mesh=one_device, name="self")["provenance"]
    drawn = read_corpus(tmp_path / "c")
    assert found == drawn.manifest["provenance"] and found["settings"]["start"] == [first, last]
    vocabulary = load_tokenizer(model_directory).get_vocab()
    assert found["start_ids"] == [vocabulary[first], vocabulary[last]]
    config, params = hf.load_pretrained(model_directory)
    sequences = [np.concatenate([found["start_ids"], d.tokens]) for d in drawn]
    for d, scored in zip(drawn, score(params, config, sequences, [2] * 8)):
        np.testing.assert_allclose(d.log_probs, scored.log_probs, atol=1e-5)  # as above


@pytest.mark.parametrize(
    "changes", [dict(batch_size=20), dict(batch_size=3, shard_size=20), dict(shard_size=1)], ids=str
)
def test_portions_change_nothing(corpus, model_directory, one_device, tmp_path, changes):
    sample_corpus(model_directory, dataclasses.replace(SETTINGS, **changes), tmp_path, mesh=one_device, name="self")
    assert_same_tokens(read_corpus(tmp_path), corpus)


def test_devices_change_nothing(corpus, model_directory, tmp_path):
    mesh = make_mesh(MeshConfig(4, 1, 2), jax.devices())
    sample_corpus(model_directory, SETTINGS, tmp_path, mesh=mesh, name="self")
    assert_same_tokens(read_corpus(tmp_path), corpus)


@pytest.mark.parametrize("changes", [dict(seed=4), dict(temperature=0.5), dict(start=(1,))], ids=str)
def test_a_corpus_of_other_settings_is_not_gone_on_with(model_directory, one_device, tmp_path, changes):
    few = dataclasses.replace(SETTINGS, num_samples=8)
    sample_corpus(model_directory, few, tmp_path, mesh=one_device, name="self")
    before = corpus_fingerprint(tmp_path)
    with pytest.raises(InputError, match=f"was drawn with another ({min(changes)}|start_ids): name another folder"):
        sample_corpus(model_directory, dataclasses.replace(few, **changes), tmp_path, mesh=one_device, name="self")
    assert corpus_fingerprint(tmp_path) == before
    sample_corpus(model_directory, dataclasses.replace(few, batch_size=3), tmp_path, mesh=one_device, name="again")


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
        (dataclasses.replace(SETTINGS, start=(1, 2), max_new_tokens=32), "start of 2 tokens .* context of 32"),
        (dataclasses.replace(SETTINGS, start="no such word"), "start='no such word' is no text"),
    ],
    ids=["beyond the context", "other shards on disk", "start beyond the context", "unknown start"],
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
        "embed": {"embedding": params["embed"]["embedding"][:rows]},
        "head": {"kernel": params["head"]["kernel"][:, :rows]},
    }
    hf.save_pretrained(tmp_path / "small", small, params, model_directory)
    with pytest.raises(InputError, match="vocab_size=100"):
        sample_corpus(tmp_path / "small", SETTINGS, tmp_path / "c", mesh=one_device, name="self")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("smaller", [12, 9, 1], ids=["whole shards", "a shard to fill", "one document"])
def test_a_corpus_grows_by_drawing_only_the_rest(corpus, model_directory, one_device, tmp_path, monkeypatch, smaller):
    sample_corpus(
        model_directory, dataclasses.replace(SETTINGS, num_samples=smaller), tmp_path, mesh=one_device, name="self"
    )
    drawn, waves = [], sampler.sample_waves
    monkeypatch.setattr(sampler, "sample_waves", lambda *a, **k: drawn.extend(a[4]) or waves(*a, **k))
    manifest = sample_corpus(model_directory, SETTINGS, tmp_path, mesh=one_device, name="self")
    assert drawn == list(range(smaller, 20))
    assert_same_tokens(read_corpus(tmp_path), corpus)
    assert manifest["num_documents"] == 20 and len(list(tmp_path.glob("*array_record*"))) == 4


def test_a_damaged_shard_is_drawn_again_when_the_corpus_grows(corpus, model_directory, one_device, tmp_path):
    smaller = dataclasses.replace(SETTINGS, num_samples=9)
    sample_corpus(model_directory, smaller, tmp_path, mesh=one_device, name="self")
    last = max(tmp_path.glob("*array_record*"))
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 255
    last.write_bytes(data)
    sample_corpus(model_directory, SETTINGS, tmp_path, mesh=one_device, name="self")
    assert_same_tokens(read_corpus(tmp_path), corpus)


def test_a_corpus_does_not_shrink(corpus, model_directory, one_device, tmp_path):
    shutil.copytree(corpus.path, tmp_path / "c")
    with pytest.raises(InputError, match="layout"):
        settings = dataclasses.replace(SETTINGS, num_samples=12)
        sample_corpus(model_directory, settings, tmp_path / "c", mesh=one_device, name="self")
    assert_same_tokens(read_corpus(tmp_path / "c"), corpus)


def test_the_wave_size_and_dtype_may_be_left_to_the_device(corpus, model_directory, one_device, tmp_path):
    settings = dataclasses.replace(SETTINGS, batch_size="auto", dtype="auto")
    sample_corpus(model_directory, settings, tmp_path, mesh=one_device, name="self")
    found = read_corpus(tmp_path)
    assert_same_tokens(found, corpus)
    assert found.manifest["provenance"]["settings"]["dtype"] == "float32"  # on a CPU


def test_a_broken_write_ends_the_sampling(model_directory, one_device, tmp_path, monkeypatch):
    """Shards are written in a thread beside the next wave; what fails there must not be lost."""

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(CorpusWriter, "write_shard", full)
    with pytest.raises(OSError, match="No space left"):
        sample_corpus(model_directory, SETTINGS, tmp_path, mesh=one_device, name="self")


PROCESS = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from selftrain_jax.data.generate import sample_corpus
from selftrain_jax.distributed.mesh import make_mesh
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.sampling.settings import SampleSettings
settings = SampleSettings(**eval(sys.argv[5]))
devices = jax.devices() if sys.argv[6] == "all" else jax.local_devices()
sizes = (1, 1, len(devices)) if sys.argv[6] == "all" else (len(devices), 1, 1)
mesh = make_mesh(MeshConfig(*sizes), devices)
print(sample_corpus(sys.argv[3], settings, sys.argv[4], mesh=mesh, name="self")["num_documents"])
"""


@pytest.mark.large
@pytest.mark.parametrize("devices", ["local", "all"])
def test_processes_change_nothing(corpus, model_directory, tmp_path, devices):
    """Two processes: each with its own devices and ids, or both on one tensor-parallel mesh."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    root = pathlib.Path(__file__).resolve().parents[2]
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
    }
    arguments = [address, "", str(model_directory), str(tmp_path / "c"), repr(dataclasses.asdict(SETTINGS)), devices]
    workers = []
    for i in range(2):
        arguments[1] = str(i)
        command = [sys.executable, "-c", PROCESS, *arguments]
        workers.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    for worker in workers:
        out, err = worker.communicate(timeout=600)
        assert worker.returncode == 0 and out.strip().endswith("20"), err[-3000:]
    assert_same_tokens(read_corpus(tmp_path / "c"), corpus)


_WATCHES_IMPORTS = """
import sys, threading
import numpy as np
from selftrain_jax.data import corpus, generate
from selftrain_jax.sampling.sampler import Samples

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "tensorflow_datasets":
            print(threading.current_thread() is threading.main_thread())

sys.meta_path.insert(0, Watch())
wave = Samples(*(np.ones((1, 1)[:n], t) for n, t in ((1, int), (2, "i4"), (2, "f4"), (1, "i4"), (1, bool))))
tokenizer = type("", (), {"batch_decode": lambda self, ids: ["x"] * len(ids)})()
writer = corpus.CorpusWriter(sys.argv[1], 2, 1)
documents = {0: generate.Document(0, np.array([1]), None, "length", "x")}
generate._write(writer, writer.missing_shards(), documents, (w for w in [wave]), tokenizer)
"""


def test_tfds_is_not_imported_beside_the_sampler(tmp_path):
    """While it is, `import` in every thread may give its lazy modules, which jax then calls."""
    done = subprocess.run([sys.executable, "-c", _WATCHES_IMPORTS, tmp_path / "c"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
