"""Which files of a stranger's folder are data, and of which split they are."""

import os
import pathlib
import re
import warnings
from typing import Collection, Mapping, Sequence

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.files import file_fingerprint
from selftrain_jax.core.rows import LINES, MORE_ROWS, ROWS, below, has_ending, hidden, named

_SPLITS = {
    word: split
    for split, words in {
        "train": ("train", "training"),
        "validation": ("validation", "valid", "val", "dev"),
        "test": ("test", "testing", "eval", "evaluation"),
    }.items()
    for word in words
}
_DATA = (*MORE_ROWS, ".txt")
_LIKE_DATA = re.compile(rf"({'|'.join(map(re.escape, _DATA))})($|\W)", re.IGNORECASE)
"""Names of data, and of what wget, editors and backups make of them (a.jsonl.1, a.jsonl~)."""
_ABOUT = ("dataset_info.json", "dataset_infos.json")
_LOGS = {"_delta_log": "Delta", ".hoodie": "Hudi", "metadata/snap-*.avro": "Iceberg"}
"""What keeps, of a table with a history, which of the files beside it are its newest state."""
_COPY = re.compile(
    r"( \(\d+\)|( -)? copy( \d+)?| ?\([^)]*conflict[^)]*\)|[-.](bak|old|orig|part|partial|tmp|temp|incomplete))+$",
    re.IGNORECASE,
)
"""What browsers, file managers, synchronization and interrupted writers add to a name."""
KINDS = {"parquet": (".parquet",), "jsonl": LINES}
"""What the files of a folder may be, by their endings."""
FORMATS = f"a {', '.join(ROWS)} file, a Hugging Face data set folder, or tfds:NAME"


def choose_files(
    name: str, path: pathlib.Path, split: str, kinds: Mapping[str, tuple[str, ...]] = KINDS
) -> tuple[str, list[pathlib.Path]]:
    """(the first of `kinds` that is there, its files of `split` in and below the folder `path`); `name` is the user's
    for it.

    Raises:
      InputError: there are none, or it is not sure which they are.

    Warns:
      InputWarning: files are not read that look like data, a file is there twice, or one of several parts is missing.
    """
    found = data_files(path)
    for kind, endings in kinds.items():
        files = [file for file in found if has_ending(file, endings)]
        if files:
            break
    else:
        corpus = (path / "manifest.json").is_file()
        advice = "a finished corpus needs no import: set controls.NAME.corpus to it" if corpus else f"name {FORMATS}"
        raise InputError(f"import source {name} holds no .parquet or .jsonl file and no saved data set; {advice}")
    # CONFIG/SPLIT/0000.parquet is what the hub's conversion names the files of a data set.
    converted = [file.relative_to(path).parts for file in files if re.fullmatch(r"\d{4}\.parquet", file.name)]
    several = {parts[-3] for parts in converted if len(parts) > 2}
    if len(several) > 1:
        told = ", ".join(sorted(several))
        raise InputError(f"import source {name} holds the configurations {told}: name the folder of one of them")
    folders = [part for file in files for part in file.relative_to(path).parts[:-1]]
    if by := [part for part in folders if part.lower().startswith("split=")]:
        raise InputError(f"import source {name} keeps each split in a folder ({by[0]}): name one of these")
    chosen, rest = _of_split(name, path, files, split)
    _check_card(name, path, chosen, split)
    _check_current(f"import source {name}", path, chosen)
    _look_for_copies(f"import source {name}", chosen)
    _look_for_gaps(f"import source {name}", [file.relative_to(path) for file in chosen])
    rest += [file for file in found if _LIKE_DATA.search(file.name) and file.name not in _ABOUT and file not in files]
    if rest:
        what = f"not read, since of no split or another kind: {named([file.relative_to(path) for file in rest])}"
        warnings.warn(f"import source {name}: {what}", InputWarning, stacklevel=2)
    return kind, chosen


def data_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files in and below `folder`, sorted, without those that are `hidden`.

    Raises:
      InputError: a link among them leads to a folder or to nothing, or a folder cannot be read.
    """
    found = below(folder)
    for file in found:
        if file.is_symlink() and not file.is_file():
            raise InputError(f"{file} is a link to {os.readlink(file)}, no file: put the data there, or remove it")
    return [file for file in found if file.is_file()]


def _of_split(
    name: str, path: pathlib.Path, files: list[pathlib.Path], split: str
) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """The files of `split`, and those that are of none where others are of some.

    A split is told as the `datasets` library does, but in any case: by names such as data/SPLIT-00000-of-00002, else by
    a folder that is called like a split, else by the file's own name; all files are "train" when none says any."""
    wanted = _SPLITS.get(split.lower(), split)

    def words(text: str) -> set[str]:
        found = set(re.split(r"[-._ 0-9]+", text.lower()))
        return {_SPLITS[word] for word in found if word in _SPLITS} | ({wanted} if wanted.lower() in found else set())

    def sharded(file: pathlib.PurePath) -> set[str]:
        found = re.fullmatch(r"data/(\w[\w.]*)-\d{5}-of-\d{5}[^/]*", file.as_posix())
        return {_SPLITS.get(found[1].lower(), found[1])} if found else set()

    for say in (sharded, lambda file: set().union(*map(words, file.parts[:-1])), lambda file: words(file.name)):
        splits = {file: say(file.relative_to(path)) for file in files}
        if any(splits.values()):
            break
    else:
        splits = dict.fromkeys(files, {"train"})
    known = ", ".join(sorted(set().union(*splits.values())))
    for file, found in splits.items():
        if len(found) > 1:
            raise InputError(
                f"import source {name}: {file.relative_to(path)} names the splits {', '.join(sorted(found))}; rename "
                "it, or name a folder below"
            )
    chosen = [file for file, found in splits.items() if wanted in found]
    if not chosen:
        raise InputError(f"import split={split!r}: the files of {name} are of the splits {known}; or name a file")
    return chosen, [file for file, found in splits.items() if not found]


