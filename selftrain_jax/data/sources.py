"""Texts that other programs left behind: JSON files, TFDS data sets, Hugging Face data sets on disk.

A source is read as data: code that lies beside it never runs, and of a table only the wanted column is read, as it is
stored. Everything is read item by item, a JSON file that is one value excepted, and may be read several times.
"""

import contextlib
import dataclasses
import difflib
import json
import os
import pathlib
import re
import warnings
from typing import Any, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from unittest import mock

from selftrain_jax.core.errors import InputError, InputWarning, one_line
from selftrain_jax.core.files import file_fingerprint, inside, user_path
from selftrain_jax.core.rows import LINES, ROWS, has_ending, read_rows
from selftrain_jax.data.folders import FORMATS, choose_files, data_files

TFDS = "tfds:"

# A name with a namespace ("kaggle:...", "huggingface:...") would make TFDS fetch code; after a name, ":" starts a
# version.
_TFDS_NAME = re.compile(r"[A-Za-z]\w*(/[\w.+-]+)?(:(\d[\w.*]*|\*))?")
_BATCH = 1024


@dataclasses.dataclass(frozen=True)
class Source:
    """Where texts come from.

    Attributes:
      name: as the user gave it.
      kind: "json", "jsonl", "tfds", "parquet" or "huggingface" (a folder that `save_to_disk` wrote).
      files: those that hold the data.
      items: starts reading afresh at each call, which names the field that is wanted; an item is a text or a row of
        fields.
      details: what else is known, for example the version of a TFDS data set.
      fingerprint: hash of the files as they were opened.
    """

    name: str
    kind: str
    files: Sequence[str | os.PathLike]
    items: Callable[[str], Iterable[Any]]
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fingerprint: str = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "fingerprint", file_fingerprint(*self.files))

    def check_unchanged(self) -> None:
        """Raises `InputError` where the files are not those that were opened."""
        if self.fingerprint != file_fingerprint(*self.files):
            raise InputError(f"import source {self.name} changed while it was read: wait until it is written")

    def texts(self, field: str) -> Iterator[str]:
        """Yields the text of every item: the item itself, or its `field`.

        Raises:
          InputError: an item (named by number, from 1) has no such field, is not a text or cannot be read.
        """
        items, number = iter(self.items(field)), 0
        while True:
            number += 1
            try:
                item = next(items)
            except StopIteration:
                return
            except InputError:
                raise
            except Exception as e:  # array_record, Arrow and TFDS each raise their own
                raise InputError(f"import source {self.name}, item {number}: damaged ({one_line(e)[:200]})") from None
            yield _text(item, field, f"import source {self.name}, item {number}")


def open_source(name: str | os.PathLike, split: str = "train") -> Source:
    """The source of that name: a file as `read_rows` takes it, a folder of JSON-lines or .parquet files, a Hugging Face
    data set that `save_to_disk` wrote, "tfds:NAME/CONFIG:VERSION" or "tfds:/directory". Of a folder, `data_files` are
    read.

    Raises:
      InputError: it is missing, broken or of no known kind, has no such split, or needs a library that is not
        installed.
    """
    name = os.fspath(name)
    if name.startswith(TFDS):
        return _tfds(name, split)
    path = user_path(name)
    if os.path.isdir(path):
        return _folder(name, path, split)
    if not os.path.isfile(path):
        raise InputError(f"import source not found: {name} (name {FORMATS})")
    if not has_ending(path, ROWS):
        raise InputError(f"import source {name} is of no known kind: name {FORMATS}")
    if split != "train":
        raise InputError(f"import split={split!r}: {name} is a single file without splits; leave split out")
    kind = "jsonl" if has_ending(path, LINES) else "json"
    return Source(name, kind, [path], lambda field: read_rows(path, (), "import source"))


