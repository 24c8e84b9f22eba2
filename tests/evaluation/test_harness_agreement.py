"""Our harness model answers as the harness's own `hf` model does on the checkpoint that we export."""

import dataclasses
import json
import pathlib
import shutil
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch, which the harness's hf model runs on, is not installed")
huggingface = pytest.importorskip(
    "lm_eval.models.huggingface",
    reason="lm-evaluation-harness with its hf extra is not installed",
    exc_type=ImportError,
)
from lm_eval.api.instance import Instance

from selftrain_jax.evaluation.harness import HarnessModel
from selftrain_jax.models import hf
from selftrain_jax.models.families import PRESETS
from tests.shapes import initial

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(ours, theirs): a random model of pythia-14m's shape but for a shorter context, its logits spread enough that
    likelihoods differ, with Pythia's tokenizer."""
    if not (SHARED / "benchmarks" / "lambada_openai.jsonl").is_file():
        pytest.skip("the benchmarks and Pythia's tokenizer are not in ../shared/data")
    config = dataclasses.replace(PRESETS["pythia-14m"], max_position=512)
    params = initial(config)
    params["head"]["kernel"] *= 5
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    shutil.copy(SHARED / "tokenizer" / "tokenizer.json", tokenizer)
    directory = tmp_path_factory.mktemp("export") / "model"
    hf.save_pretrained(directory, config, params, tokenizer)
    return (
        HarnessModel(params, config, directory, batch_size=16),
        huggingface.HFLM(str(directory), device="cpu", dtype="float32", batch_size=8),
    )


def ask(models, kind, arguments):
    """The answers of both to the same requests."""
    return [
        getattr(model, kind)([Instance(kind, {}, argument, 0) for argument in arguments], disable_tqdm=True)
        for model in models
    ]


def rows(name, count):
    with open(SHARED / "benchmarks" / name) as f:
        return [json.loads(line) for _, line in zip(range(count), f)]


def pairs():
    for row in rows("lambada_openai.jsonl", 40):
        context, word = row["text"].rsplit(" ", 1)
        yield context, " " + word
        yield context + " ", word
    for name in ("arc_easy_test.jsonl", "arc_challenge_test.jsonl"):
        for row in rows(name, 10):
            yield from ((f"Question: {row['question']}\nAnswer:", " " + choice) for choice in row["choices"])
    with zipfile.ZipFile(SHARED / "benchmarks" / "blimp.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jsonl"))
        for name in names[::7]:
            row = json.loads(archive.read(name).splitlines()[0])
            yield from (("", " " + row[kind]) for kind in ("sentence_good", "sentence_bad"))


def test_log_likelihoods_and_greedy_flags_agree(models):
    found, expected = ask(models, "loglikelihood", list(pairs()))
    gaps = np.abs(np.array([value for value, _ in found]) - [value for value, _ in expected])
    assert gaps.max() < 1e-3 and np.std([value for value, _ in found]) > 0.5
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_rolling_log_likelihoods_agree(models):
    text = (SHARED / "text" / "wikitext2_valid.txt").read_text()
    found, expected = ask(models, "loglikelihood_rolling", [(text[:3_500],), (text[20_000:20_500],)])
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def best_two(model, ids):
    """How far apart the two largest logits of the harness's model are, after these tokens."""
    first, second = model._model_call(torch.tensor([ids]))[0, -1].float().topk(2).values.tolist()
    return first - second


def test_greedy_text_agrees(models):
    """Up to the first near tie, where either token may be written: logits of order 5 differ by some 1e-5."""
    settings = {"until": ["Question:", "\n\n"], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0}
    contexts = [f"Question: {row['question']}\nAnswer:" for row in rows("gsm8k_test.jsonl", 4)]
    found, expected = ask(models, "generate_until", [(context, settings) for context in contexts])
    assert len(set(found)) > 1
    for context, one, other in zip(contexts, found, expected):
        if one != other:
            ids = [models[1].tok_encode(context + text) for text in (one, other)]
            same = next((i for i, (a, b) in enumerate(zip(*ids)) if a != b), min(map(len, ids)))
            assert best_two(models[1], ids[0][:same]) < 1e-4, (one, other)
