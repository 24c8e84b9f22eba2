"""The sampler in somebody else's code: documents from the BOS token, as arrays.

Run:  python examples/sample.py
"""

import jax

from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.decoder import init_params
from selftrain_jax.sampling.sampler import Samples, sample
from selftrain_jax.sampling.settings import SamplingConfig


def main() -> Samples:
    config = DecoderConfig(vocab_size=256, hidden_size=64, num_layers=2, num_heads=4, intermediate_size=256)
    params = init_params(config, jax.random.key(0))
    settings = SamplingConfig(temperature=1.0, top_p=0.95, min_new_tokens=4, max_new_tokens=32)

    # Sample 1000 is the same document whatever is drawn beside it.
    drawn = sample(params, config, settings, jax.random.key(1), ids=[0, 1, 1000], batch_size=4)
    for i, tokens, length, log_probs in zip(drawn.ids, drawn.tokens, drawn.lengths, drawn.log_probs):
        print(f"sample {i}: {length} tokens, mean log-prob {log_probs[:length].mean():.2f} nats, {tokens[:8]} ...")
    return drawn


if __name__ == "__main__":
    main()
