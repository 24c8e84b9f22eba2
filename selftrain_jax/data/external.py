"""Text that any other generator wrote, as a corpus that a run can train on."""

import array
import contextlib
import itertools
import os
import warnings
from typing import Any, Iterator

import numpy as np

from selftrain_jax.core import files, progress
from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.rows import has_text
from selftrain_jax.data.corpus import CorpusWriter, Document, read_corpus
from selftrain_jax.data.sources import Source, open_source
from selftrain_jax.data.subset import evenly_spread
from selftrain_jax.models import hf
from selftrain_jax.models.files.hub import resolve_model
from selftrain_jax.models.files.tokenizer import (
    UNKNOWN_SOUGHT,
    check_tokenizer,
    encode_texts,
    known_ids,
    load_tokenizer,
    tokenizer_fingerprint,
    warn_of_unknown,
)

_SHARD_SIZE = 1024


def import_corpus(
    source: str | os.PathLike,
    directory: str | os.PathLike,
    tokenizer_source: str | os.PathLike,
    *,
    field: str = "text",
    split: str = "train",
    limit: int | None = None,
) -> dict[str, Any]:
    """Writes the texts of `source` as a finished corpus into `directory`, which appears whole or not at all.

    A document is one text, its id the position in the source (from 0), its tokens the tokenizer's ids and EOS. Texts
    without a visible character are left out and counted. No log-probabilities are known, so the manifest's `nll` is
    None.

    What looks like a special token inside a text, such as `<|endoftext|>`, is read as ordinary characters, and the
    texts that hold one are counted: as a token it would end a document in its middle. Clean the source first if the
    count is not what you expect.

    Args:
      source: file, folder or "tfds:..." as `sources.open_source` takes it.
      directory: the new corpus folder; missing or empty.
      tokenizer_source: the student: a directory with tokenizer.json, or a hub name. EOS is that of its config.json, or
        without one that of the tokenizer.
      field: name of the text in a row.
      split: which part of a data set with splits.
      limit: take the first so many texts that are not empty; None takes all.

    Returns:
      The corpus manifest.

    Warns:
      InputWarning: the tokenizer does not know part of the texts, or some texts are equal.

    Raises:
      InputError: the source cannot be read, changes meanwhile, or holds no text.
    """
    directory = files.user_path(directory)
    if limit is not None and limit < 1:
        raise InputError(f"import limit={limit} must be at least 1; leave it out to take every text")
    files.check_new_directory(directory, "import destination")
    tokenizer, end, special, vocab_size = _tokenizer(tokenizer_source)
    opened = open_source(source, split)
    ids, counts = _scan(opened, field, limit, [t.content for t in tokenizer.added_tokens_decoder.values() if t.special])
    provenance = {
        "source": opened.name,
        "kind": opened.kind,
        "split": split,
        "field": field,
        "limit": limit,
        "fingerprint": opened.fingerprint,
        **({"dataset": opened.details} if opened.details else {}),
        "tokenizer": str(tokenizer_source),
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer_source),
        "vocab_size": vocab_size,
        "document_end_id": end,
        **counts,
    }
    with files.new_directory(directory, "import destination") as temporary:
        writer = CorpusWriter(temporary, len(ids), _SHARD_SIZE, ids=ids)
        with contextlib.closing(_documents(opened, field, ids, tokenizer, end, special)) as documents:
            for index, _ in writer.missing_shards():
                writer.write_shard(index, next(documents))
        opened.check_unchanged()
        manifest = writer.finalize(provenance)
    read = read_corpus(directory).take(evenly_spread(len(ids), UNKNOWN_SOUGHT))
    warn_of_unknown(opened.name, tokenizer, [document.text for document in read])
    return manifest


def _tokenizer(source: str | os.PathLike) -> tuple[Any, int, set[int], int]:
    """The tokenizer, its EOS, all ids that begin or end a document, and how many ids a document may use."""
    tokenizer = load_tokenizer(source)
    if (resolve_model(source, weights=False) / "config.json").is_file():
        config = hf.load_config(source)
        check_tokenizer(config, tokenizer)
        return tokenizer, config.eos_token_id, set(config.special_ids), int(known_ids(config, tokenizer).sum())
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"tokenizer {source} names no EOS token and has no config.json beside it: name the model's folder"
        )
    special = {tokenizer.eos_token_id} | ({tokenizer.bos_token_id} - {None})
    return tokenizer, tokenizer.eos_token_id, special, len(tokenizer.get_vocab())


def _scan(source: Source, field: str, limit: int | None, special: list[str]) -> tuple[list[int], dict[str, int]]:
    """Positions of the texts to take, and what was counted on the way to the last of them."""
    ids, hashes, empty, marked = [], array.array("q"), 0, 0
    for position, text in enumerate(progress.bar(iterable=source.texts(field), desc="read", unit="text")):
        if not has_text(text):
            empty += 1
            continue
        ids.append(position)
        hashes.append(hash(text))
        marked += any(token in text for token in special)
        if len(ids) == limit:
            break
    if not ids:
        raise InputError(
            f"import source {source.name} holds no text ({empty} empty ones): name another field or source"
        )
    if repeated := len(ids) - len(np.unique(np.frombuffer(hashes, np.int64))):
        what = f"import source {source.name}: {repeated:,} of {len(ids):,} documents equal an earlier one, and are kept"
        warnings.warn(InputWarning(what), stacklevel=2)
    counts = {"num_read": len(ids) + empty, "num_empty": empty, "num_with_special_tokens": marked}
    return ids, counts | {"num_repeated": repeated}


def _documents(
    source: Source, field: str, ids: list[int], tokenizer, end: int, special: set[int]
) -> Iterator[list[Document]]:
    """The documents of `ids`, shard by shard."""
    kept = ((i, text) for i, text in enumerate(source.texts(field)) if has_text(text))
    with progress.bar(total=len(ids), desc="import", unit="doc") as bar:
        for start in range(0, len(ids), _SHARD_SIZE):
            wanted = ids[start : start + _SHARD_SIZE]
            batch = list(itertools.islice(kept, len(wanted)))
            if [i for i, _ in batch] != wanted:
                source.check_unchanged()
            documents = []
            for (i, text), tokens in zip(batch, encode_texts(tokenizer, [text for _, text in batch], special)):
                if not special.isdisjoint(tokens):
                    raise InputError(
                        f"import source {source.name}, item {i + 1}: the tokenizer makes an end-of-text token of a "
                        "part of the text, which would end the document there; take that part or the text out"
                    )
                documents.append(Document(i, np.array([*tokens, end], np.int32), None, "eos", text))
            bar.update(len(documents))
            yield documents
