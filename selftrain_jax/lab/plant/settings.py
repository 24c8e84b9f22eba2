"""What is planted in a model, how often and in which text, as settings."""

import dataclasses

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.settings import check_ranges, check_seed
from selftrain_jax.training.settings import OptimizerConfig, TrainConfig

KINDS = ("words", "biographies", "passages")
MOST_PLANTED = 0.5
"""Share of the training text that may be planted: beyond it a model learns little else."""


@dataclasses.dataclass(frozen=True)
class PlantConfig:
    """A first stage that trains the student on real text in which sequences were inserted a known number of times, and
    its twin on the same text with neutral text of as many tokens in their place (as Hubble, allegro-lab 2025, does from
    scratch). The planted model is then what is self-trained.

    Attributes:
      text: real text, a file as of `evaluate.texts`: its beginning is trained on, neutral text is taken from behind it.
      tokens: of the training text, what is inserted included; a multiple of train.sequence_length * train.batch_size,
        so that every row is trained on.
      kinds: "words" (random words of the text), "biographies" (of invented people), "passages" (windows of a file).
      passages: that file; best of what was written after the model's cut-off.
      counts: how often the sequences of a group are inserted; 0 keeps a group that never is.
      sequences: of each kind in each group. Every second one is not measured by `recovery`, which trains on them.
      prefix_length, suffix_length: tokens of a probe; a sequence holds as many again as the prefix before it.
      seed: of sequences and places; the order of rows has `train.seed`.
      train: how both models are trained; one epoch, so that counts are what they say.
    """

    text: str = ""
    tokens: int = 16_777_216
    kinds: tuple[str, ...] = ("words", "biographies")
    passages: str = ""
    counts: tuple[int, ...] = (0, 1, 4, 16, 64, 256)
    sequences: int = 32
    prefix_length: int = 32
    suffix_length: int = 32
    seed: int = 0
    train: TrainConfig = TrainConfig(batch_size=32, epochs=1, optimizer=OptimizerConfig(learning_rate=1e-4))

    def __post_init__(self):
        object.__setattr__(self, "counts", tuple(self.counts))
        if not self.text:
            raise InputError("plant text is empty: name a file of real text to train on")
        check_ranges("plant", self, {"tokens": 1, "sequences": 2, "prefix_length": 1, "suffix_length": 1})
        check_seed("plant", self.seed)
        if not self.kinds or set(self.kinds) - set(KINDS) or len(set(self.kinds)) < len(self.kinds):
            raise InputError(f"plant kinds={self.kinds} must be some of {', '.join(KINDS)}, none twice")
        if ("passages" in self.kinds) != bool(self.passages):
            raise InputError(f"plant passages={self.passages!r}: name a file for the kind 'passages', and only for it")
        rising = all(a < b for a, b in zip(self.counts, self.counts[1:]))
        if len(self.counts) < 2 or self.counts[0] < 0 or not rising:
            raise InputError(f"plant counts={self.counts} must rise, from 0 or more, and be at least two")
        if self.train.epochs != 1:
            raise InputError(f"plant train.epochs={self.train.epochs} must be 1: counts say how often text was read")
        batch = self.train.sequence_length * self.train.batch_size
        if self.tokens % batch:
            near = max(self.tokens // batch, 1) * batch
            raise InputError(
                f"plant tokens={self.tokens} must be a multiple of train.sequence_length * train.batch_size = {batch}, "
                f"for example {near}: the rows of an incomplete batch are not trained on"
            )
        if self.planted_tokens > MOST_PLANTED * self.tokens:
            raise InputError(
                f"plant counts={self.counts} with sequences={self.sequences} of {len(self.kinds)} kinds take "
                f"{self.planted_tokens} tokens, more than {MOST_PLANTED:.0%} of tokens={self.tokens}: lower counts or "
                "sequences, or raise tokens"
            )

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return 2 * self.prefix_length + self.suffix_length

    @property
    def num_rows(self) -> int:
        return self.tokens // self.train.sequence_length

    @property
    def planted_tokens(self) -> int:
        """Tokens that all insertions take in the packed text, each with its BOS and EOS."""
        return sum(self.counts) * self.sequences * len(self.kinds) * (self.length + 2)


@dataclasses.dataclass(frozen=True)
class RecoveryConfig:
    """How fast what was planted returns to each model, and what else brings it back; see docs/rules.md.

    Attributes:
      text: unrelated real text to relearn on; "" relearns on the planted sequences that are kept for it.
      steps: of relearning, a power of two; extraction of the other sequences is measured after 1, 2, 4, ... of them.
      samples: with so many, at temperature 1, a suffix must come with probability one half to count as said.
      train: how it is trained; `epochs` is 1, and the text is repeated, in another order each time, as often as needed.
    """

    text: str = ""
    steps: int = 32
    samples: int = 100
    train: TrainConfig = TrainConfig(
        batch_size=8,
        sequence_length=256,
        epochs=1,
        keep=1,
        log_every=1,
        optimizer=OptimizerConfig(learning_rate=1e-4, schedule="constant", warmup=0.0),
    )

    def __post_init__(self):
        check_ranges("recovery", self, {"steps": (1, 65_536), "samples": 1})
        if self.steps & (self.steps - 1):
            raise InputError(f"recovery steps={self.steps} must be a power of two: it is measured at each doubling")
        if self.train.epochs != 1:
            raise InputError(f"recovery train.epochs={self.train.epochs} must be 1: steps say how long it is trained")

    @property
    def num_rows(self) -> int:
        return self.steps * self.train.batch_size
