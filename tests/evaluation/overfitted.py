"""A model that knows its training sequences by heart, or is on the way there."""

import jax
import jax.numpy as jnp
import optax

from selftrain_jax.models.decoder import Decoder
from tests.shapes import initial


def overfitted(config, sequences, steps):
    """Parameters after so many steps of Adam, all of `sequences` in each."""
    model, optimizer, tokens = Decoder(config), optax.adam(1e-2), jnp.asarray(sequences)

    def loss(params):
        hidden = model.apply({"params": params}, tokens[:, :-1])
        logits = model.apply({"params": params}, hidden, method="logits")
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)[0][0]

    return train(initial(config))
