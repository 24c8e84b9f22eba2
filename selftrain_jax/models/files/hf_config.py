"""`config.json` of Hugging Face directories, through transformers: in from any of its versions, out for all of them."""

import dataclasses
import functools
import os
import pathlib
import re
import warnings
from typing import Any

from selftrain_jax.core import files
from selftrain_jax.core.errors import InputError, InputWarning, one_line
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.families import FAMILIES
from selftrain_jax.models.families.family import Family
from selftrain_jax.models.files.hub import resolve_model
from selftrain_jax.models.files.tokenizer import import_transformers

_ROTARY = {
    **{"rope_theta": "base", "rotary_emb_base": "base", "rope_local_base_freq": "base"},
    **{"partial_rotary_factor": "fraction", "rotary_pct": "fraction"},
}
"""Field that older transformers versions wrote -> attribute of `Rotary`; which families have it, differs."""
MAX_LAYERS = 10_000
_LEGACY = {"rope_scaling", "sliding_window_pattern", *_ROTARY}
# What says nothing about the function of a model, though no class of transformers has it (any more).
_NOTES = re.compile(
    r"model_type|auto_map|torch_dtype|name_or_path|n_ctx|cache_implementation|attn_implementation|is_llama_config|"
    r"task_specific_params|num_labels|gradient_checkpointing|pretraining_tp|(unsloth|transformers)\W?\w*|_\w+"
)


def load_config(directory: str | os.PathLike) -> DecoderConfig:
    """The architecture in `config.json`, written by any transformers version, and the special tokens in it and in
    `generation_config.json`.

    A document begins after BOS, or, where there is none, after what ends documents. It ends with the first EOS that
    config.json names; all that either file names end a document in sampling.

    Raises:
      InputError: a file is missing or broken, or describes a model of another family than those of `FAMILIES`, or one
        with something (named by field) that its family does not support here.

    Warns:
      InputWarning: nothing reads a field (named) that is set.
    """
    path = resolve_model(directory) / "config.json"
    raw = files.read_json(path, "model configuration")
    raw = raw if isinstance(raw, dict) else {}
    family = FAMILIES.get(str(raw.get("model_type")))
    if family is None:
        hint = "; of a model for text and images, only the text model can be used, in a directory of its own"
        raise InputError(
            f"{path}: model_type={raw.get('model_type')!r} is not supported; supported is {', '.join(FAMILIES)}"
            + (hint if raw.get("text_config") else "")
        )
    if raw.get("quantization_config") is not None:
        raise InputError(
            f"{path}: quantized checkpoints (quantization_config) are not supported; name the original model"
        )
    if raw.get("num_attention_heads") == 0:  # transformers divides by it
        raise InputError(f"{path}: num_attention_heads=0 must be at least 1")
    for name in ("num_hidden_layers", "n_layer"):  # transformers makes lists of that length
        if isinstance(raw.get(name), (int, float)) and raw[name] > MAX_LAYERS:
            raise InputError(f"{path}: {name}={raw[name]} must be at most MAX_LAYERS={MAX_LAYERS} of {__name__}")
    generation = path.parent / "generation_config.json"
    more = files.read_json(generation, "generation settings") if generation.is_file() else {}
    try:
        config = _read(family, raw, more if isinstance(more, dict) else {})
    except Exception as e:  # transformers validates with exception classes that differ between its versions
        raise InputError(f"{path}: {one_line(e)}") from None
    if unread := _unread(family, raw, config):
        text = f"{path}: nothing reads {', '.join(unread)}; if that changes what the model computes, it is another"
        warnings.warn(text, InputWarning, stacklevel=1)  # of one place: said once
    return config


@functools.lru_cache
def _defaults(kind: type) -> dict[str, Any]:
    """The fields of a class of transformers, which takes milliseconds to make one of; not to be changed."""
    return vars(kind())


def _known(family: Family) -> set[str]:
    """The fields of config.json that are read for a family."""
    kind = import_transformers().CONFIG_MAPPING[family.name]
    labels = {"id2label", "label2id", "problem_type"}  # of classifiers; a large number of them would fill the memory
    known = {*_defaults(kind), *kind.attribute_map, *_LEGACY}
    return {*known, *family.fields, *family.fixed, *family.layered} - labels


def _unread(family: Family, raw: dict[str, Any], config: DecoderConfig) -> list[str]:
    """ "name=value" of the fields that are on and that nothing reads, or that something else overrules."""
    known, found = _known(family), []
    for name, value in raw.items():
        read = name in known or value in (None, False, *family.fixed.values()) or _NOTES.fullmatch(name)
        if name in _ROTARY:
            read = not config.rotaries or value in [getattr(rotary, _ROTARY[name]) for rotary in config.rotaries]
        if not read:
            found.append(f"{name}={value!r}"[:80])
    return found[:8]


def _read(family: Family, raw: dict[str, Any], generation: dict[str, Any]) -> DecoderConfig:
    transformers, known = import_transformers(), _known(family)
    kind, common = transformers.CONFIG_MAPPING[family.name], _defaults(transformers.PretrainedConfig)
    defaults = {name: value for name, value in _defaults(kind).items() if name not in common}
    hf = kind.from_dict({name: value for name, value in raw.items() if name in known})

    def named(field: str) -> list[list[int]]:
        """By config.json, then by generation_config.json; by the class of transformers where neither names one."""
        of_config, others = (_token_ids(of, field) for of in (getattr(hf, field), generation.get(field)))
        return [others] if others and field not in raw else [of_config, others]

    ends, starts = sum(named("eos_token_id"), []), next(filter(None, named("bos_token_id")), [])
    if not ends:
        raise InputError("eos_token_id is missing: set it to the id of the token that ends a document")
    if len(starts) > 1:
        raise InputError(f"bos_token_id={starts} is not supported; it must be one token id")
    others = tuple(sorted({*ends[1:]} - {ends[0]}))
    return family.read_config(
        hf, defaults, bos_token_id=(starts or ends)[0], eos_token_id=ends[0], stop_token_ids=others
    )


def _token_ids(value: Any, field: str) -> list[int]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        raise InputError(f"{field}={value!r} is not supported; it must be a token id, or a list of some")
    return values


def write_config(directory: pathlib.Path, config: DecoderConfig, dtype: str) -> None:
    """Writes `config.json` and `generation_config.json`; `dtype` is that of the weights beside them.

    Raises:
      InputError: models of the family cannot be stored with one of the switches (named) of `config`.
    """
    family = FAMILIES[config.family]
    kind = import_transformers().CONFIG_MAPPING[family.name]
    ends = [config.eos_token_id, *config.stop_token_ids]
    tokens: dict[str, Any] = {"bos_token_id": config.bos_token_id, "eos_token_id": ends if len(ends) > 1 else ends[0]}
    if (kind().pad_token_id or 0) >= config.vocab_size:  # of the published model, whose default it is
        tokens["pad_token_id"] = None
    hf = kind(architectures=[family.model_class], dtype=dtype, **family.write_config(config), **tokens)
    written = hf.to_diff_dict() | family.legacy(config)
    found = _read(family, written, {})
    for field in dataclasses.fields(config):
        if (asked := getattr(config, field.name)) != (stored := getattr(found, field.name)):
            raise InputError(f"a {config.family} model cannot be stored with {field.name}={asked!r}, but {stored!r}")
    files.write_json(directory / "config.json", written)
    files.write_json(directory / "generation_config.json", {"_from_model_config": True, **tokens})