def _check_card(name: str, path: pathlib.Path, chosen: Collection[pathlib.Path], split: str) -> None:
    """Raises `InputError` where the data set's card tells several configurations apart, or gives the split other files
    than `chosen`."""
    from huggingface_hub import repocard

    card = path / "README.md"
    try:
        about = repocard.metadata_load(card) if card.is_file() else None
        configs = (about or {}).get("configs") or []
        parts = {str(config["config_name"]): config.get("data_files") for config in configs}
    except Exception:  # no card of a data set; the library of cards, YAML and encodings raise their own
        return
    if len(parts) > 1:
        raise InputError(
            f"import source {name}: {card.name} tells the configurations {', '.join(parts)} apart; name the file or "
            "folder of one of them"
        )
    told = next(iter(parts.values()), None)
    told = told if isinstance(told, list) else [told] if told else []
    by_split = [of if isinstance(of, Mapping) else {"split": "train", "path": of} for of in told]
    wanted = _SPLITS.get(split.lower(), split)
    paths = [of.get("path") for of in by_split if _SPLITS.get(str(of.get("split")).lower(), of.get("split")) == wanted]
    patterns = [text for of in paths for text in (of if isinstance(of, list) else [of])]
    if not all(isinstance(text, str) and text and text[0] != "/" and "**" not in text for text in patterns):
        return
    matched = {file for text in patterns for file in path.glob(text) if file.is_file()}
    given = {file for file in matched if not hidden(file.relative_to(path))}
    if by_split and given != set(chosen):
        listed = named([file.relative_to(path) for file in sorted(given.symmetric_difference(chosen))])
        raise InputError(
            f"import source {name}: the files of split={split!r} are not those that {card.name} gives it ({listed}); "
            "name a file, or a folder below"
        )


def _check_current(what: str, path: pathlib.Path, files: Collection[pathlib.Path]) -> None:
    """Raises `InputError` where some of the files may be of an earlier state of the data set."""
    folders = {folder for file in files for folder in file.parents if folder.is_relative_to(path)}
    for folder in sorted(folders):
        for log, kind in _LOGS.items():
            if next(folder.glob(log), None):
                raise InputError(
                    f"{what}: {folder} is a {kind} table, of which files of earlier states are still there; write its "
                    "newest state to Parquet files in another folder"
                )
        states = {file.relative_to(folder).parts[0] for file in files if folder in file.parents}
        if folder.name == "snapshots" and len(states) > 1:
            states = f"{len(states)} states of one data set in {folder}"
            raise InputError(f"{what} holds {states}: name one of these folders")


def _look_for_copies(what: str, files: Sequence[pathlib.Path]) -> None:
    """Raises `InputError` for two files of one name but for the ending, as an archive beside what was packed; warns of
    two with the same contents."""
    named: dict[str, pathlib.Path] = {}
    contents: dict[str, pathlib.Path] = {}
    for file in files:
        ending = max((e for e in _DATA if has_ending(file, (e,))), key=len)
        if (other := named.setdefault(str(file)[: -len(ending)], file)) != file:
            raise InputError(
                f"{what}: {other.name} and {file.name} seem to be one file twice; remove one, or rename it"
            )
        if file.stat().st_size and (other := contents.setdefault(file_fingerprint(file), file)) != file:
            same = f"{file.name} holds the same as {other.name}, and its texts count again"
            warnings.warn(f"{what}: {same}", InputWarning, stacklevel=3)
    for stem, file in named.items():
        if (other := named.get(_COPY.sub("", stem), file)) != file:
            text = f"{file.name} seems to be another version of {other.name}, and both are read"
            warnings.warn(f"{what}: {text}", InputWarning, stacklevel=3)


def _look_for_gaps(what: str, files: Sequence[pathlib.PurePath]) -> None:
    """Warns where some of several parts, as train-00001-of-00003, are not there; `InputError` where the same seems to
    be cut into two numbers of parts, as by a second download."""
    parts: dict[tuple[str, str], set[int]] = {}
    numbers = {int(found[1]) for file in files if (found := re.match(r"part-(\d{5})\b", file.name))}  # as of Spark
    if missing := sorted({*range(max(numbers, default=0))} - numbers):
        text = f"{what}: part-{missing[0]:05} is missing ({len(missing)} of {max(numbers) + 1} parts are not there)"
        warnings.warn(text, InputWarning, stacklevel=3)
    for file in files:
        if found := re.fullmatch(r"(.*\D)(\d+)-of-(\d+)\D*", file.as_posix()):
            parts.setdefault((found[1], found[3]), set()).add(int(found[2]))
    for (begin, count), numbers in parts.items():
        if other := [of for start, of in parts if start == begin and of != count]:
            both = f"{begin}*-of-{count} and {begin}*-of-{other[0]}"
            raise InputError(f"{what}: {both} seem to be one data set twice; remove one")
        if (there := len(numbers & {*range(int(count))})) < int(count):
            text = f"{there} of the {int(count)} parts {begin}*-of-{count} are there, and the others are not read"
            warnings.warn(f"{what}: {text}", InputWarning, stacklevel=3)
