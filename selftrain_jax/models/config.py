"""Architecture of decoders, as settings: what a family of models has in common, and what differs between its layers."""

import dataclasses

import numpy as np

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.settings import check_choice, check_ranges


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor` (Chen et al. 2023). Field names of this and the others are those of config.json."""

    factor: float


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Long waves divided by `factor`, short ones kept, those between blended (Llama 3.1)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al. 2023): dimensions that turn rarely are interpolated, and scores are sharpened, by what follows
    from `factor` where `attention_factor` is None."""

    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0


Scaling = LinearScaling | Llama3Scaling | YarnScaling


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary position embeddings (Su et al. 2021): of the first `fraction` of every head, with wave lengths from 2 pi
    up to 2 pi `base`."""

    fraction: float = 1.0
    base: float = 10_000.0
    scaling: Scaling | None = None

    def __post_init__(self):
        check_ranges("model rotary", self, {"fraction": (0, 1)})
        if not self.base > 0:
            raise InputError(f"model rotary base={self.base} must be positive")
        if isinstance(self.scaling, YarnScaling) and not self.base > 1:
            raise InputError(f"model rotary base={self.base} must be above 1 with YaRN, which divides by its logarithm")
        for name, value in dataclasses.asdict(self.scaling).items() if self.scaling else ():
            if value is not None and not value > 0:
                raise InputError(f"model rotary scaling {name}={value} must be positive")


@dataclasses.dataclass(frozen=True)
class Layer:
    """What may differ from layer to layer.

    Attributes:
      rotary: None in layers that know no positions.
      window: how many tokens a token sees, itself included; None: all that came before.
    """

    rotary: Rotary | None = Rotary()
    window: int | None = None


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape and switches of one model; the defaults are Pythia's.

    Attributes:
      vocab_size: rows of the embedding; those past the tokenizer's last id are padding that no sampler emits.
      kv_heads: heads of keys and values, each of which serves an equal share of the query heads; None: `num_heads`.
      head_size: None: `hidden_size / num_heads`.
      pattern: the layers, repeated from the first one on; see `layer`.
      norm: "layer_norm" (with a bias) or "rms_norm".
      norm_offset: added to the scale of every norm: Gemma stores scale - 1.
      norm_places: of attention and MLP in each layer: "before", "after" (on what they give) or "around" (both).
      qk_norm: of queries and keys before rotation: "none", "head" (each head) or "projection" (all heads together).
      parallel_residual: attention and MLP read the same input, instead of one the other's output.
      fused_qkv: queries, keys and values are one projection.
      activation: "gelu" (exact), "gelu_tanh" or "silu".
      gated: the MLP multiplies the activation by a second projection (Shazeer 2020).
      learned_positions: an embedding of positions is added to that of tokens.
      scale_embeddings: embeddings are multiplied by sqrt(hidden_size).
      attention_scale: of the scores; None: head_dim ** -0.5.
      attention_softcap, logit_softcap: x becomes cap * tanh(x / cap); None: it stays.
      bos_token_id: what stands before a document, in sampling, training and scoring.
      eos_token_id: what ends a document in training.
      stop_token_ids: further ids that end a document in sampling.
      family: the table in `models.families` that says how the model is stored.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    kv_heads: int | None = None
    head_size: int | None = None
    max_position: int = 2048
    pattern: tuple[Layer, ...] = (Layer(Rotary(fraction=0.25)),)
    norm: str = "layer_norm"
    norm_eps: float = 1e-5
    norm_offset: float = 0.0
    norm_places: str = "before"
    qk_norm: str = "none"
    parallel_residual: bool = True
    fused_qkv: bool = True
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    activation: str = "gelu"
    gated: bool = False
    tie_embeddings: bool = False
    learned_positions: bool = False
    scale_embeddings: bool = False
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    bos_token_id: int = 0
    eos_token_id: int = 0
    stop_token_ids: tuple[int, ...] = ()
    family: str = "gpt_neox"

    def __post_init__(self):
        # One way to say what is the default anyhow, so that equal models are equal.
        if self.kv_heads == self.num_heads:
            object.__setattr__(self, "kv_heads", None)
        if self.head_size is not None and self.head_size * self.num_heads == self.hidden_size:
            object.__setattr__(self, "head_size", None)
        sizes = ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "max_position")
        check_ranges("model", self, dict.fromkeys(sizes, 1))
        if self.head_size is None and self.hidden_size % self.num_heads:
            raise InputError(f"model hidden_size={self.hidden_size} must be a multiple of num_heads={self.num_heads}")
        if self.head_dim < 1:
            raise InputError(f"model head_size={self.head_size} must be at least 1")
        if not self.pattern or len(self.pattern) > self.num_layers:
            raise InputError(f"model pattern has {len(self.pattern)} layers, not 1 to num_layers={self.num_layers}")
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise InputError(f"model num_heads={self.num_heads} must be a multiple of kv_heads={self.kv_heads}")
        if self.fused_qkv and self.num_kv_heads != self.num_heads:
            raise InputError(f"model kv_heads={self.kv_heads} must be num_heads={self.num_heads} with fused_qkv")
        for layer in self.pattern:
            if layer.window is not None and layer.window < 1:
                raise InputError(f"model window={layer.window} must be at least 1 token")
            if (dim := self.rotary_dim(layer.rotary)) % 2:
                raise InputError(
                    f"model rotary fraction={layer.rotary.fraction} rotates {dim} of {self.head_dim} dimensions per "
                    "head: that number must be even"
                )
        check_choice("model", self, "norm", ("layer_norm", "rms_norm"))
        check_choice("model", self, "norm_places", ("before", "after", "around"))
        check_choice("model", self, "qk_norm", ("none", "head", "projection"))
        check_choice("model", self, "activation", ("gelu", "gelu_tanh", "silu"))
        ends = [("eos_token_id", self.eos_token_id), *(("stop_token_ids", value) for value in self.stop_token_ids)]
        for name, value in [("bos_token_id", self.bos_token_id), *ends]:
            if not 0 <= value < self.vocab_size:
                raise InputError(f"model {name}={value} lies outside the vocabulary of {self.vocab_size}")

    @property
    def head_dim(self) -> int:
        """Size of one head."""
        return self.hidden_size // self.num_heads if self.head_size is None else self.head_size

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values in a layer."""
        return self.num_heads if self.kv_heads is None else self.kv_heads

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """All ids that end a document in sampling."""
        return tuple(sorted({self.eos_token_id, *self.stop_token_ids}))

    @property
    def special_ids(self) -> tuple[int, ...]:
        """All ids that begin or end a document, and are no text."""
        return tuple(sorted({self.bos_token_id, *self.stop_ids}))

    @property
    def rotaries(self) -> tuple[Rotary, ...]:
        """The different ones, in the order of `pattern`."""
        return tuple(dict.fromkeys(layer.rotary for layer in self.pattern if layer.rotary is not None))

    def layer(self, index: int) -> Layer:
        """What is particular to layer `index`."""
        return self.pattern[index % len(self.pattern)]

    def rotary_dim(self, rotary: Rotary | None) -> int:
        """Leading dimensions of each head that are rotated."""
        return 0 if rotary is None else int(self.head_dim * rotary.fraction)

    @property
    def num_params(self) -> int:
        """All weights, a tied embedding counted once."""
        d, f, h, n, k = self.hidden_size, self.intermediate_size, self.head_dim, self.num_heads, self.num_kv_heads
        weights = (2 if self.norm == "layer_norm" else 1) * d
        layer = (n + 2 * k) * h * (d + self.qkv_bias) + n * h * d + d * self.out_bias
        layer += (2 + self.gated) * d * f + self.mlp_bias * (f * (1 + self.gated) + d)
        layer += weights * (4 if self.norm_places == "around" else 2)
        layer += {"none": 0, "head": 2 * h, "projection": (n + k) * h}[self.qk_norm]
        embeddings = d * (self.vocab_size * (2 - self.tie_embeddings) + self.max_position * self.learned_positions)
        return self.num_layers * layer + embeddings + weights

    def train_flops_per_token(self, length: int) -> int:
        """Operations of one training step per token, in rows of `length`: 6 N + 6 H (C_1 + ... + C_L).

        The model FLOPs of Chowdhery et al. 2022 (PaLM, appendix B), without what recomputation adds. N counts the
        weights of all matrix products, the output layer among them and embedding look-ups not; H is the width of all
        query heads. C is twice the number of tokens that a token of the layer sees: `length` with a causal mask, less
        with a window."""
        looked_up = self.max_position * self.learned_positions + self.vocab_size * (not self.tie_embeddings)
        seen = 0
        for index in range(self.num_layers):
            window = min(self.layer(index).window or length, length)
            seen += 2 * window - window * window // length
        return 6 * (self.num_params - looked_up * self.hidden_size) + 6 * self.num_heads * self.head_dim * seen


def check_token_ids(what: str, ids: np.ndarray, config: DecoderConfig) -> None:
    """Raises `InputError`, which begins with `what`, unless `ids` (at least one) are integers of the vocabulary."""
    if ids.dtype.kind not in "iu":
        raise InputError(f"{what} must hold token ids, that is integers, not {ids.dtype}")
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        raise InputError(f"{what} holds token ids outside the model's vocabulary of {config.vocab_size}")


ATTENTION = ("auto", "xla", "cudnn", "splash")
