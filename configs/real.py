"""Whose text helps whom, among real models: configs/real.py:NAME,NAME,... of hub names and Hugging Face directories.

Command:  selftrain study --config=configs/real.py:DIR/smollm2,DIR/gemma3 --workdir=studies/real --config.data=DATA
Cost:     0.4 hours of one H100 without evaluation, by `selftrain plan --config=configs/real.py`; not measured. `small`
          with both models and shuffled text, one epoch in bfloat16: 2.7 hours of a CPU core with AMX; 2 GB of disk per
          arm.
Expect:   at temperature 1 the expected gradient on a model's own text is zero: what its own text changes is drift, and
          real text in random order is there to harm. docs/results/real.md has what `small` found; of the whole nothing
          is known.

Every named model is a student, and every student reads its own text, that of every other, real text, and real text in
random order, 5 M tokens of each twice, from three subsets. With rows of 512 tokens these are 304 steps at 5e-6, as far
as the paper's 1,520 steps at 1e-6 go. DATA holds the files named below ("data:..."; docs/studies.md says where they
come from). Other files, or none, as --config.evaluate.last_words.lambada=FILE and --config.evaluate.last_words={}.

On a CPU: configs/real.py:NAME,NAME:small trains the first model alone, on 60,000 tokens of documents of 128, and reads
100 items of every suite. Of one name, it trains on its own text, real text and shuffled text; of several, on the text
of each, and real text.

Two models of one kind (in directories: with one tokenizer; on the hub: of one owner and architecture) are a family with
two recipes. Where they are a lineage, --config.models.NAME.recipe says so, for each of them; NAME is the last part of
what was given, with underscores.
"""

import os
import re

import family
from ml_collections import ConfigDict

from selftrain_jax.models.families import published
from selftrain_jax.models.files.hf_config import load_config
from selftrain_jax.models.files.tokenizer import tokenizer_fingerprint

NAMES = "HuggingFaceTB/SmolLM2-135M-Instruct,google/gemma-3-270m"
CHOICE = {name: f"data:benchmarks/{name}_test.jsonl" for name in ("arc_easy", "arc_challenge")}
CHOICE["truthfulqa"] = "data:benchmarks/truthfulqa_mc.json"
PAIRS = dict(blimp="data:benchmarks/blimp.zip")
WORDS = dict(lambada="data:benchmarks/lambada_openai.jsonl")


def get_config(names: str = NAMES):
    names, _, size = names.partition(":")
    if size not in ("", "small"):
        raise ValueError(f"size {size!r} is unknown: configs/real.py:{names}:small, or no size")
    config = full(names.split(","))
    return small(config) if size else config


def full(references: list[str]) -> ConfigDict:
    models, kinds, shapes = {}, {}, []
    for reference in references:
        path, at, revision = (reference, "", "") if os.path.isdir(reference) else reference.partition("@")
        shape = load_config(path) if os.path.isdir(path) else published(path)
        shapes.append(shape)
        name = re.sub(r"\W", "_", os.path.basename(os.path.abspath(path)) + at + revision)
        name += f"_{len(models)}" * (name in models)
        kind = tokenizer_fingerprint(path) if os.path.isdir(path) else (path.split("/")[0], shape and shape.family)
        models[name] = dict(path=path, revision=revision, family=kinds.setdefault(kind, name), recipe=name)
    longest = min([1024, *(shape.max_position for shape in shapes if shape)])
    length = min(512, longest)
    return ConfigDict(
        dict(
            title="Whose text helps whom? Real models",
            models=models,
            students=tuple(models),
            sources=tuple(models),
            seeds=(0, 1, 2),
            one_corpus=True,
            data="",
            real="data:text/english_documents.jsonl.gz",
            shuffled=True,
            sample=dict(
                num_samples=12_000,
                batch_size="auto",
                shard_size=1024,
                dtype="auto",
                start="auto",
                temperature=1.0,
                min_new_tokens=min(50, length),
                max_new_tokens=length,
            ),
            audit=dict(ngram=8, join_fields=True, benchmarks={**CHOICE, **PAIRS, **WORDS}),
            subset=dict(num_tokens=152 * 64 * 512 + 1, num_subsets=1, replacement=True, retokenize="auto"),
            train=dict(
                batch_size=64,
                grad_accum=max(16 // min(map(family.rows, shapes)), 1),
                sequence_length=length,
                epochs=2,
                dtype="bfloat16",
                remat=True,
                keep=1,
                log_every=5,
                optimizer=dict(learning_rate=5e-6),
            ),
            evaluate=dict(
                texts=dict(wikitext2="data:text/wikitext2_valid.txt"),
                multiple_choice=CHOICE,
                minimal_pairs=PAIRS,
                last_words=WORDS,
                probes="",
                limit=1_000,
                max_chars=300_000,
                max_length=longest,
                batch_size=32,
                curve_points=0,
            ),
            proxies=dict(num_documents=512, gradient_rows=64),
            generations=dict(students=tuple(models)[:1], count=2, modes=("replace", "accumulate")),
        ),
        type_safe=False,
    )


def small(config: ConfigDict) -> ConfigDict:
    config.students = config.students[:1]
    config.shuffled = len(config.sources) == 1
    length = min(128, config.train.sequence_length)
    config.sample.update(num_samples=600, shard_size=100, min_new_tokens=20, max_new_tokens=length)
    config.subset.update(num_tokens=29 * 16 * 128 + 1)
    config.train.update(batch_size=16, grad_accum=0, sequence_length=length, dtype="float32", remat=False)
    config.train.optimizer.learning_rate = 2e-5
    config.evaluate.update(limit=100, max_chars=20_000, batch_size=8)
    config.proxies.update(num_documents=64, gradient_rows=8)
    config.generations.students = ()
    return config
