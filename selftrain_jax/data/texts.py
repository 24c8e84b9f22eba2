"""Plain text sets: what a likelihood is measured on, and what a control trains on."""

import pathlib
import warnings
from typing import Hashable, Sequence

import numpy as np

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.rows import ROWS, TEXT, check_file, has_ending, has_text, read_rows, read_text

_LONG = 64
"""Characters of a text that should have more than one word."""


def load_texts(path: str | pathlib.Path) -> list[str]:
    """The "text" of every row of a file that `read_rows` reads, or one text from a plain text file."""
    if has_ending(check_file(path, ROWS + TEXT, "text set"), TEXT):
        texts = [read_text(path, "text set")]
    else:
        rows = list(read_rows(path, ("text",), "text set"))
        check_strings(rows, ("text",), f"text set {path}")
        texts = [row["text"] for row in rows]
    if not any(map(has_text, texts)):
        raise InputError(f"text set {path} holds no text")
    warn_of_twins(f"text set {path}", texts)
    return texts


def load_documents(path: str | pathlib.Path) -> dict[int, str]:
    """The texts of a file to train on, by their place in it.

    Warns:
      InputWarning: some are empty, and left out: a document would be BOS and EOS alone.
    """
    texts = load_texts(path)
    found = {place: text for place, text in enumerate(texts) if has_text(text)}
    if blank := len(texts) - len(found):
        what = f"text set {path}: {blank} of {len(texts)} texts are empty, and left out of training"
        warnings.warn(what, InputWarning, stacklevel=1)  # of one place: said once
    return found


def shuffle_words(texts: Sequence[str], seed: int) -> list[str]:
    """Each text with its words (what stands between white space) in a random order, one space between them.

    As a control it keeps the unigram statistics of every document and loses the order.

    Warns:
      InputWarning: long texts have no white space within, as where a script does not separate words, and stay as they
        are.
    """
    if whole := sum(len(text.strip()) > _LONG and len(text.split()) < 2 for text in texts):
        what = f"shuffled control: {whole} of {len(texts)} texts have no white space within and stay as they are"
        warnings.warn(what, InputWarning, stacklevel=2)
    rng = np.random.default_rng(seed)
    # Not the words themselves: an array of texts drops zero bytes at their ends, and is as wide as the longest.
    return [" ".join(words[i] for i in rng.permutation(len(words))) for words in map(str.split, texts)]


def warn_of_twins(where: str, items: Sequence[Hashable]) -> None:
    """Warns of items that equal another one: an interval takes each for new evidence."""
    if twins := len(items) - len(set(items)):
        what = f"{where}: {twins} of {len(items)} items equal an earlier one, and figures count each as one of its own"
        warnings.warn(what, InputWarning, stacklevel=1)  # of one place: said once


def check_strings(rows: Sequence[dict], fields: Sequence[str], where: str) -> None:
    """Raises `InputError` naming the first item in which one of `fields` is not a text."""
    for number, row in enumerate(rows, 1):
        for field in fields:
            if not isinstance(row[field], str):
                raise InputError(f"{where}, item {number}: {field} must be a text, not {type(row[field]).__name__}")
            if any("\ud800" <= c <= "\udfff" for c in row[field]):
                raise InputError(f"{where}, item {number}: {field} holds half a surrogate pair, which is no character")
