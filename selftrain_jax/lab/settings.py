"""Generated worlds, real text in their place, and the models that are pre-trained on them, as settings."""

import dataclasses
import math
import re
from typing import Any, Mapping

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.settings import check_choice, check_ranges, check_seed
from selftrain_jax.lab import grammar
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.families import preset
from selftrain_jax.training.settings import TrainConfig

DOCUMENT_KINDS = ("facts", "geography", "two_step", "arithmetic", "grammar")


HELD_OUT_STREAMS = ("validation", "control")
"""Of a generated world, the draws of documents that no model is pre-trained on."""


def check_mixture(mixture: Mapping[str, float]) -> None:
    """Raises `InputError` unless `mixture` gives non-negative weights, not all zero, to known kinds of document."""
    unknown = sorted(set(mixture) - set(DOCUMENT_KINDS))
    if unknown:
        raise InputError(f"mixture names {', '.join(unknown)}; the kinds of document are {', '.join(DOCUMENT_KINDS)}")
    if not all(math.isfinite(weight) and weight >= 0 for weight in mixture.values()) or not sum(mixture.values()) > 0:
        raise InputError(f"mixture={dict(mixture)} needs finite weights >= 0, at least one of them above 0")


@dataclasses.dataclass(frozen=True)
class PlantedConfig:
    """What is planted in the training text, and the seed that a world follows from.

    Attributes:
      repeats: how often each sequence of a planted group occurs in the training text; 0 is the never-trained base rate.
      sequences_per_group: sequences in each group, one number for all or one per entry of `repeats`.
      planted_length, planted_prefix: tokens of a planted sequence under the world's own tokenizer, and how many of them
        an extraction probe shows.
      seed: everything about the world follows from it (and, of real text, from the text).
    """

    repeats: tuple[int, ...] = (0, 1, 4, 16, 64, 256)
    sequences_per_group: int | tuple[int, ...] = 64
    planted_length: int = 32
    planted_prefix: int = 16
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "repeats", tuple(self.repeats))
        if not isinstance(self.sequences_per_group, int):
            object.__setattr__(self, "sequences_per_group", tuple(self.sequences_per_group))
        limits = {"planted_length": (5, 1024), "planted_prefix": (4, self.planted_length - 1)}
        check_ranges("world", self, limits)
        check_seed("world", self.seed)
        if len(set(self.repeats)) < len(self.repeats) or min(self.repeats, default=0) < 0:
            raise InputError(f"world repeats={self.repeats} must be distinct numbers >= 0")
        if len(self._group_sizes) != len(self.repeats) or min(self._group_sizes, default=1) < 1:
            raise InputError(
                f"world sequences_per_group={self.sequences_per_group} must be one number >= 1, or one for each of the "
                f"{len(self.repeats)} entries of repeats"
            )

    @property
    def _group_sizes(self) -> tuple[int, ...]:
        sizes = self.sequences_per_group
        return (sizes,) * len(self.repeats) if isinstance(sizes, int) else sizes

    @property
    def planted_repeats(self) -> list[int]:
        """How often each planted sequence occurs, group by group."""
        return [repeats for repeats, size in zip(self.repeats, self._group_sizes) for _ in range(size)]


