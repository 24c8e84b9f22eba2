"""Another loss: a small student learns the next-token distribution of a frozen teacher (Hinton et al. 2015).

Run:  python examples/distillation.py
"""

import jax
import jax.numpy as jnp
import optax

from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.decoder import Decoder, init_params
from selftrain_jax.training.step import TrainState, make_train_step


def distillation_loss(student: Decoder, teacher: Decoder, teacher_params):
    """(sum of KL(teacher || student) over positions, number of positions); the teacher gets no gradient."""

    def log_probs(model, params, tokens):
        hidden = model.apply({"params": params}, tokens)
        return jax.nn.log_softmax(model.apply({"params": params}, hidden, method="logits"))

    def loss_fn(params, batch):
        wanted = jax.lax.stop_gradient(log_probs(teacher, teacher_params, batch["tokens"]))
        found = log_probs(student, params, batch["tokens"])
        return jnp.sum(jnp.exp(wanted) * (wanted - found)), jnp.float32(batch["tokens"].size)

    return loss_fn


def main(num_steps: int = 60) -> list[float]:
    small = DecoderConfig(vocab_size=64, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=64)
    large = DecoderConfig(vocab_size=64, hidden_size=64, num_layers=2, num_heads=4, intermediate_size=256)
    teacher = jax.tree.map(lambda x: 3 * x, init_params(large, jax.random.key(0)))  # sharper than an untrained model

    optimizer = optax.adamw(1e-2)
    state = TrainState.create(init_params(small, jax.random.key(1)), optimizer)
    train_step = make_train_step(distillation_loss(Decoder(small), Decoder(large), teacher), optimizer)

    divergences = []
    for step in range(num_steps):
        tokens = jax.random.randint(jax.random.key(step), (16, 24), 0, 64)
        state, metrics = train_step(state, {"tokens": tokens})
        divergences.append(float(metrics["loss"]))
    print(f"KL(teacher || student) {divergences[0]:.3f} -> {divergences[-1]:.3f} nats per token")
    return divergences


if __name__ == "__main__":
    main()
