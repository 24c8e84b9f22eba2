"""Llama, and what is built like it: SmolLM2, TinyLlama, Amber, Comma, Hubble; Mistral, whose first has a window; and
SmolLM3, whose every fourth layer knows no positions."""

import dataclasses
import functools

from selftrain_jax.models.config import DecoderConfig, Layer, Llama3Scaling, Rotary
from selftrain_jax.models.families.family import SHAPE, Family

SWITCHES = dict(norm="rms_norm", parallel_residual=False, fused_qkv=False, activation="silu", gated=True)
"""What most models of today share."""
NO_BIASES = dict(qkv_bias=False, out_bias=False, mlp_bias=False)

_llama = functools.partial(DecoderConfig, **SWITCHES, **NO_BIASES, family="llama")
_smollm2 = functools.partial(_llama, max_position=8192, tie_embeddings=True)
_llama3 = functools.partial(_llama, kv_heads=8, max_position=131_072, bos_token_id=128_000, eos_token_id=128_001)
_llama2 = functools.partial(_llama, bos_token_id=1, eos_token_id=2)
_mistral = functools.partial(_llama2, kv_heads=8, max_position=32_768, family="mistral")
_smollm3 = functools.partial(_llama3, kv_heads=4, max_position=65_536, norm_eps=1e-6, family="smollm3")


def _rotated(base: float, window: int | None = None, scaling=None) -> tuple[Layer, ...]:
    return (Layer(Rotary(base=base, scaling=scaling), window),)


def _long(factor: float) -> tuple[Layer, ...]:
    return _rotated(5e5, scaling=Llama3Scaling(factor, 1.0, 4.0, 8192))


LLAMA = Family(
    name="llama",
    model_class="LlamaForCausalLM",
    switches=SWITCHES,
    fields=SHAPE | {"attention_bias": ("qkv_bias", "out_bias"), "mlp_bias": "mlp_bias"},
    presets={
        "smollm2-135m": _smollm2(49_152, 576, 30, 9, 1536, kv_heads=3, pattern=_rotated(1e5)),
        "smollm2-360m": _smollm2(49_152, 960, 32, 15, 2560, kv_heads=5, pattern=_rotated(1e5)),
        "smollm2-1.7b": _smollm2(49_152, 2048, 24, 32, 8192, pattern=_rotated(1.3e5)),
        "llama-3.2-1b": _llama3(128_256, 2048, 16, 32, 8192, tie_embeddings=True, pattern=_long(32.0)),
        "llama-3.2-3b": _llama3(128_256, 3072, 28, 24, 8192, tie_embeddings=True, pattern=_long(32.0)),
        "llama-3.1-8b": _llama3(128_256, 4096, 32, 32, 14_336, pattern=_long(8.0)),
        "tinyllama-1.1b": _llama2(32_000, 2048, 22, 32, 5632, kv_heads=4, pattern=_rotated(1e4)),
        "amber": _llama2(32_000, 4096, 32, 32, 11_008, norm_eps=1e-6, pattern=_rotated(1e4)),
    },
)
MISTRAL = dataclasses.replace(
    LLAMA,
    name="mistral",
    model_class="MistralForCausalLM",
    switches=SWITCHES | NO_BIASES,
    fields=SHAPE,
    layered=("sliding_window",),
    presets={
        "mistral-7b-v0.1": _mistral(32_000, 4096, 32, 32, 14_336, pattern=_rotated(1e4, 4096)),
        "mistral-7b-v0.3": _mistral(32_768, 4096, 32, 32, 14_336, pattern=_rotated(1e6)),
    },
)
_THREE_OF_FOUR = (*_rotated(5e6) * 3, Layer(None))
SMOLLM3 = dataclasses.replace(
    LLAMA,
    name="smollm3",
    model_class="SmolLM3ForCausalLM",
    layered=("layer_types", "sliding_window", "use_sliding_window", "no_rope_layers"),
    presets={"smollm3-3b-base": _smollm3(128_256, 2048, 36, 16, 11_008, tie_embeddings=True, pattern=_THREE_OF_FOUR)},
)