@dataclasses.dataclass(frozen=True)
class WorldConfig(PlantedConfig):
    """Size of a generated world, and what is held out of its texts; `PlantedConfig` says what is planted.

    Attributes:
      num_people, num_cities, num_countries, num_jobs, num_pets: sizes of the tables.
      max_addend: sums run over a, b in 0 ... max_addend.
      zipf_exponent: a person's frequency is rank ** -zipf_exponent; 0 mentions everybody equally often.
      mixture: weight of each kind of document; kinds left out do not occur.
      min_sentences, max_sentences: sentences per document, uniform in between.
      two_step_held_out: share of people whose currency and language are never stated.
      sums_held_out: share of the ordered pairs (a, b) that never occur; a pair is held out with its mirror image.
    """

    num_people: int = 64
    num_cities: int = 8
    num_countries: int = 4
    num_jobs: int = 8
    num_pets: int = 8
    max_addend: int = 30
    zipf_exponent: float = 0.5
    mixture: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"facts": 0.3, "geography": 0.06, "two_step": 0.2, "arithmetic": 0.34, "grammar": 0.1}
    )
    min_sentences: int = 2
    max_sentences: int = 4
    two_step_held_out: float = 0.25
    sums_held_out: float = 0.12

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "mixture", dict(self.mixture))
        limits = {
            "num_people": (8, 512),
            "num_cities": (2, self.num_people),
            "num_countries": (2, self.num_cities),
            "num_jobs": (2, len(grammar.JOBS)),
            "num_pets": (2, len(grammar.PETS)),
            "max_addend": (4, 49),
            "zipf_exponent": (0.0, 2.0),
            "min_sentences": (1, self.max_sentences),
            "max_sentences": (1, 16),
            "two_step_held_out": (0.0, 0.5),
            "sums_held_out": (0.0, 0.3),
        }
        check_ranges("world", self, limits)
        check_mixture(self.mixture)


LEAST_VOCAB = 300
"""257 ids are end-of-text and the bytes; a few merges come on top."""


@dataclasses.dataclass(frozen=True)
class TextWorldConfig(PlantedConfig):
    """Where real text comes from, and what is held out of it; planted are windows of held-out documents.

    Attributes:
      source: what `data.sources.open_source` reads, or a folder of .txt files, each of them a document. It may be empty
        until it is read.
      field: of the items that are no plain texts.
      split: of a source that has splits.
      streams: names of the equal shares that documents for pre-training are dealt out to; a model names its own.
      vocab_size: ids at most of the byte-level BPE that is learned from the text.
      tokenizer: directory of a tokenizer to take instead; "<|endoftext|>" must be its id 0.
      max_document_tokens: longer documents are cut into pieces between words, each a document of its own.
      num_questions: questions of every suite.
    """

    source: str = ""
    field: str = "text"
    split: str = "train"
    streams: tuple[str, ...] = ("train",)
    vocab_size: int = 16_384
    tokenizer: str = ""
    max_document_tokens: int = 256
    num_questions: int = 500
    repeats: tuple[int, ...] = (0, 1, 4, 16, 64)
    planted_length: int = 64
    planted_prefix: int = 32

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "streams", tuple(self.streams))
        limits = {
            "vocab_size": (LEAST_VOCAB, 65_536),
            "max_document_tokens": (16, 65_536),
            "num_questions": (4, 100_000),
        }
        check_ranges("text world", self, limits)
        if not self.streams or len(set(self.streams)) < len(self.streams):
            raise InputError(f"text world streams={self.streams} must name at least one stream, and none twice")
        for stream in self.streams:
            if not re.fullmatch(r"\w+", stream, re.ASCII):
                raise InputError(f"text world stream {stream!r} must consist of letters, digits and underscores")


