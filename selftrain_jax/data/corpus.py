"""A corpus of generated documents on disk: ArrayRecord shards that any TFDS reader opens, and a manifest of what is in
them.

`tfds.builder_from_directory(path).as_data_source(split="train")` reads a finished corpus without this package and
without TensorFlow. Shards are written one by one, each atomically, so that sampling can stop anywhere; `manifest.json`
is written last and is what makes a folder a corpus.
"""

import collections.abc
import operator
import os
import pathlib
import re
from typing import Any, Callable, Iterable, Iterator, Sequence

import numpy as np

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import file_fingerprint, read_json, write_json
from selftrain_jax.data.records import (
    STOP_REASONS,
    Document,
    Text,
    decode,
    decode_text,
    encode,
    features,
    read_first,
    shard_length,
    write_records,
)

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Fixed, so that histograms of different corpora share their bins; a uniform guess over 50,304 tokens costs 10.8 nats.
NLL_EDGES = np.arange(0.0, 12.25, 0.25)

_NAME = "corpus"
_SPLIT = "train"
_MANIFEST = "manifest.json"
_SCHEMA = 1
_READ_BATCH = 1024


def summarize(documents: Iterable[Document]) -> dict[str, Any]:
    """Statistics of `documents`, in one pass, as JSON values.

    Returns a dict with `num_documents`; `num_tokens` (BOS not counted); `length` in tokens (mean, min, max, quantiles);
    `stop_reasons`; and `nll` in nats: `mean` per token, `per_document_mean` (the mean over documents of each one's
    mean) and a histogram of the per-document means, in which values outside the edges count towards the nearest bin.
    Documents without tokens have no mean and enter neither of the last two; without any token both means are None.
    `nll` itself is None when a document comes without log-probabilities: a mean over the others would mislead.
    """
    lengths, sums, measured = [], [], True
    stop_reasons = dict.fromkeys(STOP_REASONS, 0)
    for document in documents:
        lengths.append(len(document.tokens))
        measured = measured and document.log_probs is not None
        sums.append(-float(np.sum(document.log_probs, dtype=np.float64)) if measured else 0.0)
        stop_reasons[document.stop_reason] += 1
    if not lengths:
        raise InputError("corpus has no documents: sample at least one, or loosen the filter that removed them all")
    lengths, sums = np.array(lengths), np.array(sums)
    num_tokens = int(lengths.sum())
    means = sums[lengths > 0] / lengths[lengths > 0]
    counts, _ = np.histogram(np.clip(means, NLL_EDGES[0], NLL_EDGES[-1]), bins=NLL_EDGES)
    nll = {
        "mean": float(sums.sum() / num_tokens) if num_tokens else None,
        "per_document_mean": float(means.mean()) if num_tokens else None,
        "histogram": {"edges": NLL_EDGES.tolist(), "counts": counts.tolist()},
    }
    return {
        "num_documents": len(lengths),
        "num_tokens": num_tokens,
        "length": {
            "mean": float(lengths.mean()),
            "min": int(lengths.min()),
            "max": int(lengths.max()),
            "quantiles": {str(q): float(np.quantile(lengths, q)) for q in QUANTILES},
        },
        "stop_reasons": stop_reasons,
        "nll": nll if measured else None,
    }


