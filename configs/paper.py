"""The paper's matrix on real models, as far as Pythia goes: configs/paper.py:SIZE, SIZE 70m ... 12b (default 410m).

Command:  selftrain study --config=configs/paper.py --workdir=studies/paper-410m --config.real=real_documents.jsonl \\
              --config.evaluate.multiple_choice.arc_easy=arc_easy.jsonl --config.evaluate.probes=probes.jsonl
Cost:     estimates of one training in docs/launching.md; the study trains the student once per source, control, seed
          and subset: 3 sources, 2 controls and 3 seeds are 15 trainings of 40 epochs over 5 M tokens. --shard splits
          them.
Expect:   the paper (arXiv 2605.31126) reports that self-made text helps most, a relative's next and a stranger's
          least, that likelihood and similarity do not predict it, and extraction down by more than 95 %. This study
          tests that.

Student SIZE; sources SIZE itself, a larger size of the same data and order (same lineage; the largest has a smaller
one), and SIZE trained on deduplicated data (same family, another recipe). Settings are those of configs/pythia.py. Real
text, and the same with its words in random order, are controls: --config.real=FILE.

Another family takes part by its text, imported with `selftrain import TEXTS DIR --tokenizer=EleutherAI/pythia-SIZE`:
  --config.models.qwen.corpus=DIR --config.models.qwen.family=qwen \\
  "--config.sources=('pythia_410m','pythia_1b','pythia_410m_deduped','qwen')"
Probes must be in Pythia's tokens; all its sizes share them.
"""

import pythia
from ml_collections import ConfigDict

SIZES = ["70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b"]


def name(size: str) -> str:
    return "pythia_" + size.replace(".", "p").replace("-", "_")


def get_config(size: str = "410m"):
    if size not in SIZES:
        raise ValueError(f"Pythia size {size!r} is unknown; choose one of {', '.join(SIZES)}")
    run = pythia.get_config(size)
    at = SIZES.index(size)
    relative = SIZES[at + 1] if size != SIZES[-1] else SIZES[at - 1]
    models = {
        size: dict(path=f"EleutherAI/pythia-{size}", family="pythia", recipe="the Pile"),
        relative: dict(path=f"EleutherAI/pythia-{relative}", family="pythia", recipe="the Pile"),
        f"{size}-deduped": dict(
            path=f"EleutherAI/pythia-{size}-deduped", family="pythia", recipe="the deduplicated Pile"
        ),
    }
    subset = dict(run.subset, num_subsets=1, retokenize="auto")  # another subset for every seed
    return ConfigDict(
        dict(
            title=f"Whose text helps Pythia {size}?",
            models={name(of): model for of, model in models.items()},
            students=(name(size),),
            sources=tuple(map(name, models)),
            seeds=(0, 1, 2),
            real="",
            shuffled=True,
            subset=subset,
            proxies=dict(num_documents=2_000, gradient_rows=128, sentence_encoder=""),
            generations=dict(students=(), count=3, modes=("replace", "accumulate")),
            **{part: run[part] for part in ("mesh", "sample", "audit", "train", "evaluate")},
        )
    )
