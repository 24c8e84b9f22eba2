"""Small checkpoints and tokenizers, written by hand, for the tests of what reads and writes models."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from selftrain_jax.core.errors import InputError
from selftrain_jax.models import decoder
from selftrain_jax.models.config import DecoderConfig, Layer, Rotary

CONFIG = DecoderConfig(
    vocab_size=48, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=40, pattern=(Layer(Rotary(0.5)),)
)
TIED = dataclasses.replace(CONFIG, tie_embeddings=True)
OLD_CONFIG = {  # as EleutherAI published Pythia
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_size": 16,
    "initializer_range": 0.02,
    "intermediate_size": 40,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.5,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.24.0",
    "use_cache": True,
    "use_parallel_residual": True,
    "vocab_size": 48,
}


def random_params(config, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(dtype), decoder.param_shapes(config))


def assert_same_bits(left, right):
    def check(a, b):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.tobytes() == b.tobytes()

    jax.tree.map(check, left, right)


def old_tensors(prefix="gpt_neox.", head="embed_out.weight", dtype=np.float16):
    """A checkpoint written by hand from the published format, buffers of old transformers versions included."""
    rng = np.random.default_rng(1)
    d, f, v = 16, 40, 48
    shapes = {"embed_in.weight": (v, d), "final_layer_norm.weight": (d,), "final_layer_norm.bias": (d,)}
    for i in range(2):
        for name, rows, columns in (
            ("attention.query_key_value", 3 * d, d),
            ("attention.dense", d, d),
            ("mlp.dense_h_to_4h", f, d),
            ("mlp.dense_4h_to_h", d, f),
        ):
            shapes[f"layers.{i}.{name}.weight"] = (rows, columns)
            shapes[f"layers.{i}.{name}.bias"] = (rows,)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"layers.{i}.{norm}.weight"] = shapes[f"layers.{i}.{norm}.bias"] = (d,)
    tensors = {prefix + name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    tensors[head] = rng.normal(size=(v, d)).astype(dtype)
    for i in range(2):
        tensors[f"{prefix}layers.{i}.attention.bias"] = np.ones((1, 1, 8, 8), np.uint8)
        tensors[f"{prefix}layers.{i}.attention.masked_bias"] = np.array(-1e9, np.float32)
        tensors[f"{prefix}layers.{i}.attention.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    return tensors


def write_checkpoint(directory, tensors, config=OLD_CONFIG):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def write_tokenizer(directory, words=("a", "b", "c")):
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {word: i for i, word in enumerate(["<|endoftext|>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    directory.mkdir(exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def refuses(action, *words):
    """`action` raises a one-line `InputError` that contains all `words`."""
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message
