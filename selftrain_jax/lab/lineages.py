"""The models of a study: several lineages of pre-trained models that all read texts of one world, generated or real."""

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
from selftrain_jax.lab import text_world
from selftrain_jax.lab.pretrain import PretrainConfig, pretrain, pretrain_on
from selftrain_jax.lab.questions import retokenized_probes
from selftrain_jax.lab.tokenization import save_tokenizer
from selftrain_jax.lab.world import WorldConfig, build_world
from selftrain_jax.lab.world_files import write_world_files
from selftrain_jax.models.tokenizer import load_tokenizer


@dataclasses.dataclass(frozen=True)
class LineageConfig:
    """A world and the models that are pre-trained on it.

    Attributes:
      world: what all generated texts tell of.
      text: real text in its place; None for a generated world.
      models: name -> model. Models that share stream, mixture, number of documents and order of training are of one
        recipe; those that share tokenizer and switches of one family.
      validation_documents: for the likelihood; no model is trained on them.
      control_documents: fresh real text; no model is pre-trained on them.
    """

    world: WorldConfig = WorldConfig()
    models: Mapping[str, PretrainConfig] = dataclasses.field(default_factory=dict)
    validation_documents: int = 500
    control_documents: int = 6_000
    text: text_world.TextWorldConfig | None = None

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
        if self.text is not None:
            self._check_text()

    def _check_text(self):
        if self.world != WorldConfig():
            raise InputError("lineage world and text are both set: there is a generated world or real text, leave one out")
        for name, model in self.models.items():
            if model.mixture:
                raise InputError(f"lineage model {name!r}: mixture={model.mixture} is of generated worlds; real text has "
                                 "none, leave it out")  # fmt: skip
            if model.stream not in self.text.streams:
                raise InputError(f"lineage model {name!r}: stream={model.stream!r} is none of text.streams="
                                 f"{self.text.streams}")  # fmt: skip
            if model.tokenizer == "bpe" and model.bpe_vocab_size < text_world.LEAST_VOCAB:
                raise InputError(f"lineage model {name!r}: bpe_vocab_size={model.bpe_vocab_size} must be at least "
                                 f"{text_world.LEAST_VOCAB} for real text")  # fmt: skip

    def with_seed(self, seed: int) -> "LineageConfig":
        """Another world and other models of the same kinds: `seed` is added to the world's, and to those of initial weights
        and order of training."""

        def seeded(model: PretrainConfig) -> PretrainConfig:
            train = dataclasses.replace(model.train, seed=model.train.seed + seed)
            return dataclasses.replace(model, seed=model.seed + seed, train=train)

        models = {name: seeded(model) for name, model in self.models.items()}
        kind = "world" if self.text is None else "text"
        world = getattr(self, kind)
        return dataclasses.replace(self, models=models, **{kind: dataclasses.replace(world, seed=world.seed + seed)})

    def world_settings(self) -> dict[str, Any]:
        """What decides the world's files."""
        counts = {name: getattr(self, name) for name in ("validation_documents", "control_documents")}
        return dataclasses.asdict(self.world if self.text is None else self.text) | counts

    def world_inputs(self) -> dict[str, str]:
        """Fingerprints of the files that the world is made from; none of a generated one. Raises `InputError` where they
        are missing or broken."""
        return {} if self.text is None else self.text.inputs()


def write_world(lineage: LineageConfig, directory: str | os.PathLike) -> dict[str, pathlib.Path]:
    """Writes the world's files to `directory`, every file atomically; returns what `write_world_files` does, and for real
    text what `write_text_world` does."""
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
      world_directory: where `write_world` wrote; the probes of a word-level model are copied from there, and real text is
        read there.

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
        with tempfile.TemporaryDirectory() as folder:
            probes = retokenized_probes(world, load_tokenizer(save_tokenizer(config.build_tokenizer(world), folder)))
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

    parallel.on_first(f"probes of {name}", write_probes)
