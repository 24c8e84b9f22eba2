"""What we export scores the same in lm-evaluation-harness's own `hf` model as in our scorer."""

import functools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from selftrain_jax.evaluation.score import score
from selftrain_jax.models import gpt_neox, hf
from selftrain_jax.models.config import PRESETS
from selftrain_jax.models.tokenizer import load_tokenizer

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data"
LAMBADA = SHARED / "benchmarks" / "lambada_openai.jsonl"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model of pythia-14m's shape, its logits spread enough that likelihoods differ, with Pythia's tokenizer."""
    if not LAMBADA.is_file():
        pytest.skip("LAMBADA and Pythia's tokenizer are not in ../shared/data")
    config = PRESETS["pythia-14m"]
    params = gpt_neox.init_params(config, jax.random.key(0))
    params["head"]["kernel"] *= 5
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    shutil.copy(SHARED / "tokenizer" / "tokenizer.json", tokenizer)
    directory = tmp_path_factory.mktemp("export") / "model"
    hf.save_pretrained(directory, config, params, tokenizer)
    return directory


def test_lambada_log_likelihoods_agree(model):
    pytest.importorskip("torch", reason="PyTorch, which the harness's hf model runs on, is not installed")
    harness = pytest.importorskip("lm_eval.models.huggingface", reason="lm-evaluation-harness is not installed")
    from lm_eval.api.instance import Instance

    rows = [json.loads(line)["text"] for line in LAMBADA.read_text().splitlines()[:200]]
    pairs = [(context, " " + word) for context, word in (text.rsplit(" ", 1) for text in rows)]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    reference = harness.HFLM(str(model), device="cpu", dtype="float32", batch_size=8)
    expected = reference.loglikelihood(requests, disable_tqdm=True)

    config, params = hf.load_pretrained(model)
    encode = functools.partial(load_tokenizer(model), add_special_tokens=False)
    contexts = [encode(context)["input_ids"] for context, _ in pairs]
    sequences = [encode(context + word)["input_ids"] for context, word in pairs]
    scores = score(params, config, sequences, [len(c) for c in contexts], batch_size=16)
    found = np.array([s.log_probs.sum(dtype=np.float64) for s in scores])
    gaps = np.abs(found - [value for value, _ in expected])
    assert gaps.max() < 1e-3 and np.std(found) > 0.5
    assert [bool(s.hits.all()) for s in scores] == [greedy for _, greedy in expected]
