"""Extraction probes from token arrays of another tokenizer, from any text, and from EleutherAI's data sets."""

import os
import pathlib
import warnings
from typing import Any, Sequence

import numpy as np

from selftrain_jax.core.errors import InputError, InputWarning, one_line
from selftrain_jax.core.files import write_jsonl
from selftrain_jax.core.settings import check_seed
from selftrain_jax.data.sources import datasets_library, saved_dataset, stored_rows
from selftrain_jax.data.tables import read_table
from selftrain_jax.data.texts import check_strings, load_texts
from selftrain_jax.evaluation.likelihood import encode_all
from selftrain_jax.models.files.hub import check_hub_name
from selftrain_jax.models.files.tokenizer import encode_texts, load_tokenizer, warn_of_unknown

_ABOUT = ("id", "index", "group", "cluster", "document", "offset")
"""What a row of text pairs may say of itself beside them, as a probe file does."""
_HALVES = ("prefix", "suffix")
_TEXTS = (*_HALVES, "id", "index", "group", "cluster", "document")
_NAMED = 5
"""Pairs that are left out of which the warning tells."""
MEMORIZED_EVALS = "EleutherAI/pythia-memorized-evals"


def convert_arrays(
    prefixes: str | os.PathLike, suffixes: str | os.PathLike, source: str, target: str, out: str | os.PathLike
) -> dict[str, int]:
    """Re-tokenizes the (prefix, suffix) token arrays of an extraction benchmark and writes them as a probe file.

    Made for google-research/lm-extraction-benchmark, whose arrays hold GPT-2 ids. A pair is dropped when the text of
    its halves, tokenized together, does not fall apart at the same place: its boundary would lie inside a token. So is
    one that begins, ends or is cut within a character: it has no text.

    Args:
      prefixes, suffixes: `.npy` files of int ids, [n, length] each.
      source, target: model or tokenizer directories (or hub names): what the ids mean, and what they shall become.
      out: the JSON-lines file to write.

    Returns:
      {"read", "written", "dropped"}.
    """
    arrays = [_load(prefixes), _load(suffixes)]
    if len(arrays[0]) != len(arrays[1]):
        raise InputError(f"{prefixes} holds {len(arrays[0])} rows and {suffixes} {len(arrays[1])}: they must pair up")
    old, new = load_tokenizer(source), load_tokenizer(target)
    known = list(old.get_vocab().values())
    for path, ids in zip((prefixes, suffixes), arrays):
        if not (strange := np.isin(ids, known, invert=True)).any():
            continue
        raise InputError(f"{path} holds the id {ids[strange].max()}, which the tokenizer of {source} does not have")

    pairs = [_halves(old, before, before + after) for before, after in zip(*(ids.tolist() for ids in arrays))]
    whole = [pair for pair in pairs if pair is not None]
    warn_of_unknown(f"text of {prefixes} and {suffixes}", new, [text for pair in whole for text in pair])
    found = _at_the_border(new, [before for before, _ in whole], [before + after for before, after in whole])
    rows = [{"prefix": cut[0], "suffix": cut[1]} for cut in found if cut is not None]
    if not rows:
        raise InputError(f"no pair of {prefixes} and {suffixes} keeps its boundary under the tokenizer of {target}")
    write_jsonl(out, rows)
    return {"read": len(pairs), "written": len(rows), "dropped": len(pairs) - len(rows)}


def text_probes(path: str | os.PathLike, target: str, out: str | os.PathLike) -> dict[str, int]:
    """Writes pairs of texts as a probe file, each half as the tokens that it is within the whole.

    A pair is left out, and named in a warning, when the whole does not begin with the tokens of its prefix: the border
    would lie inside a token. Tokens of the suffix alone need not be those within the whole: SentencePiece puts a space
    before every text.

    Args:
      path: rows with "prefix" and "suffix" as text; "id", "group", "cluster", "document", "offset" and "index" go into
        the probe file as they are, and so does "repeats", as the group `repeats=N` where there is none. JSON lines,
        JSON, CSV or Parquet.
      target: model or tokenizer directory (or hub name) whose tokens the probes hold.
      out: the JSON-lines file to write.

    Returns:
      {"read", "written", "dropped"}.
    """
    tokenizer, rows = load_tokenizer(target), list(read_table(path, _HALVES, "pairs of texts", texts=_TEXTS))
    check_strings(rows, _HALVES, f"pairs of texts {path}")
    for number, row in enumerate(rows, 1):
        if not (row["prefix"] and row["suffix"]):
            raise InputError(f"pairs of texts {path}, item {number}: neither prefix nor suffix may be empty")
        if "repeats" in row and (type(row["repeats"]) is not int or row["repeats"] < 0):
            raise InputError(f"pairs of texts {path}, item {number}: repeats={row['repeats']!r} must be a count")
    if not rows:
        raise InputError(f"pairs of texts {path} holds no pairs")
    prefixes, wholes = [row["prefix"] for row in rows], [row["prefix"] + row["suffix"] for row in rows]
    warn_of_unknown(f"pairs of texts {path}", tokenizer, wholes)
    written, broken = [], []
    for number, (row, cut) in enumerate(zip(rows, _at_the_border(tokenizer, prefixes, wholes)), 1):
        if cut is None:
            broken.append(number)
            continue
        prefix, suffix = cut
        about = {name: row[name] for name in _ABOUT if name in row}
        if "repeats" in row:
            about.setdefault("group", f"repeats={row['repeats']}")
        written.append({"prefix": prefix, "suffix": suffix, **about})
    if broken:
        first = ", ".join(str(rows[n - 1].get("id", n)) for n in broken[:_NAMED]) + ", ..." * (len(broken) > _NAMED)
        what = (
            f"pairs of texts {path}: {len(broken)} of {len(rows)} do not keep their border under the tokenizer of "
            f"{target} (a token reaches over it): {first}"
        )
        if not written:
            raise InputError(f"{what}; move the border to the beginning of a word, its space with the suffix")
        warnings.warn(InputWarning(f"{what}; they are left out"), stacklevel=2)
    write_jsonl(out, written)
    return {"read": len(rows), "written": len(written), "dropped": len(broken)}


