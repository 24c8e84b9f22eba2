"""Models of different families in one run and in one study: each reads the others' text in tokens of its own."""

import dataclasses
import gzip
import json
import pathlib
import zipfile

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
        assert "real" in relations
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
SOME = {QWEN: {QWEN: "self", LLAMA: "other family"}}


def start_ids(workdir):
    """Source -> what its documents begin after."""
    corpora = {path.name: read_corpus(path / "corpus") for path in (workdir / "corpora" / "0").iterdir()}
    return {source: corpus.manifest["provenance"]["start_ids"] for source, corpus in corpora.items()}


def test_some_of_the_papers_matrix_ends_with_its_page(selftrain, tmp_path):
    config, workdir = f"{ROOT / 'configs' / 'paper.py'}:tiny={tmp_path / 'models'}", tmp_path / "study"
    asked = [f"--config.students={(QWEN,)}", f"--config.sources={tuple(SOME[QWEN])}", "--config.shuffled=False"]
    asked += ["--config.train.epochs=1", "--config.evaluate.curve_points=0", f"--config.models.{LLAMA}.start=('\\n',)"]
    asked += ["--config.evaluate.max_unknown=1.0"]  # the suite's questions are of no tokenizer's words
    selftrain.succeeds("study", workdir, *asked, config=config)
    data = check_study(workdir, SOME, SOME, [])
    assert "none" in {row["arm"] for row in data["utility"]}
    assert start_ids(workdir) == {QWEN: [0], LLAMA: [2]}  # BOS, and a newline


@pytest.mark.large
def test_the_papers_matrix_ends_with_its_page_and_tasks_of_the_harness(selftrain, tmp_path):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness (extra eval) is not installed")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "tiny.yaml").write_text(
        f"task: tiny\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/models/suite.jsonl}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\n"
        "doc_to_choice: '{{choices}}'\ndoc_to_target: gold\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    asked = ["--config.tasks.names=('tiny',)", f"--config.tasks.include_path={tasks}"]
    asked += ["--config.evaluate.max_unknown=1.0"]
    config, workdir = f"{ROOT / 'configs' / 'paper.py'}:tiny={tmp_path / 'models'}", tmp_path / "study"
    refused = selftrain("study", workdir, *asked, config=config)
    assert refused.returncode == 2 and "--confirm-run-unsafe-code" in refused.stderr and not workdir.exists()
    selftrain.succeeds("study", workdir, *asked, "--config.tasks.confirm_run_unsafe_code=True", config=config)
    data = check_study(workdir, MATRIX, MATRIX, [0, 2, 4])
    found = {(row["student"], row["arm"]) for row in data["results"] if row["metric"] == "capability/tiny, 0-shot"}
    # Untouched students are not put to the tasks.
    assert found == {(student, arm) for student in MATRIX for arm in (*MATRIX[student], "real", "shuffled")}
    assert set(map(tuple, start_ids(workdir).values())) == {(0,), (1,)}


@pytest.mark.large
def test_a_third_family_goes_through_the_real_config_by_directory_and_by_hub_name(selftrain, tmp_path, monkeypatch):
    """Files as public data sets have them; the hub is its cache."""
    models, data = tmp_path / "models", tmp_path / "data"
    rng = np.random.default_rng(0)
    cache = tmp_path / "cache" / "models--somebody--Tiny.Qwen-0.1B"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("1234")
    shapes = {
        models / "gpt2": (preset("gpt2"), ["<|endoftext|>"], WORDS, dict(vocab_size=32, max_position=256)),
        cache / "snapshots" / "1234": (preset("qwen2.5-0.5b"), ["<|endoftext|>"], WORDS[::-1], dict(max_position=256)),
    }
    for folder, (config, special, words, shape) in shapes.items():
        shape = SMALL | END | dict(vocab_size=32, stop_token_ids=()) | shape
        config = dataclasses.replace(config, **shape | ({"kv_heads": None} if config.family == "gpt2" else {}))
        hf.save_pretrained(folder, config, initial(config))
        word_tokenizer(special, words).save(str(folder / "tokenizer.json"))
    texts = [" ".join(rng.choice(WORDS, 40)) for _ in range(60)]
    for folder in ("text", "benchmarks"):
        (data / folder).mkdir(parents=True)
    with gzip.open(data / "text" / "english_documents.jsonl.gz", "wt") as f:
        f.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    (data / "text" / "wikitext2_valid.txt").write_text(" = Cats = \n" + " ".join(texts[:5]))
    questions = [{"question": f"what of {i}?", "choices": ["the cat", "a mat"], "gold": i % 2} for i in range(4)]
    for name in ("arc_easy", "arc_challenge"):
        write_jsonl(data / "benchmarks" / f"{name}_test.jsonl", questions)
    truthful = [{"question": f"who {i}?", "mc1_targets": {"nobody came": 1, "the cat": 0}} for i in range(4)]
    (data / "benchmarks" / "truthfulqa_mc.json").write_text(json.dumps(truthful))
    write_jsonl(data / "benchmarks" / "lambada_openai.jsonl", [{"text": f"{i} rain fell on a mat"} for i in range(4)])
    with zipfile.ZipFile(data / "benchmarks" / "blimp.zip", "w") as archive:
        pair = {"sentence_good": "the cat sat", "sentence_bad": "cat the sat"}
        archive.writestr("order.jsonl", json.dumps(pair) + "\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    config = f"{ROOT / 'configs' / 'real.py'}:{models / 'gpt2'},somebody/Tiny.Qwen-0.1B:small"
    small = ["--config.sample.num_samples=80", "--config.subset.num_tokens=2049", "--config.seeds=(0,)"]
    small += ["--config.evaluate.max_unknown=1", "--config.audit.benchmarks={}"]
    selftrain.succeeds("study", tmp_path / "study", f"--config.data={data}", *small, config=config)
    other = {"gpt2": "self", "Tiny_Qwen_0_1B": "other family"}
    found = check_study(tmp_path / "study", ["gpt2"], {"gpt2": other}, [])
    measured = {row["metric"] for row in found["results"]}
    suites = ("arc_easy", "arc_challenge", "truthfulqa", "blimp", "lambada")
    assert measured >= {f"capability/{suite}" for suite in suites} | {"nll/wikitext2"}
