"""The lab's models: GPT-NeoX, pre-trained from scratch on a world's documents and saved like any other checkpoint."""

import os
import pathlib
import tempfile
from typing import Any, Callable, Iterable

import jax
import jaxtyping as jt
import numpy as np
from jax.sharding import Mesh

from selftrain_jax.core.storage import CHECKPOINTS
from selftrain_jax.data.packing import pack
from selftrain_jax.distributed import job
from selftrain_jax.lab.documents import generate_documents
from selftrain_jax.lab.settings import PretrainConfig
from selftrain_jax.lab.tokenization import build_tokenizer, save_tokenizer, spell_documents
from selftrain_jax.lab.world import World
from selftrain_jax.models.decoder import init_params
from selftrain_jax.models.hf import save_pretrained
from selftrain_jax.training.checkpoint import restore_params
from selftrain_jax.training.loop import train


def pretrain(
    world: World, config: PretrainConfig, directory: str | pathlib.Path, *, mesh: Mesh, description: str, **storage: Any
) -> None:
    """Pre-trains a model in `directory` (resuming there) and saves it as the Hugging Face directory `model/` in it.

    The tokenizer in `model/` follows from the world and the config alone; no other folder is read. `storage` are
    `checkpoints` and `before_save` of `training.loop.train`.

    Raises:
      InputError: the documents fill no batch, or the architecture or the training settings do not fit.
    """
    tokenizer = build_tokenizer(world, config.tokenizer, config.bpe_vocab_size)
    tokens, offsets = generate_documents(
        world, config.num_documents, config.stream, config.include_planted, config.mixture or None
    )
    if config.tokenizer != "words":
        tokens, offsets = spell_documents(world, tokenizer, tokens, offsets)
    documents = np.split(tokens, offsets[1:-1])
    pretrain_on(documents, tokenizer, config, directory, mesh=mesh, description=description, **storage)


def pretrain_on(
    documents: Iterable[jt.Int32[np.ndarray, "tokens"]],
    tokenizer: Any,
    config: PretrainConfig,
    directory: str | pathlib.Path,
    *,
    mesh: Mesh,
    description: str,
    checkpoints: str | os.PathLike | None = None,
    before_save: Callable[[], None] | None = None,
) -> None:
    """`pretrain` on `documents`, which are ids of the `tokenizers.Tokenizer` and closed by end-of-text, in their
    order.
    """

    directory = pathlib.Path(directory)
    checkpoints = checkpoints or directory / CHECKPOINTS
    model_config = config.model_config(tokenizer.get_vocab_size())
    rows = pack(documents, bos_token_id=model_config.bos_token_id, sequence_length=config.train.sequence_length)
    train(
        lambda: init_params(model_config, jax.random.key(config.seed)),
        model_config,
        rows,
        config.train,
        directory,
        mesh=mesh,
        description=description,
        checkpoints=checkpoints,
        before_save=before_save,
    )

    def save():
        if not (directory / "model").exists():
            params = restore_params(checkpoints, model_config)
            with tempfile.TemporaryDirectory() as folder:
                source = save_tokenizer(tokenizer, folder)
                save_pretrained(directory / "model", model_config, params, tokenizer_source=source)

    job.on_first(f"model of {directory.name}", save)
