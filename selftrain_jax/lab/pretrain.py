"""The lab's models: small GPT-NeoX, pre-trained from scratch on a generated world and saved like any other checkpoint."""

import dataclasses
import pathlib
from typing import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from selftrain_jax import parallel
from selftrain_jax.data.packing import pack
from selftrain_jax.lab.documents import generate_documents
from selftrain_jax.lab.world import World, WorldConfig, check_mixture
from selftrain_jax.models.config import ModelConfig
from selftrain_jax.models.gpt_neox import init_params
from selftrain_jax.training.loop import TrainConfig, train


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """One model of the lab.

    Attributes:
      hidden_size, num_layers, num_heads, max_position: its shape; the feed-forward is four times the hidden size.
      num_documents: ordinary documents that it reads, each once.
      stream: which draw of the world's documents; models of the same stream read the same text.
      include_planted: whether the planted sequences are mixed in.
      mixture: weights of the kinds of document; empty keeps the world's own.
      seed: initial weights.
      train: one epoch over fresh documents is the rule.
    """

    hidden_size: int = 64
    num_layers: int = 3
    num_heads: int = 4
    max_position: int = 64
    num_documents: int = 100_000
    stream: str = "train"
    include_planted: bool = True
    mixture: Mapping[str, float] = dataclasses.field(default_factory=dict)
    seed: int = 0
    train: TrainConfig = TrainConfig(batch_size=64, sequence_length=64, epochs=1, dtype="float32", remat=False)

    def __post_init__(self):
        if self.mixture:
            check_mixture(self.mixture)

    def model_config(self, world: World) -> ModelConfig:
        return ModelConfig(
            vocab_size=len(world.words),
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            intermediate_size=4 * self.hidden_size,
            max_position=self.max_position,
        )


@dataclasses.dataclass(frozen=True)
class LabConfig:
    """A generated world and its two models: `base`, and `other`, trained differently, whose text is a control.

    `validation_documents` are for the likelihood, `control_documents` are fresh real text; neither is trained on.
    """

    world: WorldConfig = WorldConfig()
    base: PretrainConfig = PretrainConfig()
    other: PretrainConfig = PretrainConfig(stream="other", include_planted=False, seed=1)
    validation_documents: int = 500
    control_documents: int = 6_000


def pretrain(world: World, config: PretrainConfig, directory: str | pathlib.Path, *, mesh: Mesh, description: str) -> None:
    """Pre-trains a model in `directory` (resuming there) and saves it as the Hugging Face directory `model/` in it."""
    from selftrain_jax.models.hf import save_pretrained
    from selftrain_jax.training.checkpoint import restore_params

    directory = pathlib.Path(directory)
    model_config = config.model_config(world)
    tokens, offsets = generate_documents(
        world, config.num_documents, config.stream, config.include_planted, config.mixture or None
    )
    documents = np.split(tokens, offsets[1:-1])
    rows = pack(
        documents, bos_token_id=model_config.bos_token_id, sequence_length=config.train.sequence_length
    )
    params = init_params(model_config, jax.random.key(config.seed))
    train(params, model_config, rows, config.train, directory, mesh=mesh, description=description, donate=True)

    def save():
        if not (directory / "model").exists():
            params = restore_params(directory / "checkpoints", model_config)
            tokenizer = directory.parent / "world" / "tokenizer"
            save_pretrained(directory / "model", model_config, params, tokenizer_source=tokenizer)

    parallel.on_first(f"model of {directory.name}", save)
