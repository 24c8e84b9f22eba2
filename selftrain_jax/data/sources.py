"""Texts that other programs left behind: JSON files, TFDS data sets, Hugging Face data sets on disk.

A source is read as data: code that lies beside it never runs. Everything is read item by item, a `.json` file excepted,
and may be read several times.
"""

import dataclasses
import difflib
import os
import pathlib
import re
from typing import Any, Callable, Iterable, Iterator, Mapping

from selftrain_jax.core.errors import InputError, one_line
from selftrain_jax.core.files import file_fingerprint, read_json, read_jsonl, user_path

TFDS = "tfds:"

# A name with a namespace ("kaggle:...", "huggingface:...") would make TFDS fetch code; after a name, ":" starts a
# version.
_TFDS_NAME = re.compile(r"[A-Za-z]\w*(/[\w.+-]+)?(:(\d[\w.*]*|\*))?")
_SPLITS = ("train", "validation", "valid", "val", "dev", "test", "eval")
_FORMATS = "a .jsonl, .jsonl.gz or .json file, a Hugging Face data set folder, or tfds:NAME"


@dataclasses.dataclass(frozen=True)
class Source:
    """Where texts come from.

    Attributes:
      name: as the user gave it.
      kind: "json", "jsonl", "tfds", "parquet" or "huggingface" (a folder that `save_to_disk` wrote).
      fingerprint: hash of the data files.
      items: starts reading afresh at each call; an item is a text or a row of fields.
      details: what else is known, for example the version of a TFDS data set.
    """

    name: str
    kind: str
    fingerprint: str
    items: Callable[[], Iterable[Any]]
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def texts(self, field: str) -> Iterator[str]:
        """Yields the text of every item: the item itself, or its `field`.

        Raises:
          InputError: an item (named by number, from 1) has no such field, is not a text or cannot be read.
        """
        items, number = iter(self.items()), 0
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
    """The source of that name: a .jsonl(.gz) or .json file, a folder of .jsonl or .parquet files, a Hugging Face data
    set that `save_to_disk` wrote, "tfds:NAME/CONFIG:VERSION" or "tfds:/directory".

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
        raise InputError(f"import source not found: {name} (name {_FORMATS})")
    jsonl = path.name.endswith((".jsonl", ".jsonl.gz"))
    if not jsonl and path.suffix != ".json":
        raise InputError(f"import source {name} is of no known kind: name {_FORMATS}")
    if split != "train":
        raise InputError(f"import split={split!r}: {name} is a single file without splits; leave split out")
    if jsonl:
        return Source(name, "jsonl", file_fingerprint(path), lambda: read_jsonl(path, (), "import source"))
    value = read_json(path, "import source")
    columns = isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values())
    if not isinstance(value, list) and not columns:
        raise InputError(
            f'import source {name} must hold a list of texts, a list of objects, or columns such as {{"text": [...]}}'
        )
    return Source(name, "json", file_fingerprint(path), lambda: _rows(name, value) if columns else value)


def _rows(name: str, columns: dict[str, list]) -> Iterator[dict[str, Any]]:
    if len(set(map(len, columns.values()))) > 1:
        lengths = ", ".join(f"{column} {len(values)}" for column, values in columns.items())
        raise InputError(f"import source {name}: the columns have different lengths ({lengths})")
    return (dict(zip(columns, row)) for row in zip(*columns.values()))


def _text(item: Any, field: str, where: str) -> str:
    if isinstance(item, Mapping):
        if field not in item:
            raise InputError(f"{where}: no field={field!r}; the fields are {', '.join(map(str, item)) or 'none'}")
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


def _tfds(name: str, split: str) -> Source:
    import tensorflow_datasets as tfds

    reference = name.removeprefix(TFDS)
    folder = user_path(reference) if reference.startswith(("/", ".", "~")) else None
    if folder is not None and not os.path.isfile(folder / "dataset_info.json"):
        raise InputError(f"import source {name}: {folder} holds no dataset_info.json; name the folder of one version")
    if folder is None and not _TFDS_NAME.fullmatch(reference):
        raise InputError(f"import source {name} must be tfds:NAME, tfds:NAME/CONFIG:VERSION or tfds:/directory")
    try:
        builder = tfds.builder_from_directory(folder) if folder else tfds.builder(reference)
        if not builder.data_path.exists():
            builder.download_and_prepare(file_format="array_record")
        splits = builder.info.splits
        if split.split("[")[0] not in splits:
            raise InputError(f"import split={split!r}: {name} has the splits {', '.join(splits)}")
        records = builder.as_data_source(split=split)
        files = [os.fspath(file) for file in splits[split].filepaths]
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
    return Source(name, "tfds", file_fingerprint(*files), lambda: records, details)


def _folder(name: str, path: pathlib.Path, split: str) -> Source:
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        data = saved_dataset(f"import source {name}", path, split)
        part = path / split if (path / "dataset_dict.json").is_file() else path
        return Source(name, "huggingface", file_fingerprint(*sorted(part.glob("*.arrow"))), lambda: data)
    for kind, endings in (("parquet", (".parquet",)), ("jsonl", (".jsonl", ".jsonl.gz"))):
        files = [file for file in sorted(path.rglob("*")) if file.name.endswith(endings) and file.is_file()]
        if files:
            break
    else:
        corpus = (path / "manifest.json").is_file()
        advice = "a finished corpus needs no import: set controls.NAME.corpus to it" if corpus else f"name {_FORMATS}"
        raise InputError(f"import source {name} holds no .parquet or .jsonl file and no saved data set; {advice}")
    files = _of_split(name, path, files, split)
    if kind == "parquet":
        library = datasets_library(f"import source {name}")
        try:
            items = library.load_dataset("parquet", data_files=list(map(str, files)), split="train", streaming=True)
        except Exception as e:  # Arrow and the file system each raise their own
            raise InputError(f"import source {name} is not readable parquet ({one_line(e)[:200]})") from None
        # The streamed data set reads the files anew at each iteration.
        return Source(name, kind, file_fingerprint(*files), lambda: items)
    return Source(
        name, kind, file_fingerprint(*files), lambda: (row for f in files for row in read_jsonl(f, (), "import source"))
    )


def _of_split(name: str, path: pathlib.Path, files: list[pathlib.Path], split: str) -> list[pathlib.Path]:
    """The files whose name, or a folder of theirs, says `split`; all of them, as "train", when none says any."""

    def named(file: pathlib.Path) -> str | None:
        words = re.split(r"[^A-Za-z0-9]+", str(file.relative_to(path)))
        return next((word for word in words if word in {split, *_SPLITS}), None)

    found: dict[str, list[pathlib.Path]] = {}
    for file in files:
        found.setdefault(named(file) or "", []).append(file)
    if set(found) == {""}:
        found = {"train": files}
    if split not in found:
        known = ", ".join(filter(None, found))
        raise InputError(f"import split={split!r}: the files of {name} are of the splits {known}")
    return found[split]


def saved_dataset(what: str, path: str | os.PathLike, split: str) -> Any:
    """One split of the Hugging Face data set that `save_to_disk` left in `path`; `what` begins the message of every
    `InputError`."""
    library = datasets_library(what)
    try:
        data = library.load_from_disk(str(path))
    except Exception as e:  # Arrow, JSON and the file system each raise their own
        raise InputError(f"{what} is not a readable saved data set ({one_line(e)[:200]})") from None
    parts = dict(data) if isinstance(data, library.DatasetDict) else {str(data.split or "train"): data}
    if split not in parts:
        raise InputError(f"{what}: there is no split={split!r}; it has the splits {', '.join(parts)}")
    # A saved format (torch, ...) would turn the fields into arrays.
    return parts[split].with_format(None)


def datasets_library(what: str) -> Any:
    """The Hugging Face `datasets` library, in a version that runs no data set's script; `InputError` without it."""
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{what} needs the Hugging Face `datasets` library: pip install 'selftrain_jax[datasets]'"
        ) from None
    if int((version := datasets.__version__).split(".")[0]) < 4:
        raise InputError(f"datasets {version} may run a data set's code: pip install -U 'selftrain_jax[datasets]'")
    datasets.disable_progress_bars()
    return datasets