def _halves(tokenizer: Any, prefix: list[int], whole: list[int]) -> tuple[str, str] | None:
    """The text of `prefix`, and what follows it in that of `whole`: a SentencePiece tokenizer decodes the rest alone
    without the space before it. None where an end or the border lies within a character."""
    texts = tokenizer.batch_decode([prefix, whole], clean_up_tokenization_spaces=False)
    for ids, text in zip((prefix, whole), texts):
        if "\ufffd" in text and encode_all(tokenizer, [text])[0] != ids:  # a text may hold that character itself
            return None
    return (texts[0], texts[1].removeprefix(texts[0])) if texts[1].startswith(texts[0]) else None


def _at_the_border(tokenizer: Any, prefixes: list[str], wholes: list[str]) -> list[tuple[list[int], list[int]] | None]:
    """The tokens of each whole text, cut where those of its prefix end; None where they do not, or a half has none."""
    found = zip(*(encode_all(tokenizer, texts) for texts in (prefixes, wholes)))
    cut = [(before, whole[len(before) :], whole) for before, whole in found]
    return [(a, b) if a and b and a + b == whole else None for a, b, whole in cut]


def window_probes(
    path: str | os.PathLike,
    target: str,
    out: str | os.PathLike,
    *,
    prefix_length: int | Sequence[int] = 32,
    suffix_length: int = 32,
    stride: int | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, int]:
    """Writes windows of `prefix_length` + `suffix_length` tokens of a text set as a probe file. With several prefix
    lengths each suffix is asked for after each of them, as far as the longest allows; their group is "prefix=LENGTH".

    Each row also says which text of the set it is from ("document", from 1) and how many of its tokens come before
    ("offset"). Windows never reach over the end of a text.

    Args:
      path: rows with "text", or one plain text file.
      target: model or tokenizer directory (or hub name) whose tokens the probes hold.
      out: the JSON-lines file to write.
      stride: tokens from the start of one window to the next; default: one window ends where the next begins.
      limit: keep that many windows, drawn at random with `seed`, in the order of the text.

    Returns:
      {"texts", "too_short" (texts without a window), "windows", "written"}.
    """
    prefixes = (prefix_length,) if isinstance(prefix_length, int) else tuple(sorted(prefix_length))
    if not prefixes or len(set(prefixes)) < len(prefixes):
        raise InputError(f"probes prefix_length={prefix_length} must name one length or more, each once")
    prefix_length = prefixes[-1]
    length = prefix_length + suffix_length
    stride = length if stride is None else stride
    check_seed("probes", seed)
    _check_counts(prefix_length=prefixes[0], suffix_length=suffix_length, stride=stride, limit=limit)
    tokenizer, texts = load_tokenizer(target), load_texts(path)
    warn_of_unknown(f"text set {path}", tokenizer, texts)
    documents = encode_texts(tokenizer, texts)
    places = [(i, at) for i, ids in enumerate(documents) for at in range(0, len(ids) - length + 1, stride)]
    if not places:
        raise InputError(f"text set {path}: no text has {length} tokens; lower prefix_length or suffix_length")
    rows = []
    for n in _chosen(len(places), limit, seed):
        i, at = places[n]
        suffix = at + prefix_length
        for count in prefixes:
            cut = {"prefix": documents[i][suffix - count : suffix], "suffix": documents[i][suffix : at + length]}
            group = {"group": f"prefix={count}"} if len(prefixes) > 1 else {}
            rows.append(cut | group | {"document": i + 1, "offset": suffix - count})
    write_jsonl(out, rows)
    too_short = sum(len(ids) < length for ids in documents)
    return {"texts": len(documents), "too_short": too_short, "windows": len(places), "written": len(rows)}


