"""What stands for a model in what is made from it: hashes of its files, which take no array and no JAX."""

import os
import pathlib
from typing import Any, Callable

from selftrain_jax.core import files
from selftrain_jax.core.errors import InputError
from selftrain_jax.models.files.dtypes import DTYPES
from selftrain_jax.models.files.hf_config import load_config
from selftrain_jax.models.files.hub import resolve_model
from selftrain_jax.models.files.tokenizer import tokenizer_files
from selftrain_jax.models.files.weights import weight_files

RECORD = "conversion.json"
"""What `selftrain convert` notes beside the arrays."""


def model_fingerprint(directory: str | os.PathLike) -> str:
    """A hash of `config.json` and the weight files; a converted directory has that of its source and dtype,
    as long as nobody edits its `config.json`."""
    directory = resolve_model(directory)
    load_config(directory)
    if not is_converted(directory):
        return files.file_fingerprint(directory / "config.json", *weight_files(directory))
    record, config = read_record(directory), files.file_fingerprint(directory / "config.json")
    found = record["fingerprint"]
    # Earlier versions did not note that of the configuration.
    return found if record.get("config", config) == config else files.fingerprint([found, config])


def vocabulary_input(name: str, find: Callable[[], str | os.PathLike]) -> files.Fingerprints:
    """That, as an input of a stage, of what else decides which ids model `name`, in the folder that `find` gives, reads
    and writes: its tokenizer and `generation_config.json`."""

    def look() -> str:
        directory = resolve_model(find(), weights=False)
        return files.file_fingerprint(*tokenizer_files(directory), *directory.glob("generation_config.json"))

    return files.Fingerprints({f"{name}'s tokenizer": look})


def model_inputs(name: str, find: Callable[[], str | os.PathLike]) -> files.Fingerprints:
    """The fingerprints, as inputs of a stage, of all that model `name` consists of."""
    return files.Fingerprints({name: lambda: model_fingerprint(find())}) | vocabulary_input(name, find)


def refuse_changed(what: str, found: str, now: str) -> None:
    """Raises `InputError` where a model's fingerprint is not the one from before it was read: it may be of both."""
    if found != now:
        raise InputError(f"{what} changed while it was read: start again when it is written")


def is_converted(directory: pathlib.Path) -> bool:
    """Whether `selftrain convert` made the directory."""
    return (directory / RECORD).is_file()


def read_record(directory: pathlib.Path) -> dict[str, Any]:
    """`conversion.json`; `InputError` when it is not one of `models.files.converted.save`."""
    path = directory / RECORD
    found = files.read_json(path, "conversion record")
    if not isinstance(found, dict) or not isinstance(found.get("fingerprint"), str):
        raise InputError(f"{path} has no 'fingerprint'; convert the model again")
    if found.get("dtype", "float32") not in DTYPES:
        raise InputError(f"{path}: dtype={found['dtype']!r} is none of {', '.join(DTYPES)}; convert the model again")
    if not isinstance(found.get("checksums", {}), dict):
        raise InputError(f"{path}: checksums are not those that a conversion notes; convert the model again")
    if not isinstance(found.get("source", ""), str):
        raise InputError(f"{path}: source={found['source']!r} must be a text; convert the model again")
    return found
