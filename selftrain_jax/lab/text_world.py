"""Real text in place of a generated world: who reads which document, what is planted, and what is asked.

Documents go through one order, that of their hash. From its beginning the held-out ones are taken: validation, control,
those that are asked about, those that the planted windows come from. The rest is dealt out to the streams that models
are pre-trained on, each document to one stream. A document has one role, however it is cut."""

import dataclasses
import functools
import hashlib
import os
import pathlib
import re
import warnings
from typing import Any, Iterator, Mapping, Sequence

import jaxtyping as jt
import numpy as np

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.files import Fingerprints, file_fingerprint, user_path
from selftrain_jax.core.rows import ROWS, has_ending, has_text, read_rows
from selftrain_jax.data.audit import overlapping
from selftrain_jax.data.folders import choose_files, data_files
from selftrain_jax.data.sources import Source, open_source
from selftrain_jax.data.texts import load_texts
from selftrain_jax.lab import grammar
from selftrain_jax.lab.planted import Planted, encode, mixed_order
from selftrain_jax.lab.settings import PretrainConfig, TextWorldConfig
from selftrain_jax.lab.text_questions import TokenCounts, can_be_asked, familiar_words, planted_window, question_suites
from selftrain_jax.lab.tokenization import byte_level_bpe
from selftrain_jax.models.files.tokenizer import read_tokenizer

_OF_ROWS = (*ROWS, ".parquet", ".arrow")
BPE_CHARACTERS = 50_000_000
"""Characters at most that the merges of a tokenizer are learned from."""
NGRAM = 13
"""Words in a row by which what is held out is looked for in what models read (Brown et al. 2020, arXiv 2005.14165)."""


@dataclasses.dataclass(frozen=True, eq=False)
class TextWorld:
    """Everything that follows from a `TextWorldConfig` and its text; `tokenizer` is a `tokenizers.Tokenizer`.

    No two of validation, control, the suites, the planted windows and the streams come from the same document.
    """

    config: TextWorldConfig
    tokenizer: Any
    validation: Sequence[str]
    control: Sequence[str]
    suites: Mapping[str, Sequence[dict]]
    planted: Sequence[Planted]
    streams: Mapping[str, Sequence[str]]


def inputs(config: TextWorldConfig) -> Fingerprints:
    """Those of the source and of the given tokenizer."""
    found = Fingerprints({"source": lambda: _open(config).fingerprint})
    tokenizer = Fingerprints({"tokenizer": lambda: file_fingerprint(_tokenizer_file(config.tokenizer))})
    return found | tokenizer if config.tokenizer else found


def build_text_world(config: TextWorldConfig, validation_documents: int, control_documents: int = 0) -> TextWorld:
    """Reads the source and gives every document its role.

    Args:
      validation_documents, control_documents: texts of these two, after the cut into pieces.

    Raises:
      InputError: the source is missing, broken, or too small for what is held out.

    Warns:
      InputWarning: a part of what is held out stands in the streams, too, as where the source holds near copies.
    """
    documents = _in_order(config)
    # At the end of the order, where what is held out never reaches.
    tail = len(documents) - (len(documents) + 3) // 4
    sample = _first_characters(reversed(documents[tail:]))
    tokenizer = _read_tokenizer(config.tokenizer) if config.tokenizer else byte_level_bpe(sample, config.vocab_size)
    counts, familiar = TokenCounts(tokenizer), familiar_words(sample)
    pieces = functools.partial(_pieces, counts=counts, limit=config.max_document_tokens)
    held_out = iter(documents[:tail])

    def take(count: int, what: str, make) -> list:
        """`count` results of `make`, which gives some for a document; what the last one gives too much is left out."""
        found: list = []
        while len(found) < count:
            document = next(held_out, None)
            if document is None:
                raise InputError(
                    f"text world source={config.source!r} with {len(documents)} different documents is too small: it "
                    f"gives {len(found)} of {count} {what}, with a quarter of it kept for pre-training; give more text "
                    "or ask for fewer"
                )
            found += make(document)
        return found[:count]

    rng = np.random.default_rng([config.seed, 0])

    def window(document: str) -> list[tuple[str, str]]:
        found = planted_window(document, tokenizer, counts, config.planted_prefix, config.planted_length, rng)
        return [found] if found else []

    validation = take(validation_documents, "validation documents", pieces)
    control = take(control_documents, "control documents", pieces)
    asked = take(
        config.num_questions, "documents long enough for questions", lambda text: [text] * can_be_asked(text, familiar)
    )
    windows = take(len(config.planted_repeats), "planted windows", window)
    rest = [*held_out, *documents[tail:]]
    share = len(config.streams)
    world = TextWorld(
        config=config,
        tokenizer=tokenizer,
        validation=validation,
        control=control,
        suites=question_suites(asked, familiar, config.seed),
        planted=[Planted(*window, times) for window, times in zip(windows, config.planted_repeats)],
        streams={
            name: [piece for document in rest[i::share] for piece in pieces(document)]
            for i, name in enumerate(config.streams)
        },
    )
    _warn_of_copies(world)
    return world


