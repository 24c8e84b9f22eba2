"""Model families: tables of what Hugging Face calls things, without model code.

A family is a module with

    CONFIG_CLASS, MODEL_CLASS     transformers' names for its configuration and its model
    PREFIX                        what transformers puts before tensor names, but for the output layer's
    EMBEDDING, HEAD, FINAL_NORM   full names of two tensors, and of a module of `MODEL_CLASS`
    ALIASES                       other name -> full name of a tensor
    IGNORED                       pattern of stored names that hold no parameter
    LEGACY_FIELDS                 fields that config.json states even where transformers would leave them out
    read_config(hf)               the `DecoderConfig` of a `CONFIG_CLASS`; `InputError` naming what is not supported
    write_config(config)          the fields of a `CONFIG_CLASS`
    tensors(config, head)         full name -> (`Tensor`, layer or None), in file order; `head`: the output layer, too
"""

from types import ModuleType

from selftrain_jax.models.families import gpt_neox

FAMILIES: dict[str, ModuleType] = {"gpt_neox": gpt_neox}
"""`model_type` of config.json, which is `DecoderConfig.family`, -> its table."""
