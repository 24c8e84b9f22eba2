"""Qwen2, Qwen2.5 and Qwen3."""

import dataclasses
import functools

from selftrain_jax.models.config import DecoderConfig, Layer, Rotary
from selftrain_jax.models.families.family import SHAPE, Family
from selftrain_jax.models.families.llama import NO_BIASES, SWITCHES

_QWEN2 = SWITCHES | NO_BIASES | {"qkv_bias": True}
_QWEN3 = SWITCHES | {"mlp_bias": False, "qk_norm": "head"}

_START = dict(bos_token_id=151_643, eos_token_id=151_643)  # the separator of documents; there is no BOS
_shape = functools.partial(
    DecoderConfig, norm_eps=1e-6, max_position=32_768, pattern=(Layer(Rotary(base=1e6)),), **_START
)
_qwen2 = functools.partial(_shape, **_QWEN2, family="qwen2")
_qwen3 = functools.partial(_shape, **_QWEN3, qkv_bias=False, out_bias=False, kv_heads=8, head_size=128, family="qwen3")

QWEN2 = Family(
    name="qwen2",
    model_class="Qwen2ForCausalLM",
    switches=_QWEN2,
    layered=("layer_types", "sliding_window", "use_sliding_window", "max_window_layers"),
    presets={
        "qwen2.5-0.5b": _qwen2(151_936, 896, 24, 14, 4864, kv_heads=2, tie_embeddings=True),
        "qwen2.5-1.5b": _qwen2(151_936, 1536, 28, 12, 8960, kv_heads=2, max_position=131_072, tie_embeddings=True),
        "qwen2.5-3b": _qwen2(151_936, 2048, 36, 16, 11_008, kv_heads=2, tie_embeddings=True),
        "qwen2.5-7b": _qwen2(152_064, 3584, 28, 28, 18_944, kv_heads=4, max_position=131_072),
        "qwen2.5-14b": _qwen2(152_064, 5120, 48, 40, 13_824, kv_heads=8, max_position=131_072, norm_eps=1e-5),
    },
)
QWEN3 = dataclasses.replace(
    QWEN2,
    name="qwen3",
    model_class="Qwen3ForCausalLM",
    switches=_QWEN3,
    fields=SHAPE | {"attention_bias": ("qkv_bias", "out_bias")},
    presets={
        "qwen3-0.6b-base": _qwen3(151_936, 1024, 28, 16, 3072, tie_embeddings=True),
        "qwen3-1.7b-base": _qwen3(151_936, 2048, 28, 16, 6144, tie_embeddings=True),
        "qwen3-4b-base": _qwen3(151_936, 2560, 36, 32, 9728, tie_embeddings=True),
        "qwen3-8b-base": _qwen3(151_936, 4096, 36, 32, 12_288),
        "qwen3-14b-base": _qwen3(151_936, 5120, 40, 40, 17_408),
    },
)
