"""Models as Orbax arrays: what `selftrain convert` writes, and what restores on any mesh of any number of processes.

The directory holds `config.json` and the tokenizer as a Hugging Face one does; `params/` is an Orbax checkpoint of the
stacked parameters, and `conversion.json` says what they were made from.
"""

import contextlib
import logging
import os
import pathlib
import re
import sys
from typing import Any, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from selftrain_jax.core import files
from selftrain_jax.core.errors import InputError, one_line
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.decoder import Params, param_shapes
from selftrain_jax.models.files.checksums import checksums, first_other
from selftrain_jax.models.files.dtypes import narrower
from selftrain_jax.models.files.fingerprints import RECORD, read_record
from selftrain_jax.models.files.hf_config import write_config
from selftrain_jax.models.files.tokenizer import copy_tokenizer

_PARAMS = "params"
_LOADED = ("float32", "bfloat16", "float16")
"""Dtypes that checksums are noted in: arrays are cast while they are read."""


def save(
    directory: pathlib.Path,
    config: DecoderConfig,
    params: Params,
    record: dict[str, Any],
    tokenizer_source: pathlib.Path | None = None,
) -> None:
    """Writes `params` as a converted directory, which appears complete or not at all.

    Args:
      directory: must not exist, or be empty.
      record: what `conversion.json` says besides; needs "fingerprint", which stands for the contents.

    Raises:
      InputError: the destination is taken or its disk too small.
    """
    import orbax.checkpoint as ocp

    leaves = jax.tree.leaves(params)
    with files.new_directory(directory, "converted model", sum(leaf.nbytes for leaf in leaves)) as temporary:
        dtype = leaves[0].dtype.name
        write_config(temporary, config, dtype)
        if tokenizer_source is not None:
            copy_tokenizer(tokenizer_source, temporary)
        try:
            with quiet_storage(), ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(temporary / _PARAMS, params)
        except Exception as e:
            raise system_error(e) from None
        about = {"schema": 1, "dtype": dtype, "config": files.file_fingerprint(temporary / "config.json")}
        about["checksums"] = {name: _cast_checksums(params, name) for name in _LOADED}
        files.write_json(temporary / RECORD, about | record)


def _cast_checksums(params: Params, dtype: str) -> list[int]:
    """Those of `params` as they are loaded in `dtype`."""
    with np.errstate(over="ignore"):  # refused where it is loaded
        return [int(checksums([leaf.astype(dtype)])[0]) for leaf in jax.tree.leaves(params)]


def system_error(error: Exception) -> OSError:
    """What the storage layer met, as the system spells it."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else OSError(one_line(error)[-200:])


@contextlib.contextmanager
def quiet_storage() -> Iterator[None]:
    """Keeps away the tracebacks that the storage layer prints of a failure besides raising it."""
    log, hook = logging.getLogger("absl"), sys.unraisablehook
    before, log.disabled = log.disabled, True
    sys.unraisablehook = lambda e: None if str(e.exc_value) == "Event loop is closed" else hook(e)
    try:
        yield
        sys.unraisablehook = hook  # not after a failure, when threads that are still at work print theirs later
    finally:
        log.disabled = before


def load(directory: pathlib.Path, config: DecoderConfig, dtype: np.dtype, shardings: Params | None) -> Params:
    """The parameters with `shardings`, or as numpy arrays with None, cast to `dtype` on the way.

    Raises:
      InputError: the arrays are missing, damaged, or not those of `config`, or not those that were converted; earlier
        versions did not note these.
    """
    check(directory, config)
    with _reading(directory) as (checkpointer, path):
        params = checkpointer.restore(path, restore_target(config, shardings, dtype))
    record = read_record(directory)
    stored = record.get("dtype", dtype)
    for path, leaf in jax.tree.leaves_with_path(params) if narrower(dtype, stored) else ():
        if not (np if isinstance(leaf, np.ndarray) else jnp).isfinite(leaf).all():
            raise InputError(
                f"{directory}: parameter {jax.tree_util.keystr(path)} holds numbers that {dtype.name} cannot, or "
                f"that are not finite; load it as {stored}"
            )
    known = record.get("checksums", {})
    if dtype.name in known and (name := first_other(params, known[dtype.name])):
        raise InputError(f"{directory}: parameter {name} is not what was converted; convert the model again")
    return params


@contextlib.contextmanager
def _reading(directory: pathlib.Path) -> Iterator[tuple[Any, pathlib.Path]]:
    """Orbax, and what it reads; `InputError` where the arrays are damaged."""
    import orbax.checkpoint as ocp

    path = directory / _PARAMS
    try:
        with quiet_storage(), ocp.StandardCheckpointer() as checkpointer:
            yield checkpointer, path.absolute()
    except Exception as e:  # Orbax and its storage layer raise many kinds
        text = f"{path} is not a readable Orbax checkpoint ({one_line(e)[:200]}); convert the model again"
        raise InputError(text) from e


def restore_target(config: DecoderConfig, shardings: Params | None, dtype: Any = np.float32) -> Params:
    """What Orbax is asked to restore: arrays with `shardings`, or numpy arrays with None."""
    shapes = param_shapes(config)
    if shardings is None:
        return jax.tree.map(lambda s: np.empty(s.shape, dtype), shapes)
    return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, dtype, sharding=where), shapes, shardings)


def check(directory: pathlib.Path, config: DecoderConfig) -> None:
    """Raises `InputError` when the stored arrays are missing or not those of `config`; no array is read."""
    with _reading(directory) as (checkpointer, path):
        metadata = checkpointer.metadata(path).item_metadata
        if metadata is None:
            raise ValueError("its _METADATA is missing or damaged")
        stored = {jax.tree_util.keystr(path): tuple(x.shape) for path, x in jax.tree.leaves_with_path(metadata.tree)}
    for path, leaf in jax.tree.leaves_with_path(param_shapes(config)):
        name = jax.tree_util.keystr(path)
        if stored.get(name) != leaf.shape:
            raise InputError(
                f"{directory}: parameter {name} has shape {stored.get(name)}, but config.json asks for {leaf.shape}; "
                "convert the model again"
            )
