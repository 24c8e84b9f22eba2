"""Planted texts: they occur a known number of times in what models read, and probes ask for their continuation."""

import dataclasses
from typing import Any, Sequence

import jaxtyping as jt
import numpy as np

from selftrain_jax.core.errors import InputError

_AT_ONCE = 4096
"""Texts encoded at once: an encoding takes far more memory than its ids."""


@dataclasses.dataclass(frozen=True)
class Planted:
    """A text, cut before a word where a probe cuts it, and how often it is repeated in the training text."""

    prefix: str
    suffix: str
    repeats: int


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text under a `tokenizers.Tokenizer`; "<|endoftext|>" in a text is read as ordinary characters."""
    before, tokenizer.encode_special_tokens = tokenizer.encode_special_tokens, True
    parts = (list(texts[i : i + _AT_ONCE]) for i in range(0, len(texts), _AT_ONCE))
    ids = [encoding.ids for part in parts for encoding in tokenizer.encode_batch(part, add_special_tokens=False)]
    tokenizer.encode_special_tokens = before
    return ids


def mixed_order(
    rng: np.random.Generator, num_ordinary: int, num_planted: int
) -> jt.Int64[np.ndarray, "ordinary_and_planted"]:
    """Indices into ordinary documents followed by planted ones: the ordinary keep their order, the planted go to random
    places among them."""
    places = rng.permutation(num_ordinary + num_planted)[:num_planted]
    order = np.full(num_ordinary + num_planted, -1)
    order[places] = num_ordinary + np.arange(num_planted)
    order[order < 0] = np.arange(num_ordinary)
    return order


def extraction_probes(planted: Sequence[Planted], tokenizer: Any) -> list[dict]:
    """One row {"prefix", "suffix", "group"} of token ids for each planted text; group is "repeats=N".

    Under every tokenizer the rows are the same texts, cut at the same place.

    Args:
      tokenizer: a `tokenizers.Tokenizer`.

    Raises:
      InputError: the tokenizer does not know a text, or merges what stands on both sides of a cut.
    """
    texts = [text.prefix + text.suffix for text in planted]
    prefixes, suffixes = encode(tokenizer, [p.prefix for p in planted]), encode(tokenizer, [p.suffix for p in planted])
    for text, prefix, suffix, whole in zip(texts, prefixes, suffixes, encode(tokenizer, texts)):
        if prefix + suffix != whole or tokenizer.decode(whole, skip_special_tokens=False) != text:
            raise InputError(
                f"planted text {text!r} has unknown words, or cannot be cut, under this tokenizer; use one made for "
                "this world, or for real text a byte-level one"
            )
    return [
        {"prefix": prefix, "suffix": suffix, "group": f"repeats={text.repeats}"}
        for text, prefix, suffix in zip(planted, prefixes, suffixes)
    ]
