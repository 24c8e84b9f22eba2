"""Greedy comparisons of two computations of one model. Each rounds in its own way, and differently on every processor,
so where two logits are nearly tied either token is right."""

import numpy as np


def assert_greedy(tokens, logits, tolerance):
    """Every token is the best one, up to `tolerance`.

    Args:
      tokens: `[..., T]`, what one computation wrote.
      logits: `[..., T, V]`, what the other one, given what was written before, computes for each of them.
      tolerance: how far apart two logits may lie for either to count as the best: twice what the computations differ
        by.
    """
    tokens, logits = np.asarray(tokens), np.asarray(logits)
    chosen = np.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    gaps = logits.max(axis=-1) - chosen
    assert (gaps <= tolerance).all(), f"at {np.argwhere(gaps > tolerance)[:5].tolist()}: {gaps[gaps > tolerance][:5]}"


def clear_best(logits, tolerance):
    """`[...]` int, the best token of `[..., V]` logits; fails on a near tie, on which a test should not depend."""
    second, first = np.moveaxis(np.sort(np.asarray(logits), axis=-1)[..., -2:], -1, 0)
    assert (first - second > tolerance).all(), f"near ties: {np.sort((first - second).ravel())[:5]}; take another seed"
    return np.argmax(logits, axis=-1)
