"""Extraction probes from published token arrays of another tokenizer."""

import os
import pathlib
from typing import Any

import numpy as np

from selftrain_jax.errors import InputError
from selftrain_jax.files import write_jsonl
from selftrain_jax.models.tokenizer import load_tokenizer


def convert_arrays(
    prefixes: str | os.PathLike, suffixes: str | os.PathLike, source: str, target: str, out: str | os.PathLike
) -> dict[str, int]:
    """Re-tokenizes the (prefix, suffix) token arrays of an extraction benchmark and writes them as a probe file.

    Made for google-research/lm-extraction-benchmark, whose arrays hold GPT-2 ids. A pair is dropped when the text of
    its halves, tokenized together, does not fall apart at the same place: its boundary would lie inside a token.

    Args:
      prefixes, suffixes: `.npy` files of int ids, [n, length] each.
      source, target: model or tokenizer directories (or hub names): what the ids mean, and what they shall become.
      out: the JSON-lines file to write.

    Returns:
      {"read", "written", "dropped"}.

    Raises:
      InputError: a file is missing or not an integer matrix, or no pair is left.
    """
    arrays = [_load(prefixes), _load(suffixes)]
    if len(arrays[0]) != len(arrays[1]):
        raise InputError(f"{prefixes} holds {len(arrays[0])} rows and {suffixes} {len(arrays[1])}: they must pair up")
    old, new = load_tokenizer(source), load_tokenizer(target)
    for path, ids in zip((prefixes, suffixes), arrays):
        if ids.min() < 0 or ids.max() >= len(old):
            raise InputError(f"{path} holds ids up to {ids.max()}, but the tokenizer of {source} has {len(old)}")

    def encode(texts: list[str]) -> list[list[int]]:
        return new(texts, add_special_tokens=False, verbose=False)["input_ids"]

    texts = [old.batch_decode(ids, clean_up_tokenization_spaces=False) for ids in arrays]
    joined = encode([a + b for a, b in zip(*texts)])
    rows: list[dict[str, Any]] = [
        {"prefix": prefix, "suffix": suffix}
        for prefix, suffix, whole in zip(*map(encode, texts), joined)
        if prefix and suffix and prefix + suffix == whole
    ]
    if not rows:
        raise InputError(f"no pair of {prefixes} and {suffixes} keeps its boundary under the tokenizer of {target}")
    write_jsonl(out, rows)
    return {"read": len(joined), "written": len(rows), "dropped": len(joined) - len(rows)}


def _load(path: str | os.PathLike) -> np.ndarray:
    if not pathlib.Path(path).is_file():
        raise InputError(f"token array not found: {path}")
    try:
        ids = np.load(path, allow_pickle=False)
    except ValueError as e:
        raise InputError(f"token array {path} is not a NumPy file: {e}") from None
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size:
        raise InputError(f"token array {path} has shape {ids.shape} and dtype {ids.dtype}: it must be a matrix of ids")
    return ids.astype(np.int64)