class CorpusWriter:
    """Writes a corpus shard by shard; a new writer on the same folder carries on where a killed one stopped.

    The ids are cut into consecutive groups of `shard_size` (the last may be smaller), one shard each, so the shards of
    a corpus do not depend on how often it was interrupted. Several processes may write different shards of one folder;
    when all are done, one of them calls `finalize`. A corpus grows by a new writer with more documents: what is there
    of a smaller one with the same shard size is kept.

    Args:
      path: the folder; created when missing.
      num_documents: how many documents the corpus will hold, with ids 0, 1, ... unless `ids` says otherwise.
      shard_size: documents per shard.
      ids: the ids themselves, in corpus order, for a corpus with gaps.

    Raises:
      InputError: a setting is out of range, ids repeat, or the folder holds shards of another layout.
    """

    def __init__(
        self, path: str | os.PathLike, num_documents: int, shard_size: int = 4096, *, ids: Sequence[int] | None = None
    ):
        if num_documents < 1:
            raise InputError(f"corpus {path}: num_documents={num_documents} must be at least 1")
        if shard_size < 1:
            raise InputError(f"corpus {path}: shard_size={shard_size} must be at least 1")
        if ids is None:
            ids = range(num_documents)
        elif len(ids) != num_documents or len(set(ids)) != num_documents:
            raise InputError(f"corpus {path}: ids must be num_documents={num_documents} different numbers")
        self.path = pathlib.Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._shards = [ids[start : start + shard_size] for start in range(0, num_documents, shard_size)]
        self._files = _shard_files(self.path, len(self._shards))
        strangers = {f.name for f in self.path.glob(f"{_NAME}-*")} - {f.name for f in self._files}
        if strangers:
            self._adopt(sorted(strangers))

    def _adopt(self, names: list[str]) -> None:
        """Gives the shards of a smaller corpus their names in this one, which counts as unfinished then."""
        places = {}
        for name in names:
            place = re.fullmatch(rf"{_NAME}-.*-(\d+)-of-(\d+)", name)
            index, length = (int(place[1]) if place else -1), shard_length(self.path / name)
            # Of a shard that was cut short nothing is used, so it may take any place.
            if not 0 <= index < len(self._shards) or (
                length and shard_length(self.path / name, self._shards[index][:length]) != length
            ):
                raise InputError(
                    f"corpus {self.path} holds shards of another layout, such as {name}: restore num_documents and "
                    "shard_size, or remove the folder"
                )
            places[name] = index
        (self.path / _MANIFEST).unlink(missing_ok=True)
        for name, index in places.items():
            os.replace(self.path / name, self._files[index])

    def partial(self, index: int) -> list[Document]:
        """The documents that are there of a shard that `missing_shards` names, its first ones; often none."""
        return read_first(self._files[index], self._shards[index])

    def missing_shards(self) -> list[tuple[int, Sequence[int]]]:
        """(index, document ids) of every shard that is absent, cut short, or holds other documents."""
        return [(i, ids) for i, ids in enumerate(self._shards) if shard_length(self._files[i], ids) != len(ids)]

    def write_shard(self, index: int, documents: Iterable[Document]) -> None:
        """Writes shard `index` so that it exists whole or not at all; the corpus counts as unfinished from here on.

        Raises:
          InputError: the documents are not the shard's, in order, or one of them is malformed.
          OSError: the system refuses the write, for example on a full disk.
        """
        if not 0 <= index < len(self._shards):
            raise InputError(f"corpus {self.path}: shard {index} does not exist, there are {len(self._shards)}")
        documents = list(documents)
        found, wanted = [d.id for d in documents], list(self._shards[index])
        if found != wanted:
            raise InputError(
                f"corpus {self.path}: shard {index} takes {len(wanted)} documents, ids {wanted[0]} to {wanted[-1]} in "
                f"order; got {len(found)}" + (f", ids {found[0]} to {found[-1]}" if found else "")
            )
        records = [encode(document) for document in documents]
        (self.path / _MANIFEST).unlink(missing_ok=True)
        write_records(self._files[index], records)

    def finalize(self, provenance: dict[str, Any]) -> dict[str, Any]:
        """Checks every shard, writes the TFDS metadata and then, last and atomically, the manifest, which it returns.

        The manifest is `summarize` of the documents plus "schema" and "provenance".
        """
        import tensorflow_datasets as tfds

        missing = [index for index, _ in self.missing_shards()]
        if missing:
            raise InputError(
                f"corpus {self.path} lacks {len(missing)} of {len(self._shards)} shards (first: {missing[0]}): write "
                "them before finalizing"
            )
        template = tfds.core.ShardedFileTemplate(
            data_dir=self.path, dataset_name=_NAME, split=_SPLIT, filetype_suffix="array_record"
        )
        split = tfds.core.SplitInfo(
            name=_SPLIT,
            shard_lengths=[len(ids) for ids in self._shards],
            num_bytes=sum(f.stat().st_size for f in self._files),
            filename_template=template,
        )
        # check_data would read one example through TensorFlow.
        tfds.folder_dataset.write_metadata(
            data_dir=self.path,
            features=features(),
            split_infos=[split],
            version="1.0.0",
            check_data=False,
            description=f"Documents to train on; {_MANIFEST} tells who wrote them and how.",
        )
        manifest = {"schema": _SCHEMA, **summarize(self._verified()), "provenance": provenance}
        for leftover in self.path.glob(f".{_NAME}-*.tmp"):
            leftover.unlink(missing_ok=True)
        write_json(self.path / _MANIFEST, manifest)
        return manifest

    def _verified(self) -> Iterator[Document]:
        wanted = (i for ids in self._shards for i in ids)
        for document, wanted_id in zip(Corpus(self.path, {}), wanted, strict=True):
            if document.id != wanted_id:
                raise InputError(
                    f"corpus {self.path}: found document {document.id} where {wanted_id} belongs; remove the folder "
                    "and sample again"
                )
            yield document


