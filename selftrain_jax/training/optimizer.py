"""AdamW and its learning-rate schedule from one frozen config."""

import jax
import optax

from selftrain_jax.training.settings import OptimizerConfig


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
