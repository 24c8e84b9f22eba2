"""Documents -> a fixed array of rows -> batches by step number; nothing here depends on where a run was interrupted."""

import dataclasses
import functools
from typing import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Int, Int32

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import Blocks

_AT_ONCE = 1 << 20
"""Tokens of a stream that are cut into rows together."""


@dataclasses.dataclass(frozen=True, eq=False)
class PackedRows:
    """The result of `pack`; of `pack_blocks`, with `Blocks` of these arrays.

    Attributes:
      tokens: inputs are `tokens[:, :-1]`, targets `tokens[:, 1:]`.
      segment_ids: number of the document, in packing order, that each token belongs to. The only record of where
        documents begin: BOS, EOS and an ordinary token may share an id.
      dropped_tokens: tokens at the end that fill no row, as the target of none.
    """

    tokens: Int32[np.ndarray, "rows T+1"]
    segment_ids: Int32[np.ndarray, "rows T+1"]
    dropped_tokens: int


def packed_length(length):
    """Tokens (an int, or an array) that a document of `length` tokens takes in a stream: its own and one BOS."""
    return length + 1


def pack(documents: Iterable[Int[np.ndarray, " n"]], *, bos_token_id: int, sequence_length: int) -> PackedRows:
    """Concatenates BOS + document for all `documents` and cuts the stream into rows of T + 1 = `sequence_length` + 1.

    Each row begins with the last token of the row before, so every token of the stream but the first and the dropped
    ones is a target exactly once. A stream of S tokens gives (S - 1) // T rows; none when it is shorter than one row.
    Nothing is added after a document: one that was cut by length has no EOS.
    """
    documents = list(map(np.asarray, documents))
    lengths = [document.size for document in documents]
    packed = pack_blocks(documents, lengths, bos_token_id=bos_token_id, sequence_length=sequence_length)
    none = np.zeros((0, sequence_length + 1), np.int32)
    arrays = (np.concatenate([none, *array.blocks]) for array in (packed.tokens, packed.segment_ids))
    return PackedRows(*arrays, packed.dropped_tokens)


def pack_blocks(
    documents: Iterable[Int[np.ndarray, " n"]], lengths: Sequence[int], *, bos_token_id: int, sequence_length: int
) -> PackedRows:
    """`pack` of documents of known `lengths`, which are read while the blocks are taken, some at a time."""
    if sequence_length < 1:
        raise InputError(f"packing sequence_length={sequence_length} must be at least 1")
    if bos_token_id < 0:
        raise InputError(f"packing bos_token_id={bos_token_id} must not be negative")
    bos = np.array([bos_token_id], np.int32)

    def tokens():
        for number, (document, length) in enumerate(zip(documents, lengths, strict=True)):
            if np.shape(document) != (length,) or (length and document.dtype.kind not in "iu"):
                raise InputError(
                    f"packing document {number} has shape {document.shape} and dtype {document.dtype}; it must be a "
                    f"vector of {length} token ids"
                )
            yield from (bos, document.astype(np.int32, copy=False))

    def segments():
        for number, length in enumerate(lengths):
            yield np.full(packed_length(length), number, np.int32)

    total = sum(map(packed_length, map(int, lengths)))
    num_rows = max(total - 1, 0) // sequence_length
    shape = num_rows, sequence_length + 1
    arrays = (Blocks(shape, np.int32, _rows(stream(), sequence_length)) for stream in (tokens, segments))
    return PackedRows(*arrays, dropped_tokens=total - (num_rows * sequence_length + 1 if num_rows else 0))


def _rows(stream: Iterable[np.ndarray], sequence_length: int) -> Iterator[np.ndarray]:
    """The rows of a stream that comes in pieces, some at a time."""
    held: list[np.ndarray] = []
    size = 0
    for piece in stream:
        held.append(piece)
        size += len(piece)
        if size > max(_AT_ONCE, sequence_length):
            whole = np.concatenate(held)
            yield (rows := _windows(whole, sequence_length))
            held = [whole[len(rows) * sequence_length :]]
            size = len(held[0])
    if held:
        yield _windows(np.concatenate(held), sequence_length)


def _windows(stream: np.ndarray, sequence_length: int) -> np.ndarray:
    if len(stream) <= sequence_length:
        return np.zeros((0, sequence_length + 1), np.int32)
    return np.lib.stride_tricks.sliding_window_view(stream, sequence_length + 1)[::sequence_length].copy()


def addressed_bits(seed: int, *address: int) -> np.random.Philox:
    """Random bits that are a pure function of (seed, address): different addresses give independent streams.

    Use `random_raw` of the result: NumPy keeps the raw stream the same in every version, but not what `Generator`
    makes of it (NEP 19).
    """
    if min((seed, *address)) < 0:
        raise InputError(f"seed={seed} and the stream numbers {address} must not be negative")
    return np.random.Philox(np.random.SeedSequence(seed, spawn_key=address))


def steps_per_epoch(*, num_rows: int, batch_size: int) -> int:
    """Whole batches in `num_rows` rows; `InputError` when there is not even one."""
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} must be at least 1")
    if num_rows < batch_size:
        raise InputError(
            f"batch_size={batch_size} is more than the {num_rows} packed rows there are: lower batch_size or "
            "sequence_length, or train on more tokens"
        )
    return num_rows // batch_size


def batch_indices(step: int, *, num_rows: int, batch_size: int, seed: int) -> Int[np.ndarray, " B"]:
    """Rows of the batch for `step` (from 0), a pure function of the arguments.

    Every epoch of `steps_per_epoch` steps goes through its own permutation of the rows; the num_rows % batch_size rows
    at its end sit that epoch out.
    """
    if step < 0:
        raise InputError(f"step={step} must not be negative")
    epoch, position = divmod(step, steps_per_epoch(num_rows=num_rows, batch_size=batch_size))
    return _permutation(seed, epoch, num_rows)[position * batch_size : (position + 1) * batch_size].copy()


# Steps of one epoch share a permutation; two entries serve a loop that prefetches across the boundary.
@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_rows: int) -> np.ndarray:
    return permutation(addressed_bits(seed, 1, epoch), num_rows)


def permutation(bits: np.random.Philox, n: int) -> Int[np.ndarray, " n"]:
    """A uniformly random order of 0..n-1 drawn from `bits`, the same in every NumPy version."""
    return np.argsort(bits.random_raw(n), kind="stable")
