"""Training subsets of an exact number of tokens, and samples that are evenly spread."""

import warnings

import numpy as np
from jaxtyping import Int

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.data.packing import addressed_bits, packed_length, permutation
from selftrain_jax.data.settings import MANY_REPETITIONS, SubsetConfig


def draw_subset(
    lengths: Int[np.ndarray, " documents"], config: SubsetConfig, index: int, name: str = "the corpus"
) -> tuple[Int[np.ndarray, " drawn"], int]:
    """Draws documents uniformly until they take exactly `config.num_tokens` tokens of a packed stream.

    Returns:
      The positions of the documents in drawing order, and how many tokens of the last one to keep, which is what makes
      the total exact (0 when only its BOS fits).

    Raises:
      InputError: the corpus is empty or, without replacement, too small, or `index` is not one of the subsets.
    """
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or not len(lengths):
        raise InputError("subset: the corpus has no documents to draw from")
    if lengths.dtype.kind not in "iu" or lengths.min() < 0:
        raise InputError("subset: lengths must be non-negative integers")
    if not 0 <= index < config.num_subsets:
        raise InputError(f"subset index={index} must lie in [0, num_subsets={config.num_subsets})")
    costs = packed_length(lengths.astype(np.int64))
    bits = addressed_bits(config.seed, 0, index)
    if config.replacement:
        order = _draw_with_replacement(costs, config.num_tokens, bits)
    else:
        if costs.sum() < config.num_tokens:
            raise InputError(
                f"subset num_tokens={config.num_tokens} is more than the {costs.sum()} tokens of {name}: "
                "lower num_tokens, give it more documents, or set replacement=True"
            )
        order = permutation(bits, len(costs))
    ends = np.cumsum(costs[order])
    last = int(np.searchsorted(ends, config.num_tokens))
    surplus = int(ends[last]) - config.num_tokens
    return order[: last + 1], int(lengths[order[last]]) - surplus


def check_most(num_documents: int, length: int, config: SubsetConfig, name: str) -> None:
    """Raises `InputError` where so many documents of at most `length` tokens surely are too few for a subset, or would
    be repeated too often: before they are there.

    Args:
      name: of the documents.
    """
    each = int(packed_length(length))
    most = num_documents * each
    what = f"subset num_tokens={config.num_tokens} is more than"
    ends = f"{name} can have, {each} each with BOS: lower num_tokens, or raise sample.num_samples"
    if not config.replacement and most < config.num_tokens:
        raise InputError(f"{what} the {most} tokens that {ends}, or set replacement=True")
    if config.replacement and config.num_tokens > config.max_repetitions * most:
        raise InputError(
            f"{what} max_repetitions={config.max_repetitions:g} times the {most} tokens that {ends}, or "
            "subset.max_repetitions"
        )


def check_repetition(text: str, num_documents: int, num_distinct: int, config: SubsetConfig) -> None:
    """Raises `InputError`, or warns, when a subset of `num_documents` draws repeats its `num_distinct` documents often.

    Args:
      text: names where the documents are.
    """
    repeated = num_documents / num_distinct
    what = (
        f"subset num_tokens={config.num_tokens} of {text} holds each of {num_distinct} documents {repeated:.1f} times "
        "on average"
    )
    if repeated > config.max_repetitions:
        raise InputError(
            f"{what}, more than max_repetitions={config.max_repetitions:g}: give more text, lower num_tokens, or raise "
            "subset.max_repetitions"
        )
    if repeated > MANY_REPETITIONS:
        warnings.warn(InputWarning(f"{what}: no match for as many tokens that do not repeat"), stacklevel=1)


def _draw_with_replacement(costs: np.ndarray, num_tokens: int, bits: np.random.Philox) -> np.ndarray:
    """Uniform positions whose costs sum to at least `num_tokens`."""
    drawn, missing = [], num_tokens
    while missing > 0:
        count = int(missing / costs.mean() * 1.05) + 16
        # 53 bits scaled to the range: the bias is below len(costs) / 2^53.
        uniform = (bits.random_raw(count) >> np.uint64(11)) * 2.0**-53
        drawn.append((uniform * len(costs)).astype(np.int64))
        missing -= int(costs[drawn[-1]].sum())
    return np.concatenate(drawn)


def evenly_spread(count: int, limit: int) -> np.ndarray:
    """At most `limit` of the indices below `count`, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(limit, count)).astype(int))
