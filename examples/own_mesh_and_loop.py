"""The train step inside another project's mesh and loop: its axis names, its optimizer, its own model function.

Run:  XLA_FLAGS=--xla_force_host_platform_device_count=8 python examples/own_mesh_and_loop.py
"""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from selftrain_jax.training.step import TrainState, make_train_step, next_token_loss


def apply_fn(params, tokens):
    """Somebody else's model: a bigram table with a hidden layer, `[B, T]` token ids to `[B, T, V]` logits."""
    return jax.nn.gelu(params["embedding"][tokens]) @ params["output"]


def main(num_steps: int = 40) -> list[float]:
    mesh = jax.make_mesh((len(jax.devices()),), ("replica",), axis_types=(AxisType.Auto,))  # not one of our axis names
    everywhere = NamedSharding(mesh, PartitionSpec())

    keys = jax.random.split(jax.random.key(0))
    params = {"embedding": jax.random.normal(keys[0], (64, 32)), "output": 0.1 * jax.random.normal(keys[1], (32, 64))}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.5, momentum=0.9))
    state = jax.device_put(TrainState.create(params, optimizer), everywhere)
    rules = {"batch": "replica"}  # all that the step needs to know of the mesh; without mesh= it is plain jit
    train_step = make_train_step(next_token_loss(apply_fn), optimizer, mesh=mesh, rules=rules, grad_accum=2)

    tokens = jnp.arange(32 * 17).reshape(32, 17) * 5 % 64
    losses = []
    for _ in range(num_steps):
        state, metrics = train_step(state, {"tokens": tokens})
        losses.append(float(metrics["loss"]))
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} nats per token on {mesh.size} device(s)")
    return losses


if __name__ == "__main__":
    main()
