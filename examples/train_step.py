"""The train step in somebody else's code: thirty lines, one device or many, no config object.

Run:  python examples/train_step.py
"""

import jax
import jax.numpy as jnp
import optax

from selftrain_jax.distributed.mesh import make_mesh
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.decoder import Decoder, init_params, param_axes
from selftrain_jax.training.step import TrainState, make_train_step, next_token_loss, state_shardings


def main(num_steps: int = 30) -> list[float]:
    config = DecoderConfig(vocab_size=256, hidden_size=64, num_layers=2, num_heads=4, intermediate_size=256)
    optimizer = optax.adamw(3e-3)
    mesh = make_mesh(MeshConfig(data=-1))  # all devices; fsdp= and tensor= shard the weights as well

    state = TrainState.create(init_params(config, jax.random.key(0)), optimizer)
    state = jax.device_put(state, state_shardings(state, mesh, param_axes(config)))
    train_step = make_train_step(next_token_loss(Decoder(config)), optimizer, mesh=mesh)

    tokens = jnp.arange(8 * 33).reshape(8, 33) * 7 % 256  # [B, T + 1]: counting in sevens
    losses = []
    for _ in range(num_steps):
        state, metrics = train_step(state, {"tokens": tokens})
        losses.append(float(metrics["loss"]))
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} nats per token after {num_steps} steps on {mesh.size} device(s)")
    return losses


if __name__ == "__main__":
    main()
