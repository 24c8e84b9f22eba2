"""AdamW and its learning-rate schedule from one frozen config."""

import dataclasses
import math

import jax
import optax

from selftrain_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019) under a warm-up and cosine (or constant) schedule.

    `warmup` is a share of all steps; the cosine ends at `final_lr_ratio * learning_rate`. Weight decay acts on matrices
    only. `clip_norm` bounds the global gradient norm; 0 turns clipping off.
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
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate={self.learning_rate} must be positive and finite")
        if self.schedule not in ("cosine", "constant"):
            raise InputError(f"schedule={self.schedule!r} must be 'cosine' or 'constant'")
        for name in ("warmup", "final_lr_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)} must lie in [0, 1]")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must lie in [0, 1)")
        for name in ("eps", "weight_decay", "clip_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name}={getattr(self, name)} must not be negative, and finite")


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate as a function of the step number: the first step of a warm-up is already above zero."""
    warmup_steps = round(config.warmup * num_steps)
    if config.schedule == "constant":
        after = optax.constant_schedule(config.learning_rate)
    else:
        after = optax.cosine_decay_schedule(
            config.learning_rate, max(num_steps - warmup_steps, 1), alpha=config.final_lr_ratio
        )
    first = config.learning_rate / max(warmup_steps, 1)
    ramp = optax.linear_schedule(first, config.learning_rate, max(warmup_steps - 1, 1))
    return optax.join_schedules([ramp, after], [warmup_steps])


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Clipping, then AdamW with the schedule of `make_schedule`."""

    def matrices(params):
        def decays(path, leaf):
            return path[-1].key not in ("scale", "bias")

        return jax.tree_util.tree_map_with_path(decays, params)

    adamw = optax.adamw(
        make_schedule(config, num_steps),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=matrices,
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw
