"""Prompt-free unconditional self-training of language models, in JAX.

Importing this package starts no backend and loads neither jax nor transformers; import the rooms you need, for example
`selftrain_jax.training.step` or `selftrain_jax.sampling.sampler`.
"""

__version__ = "0.1.0"
