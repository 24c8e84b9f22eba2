"""Every fault: one line on stderr that says what is wrong, exit code 2, no traceback, nothing half-written."""

import json
import shutil

import pytest

from selftrain_jax.data.corpus import read_corpus


@pytest.fixture
def refused(selftrain):
    """Runs a command that must fail on bad input, in a workdir that must stay as it is; returns the message."""

    def run(name, workdir, *settings, **options):
        existed = workdir.is_dir()
        before = selftrain.contents(workdir) if existed else {}
        done = selftrain(name, workdir, *settings, **options)
        lines = done.stderr.splitlines()
        assert done.returncode == 2, done.stderr[-3000:]
        assert "Traceback" not in done.stderr
        assert [line.startswith("selftrain: error: ") for line in lines].count(True) == 1, done.stderr
        assert lines[-1].startswith("selftrain: error: "), done.stderr
        after = selftrain.contents(workdir) if workdir.is_dir() else {}
        after.pop("config.json", None) if "config.json" not in before else None
        assert sorted(after) == sorted(before)
        assert after == before
        return lines[-1].removeprefix("selftrain: error: ")

    return run


@pytest.fixture
def jsonl(tmp_path):
    def write(name, *lines):
        path = tmp_path / name
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return path

    return write


@pytest.fixture
def base_model(finished, tmp_path):
    """A copy of the lab's base model to damage."""
    return shutil.copytree(finished[0] / "lab" / "base" / "model", tmp_path / "model")


CHANGED = [
    ("lab.world.seed=1", "lab/world: setting seed is 1"),
    ("sample.num_samples=63", "sample/self: setting num_samples is 63"),
    ("train.epochs=3", "train/self-0: setting epochs is 3"),
]


@pytest.mark.parametrize("change, message", CHANGED, ids=[change for change, _ in CHANGED])
def test_a_changed_setting_on_an_old_workdir(refused, finished, change, message):
    assert message in refused("run", finished[0], f"--config.{change}")


BAD_SETTINGS = [
    ("sample.num_sample=3", "unknown setting sample.num_sample; did you mean 'num_samples'?"),
    ("sample.num_samples=many", "setting sample.num_samples='many' must be of type int"),
    ("sample.temperature=0.0", "temperature=0.0"),
    ("sample.temperature=-1.0", "temperature=-1.0"),
    ("audit.benchmarks.recall=gone.jsonl", "audit.benchmarks.recall: file not found: gone.jsonl"),
    ("evaluate.probes=gone.jsonl", "evaluate.probes: file not found: gone.jsonl"),
    ("evaluate.texts.validation=gone.txt", "evaluate.texts.validation: file not found: gone.txt"),
    ("controls.real.texts=gone.jsonl", "controls.real.texts: file not found: gone.jsonl"),
    ("source=no-such-model", "no-such-model"),
]


@pytest.mark.parametrize("change, message", BAD_SETTINGS, ids=[change for change, _ in BAD_SETTINGS])
def test_a_setting_that_cannot_be(refused, tmp_path, change, message):
    assert message in refused("run", tmp_path / "new", f"--config.{change}")
    assert not (tmp_path / "new").exists()


def test_a_missing_config(refused, tmp_path):
    assert "gone.py" in refused("run", tmp_path / "new", config=tmp_path / "gone.py")
    assert not (tmp_path / "new").exists()


def test_a_workdir_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        assert f"workdir {workdir}" in refused("run", workdir)
    assert (tmp_path / "file").read_text() == "in the way"


def test_stages_out_of_order(refused, tmp_path):
    assert "`selftrain lab`" in refused("audit", tmp_path / "new")


def test_truncated_weights(refused, copy_of, base_model):
    weights = base_model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    message = refused("sample", copy_of("lab"), f"--config.source={base_model}")
    assert str(weights) in message and "not a readable safetensors file" in message


def test_a_model_without_a_tokenizer(refused, copy_of, base_model):
    (base_model / "tokenizer.json").unlink()
    message = refused("sample", copy_of("lab"), f"--config.source={base_model}")
    assert f"tokenizer not found: {base_model / 'tokenizer.json'}" in message


PROBES = [
    ({"prefix": [5] * 40, "suffix": [6] * 40}, "probe 2: 80 tokens are longer than the model's context of 64"),
    ({"prefix": [5], "suffix": [100_000]}, "token ids must lie in"),
    ('{"prefix": [5], "suff', "line 2: not valid JSON"),
]


@pytest.mark.parametrize("line, message", PROBES, ids=[message for _, message in PROBES])
def test_a_bad_probe(refused, copy_of, jsonl, line, message):
    probes = jsonl("probes.jsonl", {"prefix": [5, 6], "suffix": [7]}, line)
    workdir = copy_of("lab", "sample", "audit", "subset", "train")
    found = refused("evaluate", workdir, f"--config.evaluate.probes={probes}")
    assert str(probes) in found and message in found


def test_an_audit_that_leaves_nothing_can_be_mended_in_place(refused, selftrain, finished, copy_of, jsonl):
    sampled = [{"text": document.text} for document in read_corpus(finished[0] / "sample" / "self" / "corpus")]
    benchmark = f"--config.audit.benchmarks.recall={jsonl('benchmark.jsonl', *sampled)}"
    workdir = copy_of("lab", "sample")
    message = refused("audit", workdir, benchmark, "--config.audit.ngram=1")
    assert "audit (ngram=1, threshold=1) flagged all 100 documents" in message
    selftrain.succeeds("audit", workdir, benchmark, "--config.audit.ngram=1", "--config.audit.threshold=1000")


def test_a_student_with_another_tokenizer_trains_on_the_text(refused, selftrain, copy_of, base_model):
    tokenizer = json.loads((base_model / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    ordinary = len(vocab) - 2
    tokenizer["model"]["vocab"] = {word: i if i < 2 else 2 + (i - 1) % ordinary for word, i in vocab.items()}
    (base_model / "tokenizer.json").write_text(json.dumps(tokenizer))
    workdir, student = copy_of("lab", "sample", "audit"), f"--config.student={base_model}"
    message = refused("subset", workdir, student)
    assert "another tokenizer" in message and "subset.retokenize=True" in message
    out = selftrain.succeeds("run", workdir, student, "--config.subset.retokenize=True")
    assert "sample/self: done before" in out
    models = {row["model"] for row in selftrain.report(workdir)["metrics"]}
    assert models == {"base", "self", "control:real", "control:other"}
