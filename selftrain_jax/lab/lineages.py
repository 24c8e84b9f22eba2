"""The models of a study: several lineages of pre-trained models that all read texts of one generated world."""

import dataclasses
import os
import pathlib
import re
import tempfile
from typing import Any, Mapping

from jax.sharding import Mesh

from selftrain_jax import parallel
from selftrain_jax.errors import InputError
from selftrain_jax.files import write_atomic, write_jsonl
from selftrain_jax.lab.pretrain import PretrainConfig, pretrain
from selftrain_jax.lab.questions import retokenized_probes
from selftrain_jax.lab.tokenization import save_tokenizer
from selftrain_jax.lab.world import WorldConfig, build_world
from selftrain_jax.lab.world_files import write_world_files
from selftrain_jax.models.tokenizer import load_tokenizer


@dataclasses.dataclass(frozen=True)
class LineageConfig:
    """A generated world and the models that are pre-trained on it.

    Attributes:
      world: what all texts tell of.
      models: name -> model. Models that share stream, mixture, number of documents and order of training are of one
        recipe; those that share tokenizer and switches of one family.
      validation_documents: for the likelihood; no model is trained on them.
      control_documents: fresh real text; no model is pre-trained on them.
    """

    world: WorldConfig = WorldConfig()
    models: Mapping[str, PretrainConfig] = dataclasses.field(default_factory=dict)
    validation_documents: int = 500
    control_documents: int = 6_000

    def __post_init__(self):
        object.__setattr__(self, "models", dict(self.models))
        if not self.models:
            raise InputError("lineage models={} is empty: name at least one model")
        for name in self.models:
            if not re.fullmatch(r"\w+", name, re.ASCII) or name == "world":
                raise InputError(
                    f"lineage model name {name!r} must consist of letters, digits and underscores, and not be 'world'"
                )
        for name in ("validation_documents", "control_documents"):
            if getattr(self, name) < 0:
                raise InputError(f"lineage {name}={getattr(self, name)} must be at least 0")

    def with_seed(self, seed: int) -> "LineageConfig":
        """Another world and other models of the same kinds: `seed` is added to the world's, and to those of initial weights
        and order of training."""

        def seeded(model: PretrainConfig) -> PretrainConfig:
            train = dataclasses.replace(model.train, seed=model.train.seed + seed)
            return dataclasses.replace(model, seed=model.seed + seed, train=train)

        world = dataclasses.replace(self.world, seed=self.world.seed + seed)
        return dataclasses.replace(self, world=world, models={name: seeded(model) for name, model in self.models.items()})

    def world_settings(self) -> dict[str, Any]:
        """What decides the world's files."""
        counts = {name: getattr(self, name) for name in ("validation_documents", "control_documents")}
        return dataclasses.asdict(self.world) | counts


def write_world(lineage: LineageConfig, directory: str | os.PathLike) -> dict[str, pathlib.Path]:
    """Writes the world's files to `directory`, every file atomically; returns what `write_world_files` does."""
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
      world_directory: where `write_world` wrote; the probes of a word-level model are copied from there.

    Raises:
      InputError: there is no such model or no world, a probe is longer than the model's context, or the model cannot be
        trained (see `pretrain`).
    """
    if name not in lineage.models:
        raise InputError(f"lineage model {name!r} is unknown; the models are {', '.join(lineage.models)}")
    source = pathlib.Path(world_directory) / "probes.jsonl"
    if not source.is_file():
        raise InputError(f"world files not found: {source}; write_world makes them")
    config, world, directory = lineage.models[name], build_world(lineage.world), pathlib.Path(directory)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = load_tokenizer(save_tokenizer(config.build_tokenizer(world), folder))
    probes = retokenized_probes(world, tokenizer)
    longest = max((len(probe["prefix"]) + len(probe["suffix"]) for probe in probes), default=0)
    if longest > config.max_position:
        raise InputError(
            f"lineage model {name!r}: max_position={config.max_position} must be at least {longest}, the tokens of the "
            "longest probe; raise it, or bpe_vocab_size"
        )
    pretrain(world, config, directory, mesh=mesh, description=description)

    def write_probes():
        if config.tokenizer == "words":
            write_atomic(directory / source.name, source.read_bytes())
        else:
            write_jsonl(directory / source.name, probes)

    parallel.on_first(f"probes of {name}", write_probes)