class Corpus(collections.abc.Sequence):
    """A finished corpus: an immutable sequence of `Document`; made by `read_corpus`.

    Documents are read when asked for. Iterating and `take` read in batches and are faster than indexing.
    """

    def __init__(self, path: str | os.PathLike, manifest: dict[str, Any]):
        # Not TFDS: it would import the module of whatever feature class features.json names.
        from array_record.python import array_record_data_source

        self.path = pathlib.Path(path)
        self.manifest = manifest
        self._opened = self._state()
        found = sorted(self.path.glob(f"{_NAME}-*-of-*"))
        count = re.search(r"-of-(\d+)$", found[0].name) if found else None
        # A name may say any number: of more than there are, the first that is missing ends the look.
        self._files = _shard_files(self.path, int(count[1]) if count else 1, len(found) + 1)
        lengths = []
        for file in self._files:
            lengths.append(shard_length(file))
            if not lengths[-1]:
                raise InputError(self._damaged("cut short or missing", file))
        if stray := set(found) - set(self._files):
            raise InputError(self._damaged(f"{min(stray).name} is of another layout"))
        self._ends = np.cumsum(lengths)
        self._records = array_record_data_source.ArrayRecordDataSource(
            [f"{file}[0:{length}]" for file, length in zip(self._files, lengths)]
        )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return list(self.take(range(*index.indices(len(self)))))
        position = operator.index(index)
        position += len(self) if position < 0 else 0
        if not 0 <= position < len(self):
            raise IndexError(f"document {index} of a corpus of {len(self)}")
        return next(self.take([position]))

    def __iter__(self) -> Iterator[Document]:
        return self.take(range(len(self)))

    def texts(self) -> Iterator[Text]:
        """The documents' texts alone, faster than the documents."""
        return self._read(range(len(self)), decode_text)

    def take(self, positions: Sequence[int]) -> Iterator[Document]:
        """Yields the documents at `positions` (not ids), in that order."""
        return self._read(positions, decode)

    def _read(self, positions: Sequence[int], decode_record: Callable[[bytes], Any]) -> Iterator[Any]:
        for start in range(0, len(positions), _READ_BATCH):
            batch = [int(p) for p in positions[start : start + _READ_BATCH]]
            try:
                # For one record, starting the threads of a batched read takes longer than the read.
                records = self._records.__getitems__(batch) if len(batch) > 1 else [self._records[batch[0]]]
                documents = [decode_record(record) for record in records]
            except Exception as e:  # array_record raises RuntimeError, protobuf and the parsing their own
                raise InputError(self._damaged(e, self._unreadable(batch))) from e
            if self._state() != self._opened:  # shards are opened when they are read
                raise InputError(f"corpus {self.path} was written anew while it was read: start the command again")
            yield from documents

    def _state(self) -> tuple[int, ...] | None:
        """What changes when another corpus takes the place of this one."""
        manifest = self.path / _MANIFEST
        if not manifest.is_file():
            return None
        about = manifest.stat()
        return about.st_ino, about.st_size, about.st_mtime_ns

    def _unreadable(self, positions: Sequence[int]) -> pathlib.Path | None:
        """The first shard in which one of the documents cannot be read."""
        for position in positions:
            try:
                decode(self._records[position])
            except Exception:
                return self._files[np.searchsorted(self._ends, position, "right")]
        return None

    def _damaged(self, why: object, shard: pathlib.Path | None = None) -> str:
        what = f"corpus {self.path} is damaged ({f'shard {shard.name}: ' if shard else ''}{' '.join(str(why).split())})"
        if shard is None or "kind" in self.manifest.get("provenance", {}):
            return f"{what}: remove the folder and write the corpus again"
        manifests = (folder / _MANIFEST for folder in (self.path, self.path.parent))
        made = ", ".join(str(file) for file in (shard, *manifests) if file.is_file())
        return f"{what}: remove {made} and run the command that writes it again, which draws this shard alone"


