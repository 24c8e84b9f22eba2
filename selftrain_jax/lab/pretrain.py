"""The lab's models: pre-trained from scratch on a world's documents, and saved like any other checkpoint."""

import os
import pathlib
import shutil
import tempfile
from typing import Any, Callable

import jaxtyping as jt
import numpy as np
from jax.sharding import Mesh

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import write_jsonl
from selftrain_jax.core.randomness import seed_key
from selftrain_jax.core.storage import CHECKPOINTS
from selftrain_jax.data.packing import pack
from selftrain_jax.distributed import job
from selftrain_jax.lab import text_world
from selftrain_jax.lab.documents import generate_documents
from selftrain_jax.lab.planted import Planted, extraction_probes
from selftrain_jax.lab.settings import LineageConfig
from selftrain_jax.lab.tokenization import build_tokenizer, save_tokenizer, spell_documents
from selftrain_jax.lab.world import build_world
from selftrain_jax.models.decoder import init_params
from selftrain_jax.models.hf import save_pretrained
from selftrain_jax.training.checkpoint import restore_params
from selftrain_jax.training.loop import train


def pretrain_model(
    lineage: LineageConfig,
    name: str,
    world_directory: str | os.PathLike,
    directory: str | os.PathLike,
    *,
    mesh: Mesh,
    checkpoints: str | os.PathLike | None = None,
    before_save: Callable[[], None] | None = None,
) -> None:
    """Pre-trains the model `name` in `directory` (resuming there).

    It leaves `model/`, a Hugging Face directory, and `probes.jsonl`, the extraction probes in the model's own ids: row
    by row the same sequences and groups for every model of the lineage.

    Args:
      world_directory: where `world_files.write_world` wrote.
      checkpoints, before_save: as in `training.loop.train`.

    Raises:
      InputError: there is no such model or no world, a probe is longer than the model's context, the documents fill no
        batch, or the architecture or the training settings do not fit.
    """
    if name not in lineage.models:
        raise InputError(f"lineage model {name!r} is unknown; the models are {', '.join(lineage.models)}")
    if not (pathlib.Path(world_directory) / "probes.jsonl").is_file():
        raise InputError(f"no world in {world_directory}: write_world makes its files")
    config, directory = lineage.models[name], pathlib.Path(directory)
    checkpoints = checkpoints or directory / CHECKPOINTS
    tokenizer, planted, documents = _reading(lineage, name, world_directory)
    probes = extraction_probes(planted, tokenizer)
    longest = max((len(probe["prefix"]) + len(probe["suffix"]) for probe in probes), default=0)
    if longest > config.max_position:
        raise InputError(
            f"lineage model {name!r}: max_position={config.max_position} must be at least {longest}, the tokens of the "
            "longest probe; raise it, or bpe_vocab_size"
        )
    model_config = config.model_config(max(tokenizer.get_vocab().values()) + 1)  # ids may have holes
    train(
        lambda: init_params(model_config, seed_key(config.seed)),
        model_config,
        pack(documents, bos_token_id=model_config.bos_token_id, sequence_length=config.train.sequence_length),
        config.train,
        directory,
        mesh=mesh,
        description=f"pre-train {name}",
        checkpoints=checkpoints,
        before_save=before_save,
    )

    def save():
        shutil.rmtree(directory / "model", ignore_errors=True)  # a part of it, where sending it to a bucket was cut off
        params = restore_params(checkpoints, model_config)
        with tempfile.TemporaryDirectory(dir=directory) as folder:
            source = save_tokenizer(tokenizer, folder)
            save_pretrained(directory / "model", model_config, params, tokenizer_source=source)
        write_jsonl(directory / "probes.jsonl", probes)

    job.on_first(f"model of {directory.name}", save)


def _reading(
    lineage: LineageConfig, name: str, world_directory: str | os.PathLike
) -> tuple[Any, list[Planted], list[jt.Int32[np.ndarray, "tokens"]]]:
    """A model's `tokenizers.Tokenizer`, what its world plants, and the documents that it reads, in their order, each
    closed by end-of-text."""
    config = lineage.models[name]
    if lineage.text is not None:
        tokenizer = text_world.model_tokenizer(lineage.text, config, world_directory)
        documents = text_world.training_documents(lineage.text, config, tokenizer, world_directory)
        return tokenizer, text_world.read_planted(world_directory), documents
    world = build_world(lineage.world)
    tokenizer = build_tokenizer(world, config.tokenizer, config.bpe_vocab_size)
    tokens, offsets = generate_documents(
        world, config.num_documents, config.stream, config.include_planted, config.mixture or None
    )
    if config.tokenizer != "words":
        tokens, offsets = spell_documents(world, tokenizer, tokens, offsets)
    return tokenizer, world.planted_texts(), np.split(tokens, offsets[1:-1])
