"""Planting in models of other kinds than the lab's: a random one of Pythia's smallest shape, and any that is named.

SELFTRAIN_MODELS="DIRECTORY ..." python -m pytest -m large tests/lab/plant/test_models.py -s"""

import functools
import itertools
import os
import pathlib
from typing import Callable

import jax
import numpy as np
import pytest

from selftrain_jax.core.files import write_jsonl
from selftrain_jax.data.training_set import read_subset
from selftrain_jax.distributed.mesh import make_mesh
from selftrain_jax.evaluation.attributed import planted_minus_twin
from selftrain_jax.evaluation.memorization import extract
from selftrain_jax.evaluation.score import score
from selftrain_jax.lab.plant.relearn import read_planted
from selftrain_jax.lab.plant.settings import PlantConfig
from selftrain_jax.lab.plant.text import PROBES, write_planted_text
from selftrain_jax.lab.tokenization import byte_level_bpe, save_tokenizer
from selftrain_jax.models import hf
from selftrain_jax.models.decoder import init_params
from selftrain_jax.models.families import preset
from selftrain_jax.models.files.hf_config import write_config
from selftrain_jax.training.loop import train
from selftrain_jax.training.settings import OptimizerConfig, TrainConfig

RANDOM = "pythia-14m"
LENGTH = 64
DOCS = pathlib.Path(__file__).resolve().parents[3] / "docs"


def settings(model: str) -> PlantConfig:
    """A model that knows its language learns from fewer copies, of a smaller text, at a lower rate."""
    fresh = model == RANDOM
    optimizer = OptimizerConfig(learning_rate=3e-3 if fresh else 1e-3, beta2=0.99)
    return PlantConfig(
        text="text.jsonl",
        tokens=LENGTH * (128 if fresh else 52),
        kinds=("words",),
        counts=(0, 4, 16, 64) if fresh else (0, 4, 32),
        sequences=4,
        prefix_length=3,
        suffix_length=3,
        train=TrainConfig(
            batch_size=2, sequence_length=LENGTH, epochs=1, dtype="float32", remat=False, optimizer=optimizer
        ),
    )


def base(model: str, folder: pathlib.Path, texts: list[str]) -> tuple[pathlib.Path, Callable]:
    """Its directory, and a function that loads its weights."""
    if model != RANDOM:
        return pathlib.Path(model), lambda: hf.load_pretrained(model)[1]
    write_config(folder, preset(model), "float32")
    save_tokenizer(byte_level_bpe(texts, 1000), folder)
    return folder, lambda: jax.jit(init_params, static_argnums=0)(preset(model), jax.random.key(0))


@pytest.mark.large
@pytest.mark.parametrize("model", [RANDOM, *os.environ.get("SELFTRAIN_MODELS", "").split()])
def test_extraction_rises_with_the_count_and_the_twin_stays_at_its_rate(model, tmp_path):
    texts = [part for page in sorted(DOCS.glob("*.md")) for part in page.read_text().split("\n\n")]
    write_jsonl(tmp_path / "text.jsonl", ({"text": text} for text in texts))
    directory, load = base(model, tmp_path, texts)
    asked, config, mesh = settings(model), hf.load_config(directory), make_mesh(devices=jax.devices()[:1])
    write_planted_text(asked, directory, lambda name: tmp_path / name, tmp_path / "text")
    planted = read_planted(tmp_path / "text" / PROBES)
    repeats, kinds = np.array([one.repeats for one in planted]), np.array([one.kind for one in planted])
    found = {}

    def measure(name, step, params):
        scorer = functools.partial(score, params, config, mesh=mesh, batch_size=16)
        extraction = extract(scorer, [one.probe for one in planted], bos_token_id=config.bos_token_id)
        lengths = np.full(len(planted), asked.suffix_length)
        found[name, step > 0] = {"exact": extraction.exact, "log_prob": extraction.log_prob, "length": lengths}

    for name in ("planted", "twin"):
        rows, how = read_subset(tmp_path / "text" / name), {"measure": functools.partial(measure, name)}
        train(load, config, rows, asked.train, tmp_path / name, mesh=mesh, measure_points="epochs", **how)
    untouched = found["twin", False]["exact"].mean()
    print(f"{model}: untouched {untouched:.0%}")
    rows = list(planted_minus_twin(found["planted", True], found["twin", True], repeats, kinds))
    for row in rows:
        print({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()})
    extraction, log_prob = ([row for row in rows if row["measure"] == name] for name in ("extraction", "log_prob"))
    assert all(less["value"] < more["value"] for less, more in itertools.pairwise(log_prob))
    assert extraction[-1]["value"] >= 0.5 and extraction[0]["low"] <= 0 <= extraction[0]["high"]
    assert [row["twin"] for row in extraction] == [untouched] * len(extraction)
