"""A fast look for texts that may hold one of many word sequences, before anyone looks closely.

Words and runs of them are compared by hashes, of many texts at once: no text that holds a sequence is missed, and
hardly any other passes. A word's hash is a polynomial in its characters c, taken from sums over the whole text:
(S[end] - S[begin]) B^-begin with S[i] the sum of c[j] B^j over j < i, modulo 2^32, where an odd B has an inverse.
"""

import functools
from typing import Any, Callable, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt32, UInt64

_BASE, _NEXT = 0x9E3779B1, np.uint64(0xC2B2AE3D27D4EB4F)
_BLOCK = 1 << 17  # characters that are hashed at once: what caches hold
_KEY = 4  # words by which longer sequences are looked for first


class NgramFilter:
    """Looks for `sequences` of words in texts whose words stand between white space, as `str.split` has it."""

    def __init__(self, sequences: Iterable[tuple[str, ...]]):
        by_length: dict[int, list[tuple[str, ...]]] = {}
        for sequence in sequences:
            by_length.setdefault(len(sequence), []).append(sequence)
        self._lengths = sorted(by_length)
        wholes, keys = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
        for length, alike in by_length.items():
            for block in in_blocks(map(" ".join, alike), len):
                words, _ = _words(" ".join(block))
                at = np.arange(0, len(words), length)
                wholes.append(_runs(words, at, length))
                keys.append(_runs(words, at, min(length, _KEY)))
        self._wholes = np.unique(np.concatenate(wholes))
        both = np.unique(np.concatenate([*wholes, *keys]))
        self._bits = min(max(len(both).bit_length() + 6, 16), 30)  # so that one in 64 is set
        first = both >> np.uint64(64 - self._bits)
        self._table = np.zeros(1 << self._bits - 3, np.uint8)
        np.bitwise_or.at(self._table, first >> 3, np.uint8(1) << (first & 7).astype(np.uint8))

    def passing(self, texts: Sequence[str]) -> Bool[np.ndarray, " texts"]:
        """Which of them may hold a sequence: every one that does, and hardly any other."""
        passed = np.zeros(len(texts), bool)
        words, begins = _words("\n".join(texts))
        ends = np.cumsum([len(text) + 1 for text in texts])
        likely: dict[int, np.ndarray] = {}  # by length of the key: where one may stand
        for length in self._lengths:
            if (key := min(length, _KEY)) not in likely:
                runs = _runs(words, None, key)
                likely[key] = np.flatnonzero(self._first_bits_known(runs))
            at = likely[key][likely[key] <= len(words) - length]
            runs = _runs(words, at, length)
            seen = self._first_bits_known(runs)
            at, runs = at[seen], runs[seen]
            where = np.minimum(np.searchsorted(self._wholes, runs), len(self._wholes) - 1)
            passed[np.searchsorted(ends, begins[at[self._wholes[where] == runs]], "right")] = True
        return passed

    def _first_bits_known(self, hashes: UInt64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        first = (hashes >> np.uint64(64 - self._bits)).astype(np.int64)
        return self._table[first >> 3] >> (first & 7).astype(np.uint8) & 1 > 0


def in_blocks(items: Iterable[Any], size: Callable[[Any], int]) -> Iterator[list[Any]]:
    """`items` in lists that suit the hashing, `size` characters each."""
    block, total = [], 0
    for item in items:
        block.append(item)
        total += size(item)
        if total >= _BLOCK:
            yield block
            block, total = [], 0
    if block:
        yield block


def _words(text: str) -> tuple[UInt64[np.ndarray, " words"], Int[np.ndarray, " words"]]:
    """The hash of every word, and where it begins."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    inside = np.zeros(len(codes) + 2, bool)
    inside[1:-1] = (codes - 9 > 4) & (codes - 28 > 4)  # ASCII white space is 9 to 13 and 28 to 32
    if not text.isascii():
        inside[1:-1] &= ~np.isin(codes, _OTHER_SPACES)
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    begins, ends = edges[::2], edges[1::2]
    powers, inverses = _powers(1 << max(len(codes), _BLOCK).bit_length())
    sums = np.zeros(len(codes) + 1, np.uint32)
    np.cumsum(codes * powers[: len(codes)], out=sums[1:])
    return ((sums[ends] - sums[begins]) * inverses[begins]).astype(np.uint64), begins


_OTHER_SPACES = np.array([code for code in range(128, 0x3001) if chr(code).isspace()], np.uint32)


@functools.lru_cache(maxsize=2)
def _powers(count: int) -> tuple[UInt32[np.ndarray, " n"], UInt32[np.ndarray, " n"]]:
    """B^j and B^-j."""
    steps = (np.full(count, b, np.uint32) for b in (_BASE, pow(_BASE, -1, 1 << 32)))
    return tuple(np.multiply.accumulate(step, dtype=np.uint32) for step in steps)


def _runs(words: np.ndarray, at: np.ndarray | None, length: int) -> UInt64[np.ndarray, " runs"]:
    """The hash of `length` words from each of the places `at` on (None: from each on that has so many)."""
    count = max(len(words) - length + 1, 0) if at is None else len(at)
    runs = np.full(count, length, np.uint64)
    for i in range(length):
        runs += words[i : i + count] if at is None else words[at + i]
        runs *= _NEXT
    return runs
