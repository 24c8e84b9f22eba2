"""Rows and texts in the files that a user names. The ending of a name, in any case, says what a file holds; every other
ending is refused."""

import codecs
import errno
import gzip
import itertools
import json
import os
import pathlib
import warnings
import zipfile
import zlib
from typing import IO, Any, Callable, Iterable, Iterator, NoReturn, Sequence

import regex

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.files import fields_once, user_path

LINES = tuple(f"{name}{packed}" for name in (".jsonl", ".jsonlines", ".ndjson") for packed in ("", ".gz"))
ROWS = (*LINES, ".json", ".json.gz")
TEXT = (".txt", ".text", ".md", ".raw", ".tokens")
_TABLES, _PACKED = (".csv", ".tsv", ".parquet", ".arrow"), (".zst", ".bz2", ".xz", ".zip", ".tar", ".tar.gz")
MORE_ROWS = (*ROWS, *_TABLES, *_PACKED, ".part", ".tmp")
"""What may hold rows, too, where it lies beside others; some of it nothing here reads."""

MAX_LINE_BYTES = 1 << 26
"""The longest line, unpacked; a small archive may hold one that fills the memory."""
MAX_JSON_BYTES = 1 << 30
"""The largest file, unpacked, that holds one JSON value."""

_VISIBLE = regex.compile(r"[^\s\p{Z}\p{Cc}\p{Cf}\p{Default_Ignorable_Code_Point}\u2800]")


_MARKED_UP = {
    "HTML": regex.compile(r"\s*<(\?xml\b|!--|!doctype\s+html\b|html\b)", regex.I),
    "RTF": regex.compile(r"\{\\rtf"),
    "WARC": regex.compile(r"WARC/\d"),
}
_CSV = regex.compile(r'(?=.*\b(text|content|sentence|question|document)\b)("?\w+"?[,;\t])+"?\w+"?\s*', regex.I)
"""A first line of names without spaces between them."""


def has_text(text: str) -> bool:
    """Whether `text` holds a visible character: no white space, control, format or ignorable character (Unicode)."""
    return _VISIBLE.search(text) is not None


def has_ending(path: str | os.PathLike, endings: tuple[str, ...]) -> bool:
    return os.fspath(path).lower().endswith(endings)


def check_file(path: str | os.PathLike, endings: tuple[str, ...], what: str) -> pathlib.PurePath:
    """`path` with the home folder in place of `~`; `InputError` unless it is a file with one of `endings`."""
    path = user_path(path)
    if not os.path.isfile(path):
        raise InputError(f"{what} not found: {path}")
    if not has_ending(path, endings):
        raise InputError(f"{what} {path} is of no known kind: its name must end in {', '.join(endings)}")
    return path


def read_rows(
    path: str | os.PathLike,
    fields: Iterable[str] = (),
    what: str = "file",
    change: Callable[[Any], Any] = lambda row: row,
) -> Iterator[Any]:
    """Yields the items of a file with one of the endings `ROWS`: JSON lines, of which blank ones are skipped, or one
    JSON value: a list, or columns. A `.json` file may hold JSON lines, too. Of a `.zip` file, as BLiMP is, those of its
    files of JSON lines that are not `hidden`, by their names. `change` makes an item what it is taken for.

    Raises:
      InputError: the file is missing, unreadable or of another ending, or a line or item (named by number) is broken,
        too long or lacks one of `fields`.
    """
    path = check_file(path, (*ROWS, ".zip"), what)
    try:
        for where, row in _items(path, f"{what} {path}"):
            row = change(row)
            missing = [name for name in fields if not isinstance(row, dict) or name not in row]
            if missing:
                raise InputError(f"{where}: missing field(s) {', '.join(missing)}")
            yield row
    except (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile, RuntimeError) as e:  # of a zip's password
        kind = "zip" if has_ending(path, (".zip",)) else "gzip"
        raise InputError(f"{what} {path} is not a whole {kind} file ({e}): write or download it again") from None
    except OSError as e:
        raise InputError(f"{what} {path} cannot be read ({e.strerror})") from None


def _items(path: pathlib.PurePath, where: str) -> Iterator[tuple[str, Any]]:
    if has_ending(path, (".zip",)):
        with zipfile.ZipFile(path) as archive:
            for name in _members(archive, where):
                with archive.open(name) as f:
                    yield from _lines(f, f"{where}, {name}")
        return
    with (gzip.open if has_ending(path, (".gz",)) else open)(path, "rb") as f:
        lines = has_ending(path, LINES) or _are_lines(f)
        yield from _lines(f, where) if lines else _value(f, where)


def _members(archive: zipfile.ZipFile, where: str) -> list[str]:
    """The files of JSON lines in an archive, by their names; warns of others that may hold rows."""
    names = sorted(name for name in archive.namelist() if not hidden(name))
    read = [name for name in names if has_ending(name, LINES) and not has_ending(name, (".gz",))]
    if rest := [name for name in names if name not in read and has_ending(name, MORE_ROWS)]:
        what = f"{where}: {named(rest)} of it not read, since of another kind than JSON lines"
        warnings.warn(what, InputWarning, stacklevel=2)
    if twice := [a for a, b in zip(read, read[1:]) if a == b]:
        raise InputError(f"{where} holds {twice[0]} twice: pack the one that is meant")
    return read


