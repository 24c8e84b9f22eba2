"""Neighbouring sequences that begin alike, in one row: their beginning goes through the model once.

The choices of a question, the two sentences of a pair, the candidates of a canary: what comes before them is the same.
(Tree attention, which Miao et al. 2024, SpecInfer, section 4.2, use for another end.)
"""

from typing import NamedTuple, Sequence

import numpy as np

_LEAST = 4  # a sequence shares a row where a part of it, one in so many tokens, is not read again


class Fan(NamedTuple):
    """One row: `beginning` tokens that all `members` share, then what each has of its own.

    Arrays are int32 `[T]`, but for the last two, `[K]`: of every scored token of every member, in their order.
    """

    members: range
    tokens: np.ndarray
    branch: np.ndarray  # as of `ops.Branches`
    positions: np.ndarray
    at: np.ndarray  # the token of the row that a scored one comes after
    targets: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(scored tokens, tokens that are read)."""
        return len(self.targets), len(self.tokens)


def fans(sequences: Sequence[np.ndarray], starts: Sequence[int], longest: int) -> list[Fan]:
    """All sequences, scored from `starts` on, in rows of at most `longest` tokens, or of one sequence.

    A sequence joins those before it where fewer tokens are then read, and a quarter of its own need not be.
    """
    groups: list[tuple[range, int]] = []
    for i, sequence in enumerate(sequences):
        if groups:
            members, shared = groups[-1]
            common = min(_common(sequences[i - 1], sequence), shared or len(sequence))
            joined = range(members.start, i + 1)
            length = sum(len(sequences[m]) - 1 for m in joined) - common * (len(joined) - 1)
            fewer = common * len(members) > shared * (len(members) - 1)
            if fewer and common * _LEAST >= len(sequence) and length <= longest:
                groups[-1] = joined, common
                continue
        groups.append((range(i, i + 1), 0))
    return [_laid_out(sequences, starts, members, shared) for members, shared in groups]


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Tokens at the beginning that two sequences share; the last of either is never read."""
    length = min(len(a), len(b)) - 1
    differ = np.flatnonzero(a[:length] != b[:length])
    return int(differ[0]) if len(differ) else length


def _laid_out(sequences: Sequence[np.ndarray], starts: Sequence[int], members: range, shared: int) -> Fan:
    tokens, branch, positions = [sequences[members[0]][:shared]], [np.ones(shared)], [np.arange(shared)]
    at, targets, end = [], [], shared
    for number, m in enumerate(members, 2):
        own = sequences[m][shared:-1]
        tokens.append(own)
        branch.append(np.full(len(own), number))
        positions.append(shared + np.arange(len(own)))
        before = np.arange(starts[m] - 1, len(sequences[m]) - 1)
        at.append(np.where(before < shared, before, before - shared + end))
        targets.append(sequences[m][starts[m] :])
        end += len(own)
    return Fan(members, *(np.concatenate(parts).astype(np.int32) for parts in (tokens, branch, positions, at, targets)))