class Selection(collections.abc.Sequence):
    """The documents at some `positions` of a corpus, read when asked for."""

    def __init__(self, corpus: Corpus, positions: Sequence[int]):
        self._corpus, self._positions = corpus, np.asarray(positions, np.int64)

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index):
        chosen = self._positions[index]
        return list(self._corpus.take(chosen)) if isinstance(index, slice) else self._corpus[chosen]

    def __iter__(self) -> Iterator[Document]:
        return self._corpus.take(self._positions)

    def take(self, positions: Sequence[int]) -> Iterator[Document]:
        """As `Corpus.take`; positions are those of the selection."""
        return self._corpus.take(self._positions[positions])


def read_corpus(path: str | os.PathLike) -> Corpus:
    """The finished corpus in `path`; `InputError` where it is missing, unfinished or damaged."""
    path = pathlib.Path(path)
    if not path.is_dir():
        raise InputError(f"corpus not found: {path} is not a folder")
    if not (path / _MANIFEST).is_file():
        raise InputError(f"corpus {path} is unfinished (no {_MANIFEST}): run the command that writes it again")
    manifest = read_json(path / _MANIFEST, "corpus manifest")
    known = isinstance(manifest, dict) and manifest.get("schema") == _SCHEMA
    if not known or not {"num_documents", "nll"} <= manifest.keys() or not isinstance(manifest.get("provenance"), dict):
        raise InputError(f"corpus manifest {path / _MANIFEST} is not of schema {_SCHEMA}: write the corpus again")
    corpus = Corpus(path, manifest)
    if len(corpus) != manifest["num_documents"]:
        what = f"{len(corpus)} documents where the manifest says {manifest['num_documents']}"
        raise InputError(corpus._damaged(what))
    return corpus


def corpus_fingerprint(path: str | os.PathLike) -> str:
    """A short hash of a finished corpus: its manifest and its shards."""
    path = pathlib.Path(path)
    return file_fingerprint(path / _MANIFEST, *sorted(path.glob(f"{_NAME}-*")))


def write_corpus(
    path: str | os.PathLike, documents: Iterable[Document], provenance: dict[str, Any], shard_size: int = 4096
) -> dict[str, Any]:
    """Writes `documents`, which keep their ids and their order, as a finished corpus; returns its manifest."""
    documents = list(documents)
    writer = CorpusWriter(path, len(documents), shard_size, ids=[d.id for d in documents])
    for index, start in enumerate(range(0, len(documents), shard_size)):
        writer.write_shard(index, documents[start : start + shard_size])
    return writer.finalize(provenance)


def _shard_files(path: pathlib.Path, count: int, most: int | None = None) -> list[pathlib.Path]:
    """Those of a corpus of `count` shards, at most the first `most`."""
    return [path / f"{_NAME}-{_SPLIT}.array_record-{i:05d}-of-{count:05d}" for i in range(count)[:most]]
