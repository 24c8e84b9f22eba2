"""From clean documents to the rows that one model trains on."""

import collections.abc
import dataclasses
import itertools
import pathlib
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import map_arrays, write_arrays
from selftrain_jax.data.clean import TrainingText, kept_documents
from selftrain_jax.data.corpus import Corpus, Document
from selftrain_jax.data.packing import PackedRows, pack_blocks
from selftrain_jax.data.records import Text
from selftrain_jax.data.settings import SubsetConfig
from selftrain_jax.data.subset import check_repetition, draw_subset, evenly_spread
from selftrain_jax.models.files.hf_config import load_config
from selftrain_jax.models.files.tokenizer import (
    UNKNOWN_SOUGHT,
    check_tokenizer,
    encode_texts,
    known_ids,
    load_tokenizer,
    reads_ids,
    warn_of_unknown,
)

_AT_ONCE = 1024
"""Rows of a subset that are read together, and documents that are tokenized together."""
_PLENTY = 8
"""Characters for each token of a budget: text takes more tokens than one in so many."""


class StudentTokens(collections.abc.Sequence):
    """The token ids that a student reads of each document, without BOS; those of a corpus are read when asked for.

    Attributes:
      lengths: int64 `[documents]`.
      take: from positions, the ids of the documents there, one after the other.
    """

    def __init__(self, lengths: Iterable[int], take: Callable[[Sequence[int]], Iterator[np.ndarray]]):
        self.lengths, self.take = np.fromiter(lengths, np.int64), take

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index):
        return next(self.take([range(len(self))[index]]))


def write_subset(
    audited: pathlib.Path,
    text: TrainingText,
    student: str | pathlib.Path,
    settings: SubsetConfig,
    index: int,
    sequence_length: int,
    directory: pathlib.Path,
) -> dict[str, Any]:
    """Draws subset `index` of the documents of `text` that the audit let through, and writes its packed rows as
    `rows.npz`."""
    config = load_config(student)
    documents, tokens, retokenized = student_documents(audited, text, student, settings.retokenize)
    name = str(text.corpus or text.texts)
    order, last_length, num_distinct = _draw(documents, tokens, settings, index, name)
    different = np.unique(order)
    read = list(_take(documents, different[evenly_spread(len(different), UNKNOWN_SOUGHT)]))
    if not (retokenized or any(getattr(document, "log_probs", None) is None for document in read)):
        read = []  # ids that a model drew are no reading of a text
    unknown = warn_of_unknown(name, load_tokenizer(student), [document.text for document in read])
    ends = [None] * (len(order) - 1) + [last_length]
    drawn = (ids[:end] for ids, end in zip(tokens.take(order), ends))
    lengths = np.append(tokens.lengths[order[:-1]], last_length)
    rows = pack_blocks(drawn, lengths, bos_token_id=config.bos_token_id, sequence_length=sequence_length)
    write_rows(rows, directory)
    return {
        "num_documents": len(order),
        "num_distinct": num_distinct,
        "num_tokens": settings.num_tokens,
        "num_rows": rows.tokens.shape[0],
        "retokenized": retokenized,
        "unknown_share": unknown,
        "dropped_tokens": rows.dropped_tokens,
    }


def check_budget(text: TrainingText, student: str | pathlib.Path, settings: SubsetConfig) -> None:
    """Raises `InputError` where the documents of `text` are, before any audit, too few for a subset or would be
    repeated too often. It looks no further where there is plenty."""
    documents = text.documents()
    read = documents.texts() if isinstance(documents, Corpus) else documents
    if sum(_distinct(document.text for document in read).values()) < _PLENTY * settings.num_tokens:
        provenance = documents.manifest["provenance"] if isinstance(documents, Corpus) else None
        tokens, _ = _tokens(documents, provenance, text, student, settings.retokenize)
        _draw(documents, tokens, settings, 0, str(text.corpus or text.texts))


def _draw(
    documents: Sequence[Document] | Sequence[Text], tokens: StudentTokens, settings: SubsetConfig, index: int, name: str
) -> tuple[np.ndarray, int, int]:
    """What `draw_subset` returns, and how many different texts were drawn; refused where those are too few."""
    order, last_length = draw_subset(tokens.lengths, settings, index, name)
    texts = (document.text for document in _take(documents, np.unique(order)))
    num_distinct = len(_distinct(texts))  # a text may hold copies
    check_repetition(name, len(order), num_distinct, settings)
    return order, last_length, num_distinct


def _take(documents: Sequence[Any], positions: np.ndarray) -> Iterator[Any]:
    """Those of a corpus in batches."""
    taken = getattr(documents, "take", None)
    return taken(positions) if taken else (documents[i] for i in positions)


def _distinct(texts: Iterable[str]) -> dict[int, int]:
    """Hash -> characters of each different text: all texts of a large corpus do not fit into memory."""
    return {hash(text): len(text) for text in texts}


def student_documents(
    audited: pathlib.Path, text: TrainingText, student: str | pathlib.Path, retokenize: bool | str
) -> tuple[Sequence[Document] | Sequence[Text], StudentTokens, bool]:
    """The documents of `text` that the audit let through; the token ids that the student reads of each: BOS is not
    among them, EOS is where the document ended, the student's one EOS, whichever stop token was drawn; and whether a
    corpus was tokenized anew for that.

    A corpus's token ids are used as they are when the student has the tokenizer that they were made with; text files,
    and with `retokenize` any corpus ("auto": one of another tokenizer), are tokenized with the student's. What looks
    like a special token in a text is read as ordinary characters: a document ends where it ends, and nowhere before.

    Raises:
      InputError: corpus and student have different tokenizers, and `retokenize` is False, or the corpus holds ids that
        the student's does not have.
    """
    documents, provenance = kept_documents(audited, text)
    return documents, *_tokens(documents, provenance, text, student, retokenize)


