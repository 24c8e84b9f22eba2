"""How a model is trained, as settings."""

import dataclasses
import math

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.settings import COMPUTE_DTYPES, check_choice, check_ranges, check_seed
from selftrain_jax.models.config import ATTENTION


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019) under a warm-up and cosine (or constant) schedule.

    Attributes:
      learning_rate: the highest, after the warm-up.
      schedule: "cosine", down to `final_lr_ratio * learning_rate`, or "constant".
      warmup: share of all steps in which the rate rises to the highest.
      final_lr_ratio: what the rate has fallen to behind the last step, which is taken a little above it, as a share of
        the highest.
      beta1, beta2: decay of the mean gradient and of the mean squared gradient.
      eps: added to the root of the mean squared gradient.
      weight_decay: share of a weight, times the learning rate, that a step takes away; of matrices only.
      clip_norm: bound of the global gradient norm; 0 turns clipping off.
    """

    learning_rate: float = 1e-6
    schedule: str = "cosine"
    warmup: float = 0.1
    final_lr_ratio: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self):
        check_choice("optimizer", self, "schedule", ("cosine", "constant"))
        check_ranges("optimizer", self, {"warmup": (0, 1), "final_lr_ratio": (0, 1)})
        check_ranges("optimizer", self, {"learning_rate": (0, math.inf)}, excluded=(0, math.inf))
        from_zero = {"beta1": (0, 1), "beta2": (0, 1)} | dict.fromkeys(
            ("eps", "weight_decay", "clip_norm"), (0, math.inf)
        )
        check_ranges("optimizer", self, from_zero, excluded=(1, math.inf))


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a model is fine-tuned (or, in the lab, pre-trained).

    Attributes:
      batch_size: rows per optimizer update, all slices together.
      sequence_length: targets per row.
      epochs: passes over the rows; the last incomplete batch of an epoch is left out.
      grad_accum: slices that a batch is processed in, one after the other; 0 chooses (`default_grad_accum`).
      seed: order of the rows.
      dtype: compute dtype, "float32" or "bfloat16"; master weights and optimizer state are fp32 always.
      remat: recompute activations in the backward pass.
      attention: "auto" (by device, dtype and head size), "xla", "cudnn" (GPUs) or "splash" (TPUs).
      document_boundaries: keep packed documents apart (positions restart, no attention and no target across).
      checkpoint_every: steps between checkpoints; 0 saves after every epoch.
      keep: checkpoints kept.
      log_every: steps between lines of metrics.
      optimizer: AdamW and schedule.
    """

    batch_size: int = 64
    sequence_length: int = 2048
    epochs: int = 40
    grad_accum: int = 0
    seed: int = 0
    dtype: str = "bfloat16"
    remat: bool = True
    attention: str = "auto"
    document_boundaries: bool = False
    checkpoint_every: int = 0
    keep: int = 2
    log_every: int = 10
    optimizer: OptimizerConfig = OptimizerConfig()

    def __post_init__(self):
        positive = dict.fromkeys(("batch_size", "sequence_length", "epochs", "keep", "log_every"), 1)
        check_ranges("train", self, positive | {"grad_accum": 0, "checkpoint_every": 0})
        check_seed("train", self.seed)
        check_choice("train", self, "attention", ATTENTION)
        check_choice("train", self, "dtype", COMPUTE_DTYPES)
        if self.grad_accum and self.batch_size % self.grad_accum:
            raise InputError(f"train batch_size={self.batch_size} must be a multiple of grad_accum={self.grad_accum}")
