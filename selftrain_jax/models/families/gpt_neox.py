"""GPT-NeoX: Pythia and its relatives."""

import re

from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.families.family import Family
from selftrain_jax.models.families.tensor import Tensor, linear, norm, vector

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
        "attention.dense.bias": vector("layers", "out", "bias", size=d),
        "mlp.dense_h_to_4h.weight": linear("layers", "up", "kernel", rows=f, columns=d),
        "mlp.dense_h_to_4h.bias": vector("layers", "up", "bias", size=f),
        "mlp.dense_4h_to_h.weight": linear("layers", "down", "kernel", rows=d, columns=f),
        "mlp.dense_4h_to_h.bias": vector("layers", "down", "bias", size=d),
    }


def _legacy(config: DecoderConfig) -> dict[str, float]:
    rotary = config.rotaries[0]
    return {"rotary_pct": rotary.fraction, "rotary_emb_base": rotary.base}


def _pythia(num_layers: int, hidden_size: int, num_heads: int, vocab_size: int = 50_304) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        intermediate_size=4 * hidden_size,
    )


GPT_NEOX = Family(
    config_class="GPTNeoXConfig",
    model_class="GPTNeoXForCausalLM",
    switches={"family": "gpt_neox"},
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "intermediate_size": "intermediate_size",
        "max_position_embeddings": "max_position",
        "layer_norm_eps": "norm_eps",
        "use_parallel_residual": "parallel_residual",
        "tie_word_embeddings": "tie_embeddings",
    },
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
        "pythia-14m": _pythia(6, 128, 4),
        "pythia-31m": _pythia(6, 256, 8),
        "pythia-70m": _pythia(6, 512, 8),
        "pythia-160m": _pythia(12, 768, 12),
        "pythia-410m": _pythia(24, 1024, 16),
        "pythia-1b": _pythia(16, 2048, 8),
        "pythia-1.4b": _pythia(24, 2048, 16),
        "pythia-2.8b": _pythia(32, 2560, 32),
        "pythia-6.9b": _pythia(32, 4096, 32, 50_432),
        "pythia-12b": _pythia(36, 5120, 40, 50_688),
    },
)