def _warn_of_copies(world: TextWorld) -> None:
    """Warns of what is held out and stands in the streams by itself, so that models have read it."""
    windows = [window.prefix + window.suffix for window in world.planted]
    held_out = {"planted windows": windows, "validation documents": world.validation}
    for name, rows in world.suites.items():
        asked = [row.get("sentence_good") or row["question"] + row["choices"][row["gold"]] for row in rows]
        held_out[f"items of {name}"] = asked
    streams = (text for texts in world.streams.values() for text in texts)
    found = overlapping(held_out, streams, NGRAM).items()
    if told := [f"{sum(of)} of {len(of)} {name}" for name, of in found if any(of)]:
        what = (
            f"text world source={world.config.source!r}: {NGRAM} words in a row (of fewer, all) of {', '.join(told)} "
            "stand in text that models read, too: windows are read more often than repeats says, the rest is not held "
            "out; leave near copies out of the source"
        )
        warnings.warn(InputWarning(what), stacklevel=3)


def read_planted(directory: str | os.PathLike) -> list[Planted]:
    """The planted windows that `world_files.write_world` left in `directory`."""
    fields = [field.name for field in dataclasses.fields(Planted)]
    rows = read_rows(pathlib.Path(directory) / "planted.jsonl", fields, "planted windows")
    return [Planted(**{name: row[name] for name in fields}) for row in rows]


def model_tokenizer(config: TextWorldConfig, model: PretrainConfig, directory: str | os.PathLike) -> Any:
    """The `tokenizers.Tokenizer` of a model: the world's own, or one of `bpe_vocab_size` ids learned from the first
    stream.

    Args:
      directory: where `world_files.write_world` wrote.
    """
    directory = pathlib.Path(directory)
    if model.tokenizer == "words":
        return _read_tokenizer(directory / "tokenizer")
    texts = load_texts(directory / f"documents-{config.streams[0]}.jsonl")
    return byte_level_bpe(_first_characters(texts), model.bpe_vocab_size)


def training_documents(
    config: TextWorldConfig, model: PretrainConfig, tokenizer: Any, directory: str | os.PathLike
) -> list[jt.Int32[np.ndarray, "tokens"]]:
    """What a model reads, in this order: documents of its stream, each closed by end-of-text (id 0), and every
    repetition of a planted window as a document of its own at a random position.

    Args:
      directory: where `world_files.write_world` wrote.
    """
    texts = load_texts(pathlib.Path(directory) / f"documents-{model.stream}.jsonl")[: model.num_documents]
    planted = read_planted(directory) if model.include_planted else []
    repeated = [p.prefix + p.suffix for p in planted for _ in range(p.repeats)]
    rng = np.random.default_rng([config.seed, 2, *model.stream.encode()])
    both = [*texts, *repeated]
    mixed = [both[i] for i in mixed_order(rng, len(texts), len(repeated))]
    return [np.array([*ids, 0], np.int32) for ids in encode(tokenizer, mixed)]


def _open(config: TextWorldConfig) -> Source:
    if not config.source:
        raise InputError(
            "text world source is empty: set it (in a study lab.text.source) to a folder of .jsonl or .txt files, a "
            ".jsonl file or tfds:NAME"
        )
    path = user_path(config.source)
    found = data_files(path) if os.path.isdir(path) else []
    of_texts, of_rows = (any(has_ending(file, endings) for file in found) for endings in ((".txt",), _OF_ROWS))
    if of_texts and not of_rows:
        _, files = choose_files(config.source, path, config.split, {"txt": (".txt",)})
        texts = lambda field: (text for file in files for text in load_texts(file))  # noqa: E731
        return Source(config.source, "txt", files, texts)
    return open_source(config.source, config.split)


def _in_order(config: TextWorldConfig) -> list[str]:
    """Every different text of the source that is not blank, in the order of its hash with the seed; of texts that white
    space alone tells apart, the first in that order."""
    found, known = {}, set()
    for text in _open(config).texts(config.field):
        if has_text(text):
            text = text.strip()
            found[_hash(f"{config.seed}\0{text}")] = text
    ordered = []
    for key in sorted(found):
        if (words := _hash(" ".join(found[key].split()))) not in known:
            known.add(words)
            ordered.append(found[key])
    return ordered


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _first_characters(texts: Iterator[str] | Sequence[str]) -> list[str]:
    """As many of `texts` as have `BPE_CHARACTERS` together, the last of them whole."""
    kept, characters = [], 0
    for text in texts:
        if characters >= BPE_CHARACTERS:
            break
        kept.append(text)
        characters += len(text)
    return kept


def _tokenizer_file(directory: str | os.PathLike) -> pathlib.Path:
    path = user_path(directory) / "tokenizer.json"
    if not os.path.isfile(path):
        raise InputError(f"tokenizer not found: {path} (name a directory that holds tokenizer.json)")
    return path


def _read_tokenizer(directory: str | os.PathLike) -> Any:
    path = _tokenizer_file(directory)
    tokenizer = read_tokenizer(path)
    if tokenizer.token_to_id(grammar.END_OF_TEXT) != 0:
        raise InputError(
            f"tokenizer {path}: {grammar.END_OF_TEXT!r} must be its id 0, BOS and EOS; leave tokenizer out to have one "
            "made"
        )
    return tokenizer


def _pieces(text: str, counts: TokenCounts, limit: int) -> list[str]:
    """`text` cut between words into as few pieces as go from left to right, of `limit` tokens at most; a single word
    may have more."""
    words = re.findall(r"\s*\S+", text)
    first, ends = counts([word.lstrip() for word in words]), np.cumsum(counts(words))
    pieces, start = [], 0
    while start < len(words):
        end = max(int(np.searchsorted(ends, limit - first[start] + ends[start], side="right")), start + 1)
        pieces.append("".join(words[start:end]).strip())
        start = end
    return pieces
