"""Gemma 2 and the text models of Gemma 3."""

import dataclasses
import functools
from typing import Any

from selftrain_jax.core.errors import InputError
from selftrain_jax.models.config import DecoderConfig, Layer, Rotary
from selftrain_jax.models.families.family import SHAPE, Family, legacy_rotary
from selftrain_jax.models.families.llama import SWITCHES
from selftrain_jax.models.families.tensor import projections

_AROUND = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "attention_out_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_out_norm",
}
_OWN = dict(activation="gelu_tanh", mlp_bias=False, norm_places="around", norm_offset=1.0, scale_embeddings=True)
_GEMMA2 = SWITCHES | _OWN
_GEMMA3 = _GEMMA2 | {"qk_norm": "head"}


def _read(hf: Any) -> dict[str, Any]:
    if hf.use_bidirectional_attention:
        raise InputError(f"use_bidirectional_attention={hf.use_bidirectional_attention!r} is not supported")
    if not hf.query_pre_attn_scalar > 0:
        raise InputError(f"query_pre_attn_scalar={hf.query_pre_attn_scalar!r} must be positive")
    return {"attention_scale": hf.query_pre_attn_scalar**-0.5}


def _write(config: DecoderConfig) -> dict[str, Any]:
    scalar = config.head_dim if config.attention_scale is None else round(config.attention_scale**-2)
    return {"query_pre_attn_scalar": scalar, "use_bidirectional_attention": False}


def _legacy(config: DecoderConfig) -> dict[str, Any]:
    local = next((layer.rotary.base for layer in config.pattern if layer.window is not None), None)
    return legacy_rotary(config) | ({} if local is None else {"rope_local_base_freq": local})


_SHARED = dict(qkv_bias=False, out_bias=False, norm_eps=1e-6, tie_embeddings=True, bos_token_id=2, eos_token_id=1)
_shape = functools.partial(DecoderConfig, **_SHARED, attention_scale=256**-0.5)
_CAPS = dict(attention_softcap=50.0, logit_softcap=30.0)
_IN_TURNS = (Layer(window=4096), Layer())
_gemma2 = functools.partial(_shape, **_GEMMA2, **_CAPS, max_position=8192, pattern=_IN_TURNS, family="gemma2")
_FIVE_OF_SIX = (*[Layer(window=512)] * 5, Layer(Rotary(base=1e6)))
_gemma3 = functools.partial(_shape, **_GEMMA3, max_position=32_768, pattern=_FIVE_OF_SIX, family="gemma3_text")

GEMMA2 = Family(
    name="gemma2",
    model_class="Gemma2ForCausalLM",
    switches=_GEMMA2,
    fields=SHAPE
    | {
        "attention_bias": ("qkv_bias", "out_bias"),
        "attn_logit_softcapping": "attention_softcap",
        "final_logit_softcapping": "logit_softcap",
    },
    fixed={"hidden_activation": "gelu_pytorch_tanh"},
    layer=functools.partial(projections, norms=_AROUND),
    layered=("layer_types", "sliding_window"),
    read=_read,
    write=_write,
    presets={
        "gemma-2-2b": _gemma2(256_000, 2304, 26, 8, 9216, kv_heads=4, head_size=256),
        "gemma-2-9b": _gemma2(256_000, 3584, 42, 16, 14_336, kv_heads=8, head_size=256),
        "gemma-2-27b": _gemma2(256_000, 4608, 46, 32, 36_864, kv_heads=16, head_size=128, attention_scale=144**-0.5),
    },
)
GEMMA3 = dataclasses.replace(
    GEMMA2,
    name="gemma3_text",
    model_class="Gemma3ForCausalLM",
    switches=_GEMMA3,
    fields={name: ours for name, ours in GEMMA2.fields.items() if name != "attn_logit_softcapping"},
    # transformers has the field, and caps no score by it.
    fixed=dict(GEMMA2.fixed) | {"attn_logit_softcapping": None},
    by_type=True,
    legacy=_legacy,
    presets={
        "gemma-3-270m": _gemma3(262_144, 640, 18, 4, 2048, kv_heads=1, head_size=256),
        "gemma-3-1b-pt": _gemma3(262_144, 1152, 26, 4, 6912, kv_heads=1, head_size=256),
    },
)
