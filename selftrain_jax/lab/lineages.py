"""The models of a study: several lineages of pre-trained models that all read texts of one world, generated or real."""

import os
import pathlib
import tempfile

from jax.sharding import Mesh

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import write_atomic, write_jsonl
from selftrain_jax.distributed import job
from selftrain_jax.lab import text_world
from selftrain_jax.lab.pretrain import pretrain, pretrain_on
from selftrain_jax.lab.questions import retokenized_probes
from selftrain_jax.lab.settings import LineageConfig
from selftrain_jax.lab.tokenization import build_tokenizer, save_tokenizer
from selftrain_jax.lab.world import build_world
from selftrain_jax.lab.world_files import write_world_files
from selftrain_jax.models.files.tokenizer import load_tokenizer


def world_inputs(lineage: LineageConfig) -> dict[str, str]:
    """Fingerprints of the files that the world is made from; none of a generated one. Raises `InputError` where they
    are missing or broken."""
    return {} if lineage.text is None else text_world.inputs(lineage.text)


def write_world(lineage: LineageConfig, directory: str | os.PathLike) -> dict[str, pathlib.Path]:
    """Writes the world's files to `directory`, every file atomically; returns what `write_world_files` does, and for
    real text what `write_text_world` does."""
    if lineage.text is not None:
        built = text_world.build_text_world(lineage.text, lineage.validation_documents, lineage.control_documents)
        return text_world.write_text_world(built, directory)
    world = build_world(lineage.world)
    return write_world_files(world, directory, lineage.validation_documents, lineage.control_documents)


def pretrain_model(
    lineage: LineageConfig,
    name: str,
    world_directory: str | os.PathLike,
    directory: str | os.PathLike,
    *,
    mesh: Mesh,
    description: str,
) -> None:
    """Pre-trains the model `name` in `directory` (resuming there).

    It leaves `model/`, a Hugging Face directory, and `probes.jsonl`, the extraction probes in the model's own ids: row
    by row the same sequences and groups for every model of the lineage.

    Args:
      world_directory: where `write_world` wrote; the probes of a word-level model are copied from there, and real text
        is read there.

    Raises:
      InputError: there is no such model or no world, a probe is longer than the model's context, or the model cannot be
        trained (see `pretrain`).
    """
    if name not in lineage.models:
        raise InputError(f"lineage model {name!r} is unknown; the models are {', '.join(lineage.models)}")
    source = pathlib.Path(world_directory) / "probes.jsonl"
    if not source.is_file():
        raise InputError(f"world files not found: {source}; write_world makes them")
    config, directory = lineage.models[name], pathlib.Path(directory)
    if lineage.text is None:
        world = build_world(lineage.world)
        tokenizer = build_tokenizer(world, config.tokenizer, config.bpe_vocab_size)
        with tempfile.TemporaryDirectory() as folder:
            probes = retokenized_probes(world, load_tokenizer(save_tokenizer(tokenizer, folder)))
    else:
        tokenizer = text_world.model_tokenizer(lineage.text, config, world_directory)
        probes = text_world.text_probes(text_world.read_planted(world_directory), tokenizer)
    longest = max((len(probe["prefix"]) + len(probe["suffix"]) for probe in probes), default=0)
    if longest > config.max_position:
        raise InputError(
            f"lineage model {name!r}: max_position={config.max_position} must be at least {longest}, the tokens of the "
            "longest probe; raise it, or bpe_vocab_size"
        )
    if lineage.text is None:
        pretrain(world, config, directory, mesh=mesh, description=description)
    else:
        documents = text_world.training_documents(lineage.text, config, tokenizer, world_directory)
        pretrain_on(documents, tokenizer, config, directory, mesh=mesh, description=description)

    def write_probes():
        if config.tokenizer == "words":
            write_atomic(directory / source.name, source.read_bytes())
        else:
            write_jsonl(directory / source.name, probes)

    job.on_first(f"probes of {name}", write_probes)
