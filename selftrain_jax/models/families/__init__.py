"""Model families: tables of what Hugging Face calls things and of what all models of a family share."""

from selftrain_jax.core.errors import InputError
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.families.family import Family
from selftrain_jax.models.families.gemma import GEMMA2, GEMMA3
from selftrain_jax.models.families.gpt2 import GPT2
from selftrain_jax.models.families.gpt_neox import GPT_NEOX
from selftrain_jax.models.families.llama import LLAMA, MISTRAL, SMOLLM3
from selftrain_jax.models.families.olmo import OLMO2, OLMO3
from selftrain_jax.models.families.qwen import QWEN2, QWEN3

_ALL = (GPT_NEOX, LLAMA, MISTRAL, QWEN2, QWEN3, OLMO2, OLMO3, GEMMA2, GEMMA3, GPT2, SMOLLM3)
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}
"""`model_type` of config.json, which is `DecoderConfig.family`, -> its table."""

PRESETS: dict[str, DecoderConfig] = {name: config for family in _ALL for name, config in family.presets.items()}
"""Shapes of published models, from their config.json."""


def published(reference: str) -> DecoderConfig | None:
    """The preset of a hub name, or of its last part, in any case, deduplicated and instructed ones being of the same
    shape; None where there is none."""
    return PRESETS.get(reference.split("/")[-1].lower().removesuffix("-deduped").removesuffix("-instruct"))


def preset(name: str) -> DecoderConfig:
    """The named preset; `InputError` listing the names when there is none."""
    if name not in PRESETS:
        raise InputError(f"model preset {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
