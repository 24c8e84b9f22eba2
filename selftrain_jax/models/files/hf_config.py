"""`config.json` of Hugging Face directories, through transformers: in from any of its versions, out for all of them."""

import os
import pathlib

from selftrain_jax.core import files
from selftrain_jax.core.errors import InputError, one_line
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.families import FAMILIES
from selftrain_jax.models.files.hub import resolve_model
from selftrain_jax.models.files.tokenizer import import_transformers


def load_config(directory: str | os.PathLike) -> DecoderConfig:
    """The architecture in `config.json`, written by any transformers version.

    Raises:
      InputError: the file is missing or broken, or describes a model of another family than those of `FAMILIES`, or
        one with something (named by field) that its family does not support here.
    """
    path = resolve_model(directory) / "config.json"
    raw = files.read_json(path, "model configuration")
    model_type = raw.get("model_type") if isinstance(raw, dict) else None
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(f"{path}: model_type={model_type!r} is not supported; supported is {', '.join(FAMILIES)}")
    if raw.get("quantization_config") is not None:
        raise InputError(
            f"{path}: quantized checkpoints (quantization_config) are not supported; name the original model"
        )
    if raw.get("num_attention_heads") == 0:  # transformers divides by it
        raise InputError(f"{path}: num_attention_heads=0 must be at least 1")
    family = FAMILIES[model_type]
    try:
        return family.read_config(getattr(import_transformers(), family.CONFIG_CLASS).from_dict(raw))
    except Exception as e:  # transformers validates with exception classes that differ between its versions
        raise InputError(f"{path}: {one_line(e)}") from None


def write_config(directory: pathlib.Path, config: DecoderConfig, dtype: str) -> None:
    """Writes `config.json` and `generation_config.json`; `dtype` is that of the weights beside them."""
    family = FAMILIES[config.family]
    fields = family.write_config(config)
    hf = getattr(import_transformers(), family.CONFIG_CLASS)(architectures=[family.MODEL_CLASS], dtype=dtype, **fields)
    legacy = {name: fields[name] for name in family.LEGACY_FIELDS}
    files.write_json(directory / "config.json", hf.to_diff_dict() | legacy)
    tokens = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    files.write_json(directory / "generation_config.json", {"_from_model_config": True, **tokens})