def _text(item: Any, field: str, where: str) -> str:
    if isinstance(item, Mapping):
        _check_field(where, field, item)
        where, item = f"{where}, field {field}", item[field]
    try:
        if isinstance(item, bytes):
            return item.decode()
        if isinstance(item, str):
            item.encode()
            return item
    except UnicodeError:
        raise InputError(f"{where}: not valid Unicode; decode with errors='replace' where it is made") from None
    raise InputError(f"{where}: must be a text, not {type(item).__name__}; name another field or mend the source")


def _check_field(where: str, field: str, known: Collection[Any]) -> None:
    if field not in known:
        raise InputError(f"{where}: no field={field!r}; the fields are {', '.join(map(str, known)) or 'none'}")
    if list(known).count(field) > 1:  # columns, of which a row would have the last alone
        raise InputError(f"{where}: it has field={field!r} twice; rename one of them")


def _own_feature(tfds: Any, name: str) -> Callable[[str], type]:
    """Stands in for TFDS's own look-up of a feature class, which imports whatever module `features.json` names."""
    known = tfds.features.FeatureConnector.cls_from_name

    def find(feature: str) -> type:
        if not feature.startswith("tensorflow_datasets."):
            raise InputError(
                f"import source {name} needs code that is not TFDS's own, for {feature}, and none is run; write "
                "the texts as JSON lines"
            )
        return known(feature)

    return find


def _tfds(name: str, split: str) -> Source:
    import tensorflow_datasets as tfds

    reference = name.removeprefix(TFDS)
    folder = user_path(reference) if reference.startswith(("/", ".", "~")) else None
    if folder is not None and not os.path.isfile(folder / "dataset_info.json"):
        raise InputError(f"import source {name}: {folder} holds no dataset_info.json; name the folder of one version")
    if folder is None and not _TFDS_NAME.fullmatch(reference):
        raise InputError(f"import source {name} must be tfds:NAME, tfds:NAME/CONFIG:VERSION or tfds:/directory")
    try:
        with mock.patch.object(tfds.features.FeatureConnector, "cls_from_name", _own_feature(tfds, name)):
            builder = tfds.builder_from_directory(folder) if folder else tfds.builder(reference)
            if not builder.data_path.exists():
                builder.download_and_prepare(file_format="array_record")
            splits = builder.info.splits
        if split.split("[")[0] not in splits:
            raise InputError(f"import split={split!r}: {name} has the splits {', '.join(splits)}")
        for part in tfds.core.ReadInstruction.from_spec(split).to_absolute(splits):
            # TFDS reads a slice that ends one before its begin as one without an end.
            if part.to is not None and part.to <= (part.from_ or 0):
                raise InputError(
                    f"import split={split!r}: the slice of {part.splitname} from {part.from_ or 0} to {part.to} is "
                    f"empty; {name} has {splits[part.splitname].num_examples:,} items there"
                )
        files = [os.fspath(file) for file in splits[split].filepaths]
        for file in files:
            inside(builder.data_path, os.path.relpath(file, builder.data_path), f"import source {name}")
        records = builder.as_data_source(split=split)
    except InputError:
        raise
    except tfds.core.DatasetNotFoundError:
        base = re.split("[/:]", reference)[0]
        near = difflib.get_close_matches(base, tfds.list_builders(with_community_datasets=False), 1)
        advice = f"did you mean {near[0]!r}?" if near else "see `tfds.list_builders()`"
        raise InputError(f"import source {name}: TFDS has no data set {base!r}; {advice}") from None
    except Exception as e:  # TFDS, its download manager, the missing TensorFlow and each builder raise their own
        raise InputError(
            f"import source {name} can be neither read nor prepared ({type(e).__name__}: {one_line(e)[:200]}); "
            "prepare it as array_record files with TFDS where that works, then name its folder as tfds:/directory"
        ) from None
    details = {"name": builder.info.full_name, "version": str(builder.info.version)}
    return Source(name, "tfds", files, lambda field: records, details)