_SHAPE = ("hidden_size", "num_layers", "num_heads")
_SWITCHES = ("parallel_residual", "tie_embeddings")


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
      parallel_residual, rotary_pct, tie_embeddings: switches of the architecture; `rotary_pct` is the rotated share of
        each head.
      preset: name of a published model ("pythia-14m", "qwen3-0.6b-base"), of any family, that gives hidden_size,
        num_layers, num_heads and all switches that have their default here, set or not; tokens are the lab's own.
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
    parallel_residual: bool = DecoderConfig.parallel_residual
    rotary_pct: float = DecoderConfig.pattern[0].rotary.fraction
    tie_embeddings: bool = DecoderConfig.tie_embeddings
    preset: str = ""

    def __post_init__(self):
        if self.mixture:
            check_mixture(self.mixture)
        check_choice("pre-training", self, "tokenizer", ("words", "bpe"))
        # Two special tokens, the mark of a word's beginning, 26 letters, 10 digits and "." are 40; merges come on top.
        check_ranges("pre-training", self, {"bpe_vocab_size": (64, 65_536)})
        check_seed("pre-training", self.seed)
        if self.preset:
            preset(self.preset)
            for name in filter(self.is_set, _SHAPE):
                raise InputError(
                    f"pre-training preset={self.preset!r} gives the shape: leave out {name}={getattr(self, name)}"
                )

    def model_config(self, vocab_size: int) -> DecoderConfig:
        """The architecture, with as many embedding rows as its tokenizer has ids."""
        found = DecoderConfig(vocab_size, self.hidden_size, self.num_layers, self.num_heads, 4 * self.hidden_size)
        if self.preset:
            special = {"bos_token_id": 0, "eos_token_id": 0, "stop_token_ids": ()}
            found = dataclasses.replace(preset(self.preset), vocab_size=vocab_size, **special)
        switches = {name: getattr(self, name) for name in _SWITCHES if self.is_set(name)}
        if self.is_set("rotary_pct"):
            switches["pattern"] = tuple(
                dataclasses.replace(
                    layer, rotary=layer.rotary and dataclasses.replace(layer.rotary, fraction=self.rotary_pct)
                )
                for layer in found.pattern
            )
        return dataclasses.replace(found, max_position=self.max_position, **switches)

    @property
    def tokens(self) -> str:
        """What tells apart the tokenizers of a lab: "words", "bpe-512"."""
        return self.tokenizer if self.tokenizer == "words" else f"{self.tokenizer}-{self.bpe_vocab_size}"

    def is_set(self, name: str) -> bool:
        """Whether a field has another value than its default."""
        return getattr(self, name) != type(self).__dataclass_fields__[name].default


@dataclasses.dataclass(frozen=True)
class LabConfig:
    """A generated world and its two models.

    Attributes:
      world: what all generated texts tell of.
      base: the model that a run is about.
      other: a model trained differently, whose text is a control.
      validation_documents: for the likelihood; no model is trained on them.
      control_documents: fresh real text; no model is pre-trained on them.
    """

    world: WorldConfig = WorldConfig()
    base: PretrainConfig = PretrainConfig()
    other: PretrainConfig = PretrainConfig(stream="other", include_planted=False, seed=1)
    validation_documents: int = 500
    control_documents: int = 6_000

    def lineage(self) -> "LineageConfig":
        models = {"base": self.base, "other": self.other}
        return LineageConfig(self.world, models, self.validation_documents, self.control_documents)


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
    text: TextWorldConfig | None = None

    def __post_init__(self):
        object.__setattr__(self, "models", dict(self.models))
        if not self.models:
            raise InputError("lineage models={} is empty: name at least one model")
        for name in self.models:
            if not re.fullmatch(r"\w+", name, re.ASCII) or name == "world":
                raise InputError(
                    f"lineage model name {name!r} must consist of letters, digits and underscores, and not be 'world'"
                )
        check_ranges("lineage", self, {"validation_documents": 0, "control_documents": 0})
        if self.text is not None:
            self._check_text()
        elif taken := [name for name, model in self.models.items() if model.stream in HELD_OUT_STREAMS]:
            stream = self.models[taken[0]].stream
            raise InputError(f"lineage model {taken[0]!r}: stream={stream!r} is what no model reads; name another one")

    def _check_text(self):
        if self.world != WorldConfig():
            raise InputError(
                "lineage world and text are both set: there is a generated world or real text, leave one out"
            )
        for name, model in self.models.items():
            if model.mixture:
                raise InputError(
                    f"lineage model {name!r}: mixture={model.mixture} is of generated worlds; real text has none, "
                    "leave it out"
                )
            if model.stream not in self.text.streams:
                raise InputError(
                    f"lineage model {name!r}: stream={model.stream!r} is none of text.streams={self.text.streams}"
                )
            if model.tokenizer == "bpe" and model.bpe_vocab_size < LEAST_VOCAB:
                raise InputError(
                    f"lineage model {name!r}: bpe_vocab_size={model.bpe_vocab_size} must be at least "
                    f"{LEAST_VOCAB} for real text"
                )

    def with_seed(self, seed: int) -> "LineageConfig":
        """Another world and other models of the same kinds: `seed` is added to the world's, and to those of initial
        weights and order of training."""

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