def _tokens(
    documents: Sequence[Document] | Sequence[Text],
    provenance: Mapping[str, Any] | None,
    text: TrainingText,
    student: str | pathlib.Path,
    retokenize: bool | str,
) -> tuple[StudentTokens, bool]:
    config, tokenizer = load_config(student), load_tokenizer(student)
    check_tokenizer(config, tokenizer)
    if provenance is not None and retokenize == "auto":
        retokenize = not same_tokenizer(provenance, student)
    if provenance is None or retokenize:

        def encoded(positions):
            for start in range(0, len(positions), _AT_ONCE):
                batch = list(_take(documents, positions[start : start + _AT_ONCE]))
                read = encode_texts(tokenizer, [document.text for document in batch], config.special_ids)
                for document, ids in zip(batch, read):
                    ended = getattr(document, "stop_reason", "eos") == "eos"
                    yield np.array([*ids, config.eos_token_id] if ended else ids, np.int32)

        # Those drawn are tokenized twice: the ids of a large corpus do not fit into memory.
        return StudentTokens(map(len, encoded(range(len(documents)))), encoded), provenance is not None
    check_same_tokenizer(f"corpus {text.corpus}", provenance, student)

    known = known_ids(config, tokenizer)  # earlier versions left out of the fingerprint what is beside tokenizer.json
    known[[i for i in config.stop_ids if i < len(known)]] = True

    def checked():
        for document in documents:
            ids = document.tokens
            if ids.size and not (0 <= ids.min() <= ids.max() < len(known) and known[ids].all()):
                raise InputError(
                    f"corpus {text.corpus}, document {document.id}: it holds other ids than the {known.sum()} that the "
                    "student's tokenizer has; set subset.retokenize=True to train on its text"
                )
            yield len(document.tokens)

    def take(positions):
        return (_with_end(document, config.eos_token_id) for document in documents.take(positions))

    return StudentTokens(checked(), take), False


def _with_end(document: Document, eos_token_id: int) -> np.ndarray:
    if document.stop_reason != "eos" or document.tokens[-1:].tolist() == [eos_token_id]:
        return document.tokens
    return np.append(document.tokens[:-1], np.int32(eos_token_id))


def check_same_tokenizer(corpus: str, provenance: Mapping[str, Any], student: str | pathlib.Path) -> None:
    """Raises `InputError` when the token ids of `corpus` are not surely those of the student's tokenizer."""
    if not same_tokenizer(provenance, student):
        size = len(load_tokenizer(student).get_vocab())
        raise InputError(
            f"{corpus} was made with another tokenizer ({provenance.get('vocab_size', 'unknown')} ids) than the "
            f"student's ({size} ids): set subset.retokenize=True to train on its text"
        )


def same_tokenizer(provenance: Mapping[str, Any], student: str | pathlib.Path) -> bool:
    """Whether the token ids of a corpus of that provenance are surely those of the student's tokenizer."""
    return reads_ids(provenance.get("tokenizer_fingerprint"), student)


def write_rows(rows: PackedRows, directory: pathlib.Path) -> None:
    """Writes `rows.npz` into `directory`, which is made when missing; `read_subset` reads it."""
    directory.mkdir(parents=True, exist_ok=True)
    write_arrays(directory / "rows.npz", {field.name: getattr(rows, field.name) for field in dataclasses.fields(rows)})


def read_subset(directory: pathlib.Path) -> PackedRows:
    """The rows that `write_rows` left in `directory`, where they stay until they are looked at."""
    arrays = map_arrays(directory / "rows.npz", "subset")
    return PackedRows(arrays["tokens"], arrays["segment_ids"], int(arrays["dropped_tokens"]))


def read_documents(directory: pathlib.Path) -> Iterator[np.ndarray]:
    """The token ids, without BOS, of the documents that the subset in `directory` trains on, as far as its rows
    reach, one after the other."""
    rows = read_subset(directory)
    tokens, segments = rows.tokens[:1, 0], rows.segment_ids[:1, 0]  # of the document that is not at its end yet
    for start in range(0, len(rows.tokens), _AT_ONCE):
        block = slice(start, start + _AT_ONCE), slice(1, None)  # rows overlap by one
        tokens, segments = np.append(tokens, rows.tokens[block]), np.append(segments, rows.segment_ids[block])
        *whole, tokens = np.split(tokens, np.flatnonzero(np.diff(segments)) + 1)
        segments = segments[len(segments) - len(tokens) :]
        yield from (ids[1:] for ids in whole)
    if len(tokens):
        yield tokens[1:]


def read_training_texts(directory: pathlib.Path, student: str | pathlib.Path) -> Iterator[str]:
    """`read_documents`, decoded."""
    tokenizer, documents = load_tokenizer(student), read_documents(directory)
    while batch := [ids.tolist() for ids in itertools.islice(documents, 256)]:
        yield from tokenizer.batch_decode(batch, skip_special_tokens=True, clean_up_tokenization_spaces=False)