def dataset_probes(
    source: str,
    split: str,
    out: str | os.PathLike,
    *,
    prefix_length: int = 32,
    suffix_length: int = 32,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, int]:
    """Writes the rows of a data set of Pythia tokens as a probe file, each with its "index", the sequence's number.

    Made for `EleutherAI/pythia-memorized-evals` (columns index, tokens; splits such as duped.70m or deduped.1.4b: the
    first 64 tokens of training sequences, of which the model emits the last 32 after the first 32, so that extraction
    "before" is 100 % by construction) and for its random base rate, `EleutherAI/pile-deduped-pythia-random-sampled`
    (Index, Tokens).

    Args:
      source: name on the Hugging Face hub, or a folder that `save_to_disk` wrote.
      split: which part of it.
      out: the JSON-lines file to write.
      prefix_length, suffix_length: how a row is cut; tokens beyond are left out.
      limit: keep that many rows, drawn at random with `seed`, in the order of the data set.

    Returns:
      {"read", "written"}.
    """
    check_seed("probes", seed)
    _check_counts(prefix_length=prefix_length, suffix_length=suffix_length, limit=limit)
    data = _open_dataset(source, split)
    columns = {name.lower(): name for name in data.column_names}
    if missing := [name for name in ("index", "tokens") if name not in columns]:
        known = ", ".join(data.column_names)
        raise InputError(
            f"probe data set {source}: no column {missing[0]!r} (its columns: {known}); name another data set"
        )
    for name in columns.keys() & {"index", "tokens"}:
        if len(alike := [column for column in data.column_names if column.lower() == name]) > 1:
            raise InputError(f"probe data set {source} has the columns {' and '.join(alike)}; rename one of them")
    chosen, length, rows = _chosen(len(data), limit, seed), prefix_length + suffix_length, []
    for number, row in zip(chosen, stored_rows(data.select(chosen), [columns["index"], columns["tokens"]])):
        ids, where = row[columns["tokens"]], f"probe data set {source}, row {number + 1}"
        if not isinstance(ids, list) or any(type(token) is not int for token in ids):
            raise InputError(f"{where}: {columns['tokens']} must be a list of ids, whole numbers")
        if len(ids) < length:
            raise InputError(
                f"{where}: {len(ids)} tokens are fewer than "
                f"prefix_length={prefix_length} + suffix_length={suffix_length}; lower them"
            )
        cut = {"prefix": ids[:prefix_length], "suffix": ids[prefix_length:length]}
        rows.append(cut | {"offset": 0, "index": row[columns["index"]]})
    if not rows:
        raise InputError(f"probe data set {source}: split {split!r} is empty")
    write_jsonl(out, rows)
    return {"read": len(data), "written": len(rows)}


def _open_dataset(source: str, split: str) -> Any:
    what = f"probe data set {source}"
    if pathlib.Path(source).is_dir():
        return saved_dataset(what, source, split)
    check_hub_name(f"{what} not found", source)
    library = datasets_library(what)
    try:
        return library.load_dataset(source, split=split)
    except Exception as e:  # the hub, Arrow and the file system each raise their own
        raise InputError(
            f"{what}, split {split!r}, cannot be loaded ({one_line(e)[:200]}); it needs the Hugging Face hub or its "
            "cache: elsewhere, give a folder that datasets' save_to_disk wrote"
        ) from None


def _check_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            raise InputError(f"probes {name}={count} must be at least 1")


def _chosen(count: int, limit: int | None, seed: int) -> Sequence[int]:
    if limit is None or limit >= count:
        return range(count)
    return sorted(np.random.default_rng(seed).choice(count, limit, replace=False).tolist())


def _load(path: str | os.PathLike) -> np.ndarray:
    if not pathlib.Path(path).is_file():
        raise InputError(f"token array not found: {path}")
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)  # a map is never larger than the file
    except OSError:
        raise
    except Exception as e:  # a header is parsed as Python is, with its errors
        raise InputError(f"token array {path} is not a NumPy file: {one_line(e)[:200]}") from None
    if not isinstance(ids, np.ndarray):
        raise InputError(f"token array {path} is an archive of arrays (.npz): save the one array with numpy.save")
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size:
        raise InputError(f"token array {path} has shape {ids.shape} and dtype {ids.dtype}: it must be a matrix of ids")
    if ids.max() > np.iinfo(np.int64).max:
        raise InputError(f"token array {path} holds {ids.max()}, which is no token id")
    return ids.astype(np.int64)
