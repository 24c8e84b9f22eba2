"""`config.json` of Hugging Face directories, through transformers: in from any of its versions, out for all of them."""

import os
import pathlib
from typing import Any

from selftrain_jax.core import files
from selftrain_jax.core.errors import InputError, one_line
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.files.hub import resolve_model
from selftrain_jax.models.files.tokenizer import import_transformers


def load_config(directory: str | os.PathLike) -> DecoderConfig:
    """The architecture in `config.json`, written by any transformers version.

    Raises:
      InputError: the file is missing or broken, or describes a model other than GPT-NeoX with exact GELU, attention
        biases and plain rotary embeddings (named by field). Dropout rates are ignored.
    """
    path = resolve_model(directory) / "config.json"
    raw = files.read_json(path, "model configuration")
    if not isinstance(raw, dict) or raw.get("model_type") != "gpt_neox":
        found = raw.get("model_type") if isinstance(raw, dict) else None
        raise InputError(f"{path}: model_type={found!r} is not supported; only 'gpt_neox' (Pythia, GPT-NeoX) is")
    if raw.get("quantization_config") is not None:
        raise InputError(
            f"{path}: quantized checkpoints (quantization_config) are not supported; name the original model"
        )
    if raw.get("num_attention_heads") == 0:  # transformers divides by it
        raise InputError(f"{path}: num_attention_heads=0 must be at least 1")
    try:
        hf = import_transformers().GPTNeoXConfig.from_dict(raw)
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
    except Exception as e:  # transformers validates with exception classes that differ between its versions
        raise InputError(f"{path}: {one_line(e)}") from None


def _token_id(hf: Any, field: str) -> int:
    value = getattr(hf, field)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, int):
        raise InputError(f"{field}={value!r} is not supported; it must be one token id")
    return value


def write_config(directory: pathlib.Path, config: DecoderConfig, dtype: str) -> None:
    """Writes `config.json` and `generation_config.json`; `dtype` is that of the weights beside them."""
    hf = import_transformers().GPTNeoXConfig(
        architectures=["GPTNeoXForCausalLM"],
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_position,
        rotary_pct=config.rotary_pct,
        rotary_emb_base=config.rotary_base,
        layer_norm_eps=config.layer_norm_eps,
        use_parallel_residual=config.parallel_residual,
        tie_word_embeddings=config.tie_embeddings,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        dtype=dtype,
    )
    # Programs from before transformers 5 look for the rotary settings under their old names.
    legacy = {"rotary_pct": config.rotary_pct, "rotary_emb_base": config.rotary_base}
    files.write_json(directory / "config.json", {**hf.to_diff_dict(), **legacy})
    tokens = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    files.write_json(directory / "generation_config.json", {"_from_model_config": True, **tokens})
