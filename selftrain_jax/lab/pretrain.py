"""The lab's models: GPT-NeoX, pre-trained from scratch on a world's documents and saved like any other checkpoint."""

import dataclasses
import os
import pathlib
import tempfile
from typing import Any, Callable, Iterable, Mapping

import jax
import jaxtyping as jt
import numpy as np
from jax.sharding import Mesh

from selftrain_jax import parallel
from selftrain_jax.data.packing import pack
from selftrain_jax.errors import InputError
from selftrain_jax.lab.documents import generate_documents
from selftrain_jax.lab.tokenization import build_tokenizer, check_tokenizer_settings, save_tokenizer, spell_documents
from selftrain_jax.lab.world import World, WorldConfig, check_mixture
from selftrain_jax.models.config import ModelConfig, preset
from selftrain_jax.models.gpt_neox import init_params
from selftrain_jax.storage import CHECKPOINTS
from selftrain_jax.training.loop import TrainConfig, train

_SHAPE = ("hidden_size", "num_layers", "num_heads")


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """One model of the lab.

    Attributes:
      hidden_size, num_layers, num_heads, max_position: its shape; the feed-forward is four times the hidden size.
      num_documents: ordinary documents that it reads, each once; of real text as many as there are, if there are fewer.
      stream: which draw of the world's documents; models of the same stream read the same text.
      include_planted: whether the planted sequences are mixed in.
      mixture: weights of the kinds of document; empty keeps the world's own. Real text has none.
      seed: initial weights.
      train: one epoch over fresh documents is the rule.
      tokenizer: "words", or "bpe" for pieces of words; see `lab.tokenization`. Of real text, "words" is the world's own
        tokenizer, "bpe" another one.
      bpe_vocab_size: ids that a "bpe" tokenizer has at most; models of equal size share the tokenizer.
      parallel_residual, rotary_pct, tie_embeddings: switches of the architecture, as in `ModelConfig`.
      preset: name of a published model ("pythia-14m") that gives hidden_size, num_layers and num_heads.
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
    tokenizer: str = "words"
    bpe_vocab_size: int = 512
    parallel_residual: bool = ModelConfig.parallel_residual
    rotary_pct: float = ModelConfig.rotary_pct
    tie_embeddings: bool = ModelConfig.tie_embeddings
    preset: str = ""

    def __post_init__(self):
        if self.mixture:
            check_mixture(self.mixture)
        check_tokenizer_settings(self.tokenizer, self.bpe_vocab_size)
        if self.preset:
            preset(self.preset)
            for field in dataclasses.fields(self):
                if field.name in _SHAPE and (value := getattr(self, field.name)) != field.default:
                    raise InputError(f"pre-training preset={self.preset!r} gives the shape: leave out {field.name}={value}")

    def stage_settings(self) -> dict[str, Any]:
        """What decides the weights. Later additions are left out at their defaults: the settings of runs from before
        there was such a thing stay what they were."""
        added = ("tokenizer", "bpe_vocab_size", "parallel_residual", "rotary_pct", "tie_embeddings", "preset")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        settings = dataclasses.asdict(self)
        return {name: value for name, value in settings.items() if name not in added or value != defaults[name]}

    def build_tokenizer(self, world: World) -> Any:
        """The `tokenizers.Tokenizer` that the model reads `world` with."""
        return build_tokenizer(world, self.tokenizer, self.bpe_vocab_size)

    def model_config(self, world: World | None, tokenizer: Any = None) -> ModelConfig:
        """The architecture, with as many embedding rows as `tokenizer` has ids; None stands for `build_tokenizer`."""
        tokenizer = self.build_tokenizer(world) if tokenizer is None else tokenizer
        shape = preset(self.preset) if self.preset else self
        return ModelConfig(
            vocab_size=tokenizer.get_vocab_size(),
            **{name: getattr(shape, name) for name in _SHAPE},
            intermediate_size=4 * shape.hidden_size,
            max_position=self.max_position,
            rotary_pct=self.rotary_pct,
            parallel_residual=self.parallel_residual,
            tie_embeddings=self.tie_embeddings,
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


def pretrain(
    world: World, config: PretrainConfig, directory: str | pathlib.Path, *, mesh: Mesh, description: str, **storage: Any
) -> None:
    """Pre-trains a model in `directory` (resuming there) and saves it as the Hugging Face directory `model/` in it.

    The tokenizer in `model/` follows from the world and the config alone; no other folder is read. `storage` are
    `checkpoints` and `before_save` of `training.loop.train`.

    Raises:
      InputError: the documents fill no batch, or the architecture or the training settings do not fit.
    """
    tokenizer = config.build_tokenizer(world)
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
    """`pretrain` on `documents`, which are ids of the `tokenizers.Tokenizer` and closed by end-of-text, in their order."""
    from selftrain_jax.models.hf import save_pretrained
    from selftrain_jax.training.checkpoint import restore_params

    directory = pathlib.Path(directory)
    checkpoints = checkpoints or directory / CHECKPOINTS
    model_config = config.model_config(None, tokenizer)
    rows = pack(
        documents, bos_token_id=model_config.bos_token_id, sequence_length=config.train.sequence_length
    )
    params = init_params(model_config, jax.random.key(config.seed))
    train(
        params, model_config, rows, config.train, directory, mesh=mesh, description=description, donate=True,
        checkpoints=checkpoints, before_save=before_save,
    )  # fmt: skip

    def save():
        if not (directory / "model").exists():
            params = restore_params(checkpoints, model_config)
            with tempfile.TemporaryDirectory() as folder:
                source = save_tokenizer(tokenizer, folder)
                save_pretrained(directory / "model", model_config, params, tokenizer_source=source)

    parallel.on_first(f"model of {directory.name}", save)
