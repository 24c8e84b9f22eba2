"""The longest run that a text shares with known sequences, exactly, from every position, by a suffix array."""

from typing import Sequence

import numpy as np

_END = np.iinfo(np.int32).min
"""Stands behind each text that is looked up; no sequence holds it."""


class SuffixIndex:
    """All suffixes of known sequences in order, so that any run is found by bisection.

    Memory: 16 bytes per element of the sequences, and some 50 while it is made. No run crosses from one sequence into
    the next.

    Args:
      sequences: non-negative ints below 2^31 each (token ids, code points); equal ones are kept once.

    Attributes:
      sequences: those that are kept, in the order of their first appearance.
    """

    def __init__(self, sequences: Sequence[np.ndarray]):
        arrays = [np.asarray(sequence, np.int32) for sequence in sequences]
        first: dict[bytes, int] = {}
        for number, array in enumerate(arrays):
            first.setdefault(array.tobytes(), number)
        self._numbers = list(first.values())
        self.sequences = [arrays[number] for number in self._numbers]
        # Each ends in a number of its own: what is behind it then needs no sorting.
        parts = [np.append(sequence, np.int32(-1 - i)) for i, sequence in enumerate(self.sequences)]
        self._text = np.concatenate(parts) if parts else np.zeros(0, np.int32)
        self._starts = np.cumsum([0, *map(len, parts)])
        self._order = suffix_array(self._text)
        self._first = self._text[self._order]

    def longest(self, texts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Of every element of `texts`, joined with one element more behind each: int32 `[n]`, the length of the longest
        run that begins there and stands in a sequence, 0 for none; and int64 `[n]`, where in all sequences, joined the
        same way, it first does in their order (-1).

        Time grows with the sum of the lengths.
        """
        text = np.concatenate([np.append(np.asarray(text, np.int32), _END) for text in texts])
        text = np.where(text < 0, _END, text)  # what ends a sequence is negative, too, and matches nothing
        lengths, places = np.zeros(len(text), np.int32), np.full(len(text), -1, np.int64)
        low, high = (np.searchsorted(self._first, text, side) for side in ("left", "right"))
        at = np.flatnonzero(low < high)
        low, high, length = low[at], high[at], 1
        while at.size:
            begin, last = self._order[low], self._order[high - 1]
            lengths[at], places[at] = length, begin
            wanted, first, last = text[at + length], self._text[begin + length], self._text[last + length]
            # The range is in order: where its ends go on alike, all of it does.
            split = np.flatnonzero((first <= wanted) & (wanted <= last) & (first != last))
            low[split] = self._bound(low[split], high[split], length, wanted[split], np.less)
            high[split] = self._bound(low[split], high[split], length, wanted[split], np.less_equal)
            alive = (first <= wanted) & (wanted <= last) & (low < high)
            at, low, high = at[alive], low[alive], high[alive]
            length += 1
        return lengths, places

    def sequence_of(self, place: int) -> int:
        """Which of the sequences that were given a place is in, from 0; of equal ones the first."""
        return self._numbers[int(np.searchsorted(self._starts, place, "right")) - 1]

    def _bound(self, low, high, offset: int, wanted, before) -> np.ndarray:
        """The first suffix of each range whose element at `offset` is not `before` the wanted one."""
        low, high = low.copy(), high.copy()
        live = np.flatnonzero(low < high)
        while live.size:
            middle = (low[live] + high[live]) // 2
            below = before(self._text[self._order[middle] + offset], wanted[live])
            low[live] = np.where(below, middle + 1, low[live])
            high[live] = np.where(below, high[live], middle)
            live = live[low[live] < high[live]]
        return low


def suffix_array(text: np.ndarray) -> np.ndarray:
    """Where the suffixes of `text` begin, in lexicographic order: int32 `[n]` (int64 from 2^31 elements on).

    By prefix doubling (Manber & Myers, "Suffix arrays: a new method for on-line string searches", SIAM Journal on
    Computing 22, 1993): a sort for each doubling, until the longest repetition is passed.
    """
    rank, width, n = np.unique(text, return_inverse=True)[1].astype(np.int64), 1, len(text)
    while True:
        key = rank * (n + 1)
        key[: n - width] += rank[width:] + 1
        order = np.argsort(key)
        key = key[order]
        rank[order] = np.cumsum(np.append(0, key[1:] != key[:-1])) if n else 0
        if not n or rank[order[-1]] == n - 1:
            return order.astype(np.int32 if n < 2**31 else np.int64)
        width *= 2


def characters(text: str) -> np.ndarray:
    """The code points of `text`, int32 `[n]`."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.int32)
