"""The paper's matrix: two students, each on the text of four sources; or Pythia: configs/paper.py:SIZE, 70m ... 12b.

Command:  selftrain study --config=configs/paper.py --workdir=studies/paper --config.data=DATA --config.real=FILE
Cost:     `selftrain plan --config=configs/paper.py --accelerator=H100` prints it, by unit and in all, by arithmetic:
          nothing of it was measured. --shard splits the work.
Expect:   the paper (arXiv 2605.31126) reports that self-made text helps most, a relative's next and a stranger's
          least, that likelihood and similarity do not predict it, and, for Pythia, extraction down by more than 95 %.
          This study tests that.

Students are Qwen2.5-0.5B and Llama-3.2-1B; sources are these two, Qwen2.5-7B (the lineage of the first) and
Qwen3-8B-Base (its family, another recipe). Llama's files need a token (HF_TOKEN). The settings are those of the
authors' public code: 20,000 documents of 50 to 1,024 tokens at temperature 1.25 from each source; every document that
shares an 8-gram with a joined item of the seven benchmarks is dropped; three subsets of 5 M tokens, drawn with
replacement from that one corpus; 40 epochs at 1e-6. What theirs lacks are the controls: real text (--config.real=FILE),
and the same with its words in random order. Where source and student have different tokenizers, the text is tokenized
anew.

Temperatures multiply the arms: "--config.temperatures=(0.3,0.5,0.7,1.0,1.25)".

A document starts after the model's start token and nothing else. Qwen has none, so there it is <|endoftext|>, which
stood before documents in pre-training. configs/paper.py:authors starts where the authors' code does: Qwen's documents
after a newline, Llama's after its start token. (Their engine may put a second one before it, which this does not.)

Students are measured by lm-evaluation-harness (extras eval, and lm-eval[math]) on the two suites of the paper, before
and after. HumanEval runs code that a model wrote: allow it with --config.tasks.confirm_run_unsafe_code=True, or name
other tasks with "--config.tasks.names=(...)"; --config.tasks.limit=100 takes the first 100 items. DATA holds the texts
of the seven benchmarks for the audit, one file each (docs/studies.md makes them). Suites in files, as in
configs/real.py, are measured beside them, and after every epoch with --config.evaluate.curve_points=epochs. For the
harness on the checkpoint of any epoch, keep them all (--config.train.keep=40; 12 bytes a parameter each) and name one:
  selftrain evaluate studies/paper/runs/qwen2p5_0p5b-0:corpus-0@STEP --tasks=paper-zero-shot --out=DIR

Memorization is Pythia's part, as probes must be in a student's own tokens, and all sizes of Pythia share them:
  selftrain study --config=configs/paper.py:410m --workdir=studies/paper-410m --config.evaluate.probes=probes.jsonl ...
Its sources are SIZE itself, a larger size of the same data and order (same lineage; the largest has a smaller one), and
SIZE trained on deduplicated data (same family, another recipe).

A model that cannot be run here takes part by its text, imported with `selftrain import TEXTS DIR --tokenizer=STUDENT`:
  --config.models.other.corpus=DIR --config.models.other.family=other \\
  "--config.sources=('qwen2p5_0p5b','llama_3p2_1b','other')"

configs/paper.py:tiny=DIR is the same matrix in a minute, on random models of a few thousand parameters. They are
written to DIR, with texts and questions, where there is no such folder.
"""

import dataclasses
import os
import pathlib

import family
import jax
import numpy as np
import pythia
from ml_collections import ConfigDict
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from selftrain_jax.core.files import write_jsonl
from selftrain_jax.models.decoder import param_shapes
from selftrain_jax.models.families import published
from selftrain_jax.models.hf import save_pretrained

QWEN, LLAMA = "Qwen/Qwen2.5-0.5B", "meta-llama/Llama-3.2-1B"
MODELS = {
    "qwen2p5_0p5b": dict(path=QWEN, family="qwen", recipe="Qwen2.5"),
    "llama_3p2_1b": dict(path=LLAMA, family="llama", recipe="Llama 3.2"),
    "qwen2p5_7b": dict(path="Qwen/Qwen2.5-7B", family="qwen", recipe="Qwen2.5"),
    "qwen3_8b": dict(path="Qwen/Qwen3-8B-Base", family="qwen", recipe="Qwen3"),
}
STUDENTS = ("qwen2p5_0p5b", "llama_3p2_1b")
BENCHMARKS = ("arc_challenge", "mmlu", "truthfulqa", "hellaswag", "gsm8k", "math", "humaneval")
SIZES = ["70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b"]


