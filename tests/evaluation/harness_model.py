"""A small model with a byte-level tokenizer, for tests of what asks it in text."""

import jax
import numpy as np

from selftrain_jax.models import decoder, hf
from selftrain_jax.models.config import DecoderConfig, Layer, Rotary
from tests.shapes import initial

CONFIG = DecoderConfig(
    vocab_size=304,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    intermediate_size=32,
    max_position=48,
    pattern=(Layer(Rotary(0.5)),),
)
CORPUS = ["the cat sat on the mat", "a dog and a cat", "what is the answer to the question?", "one two three four five"]


def tokenizer():
    """As Pythia's, but of 300 ids: a space belongs to the word after it, "<|endoftext|>" is id 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator(CORPUS * 3, trainer)
    return found


def write_model(directory, seed=0):
    """A Hugging Face directory of random weights, far enough from zero that answers differ."""
    rng = np.random.default_rng(seed)
    params = initial(CONFIG, seed)
    params = jax.tree.map(lambda x: np.asarray(x + 0.1 * rng.normal(size=x.shape), np.float32), params)
    params["head"]["kernel"] = params["head"]["kernel"] * 4
    source = directory.with_name(directory.name + "-tokenizer")
    source.mkdir()
    tokenizer().save(str(source / "tokenizer.json"))
    hf.save_pretrained(directory, CONFIG, params, source)
    return directory


@jax.jit
def _log_probs(params, tokens):
    model = decoder.Decoder(CONFIG)
    hidden = model.apply({"params": params}, tokens)
    return jax.nn.log_softmax(model.apply({"params": params}, hidden, method="logits"))


def log_probs(params, ids):
    """[T - 1, V] log-probabilities after each token of one row: one plain pass, padded where a causal model cannot
    look.
    """
    tokens = np.zeros((1, CONFIG.max_position), np.int32)
    tokens[0, : len(ids) - 1] = ids[:-1]
    return np.asarray(_log_probs(params, tokens))[0, : len(ids) - 1]
