"""GPT-NeoX: Pythia and its relatives."""

import re
from typing import Any

from selftrain_jax.core.errors import InputError
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.families.tensor import Tensor, linear, vector

CONFIG_CLASS, MODEL_CLASS = "GPTNeoXConfig", "GPTNeoXForCausalLM"
PREFIX = "gpt_neox."
EMBEDDING, HEAD, FINAL_NORM = "gpt_neox.embed_in.weight", "embed_out.weight", "gpt_neox.final_layer_norm"
ALIASES = {"lm_head.weight": HEAD}  # what transformers 5 writes
LEGACY_FIELDS = ("rotary_pct", "rotary_emb_base")  # where programs from before transformers 5 look for rotary settings
# Buffers that older transformers versions stored; their values follow from the configuration.
IGNORED = re.compile(r"(gpt_neox\.)?layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)")


def read_config(hf: Any) -> DecoderConfig:
    """Supported are exact GELU, attention biases and plain rotary embeddings. Dropout rates are ignored."""
    rope = hf.rope_parameters
    fields = {
        "hidden_act": (hf.hidden_act, "gelu"),
        "attention_bias": (hf.attention_bias, True),
        "rope_type": (rope["rope_type"], "default"),
    }
    for field, (value, supported) in fields.items():
        if value != supported:
            raise InputError(f"{field}={value!r} is not supported; only {supported!r} is")
    return DecoderConfig(
        vocab_size=hf.vocab_size,
        hidden_size=hf.hidden_size,
        num_layers=hf.num_hidden_layers,
        num_heads=hf.num_attention_heads,
        intermediate_size=hf.intermediate_size,
        max_position=hf.max_position_embeddings,
        rotary_pct=float(rope["partial_rotary_factor"]),
        rotary_base=float(rope["rope_theta"]),
        layer_norm_eps=hf.layer_norm_eps,
        parallel_residual=hf.use_parallel_residual,
        tie_embeddings=hf.tie_word_embeddings,
        bos_token_id=_token_id(hf, "bos_token_id"),
        eos_token_id=_token_id(hf, "eos_token_id"),
    )


def _token_id(hf: Any, field: str) -> int:
    value = getattr(hf, field)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, int):
        raise InputError(f"{field}={value!r} is not supported; it must be one token id")
    return value


def write_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position,
        "rotary_pct": config.rotary_pct,
        "rotary_emb_base": config.rotary_base,
        "layer_norm_eps": config.layer_norm_eps,
        "use_parallel_residual": config.parallel_residual,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
    }


def tensors(config: DecoderConfig, head: bool) -> dict[str, tuple[Tensor, int | None]]:
    d, f, n, h = config.hidden_size, config.intermediate_size, config.num_heads, config.head_dim
    # Rows of the fused projection are ordered head, then query/key/value, then head dimension: not three global thirds.
    layer = {
        "input_layernorm.weight": vector("layers", "attention_norm", "scale", size=d),
        "input_layernorm.bias": vector("layers", "attention_norm", "bias", size=d),
        "post_attention_layernorm.weight": vector("layers", "mlp_norm", "scale", size=d),
        "post_attention_layernorm.bias": vector("layers", "mlp_norm", "bias", size=d),
        "attention.query_key_value.weight": Tensor(("layers", "qkv", "kernel"), (3 * d, d), (n, 3, h, d), (3, 1, 0, 2)),
        "attention.query_key_value.bias": Tensor(("layers", "qkv", "bias"), (3 * d,), (n, 3, h), (1, 0, 2)),
        "attention.dense.weight": Tensor(("layers", "out", "kernel"), (d, d), (d, n, h), (1, 2, 0)),
        "attention.dense.bias": vector("layers", "out", "bias", size=d),
        "mlp.dense_h_to_4h.weight": linear("layers", "up", "kernel", rows=f, columns=d),
        "mlp.dense_h_to_4h.bias": vector("layers", "up", "bias", size=f),
        "mlp.dense_4h_to_h.weight": linear("layers", "down", "kernel", rows=d, columns=f),
        "mlp.dense_4h_to_h.bias": vector("layers", "down", "bias", size=d),
    }
    v = config.vocab_size
    names = {EMBEDDING: (Tensor(("embed", "embedding"), (v, d), (v, d), (0, 1)), None)}
    for i in range(config.num_layers):
        names |= {f"{PREFIX}layers.{i}.{name}": (tensor, i) for name, tensor in layer.items()}
    names[f"{FINAL_NORM}.weight"] = vector("final_norm", "scale", size=d), None
    names[f"{FINAL_NORM}.bias"] = vector("final_norm", "bias", size=d), None
    if head:
        names[HEAD] = linear("head", "kernel", rows=v, columns=d), None
    return names
