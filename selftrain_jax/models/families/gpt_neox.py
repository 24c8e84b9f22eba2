"""GPT-NeoX: Pythia and its relatives."""

import re

from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.families.family import SIZES, Family
from selftrain_jax.models.families.tensor import Tensor, linear, norm, plain

_HEAD = "embed_out.weight"


def _layer(config: DecoderConfig) -> dict[str, Tensor]:
    d, f, n, h = config.hidden_size, config.intermediate_size, config.num_heads, config.head_dim
    # Rows of the fused projection are ordered head, then query/key/value, then head dimension: not three global thirds.
    return {
        **norm(config, "input_layernorm", "layers", "attention_norm"),
        **norm(config, "post_attention_layernorm", "layers", "mlp_norm"),
        "attention.query_key_value.weight": Tensor(("layers", "qkv", "kernel"), (3 * d, d), (n, 3, h, d), (3, 1, 0, 2)),
        "attention.query_key_value.bias": Tensor(("layers", "qkv", "bias"), (3 * d,), (n, 3, h), (1, 0, 2)),
        "attention.dense.weight": Tensor(("layers", "out", "kernel"), (d, d), (d, n, h), (1, 2, 0)),
        "attention.dense.bias": plain("layers", "out", "bias", shape=(d,)),
        "mlp.dense_h_to_4h.weight": linear("layers", "up", "kernel", rows=f, columns=d),
        "mlp.dense_h_to_4h.bias": plain("layers", "up", "bias", shape=(f,)),
        "mlp.dense_4h_to_h.weight": linear("layers", "down", "kernel", rows=d, columns=f),
        "mlp.dense_4h_to_h.bias": plain("layers", "down", "bias", shape=(d,)),
    }


def _legacy(config: DecoderConfig) -> dict[str, float]:
    rotary = config.rotaries[0]
    return {"rotary_pct": rotary.fraction, "rotary_emb_base": rotary.base}


GPT_NEOX = Family(
    name="gpt_neox",
    model_class="GPTNeoXForCausalLM",
    switches={},
    fields=SIZES | {"layer_norm_eps": "norm_eps", "use_parallel_residual": "parallel_residual"},
    fixed={"hidden_act": "gelu", "attention_bias": True},
    layer=_layer,
    partial=True,
    legacy=_legacy,
    prefix="gpt_neox.",
    embedding="embed_in",
    final_norm="final_layer_norm",
    head=_HEAD,
    aliases={"lm_head.weight": _HEAD},  # what transformers 5 writes
    # Buffers that older transformers versions stored; their values follow from the configuration.
    ignored=re.compile(r"(gpt_neox\.)?layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"),
    presets={
        "pythia-14m": DecoderConfig(50_304, 128, 6, 4, 512),
        "pythia-31m": DecoderConfig(50_304, 256, 6, 8, 1024),
        "pythia-70m": DecoderConfig(50_304, 512, 6, 8, 2048),
        "pythia-160m": DecoderConfig(50_304, 768, 12, 12, 3072),
        "pythia-410m": DecoderConfig(50_304, 1024, 24, 16, 4096),
        "pythia-1b": DecoderConfig(50_304, 2048, 16, 8, 8192),
        "pythia-1.4b": DecoderConfig(50_304, 2048, 24, 16, 8192),
        "pythia-2.8b": DecoderConfig(50_304, 2560, 32, 32, 10_240),
        "pythia-6.9b": DecoderConfig(50_432, 4096, 32, 32, 16_384),
        "pythia-12b": DecoderConfig(50_688, 5120, 36, 40, 20_480),
    },
)
