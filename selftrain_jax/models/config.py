"""Architecture settings of decoders and the ten Pythia presets."""

import dataclasses

import numpy as np

from selftrain_jax.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape and switches of one model; the defaults are Pythia's.

    `vocab_size` counts the rows of the embedding; rows past the tokenizer's last id are padding that no sampler emits.
    BOS and EOS are the same token, id 0, in every Pythia. `family` names the table in `models.families` that says how
    the model is stored.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_position: int = 2048
    rotary_pct: float = 0.25
    rotary_base: float = 10_000.0
    layer_norm_eps: float = 1e-5
    parallel_residual: bool = True
    tie_embeddings: bool = False
    bos_token_id: int = 0
    eos_token_id: int = 0
    family: str = "gpt_neox"

    def __post_init__(self):
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "max_position"):
            if getattr(self, name) < 1:
                raise InputError(f"model {name}={getattr(self, name)} must be at least 1")
        if self.hidden_size % self.num_heads:
            raise InputError(f"model hidden_size={self.hidden_size} must be a multiple of num_heads={self.num_heads}")
        if not 0.0 <= self.rotary_pct <= 1.0:
            raise InputError(f"model rotary_pct={self.rotary_pct} must lie in [0, 1]")
        if self.rotary_dim % 2:
            raise InputError(
                f"model rotary_pct={self.rotary_pct} rotates {self.rotary_dim} of {self.head_dim} dimensions per head: "
                "that number must be even"
            )
        for name in ("bos_token_id", "eos_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise InputError(f"model {name}={getattr(self, name)} lies outside the vocabulary of {self.vocab_size}")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def rotary_dim(self) -> int:
        """Leading dimensions of each head that are rotated."""
        return int(self.head_dim * self.rotary_pct)

    @property
    def num_params(self) -> int:
        d, f = self.hidden_size, self.intermediate_size
        layer = 4 * d * d + 4 * d + 2 * d * f + d + f + 4 * d
        embeddings = self.vocab_size * d * (1 if self.tie_embeddings else 2)
        return self.num_layers * layer + embeddings + 2 * d

    def train_flops_per_token(self, length: int) -> int:
        """Operations of one training step per token, in rows of `length`: 6 N + 6 L D T.

        The model FLOPs of Chowdhery et al. 2022 (PaLM, appendix B), without what recomputation adds. N counts the
        weights of all matrix products, the output layer among them and the embedding look-up not; causal attention does
        half of the T x T products."""
        look_up = 0 if self.tie_embeddings else self.vocab_size * self.hidden_size
        return 6 * (self.num_params - look_up) + 6 * self.num_layers * self.hidden_size * length


def check_token_ids(what: str, ids: np.ndarray, config: DecoderConfig) -> None:
    """Raises `InputError`, which begins with `what`, unless `ids` (at least one) are integers of the vocabulary."""
    if ids.dtype.kind not in "iu":
        raise InputError(f"{what} must hold token ids, that is integers, not {ids.dtype}")
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        raise InputError(f"{what} holds token ids outside the model's vocabulary of {config.vocab_size}")


def _pythia(num_layers: int, hidden_size: int, num_heads: int, vocab_size: int = 50_304) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        intermediate_size=4 * hidden_size,
    )


PRESETS: dict[str, DecoderConfig] = {
    "pythia-14m": _pythia(6, 128, 4),
    "pythia-31m": _pythia(6, 256, 8),
    "pythia-70m": _pythia(6, 512, 8),
    "pythia-160m": _pythia(12, 768, 12),
    "pythia-410m": _pythia(24, 1024, 16),
    "pythia-1b": _pythia(16, 2048, 8),
    "pythia-1.4b": _pythia(24, 2048, 16),
    "pythia-2.8b": _pythia(32, 2560, 32),
    "pythia-6.9b": _pythia(32, 4096, 32, 50_432),
    "pythia-12b": _pythia(36, 5120, 40, 50_688),
}
"""Shapes of the published models (EleutherAI/pythia model configurations)."""


def preset(name: str) -> DecoderConfig:
    """The named preset; `InputError` listing the names when there is none."""
    try:
        return PRESETS[name]
    except KeyError:
        raise InputError(f"model preset {name!r} is unknown; choose one of {', '.join(PRESETS)}") from None


ATTENTION = ("auto", "xla", "cudnn", "splash")
