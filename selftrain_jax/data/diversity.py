"""How varied a corpus is: what falls when a model that is trained on its own text collapses (Shumailov et al. 2024)."""

from typing import Sequence

import numpy as np
from jaxtyping import Int

from selftrain_jax.core.errors import InputError


def distinct_n(documents: Sequence[Int[np.ndarray, " n"]], n: int, *, num_tokens: int | None = None) -> float | None:
    """Different n-grams / n-grams, in (0, 1]; None where no document has n tokens (Li et al. 2016, arXiv 1510.03055,
    section 5: "distinct-1" and "distinct-2").

    No n-gram crosses from one document into the next. The figure falls as a corpus grows, since most n-grams of a new
    document were seen before: compare corpora at an equal number of tokens only, which `num_tokens` cuts them to.
    Hashes of 64 bits stand in for n-grams: among 10^8 of them the chance that any two collide is 0.0003.

    Args:
      documents: token ids of each.
      n: at least 1.
      num_tokens: only the first so many tokens of the corpus are read, the last document as far as they reach.

    Raises:
      InputError: no documents, one that is not a vector of ids, or fewer tokens than `num_tokens`.
    """
    if n < 1:
        raise InputError(f"n={n} must be at least 1")
    return _distinct(*_stream(documents, num_tokens), n)


def unigram_entropy(documents: Sequence[Int[np.ndarray, " n"]], *, num_tokens: int | None = None) -> float | None:
    """Shannon entropy of the corpus's token frequencies, in bits per token; None without a token.

    This plug-in estimate is too low by about (K - 1) / (2 N ln 2) bits for K different tokens among N (Miller 1955):
    again, compare corpora of equal size. The arguments are those of `distinct_n`."""
    return _entropy(_stream(documents, num_tokens)[0])


def diversity(documents: Sequence[Int[np.ndarray, " n"]], *, num_tokens: int | None = None) -> dict[str, float | None]:
    """{"distinct_1", ..., "distinct_4", "entropy", "mean_length"} of a corpus.

    The first five are `distinct_n` and `unigram_entropy` of its first `num_tokens` tokens. "mean_length" is in tokens,
    over all documents, uncut."""
    tokens, owners = _stream(documents, num_tokens)
    found = {f"distinct_{n}": _distinct(tokens, owners, n) for n in (1, 2, 3, 4)}
    return found | {"entropy": _entropy(tokens), "mean_length": sum(map(len, documents)) / len(documents)}


def ngram_hashes(tokens: np.ndarray, n: int) -> np.ndarray:
    """A 64-bit polynomial hash of every window of n tokens; empty when there are fewer than n."""
    if len(tokens) < n:
        return np.zeros(0, np.uint64)
    values = np.asarray(tokens, np.uint64) + np.uint64(1)
    hashes = np.zeros(len(values) - n + 1, np.uint64)
    for i in range(n):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + values[i : len(values) - n + 1 + i]
        hashes ^= hashes >> np.uint64(29)
    return hashes


def _stream(documents, num_tokens) -> tuple[np.ndarray, np.ndarray]:
    """All tokens, and the number of the document that each is of."""
    if not len(documents):
        raise InputError("there are no documents whose diversity could be measured")
    if num_tokens is not None and num_tokens < 1:
        raise InputError(f"num_tokens={num_tokens} must be at least 1")
    documents = [np.asarray(document) for document in documents]
    for number, document in enumerate(documents):
        if document.ndim != 1 or document.size and (document.dtype.kind not in "iu" or document.min() < 0):
            raise InputError(
                f"document {number} of shape {document.shape} and dtype {document.dtype} must be a vector of token ids"
            )
    lengths = [len(document) for document in documents]
    if num_tokens is not None and sum(lengths) < num_tokens:
        raise InputError(
            f"num_tokens={num_tokens} is more than the {sum(lengths)} tokens of the corpus: lower it for all"
        )
    tokens = np.concatenate([document.astype(np.int64, copy=False) for document in documents])
    return tokens[:num_tokens], np.repeat(np.arange(len(documents)), lengths)[:num_tokens]


def _distinct(tokens: np.ndarray, owners: np.ndarray, n: int) -> float | None:
    inside = owners[n - 1 :] == owners[: max(len(owners) - n + 1, 0)]
    hashes = np.sort(ngram_hashes(tokens, n)[inside])  # np.unique takes far longer where most are different
    return (1 + int(np.count_nonzero(hashes[1:] != hashes[:-1]))) / len(hashes) if len(hashes) else None


def _entropy(tokens: np.ndarray) -> float | None:
    if not len(tokens):
        return None
    shares = np.unique(tokens, return_counts=True)[1] / len(tokens)
    return float(np.sum(shares * -np.log2(shares)))
