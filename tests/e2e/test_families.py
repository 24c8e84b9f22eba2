"""Models of different families in one run and in one study: each reads the others' text in tokens of its own."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from selftrain_jax.core.files import write_jsonl
from selftrain_jax.data.corpus import read_corpus
from selftrain_jax.data.training_set import read_subset
from selftrain_jax.models import hf
from selftrain_jax.models.families import preset
from selftrain_jax.models.files.tokenizer import load_tokenizer
from tests.shapes import ONE_LAYER, initial

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORDS = "the cat sat on a mat while rain fell and nobody came to see it again".split()
SMALL = dict(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32, max_position=64, kv_heads=1)
END = dict(bos_token_id=0, eos_token_id=0)


def word_tokenizer(special, words):
    """Ids of the `special` tokens and, after them, of words in their order; what is no word is read as the first."""
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model of each of three families, texts, and a suite of questions."""
    folder, rng = tmp_path_factory.mktemp("families"), np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 12)) for _ in range(40)]
    write_jsonl(folder / "real.jsonl", [{"text": text} for text in texts])
    write_jsonl(
        folder / "suite.jsonl",
        [{"question": f"what of {i}?", "choices": ["the cat", "a mat"], "gold": i % 2} for i in range(4)],
    )
    made = {
        "gpt_neox": (ONE_LAYER, ["<|endoftext|>"], WORDS, dict(max_position=64)),
        "llama": (preset("tinyllama-1.1b"), ["<unk>", "<s>", "</s>"], WORDS[::-1], SMALL),
        "qwen3": (preset("qwen3-0.6b-base"), ["<|endoftext|>"], WORDS[5:] + WORDS[:5], SMALL | END),
    }
    for name, (config, special, words, shape) in made.items():
        tokenizer = word_tokenizer(special, words)
        shape = dict(shape, vocab_size=64, stop_token_ids=())
        config = dataclasses.replace(config, **shape)
        (folder / f"{name}-tokenizer").mkdir()
        tokenizer.save(str(folder / f"{name}-tokenizer" / "tokenizer.json"))
        hf.save_pretrained(folder / name, config, initial(config), folder / f"{name}-tokenizer")
    return folder


def settings(folder):
    """What makes of configs/family.py a run of seconds."""
    values = {
        "sample": dict(num_samples=24, batch_size=24, shard_size=24, min_new_tokens=2, max_new_tokens=24),
        "audit": {"ngram": 3, "benchmarks.suite": folder / "suite.jsonl"},
        "subset": dict(num_tokens=16 * 4 * 2 + 1, num_subsets=1, replacement=False),
        "train": dict(batch_size=4, grad_accum=1, sequence_length=16, epochs=1, dtype="float32", remat=False),
        "evaluate": {"texts.real": folder / "real.jsonl", "batch_size": 24},
        "controls": {"real.texts": folder / "real.jsonl"},
    }
    return [f"--config.{part}.{name}={value}" for part, found in values.items() for name, value in found.items()]


def test_a_student_of_another_family_reads_the_sources_text(selftrain, folder, tmp_path):
    student = f"--config.student={folder / 'gpt_neox'}"
    config, asked = f"{ROOT / 'configs' / 'family.py'}:{folder / 'llama'}", [student, *settings(folder)]
    refused = selftrain("run", tmp_path / "refused", *asked, "--config.subset.retokenize=False", config=config)
    assert refused.returncode == 2 and not (tmp_path / "refused" / "sample").exists()
    assert f"setting source: text of {folder / 'llama'} was made with another tokenizer (19 ids)" in refused.stderr

    workdir = tmp_path / "run"
    selftrain.succeeds("run", workdir, *asked, config=config)
    manifests = {arm: json.loads((workdir / "subset" / f"{arm}-0" / "manifest.json").read_text()) for arm in READ}
    assert {arm: manifest["result"]["retokenized"] for arm, manifest in manifests.items()} == READ
    documents = read_corpus(workdir / "sample" / "self" / "corpus")
    tokenizer = load_tokenizer(folder / "gpt_neox")
    wanted = {read(tokenizer, d) for d in documents}
    assert {tokens[-1:] == (0,) for tokens in wanted} == {True, False}
    rows = read_subset(workdir / "subset" / "self-0")
    stream = np.append(rows.tokens[:, :-1].ravel(), rows.tokens[-1, -1])
    starts = np.flatnonzero(np.diff(rows.segment_ids[:, :-1].ravel())) + 1
    *whole, _ = np.split(stream, starts)
    assert len(whole) > 3 and {tuple(document[1:]) for document in whole} <= wanted
    metrics = selftrain.report(workdir)["metrics"]
    assert {row["model"] for row in metrics} == {"base", "self", "control:real"}

    exported = tmp_path / "exported"
    selftrain.command("export", workdir, exported)
    assert hf.load_config(exported) == hf.load_config(folder / "gpt_neox")


