"""GPT-2: learned positions, and kernels that are stored as `[in, out]`."""

import functools
import re
from typing import Any

from selftrain_jax.models.config import DecoderConfig, Layer
from selftrain_jax.models.families.family import Family
from selftrain_jax.models.families.tensor import Tensor, norm, plain

_PATTERN = (Layer(None),)
_SWITCHES = dict(parallel_residual=False, activation="gelu_tanh", learned_positions=True, pattern=_PATTERN)
_START = dict(bos_token_id=50_256, eos_token_id=50_256)
_shape = functools.partial(DecoderConfig, **_SWITCHES, **_START, max_position=1024, tie_embeddings=True, family="gpt2")


def _layer(config: DecoderConfig) -> dict[str, Tensor]:
    d, f, n, h = config.hidden_size, config.intermediate_size, config.num_heads, config.head_dim
    return {
        **norm(config, "ln_1", "layers", "attention_norm"),
        "attn.c_attn.weight": Tensor(("layers", "qkv", "kernel"), (d, 3 * d), (d, 3, n, h), (0, 1, 2, 3)),
        "attn.c_attn.bias": Tensor(("layers", "qkv", "bias"), (3 * d,), (3, n, h), (0, 1, 2)),
        "attn.c_proj.weight": Tensor(("layers", "out", "kernel"), (d, d), (n, h, d), (0, 1, 2)),
        "attn.c_proj.bias": plain("layers", "out", "bias", shape=(d,)),
        **norm(config, "ln_2", "layers", "mlp_norm"),
        "mlp.c_fc.weight": plain("layers", "up", "kernel", shape=(d, f)),
        "mlp.c_fc.bias": plain("layers", "up", "bias", shape=(f,)),
        "mlp.c_proj.weight": plain("layers", "down", "kernel", shape=(f, d)),
        "mlp.c_proj.bias": plain("layers", "down", "bias", shape=(d,)),
    }


def _read(hf: Any) -> dict[str, Any]:
    return {"intermediate_size": 4 * hf.n_embd if hf.n_inner is None else hf.n_inner}


def _write(config: DecoderConfig) -> dict[str, Any]:
    return {"n_inner": None if config.intermediate_size == 4 * config.hidden_size else config.intermediate_size}


GPT2 = Family(
    name="gpt2",
    model_class="GPT2LMHeadModel",
    switches=_SWITCHES,
    fields={
        "vocab_size": "vocab_size",
        "n_embd": "hidden_size",
        "n_layer": "num_layers",
        "n_head": "num_heads",
        "n_positions": "max_position",
        "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tie_embeddings",
    },
    fixed={"activation_function": "gelu_new"},
    layer=_layer,
    read=_read,
    write=_write,
    legacy=lambda config: {},
    prefix="transformer.",
    embedding="wte",
    positions="wpe",
    layers="h",
    final_norm="ln_f",
    ignored=re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)"),
    presets={
        "gpt2": _shape(50_257, 768, 12, 12, 3072),
        "gpt2-medium": _shape(50_257, 1024, 24, 16, 4096),
        "gpt2-large": _shape(50_257, 1280, 36, 20, 5120),
        "gpt2-xl": _shape(50_257, 1600, 48, 25, 6400),
    },
)
