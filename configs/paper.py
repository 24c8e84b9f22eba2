"""The paper's matrix: two students, each on the text of four sources; or Pythia: configs/paper.py:SIZE, 70m ... 12b.

Command:  selftrain study --config=configs/paper.py --workdir=studies/paper --config.real=real_documents.jsonl \\
              --config.evaluate.multiple_choice.arc_easy=arc_easy.jsonl
Cost:     2 students x (4 sources and 2 controls) x 3 seeds are 36 trainings of 40 epochs over 5 M tokens: some 35 hours
          of one H100, by the arithmetic of docs/launching.md (0.55 h each for Qwen2.5-0.5B, 1.3 h for Llama-3.2-1B).
          20,000 documents of each source and seed come on top. Nothing of it was measured. --shard splits the work.
Expect:   the paper (arXiv 2605.31126) reports that self-made text helps most, a relative's next and a stranger's
          least, that likelihood and similarity do not predict it, and, for Pythia, extraction down by more than 95 %.
          This study tests that.

Students are Qwen2.5-0.5B and Llama-3.2-1B; sources are these two, Qwen2.5-7B (the lineage of the first) and
Qwen3-8B-Base (its family, another recipe). Llama's files need a token (HF_TOKEN). Settings are those of
configs/family.py. Where source and student have different tokenizers, the text is tokenized anew. Real text, and the
same with its words in random order, are controls: --config.real=FILE.

A document starts after the model's start token and nothing else (sample.start="auto"). Qwen has none, so there it is
<|endoftext|>, which stood before documents in pre-training. The authors' code takes a newline for Qwen:
--config.sample.start="('\\n',)" does as they do.

Memorization is Pythia's part, as probes must be in a student's own tokens, and all sizes of Pythia share them:
  selftrain study --config=configs/paper.py:410m --workdir=studies/paper-410m --config.evaluate.probes=probes.jsonl ...
Its sources are SIZE itself, a larger size of the same data and order (same lineage; the largest has a smaller one), and
SIZE trained on deduplicated data (same family, another recipe). Settings are those of configs/pythia.py.

A model that cannot be run here takes part by its text, imported with `selftrain import TEXTS DIR --tokenizer=STUDENT`:
  --config.models.other.corpus=DIR --config.models.other.family=other \\
  "--config.sources=('qwen2p5_0p5b','llama_3p2_1b','other')"
"""

import family
import pythia
from ml_collections import ConfigDict

QWEN, LLAMA = "Qwen/Qwen2.5-0.5B", "meta-llama/Llama-3.2-1B"
MODELS = {
    "qwen2p5_0p5b": dict(path=QWEN, family="qwen", recipe="Qwen2.5"),
    "llama_3p2_1b": dict(path=LLAMA, family="llama", recipe="Llama 3.2"),
    "qwen2p5_7b": dict(path="Qwen/Qwen2.5-7B", family="qwen", recipe="Qwen2.5"),
    "qwen3_8b": dict(path="Qwen/Qwen3-8B-Base", family="qwen", recipe="Qwen3"),
}
SIZES = ["70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b"]


def get_config(size: str = ""):
    if size:
        return pythia_study(size.removeprefix("pythia-"))
    return study(MODELS, ("qwen2p5_0p5b", "llama_3p2_1b"), family.get_config(QWEN))


def pythia_study(size: str) -> ConfigDict:
    if size not in SIZES:
        raise ValueError(f"Pythia size {size!r} is unknown; choose one of {', '.join(SIZES)}")
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
    return ConfigDict(
        dict(
            title="Whose text helps whom?",
            models=models,
            students=students,
            sources=tuple(models),
            seeds=(0, 1, 2),
            real="",
            shuffled=True,
            subset=dict(run.subset, num_subsets=1),  # another subset for every seed
            proxies=dict(num_documents=2_000, gradient_rows=128, sentence_encoder=""),
            generations=dict(students=(), count=3, modes=("replace", "accumulate")),
            **{part: run[part] for part in ("mesh", "sample", "audit", "train", "evaluate")},
        ),
        type_safe=False,
    )