def read(tokenizer, document):
    """The ids of a document's words, closed where it ended and not where it was cut."""
    end = [0] if document.stop_reason == "eos" else []
    return (*tokenizer(document.text, split_special_tokens=True)["input_ids"], *end)


READ = {"self": True, "real": False}  # a text file is tokenized once, not anew


def check_study(workdir, students, sources, steps):
    """The study of `configs/paper.py:tiny` or `real.py` in `workdir` is whole: no unit is missing, every pair is there,
    strangers' text was tokenized anew, and every step of `steps` was measured."""
    data = json.loads((workdir / "report" / "study.json").read_text())
    assert not any("not done" in note for note in data["notes"]) and (workdir / "report" / "study.html").is_file()
    for student in students:
        relations = {row["arm"]: row["relation"] for row in data["utility"] if row["student"] == student}
        assert {name: relations[name] for name in sources[student]} == sources[student]
        assert {"real", "none"} <= set(relations)
        for source, relation in sources[student].items():
            arm = "corpus" if source == student else source  # the main arm of a run is named so
            manifest = workdir / "runs" / f"{student}-0" / "subset" / f"{arm}-0" / "manifest.json"
            assert json.loads(manifest.read_text())["result"]["retokenized"] == (relation == "other family")
    assert {row["proxy"] for row in data["proxies"]} >= {"nll", "gradient_alignment"}
    assert {row["step"] for row in data["curves"]} == set(steps)
    return data


QWEN, LLAMA = "qwen2p5_0p5b", "llama_3p2_1b"
MATRIX = {
    QWEN: {
        QWEN: "self",
        "qwen2p5_7b": "same lineage",
        "qwen3_8b": "same family, different recipe",
        LLAMA: "other family",
    },
    LLAMA: {LLAMA: "self", QWEN: "other family", "qwen2p5_7b": "other family", "qwen3_8b": "other family"},
}


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.large)])
def test_the_papers_matrix_in_small_ends_with_its_page(selftrain, tmp_path, whole):
    """In the fast suite, one student and three sources of it."""
    sources = MATRIX if whole else {QWEN: {k: v for k, v in MATRIX[QWEN].items() if k != "qwen2p5_7b"}}
    asked = [] if whole else [f"--config.students={(QWEN,)}", f"--config.sources={tuple(sources[QWEN])}"]
    asked += [] if whole else ["--config.shuffled=False", "--config.train.epochs=1"]
    workdir = tmp_path / "study"
    selftrain.succeeds("study", workdir, *asked, config=f"{ROOT / 'configs' / 'paper.py'}:tiny={tmp_path / 'models'}")
    check_study(workdir, sources, sources, [0, 2, 4] if whole else [0, 2])
    starts = {
        source: read_corpus(workdir / "corpora" / "0" / source / "corpus").manifest["provenance"]["start_ids"]
        for source in sources[QWEN]
    }
    assert starts.pop("qwen3_8b") == [1] and set(map(tuple, starts.values())) == {(0,)}  # a newline, and BOS