def get_config(variant: str = ""):
    if variant.startswith("tiny="):
        return tiny(variant.removeprefix("tiny="))
    if variant not in ("", "authors"):
        return pythia_study(variant.removeprefix("pythia-"))
    config = study(MODELS, STUDENTS, family.get_config(QWEN))
    for name, model in config.models.items():
        model.start = ("\n",) if variant == "authors" and name.startswith("qwen") else ""
    return config


def pythia_study(size: str) -> ConfigDict:
    if size not in SIZES:
        raise ValueError(f"Pythia size {size!r} is unknown; choose one of {', '.join(SIZES)}, or 'authors'")
    at = SIZES.index(size)
    relative = SIZES[at + 1] if size != SIZES[-1] else SIZES[at - 1]
    recipes = {size: "the Pile", relative: "the Pile", f"{size}-deduped": "the deduplicated Pile"}
    models = {
        name(of): dict(path=f"EleutherAI/pythia-{of}", family="pythia", recipe=recipe) for of, recipe in recipes.items()
    }
    return study(models, (name(size),), pythia.get_config(size))


def name(size: str) -> str:
    return "pythia_" + size.replace(".", "p").replace("-", "_")


def study(models: dict, students: tuple, run: ConfigDict) -> ConfigDict:
    """Every student on the text of every model, with the settings of `run`."""
    config = dict(
        title="Whose text helps whom?",
        models=models,
        students=students,
        sources=tuple(models),
        seeds=(0, 1, 2),
        one_corpus=True,
        temperatures=(),
        data="",
        real="",
        shuffled=True,
        subset=dict(run.subset, num_subsets=1),  # another subset for every seed
        tasks=dict(names=("paper-zero-shot", "paper-few-shot"), limit=0, confirm_run_unsafe_code=False),
        proxies=dict(num_documents=2_000, gradient_rows=128, sentence_encoder=""),
        generations=dict(students=(), count=3, modes=("replace", "accumulate")),
        **{part: run[part] for part in ("mesh", "sample", "audit", "train", "evaluate")},
    )
    config["audit"] = dict(run.audit, join_fields=True, benchmarks={b: f"data:{b}.jsonl" for b in BENCHMARKS})
    return ConfigDict(config, type_safe=False)


def tiny(folder: str) -> ConfigDict:
    if not os.path.isdir(folder):
        write_tiny(pathlib.Path(folder))
    config = study(MODELS, STUDENTS, family.get_config(f"{folder}/{STUDENTS[0]}"))
    for name, model in config.models.items():
        model.update(path=f"{folder}/{name}", start=("\n",) if name == "qwen3_8b" else "")
    suites = dict(suite=f"{folder}/suite.jsonl")
    config.update(title="Tiny matrix", seeds=(0,), real=f"{folder}/text.jsonl")
    config.sample.update(num_samples=24, shard_size=24, min_new_tokens=2, max_new_tokens=24)
    config.audit.update(ngram=3)
    config.audit.benchmarks = suites
    config.subset.num_tokens = 16 * 4 * 2 + 1
    config.train.update(batch_size=4, grad_accum=1, sequence_length=16, epochs=2, dtype="float32", remat=False)
    config.train.update(log_every=1)
    config.evaluate.update(texts=dict(text=f"{folder}/text.jsonl"), multiple_choice=suites, batch_size=24)
    config.evaluate.update(curve_points="epochs", curve_items=4)
    config.tasks.names = ()
    config.proxies.update(num_documents=8, gradient_rows=4)
    return config


def write_tiny(folder: pathlib.Path) -> None:
    """Random models of the four families, with tokenizers of words; texts, and questions about nothing."""
    rng = np.random.default_rng(0)
    words = "the cat sat on a mat while rain fell and nobody came to see it again".split()
    shape = dict(hidden_size=16, num_layers=1, num_heads=2, kv_heads=1, intermediate_size=32, max_position=16_384)
    for name, model in MODELS.items():
        llama = model["family"] == "llama"
        special = ["<|begin_of_text|>", "<|end_of_text|>"] if llama else ["<|endoftext|>"]
        vocabulary = [*special, "\n", *(words[::-1] if llama else words)]
        ids = dict(vocab_size=32, bos_token_id=0, eos_token_id=len(special) - 1, stop_token_ids=())
        config = dataclasses.replace(published(model["path"]), **shape, **ids)
        params = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), param_shapes(config))
        tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=words[0]))
        tokenizer.pre_tokenizer = WhitespaceSplit()
        tokenizer.add_special_tokens(special)
        save_pretrained(folder / name, config, params)
        tokenizer.save(str(folder / name / "tokenizer.json"))
    write_jsonl(folder / "text.jsonl", [{"text": " ".join(rng.choice(words, 12))} for _ in range(40)])
    questions = [{"question": f"what of {i}?", "choices": ["the cat", "a mat"], "gold": i % 2} for i in range(4)]
    write_jsonl(folder / "suite.jsonl", questions)