def _folder(name: str, path: pathlib.Path, split: str) -> Source:
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        data = saved_dataset(f"import source {name}", path, split)
        part = path / split if (path / "dataset_dict.json").is_file() else path
        files = [file for file in data_files(part) if file.suffix == ".arrow"]
        return Source(name, "huggingface", files, lambda field: _column(name, data, field))
    kind, chosen = choose_files(name, path, split)
    if kind == "parquet":
        parquet = _parquet(name)
        if count := _left_out(parquet, chosen):
            what = f"import source {name}: {count:,} of its texts are marked left_out, by an audit, yet read, too"
            warnings.warn(InputWarning(f"{what}; to leave them out, write the rest to a file"), stacklevel=2)
        return Source(name, kind, chosen, lambda field: _parquet_rows(parquet, name, chosen, field))
    return Source(name, kind, chosen, lambda field: (row for f in chosen for row in read_rows(f, (), "import source")))


def _parquet(name: str) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"import source {name} needs pyarrow: pip install 'selftrain_jax[datasets]'") from None
    return parquet


def _left_out(parquet: Any, files: Sequence[pathlib.Path]) -> int:
    """How many rows `selftrain publish` marked as left out of training."""
    count = 0
    with contextlib.suppress(Exception):  # what is damaged is told when its texts are read
        for file in files:
            with parquet.ParquetFile(file) as table:
                marked = "left_out" in table.schema_arrow.names
                for batch in table.iter_batches(_BATCH, columns=["left_out"]) if marked else ():
                    count += sum(mark is True for mark in batch.column(0).to_pylist())
    return count


def _parquet_rows(parquet: Any, name: str, files: Sequence[pathlib.Path], field: str) -> Iterator[dict[str, Any]]:
    for file in files:
        with parquet.ParquetFile(file, page_checksum_verification=True) as table:
            _check_field(f"import source {name}, {file.name}", field, table.schema_arrow.names)
            for batch in table.iter_batches(_BATCH, columns=[field]):
                yield from batch.to_pylist()


def _column(name: str, data: Any, field: str) -> Iterator[dict[str, Any]]:
    _check_field(f"import source {name}", field, data.column_names)
    return stored_rows(data, [field])


def stored_rows(data: Any, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a `datasets.Dataset` with these columns alone, as they are stored: nothing is decoded, which would
    fetch what an image or a sound names."""
    for table in data.select_columns(list(columns)).with_format("arrow").iter(_BATCH):
        yield from table.to_pylist()


def saved_dataset(what: str, path: str | os.PathLike, split: str) -> Any:
    """One split of the Hugging Face data set that `save_to_disk` left in `path`; `what` begins the message of every
    `InputError`."""
    library = datasets_library(what)
    folder = pathlib.Path(path)
    try:
        several = folder / "dataset_dict.json"
        names = json.loads(several.read_bytes())["splits"] if several.is_file() else []
        for part in [inside(folder, name, what) for name in names] or [folder]:
            for file in json.loads((part / "state.json").read_bytes())["_data_files"]:
                inside(part, file["filename"], what)
        data = library.load_from_disk(str(path))
    except InputError:
        raise
    except Exception as e:  # Arrow, JSON and the file system each raise their own
        raise InputError(f"{what} is not a readable saved data set ({one_line(e)[:200]})") from None
    parts = dict(data) if isinstance(data, library.DatasetDict) else {str(data.split or "train"): data}
    if split not in parts:
        raise InputError(f"{what}: there is no split={split!r}; it has the splits {', '.join(parts)}")
    return parts[split]


def datasets_library(what: str) -> Any:
    """The Hugging Face `datasets` library, in a version that runs no data set's script; `InputError` without it."""
    try:
        import datasets
    except ImportError:
        text = f"{what} needs the Hugging Face `datasets` library: pip install 'selftrain_jax[datasets]'"
        raise InputError(text) from None
    if int((version := datasets.__version__).split(".")[0]) < 4:
        raise InputError(f"datasets {version} may run a data set's code: pip install -U 'selftrain_jax[datasets]'")
    datasets.disable_progress_bars()
    return datasets
