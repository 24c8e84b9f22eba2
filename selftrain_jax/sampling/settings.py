"""How documents are drawn, as settings."""

import dataclasses

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.settings import COMPUTE_DTYPES, check_choice, check_ranges, check_seed


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How documents are drawn.

    Attributes:
      start: what a document begins after: "auto", the model's BOS alone; or ids and texts, for example ("\\n",). A text
        that is a token of the vocabulary is that token, any other is tokenized (`models.files.tokenizer.start_ids`);
        what draws takes ids alone. The start is no part of the document.
      temperature: logits are divided by it; from 0.001 to 1000 (greedy decoding is `top_k=1`).
      top_k: only the k most likely tokens stay; 0 keeps all.
      top_p: only the smallest set of tokens whose probability reaches it stays (after temperature and top-k); 1 keeps
        all (Holtzman et al. 2020).
      min_new_tokens: nothing that ends a document can be drawn before this many tokens are out; None is 50, or
        max_new_tokens where that is less.
      max_new_tokens: a document that has not ended by then stops with reason "length".
    """

    temperature: float = 1.25
    top_k: int = 0
    top_p: float = 1.0
    min_new_tokens: int | None = None
    max_new_tokens: int = 1024
    start: str | int | tuple[int | str, ...] = "auto"

    def __post_init__(self):
        if self.start != "auto":
            entries = (self.start,) if isinstance(self.start, (int, str)) else tuple(self.start)
            object.__setattr__(self, "start", entries)
            if not entries or not all(type(x) is int and x >= 0 or isinstance(x, str) and x for x in entries):
                raise InputError(
                    f"sample start={entries!r} must be 'auto', or token ids and texts that are not empty, one or more"
                )
        if not 1e-3 <= self.temperature <= 1e3:  # beyond, logits over- or underflow in fp32
            raise InputError(
                f"temperature={self.temperature} must lie in [0.001, 1000]; for greedy decoding set top_k=1 instead"
            )
        if self.top_k < 0:
            raise InputError(f"top_k={self.top_k} must be 0 (off) or positive")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p={self.top_p} must lie in (0, 1]; 1 turns it off")
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if self.min_new_tokens is None:
            object.__setattr__(self, "min_new_tokens", min(50, self.max_new_tokens))
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise InputError(
                f"min_new_tokens={self.min_new_tokens} must lie between 0 and max_new_tokens={self.max_new_tokens}"
            )

    @property
    def start_length(self) -> int:
        """Tokens before a document's first; a text counts as one until it is made ids."""
        return 1 if self.start == "auto" else len(self.start)

    @property
    def num_fed(self) -> int:
        """Tokens that the longest document has fed to the model, those of the start among them: its last is not fed."""
        return self.start_length - 1 + self.max_new_tokens


@dataclasses.dataclass(frozen=True)
class SampleSettings(SamplingConfig):
    """How many documents are drawn, and in what portions. Only the first two change what is drawn.

    Attributes:
      num_samples: documents in the corpus.
      seed: the corpus's random key.
      batch_size: documents drawn side by side; "auto" takes as many as the device memory holds.
      shard_size: documents per corpus shard; a killed run loses what it was drawing and the shard not yet full.
      dtype: of weights, compute and cache, "float32" or "bfloat16"; "auto" is bfloat16 on accelerators and float32 on
        CPUs. Logits and log-probabilities are fp32 always.
    """

    num_samples: int = 20_000
    seed: int = 0
    batch_size: int | str = "auto"
    shard_size: int = 1024
    dtype: str = "auto"

    def __post_init__(self):
        super().__post_init__()
        check_ranges("sample", self, {"num_samples": 1, "shard_size": 1})
        check_seed("sample", self.seed)
        if self.batch_size != "auto" and (isinstance(self.batch_size, str) or self.batch_size < 1):
            raise InputError(f"sample batch_size={self.batch_size!r} must be at least 1, or 'auto'")
        check_choice("sample", self, "dtype", ("auto", *COMPUTE_DTYPES))

    def sampling(self) -> SamplingConfig:
        """The part that the decode loop compiles for."""
        return SamplingConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(SamplingConfig)})