def named(names: Sequence[object]) -> str:
    """The first of them, and how many more there are."""
    return f"{names[0]}" + f" and {len(names) - 1} more" * (len(names) > 1)


def hidden(name: str | os.PathLike) -> bool:
    """Whether a file, or a folder on the way to it, begins with "." or "_": no data, as Arrow and Spark have it."""
    return any(part[0] in "._" for part in pathlib.PurePath(name).parts)


def below(folder: str | os.PathLike) -> list[pathlib.Path]:
    """What is in and below `folder`, sorted, without what is `hidden`; links to folders are not followed. `InputError`
    for a folder that this user may not read, which would pass for an empty one."""

    def refuse(e: OSError) -> NoReturn:
        raise InputError(f"folder {e.filename} cannot be read ({e.strerror}): allow it, or move it elsewhere")

    found = []
    for at, folders, files in os.walk(folder, onerror=refuse):
        if not os.access(at, os.X_OK):  # its files cannot be looked at
            refuse(PermissionError(errno.EACCES, os.strerror(errno.EACCES), at))
        folders[:] = [name for name in folders if not hidden(name)]
        found += [pathlib.Path(at, name) for name in (*folders, *files) if not hidden(name)]
    return sorted(found)


def read_text(path: str | os.PathLike, what: str = "file") -> str:
    """The text of a file with one of the endings `TEXT`, its lines ending in a line feed; `InputError` when it is
    unreadable or holds something else."""
    path = check_file(path, TEXT, what)
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise InputError(f"{what} {path} is not valid UTF-8 (byte {e.start}): convert it first") from None
    except OSError as e:
        raise InputError(f"{what} {path} cannot be read ({e.strerror})") from None
    if "\0" in text:
        raise InputError(f"{what} {path} holds a zero byte, so it is no UTF-8 text: convert it first")
    if text.startswith("version https://git-lfs.github.com/spec/"):
        raise InputError(f"{what} {path} is a Git LFS pointer, not the text itself: get that with `git lfs pull`")
    first = text.lstrip().partition("\n")[0]
    for kind, ending, value in (("JSON lines", ".jsonl", first), ("JSON", ".json", text)):
        if _is_json(value):
            raise InputError(f"{what} {path} holds {kind}: end its name in {ending}")
    looks = [kind for kind, begins in _MARKED_UP.items() if begins.match(text)] + ["CSV"] * bool(_CSV.fullmatch(first))
    if looks:
        whole = "and all of it, names and marks, is read as the text"
        warnings.warn(f"{what} {path} looks like {looks[0]}, {whole}", InputWarning, stacklevel=3)
    return text


def _is_json(text: str) -> bool:
    """Whether `text` is an object, or a list of objects or texts."""
    try:
        value = json.loads(text) if text.lstrip()[:1] in ("{", "[") else None
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) or isinstance(value, list) and any(isinstance(item, (dict, str)) for item in value)


def _parsed(data: bytes, where_is: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=fields_once)
    except UnicodeDecodeError:
        raise InputError(f"{where_is} not valid UTF-8: convert it first") from None
    except (ValueError, RecursionError) as e:
        raise InputError(f"{where_is} not valid JSON ({getattr(e, 'msg', e)})") from None


def _lines(f: IO[bytes], where: str) -> Iterator[tuple[str, Any]]:
    for number in itertools.count(1):
        line = f.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        if len(line) > MAX_LINE_BYTES:
            raise InputError(
                f"{where}, line {number}: longer than core.rows.MAX_LINE_BYTES={MAX_LINE_BYTES:,}; cut it into several "
                "rows"
            )
        if line.removeprefix(codecs.BOM_UTF8).strip():
            yield f"{where}, line {number}", _parsed(line, f"{where}, line {number}:")


def _are_lines(f: IO[bytes]) -> bool:
    """Whether the first line that is not blank is a JSON object and another one follows."""
    lines = filter(bytes.strip, iter(lambda: f.readline(MAX_LINE_BYTES + 1), b""))
    try:
        return isinstance(json.loads(next(lines, b"")), dict) and next(lines, None) is not None
    except (ValueError, RecursionError):
        return False
    finally:
        f.seek(0)


def _value(f: IO[bytes], where: str) -> Iterator[tuple[str, Any]]:
    data = f.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise InputError(f"{where}: larger than core.rows.MAX_JSON_BYTES={MAX_JSON_BYTES:,}; write JSON lines (.jsonl)")
    rows = value = _parsed(data, f"{where} is")
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        if len(set(map(len, value.values()))) > 1:
            lengths = ", ".join(f"{column} {len(values)}" for column, values in value.items())
            raise InputError(f"{where}: the columns have different lengths ({lengths})")
        rows = (dict(zip(value, row)) for row in zip(*value.values()))
    elif not isinstance(value, list):
        raise InputError(f'{where} must hold a list of texts, a list of objects, or columns such as {{"text": [...]}}')
    for number, row in enumerate(rows, 1):
        yield f"{where}, item {number}", row
