"""Self-training of any real model with the paper's settings: configs/family.py:MODEL, a hub name or a directory.

Command:  selftrain run --config=configs/family.py:Qwen/Qwen2.5-0.5B --workdir=runs/qwen2.5-0.5b \\
              --config.evaluate.probes=probes.jsonl --config.controls.real.texts=real.jsonl
Cost:     as configs/pythia.py for a model of as many parameters; `selftrain plan` with this config says what fits. The
          vocabulary counts twice: of Gemma's 262,144 tokens, logits take more memory than all else.
Expect:   not measured. The paper (arXiv 2605.31126) reports benchmarks of Qwen2.5-0.5B and Llama-3.2-1B preserved or
          better after training on their own text.

Settings are those of configs/pythia.py, and so are the files to give. MODEL may be followed by a revision, as in
EleutherAI/pythia-410m@step143000. Sequences are 2,048 tokens long, or as long as the model's context if that is less,
which is known of directories and of the models that `selftrain_jax.models.families.PRESETS` lists.

For a student of another family: --config.student=MODEL. The source's text is then tokenized anew.
"""

import os

import pythia
from ml_collections import ConfigDict

from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.families import PRESETS, published
from selftrain_jax.models.files.hf_config import load_config


def get_config(model: str = "Qwen/Qwen2.5-0.5B"):
    model, _, revision = model.partition("@")
    shape = load_config(model) if os.path.isdir(model) else published(model)
    config = pythia.get_config()
    config.update(source=model, revision=revision)
    config.train.grad_accum = config.train.batch_size // rows(shape)
    if shape is not None:
        config.train.sequence_length = min(config.train.sequence_length, shape.max_position)
        config.sample.max_new_tokens = min(config.sample.max_new_tokens, shape.max_position)
    return ConfigDict(config, type_safe=False)


def rows(shape: DecoderConfig | None) -> int:
    """Rows per device step: those of the next larger Pythia, and for a model that is not known those of the largest."""
    sizes = [(PRESETS[f"pythia-{size}"].num_params, rows) for size, rows in pythia.ROWS.items()]
    fitting = [rows for count, rows in sizes if shape is not None and shape.num_params <= count]
    return fitting[0] if fitting else sizes[-1][1]
