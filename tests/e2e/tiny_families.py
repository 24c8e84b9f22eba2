"""configs/paper.py in miniature, on the three models that test_families.py writes into the folder of the argument."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "configs"))
import family  # noqa: E402
import paper  # noqa: E402


def get_config(folder: str):
    models = {name: dict(path=f"{folder}/{name}", family=name) for name in ("gpt_neox", "llama", "qwen3")}
    config = paper.study("Tiny families", models, ("llama", "gpt_neox"), family.get_config(f"{folder}/llama"))
    config.update(seeds=(0,), real=f"{folder}/real.jsonl")
    del config.sample.batch_size  # "auto", of another type
    config.sample.update(num_samples=24, batch_size=24, shard_size=24, min_new_tokens=2, max_new_tokens=24)
    config.subset.update(num_tokens=16 * 4 * 2 + 1)
    config.train.update(batch_size=4, grad_accum=1, sequence_length=16, epochs=1, dtype="float32", remat=False)
    config.train.update(log_every=1)
    suites = {"suite": f"{folder}/suite.jsonl"}
    config.evaluate.update(texts={"real": f"{folder}/real.jsonl"}, multiple_choice=suites, batch_size=24)
    config.audit.update(ngram=3, benchmarks=suites)
    config.proxies.update(num_documents=8, gradient_rows=4)
    return config
