"""Small, crash-safe file operations and fingerprints."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import logging
import math
import os
import pathlib
import re
import secrets
import shutil
import stat
import struct
import zipfile
from typing import IO, Any, Callable, Iterable, Iterator, Mapping

from selftrain_jax.core.errors import InputError, one_line, visible
from selftrain_jax.core.lock import held


def is_remote(path: str | os.PathLike) -> bool:
    """Whether `path` is a URL, such as gs://bucket/folder."""
    return "://" in os.fspath(path)


def as_path(path: str | os.PathLike) -> pathlib.PurePath:
    """`path` as a path object: of etils.epath for a URL, of pathlib otherwise.

    Raises:
      InputError: a URL that is not gs://BUCKET..., or one while gcsfs is not installed.
    """
    text = os.fspath(path)
    if not is_remote(path):
        if text.startswith("gs:/"):
            raise InputError(f"path {text} is neither a bucket nor a good name for a folder: write gs://BUCKET/FOLDER")
        return pathlib.Path(path)
    if not re.match(r"gs://[^/]", text) or ".." in text.split("/") or re.search(r"[?#*\[\]]", text):
        raise InputError(
            f"path {text}: write gs://BUCKET/FOLDER without .. ? # * [ ], or a folder; other storage is not supported"
        )
    try:
        import gcsfs  # noqa: F401
    except ImportError:
        raise InputError(
            f"path {text} needs gcsfs: pip install 'selftrain_jax[gcs]', or name a folder on disk"
        ) from None
    import fsspec
    from etils import epath

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # its errors are raised, too
    # Others write to the bucket, too, and Orbax does so past this library: a remembered listing would be wrong.
    fsspec.config.conf.setdefault("gs", {}).setdefault("use_listings_cache", False)
    return epath.Path(text)


def absolute(path: str | os.PathLike) -> pathlib.PurePath:
    """`path` from the root on; a URL is."""
    return as_path(path) if is_remote(path) else pathlib.Path(path).absolute()


def check_no_pattern(path: str | os.PathLike) -> None:
    """Raises `InputError` where the whole of `path` reads as a pattern of file names: below it Orbax would look by that
    pattern for what it has just written, find nothing, or files of others, and end without a word. And where it holds a
    line feed, at which ArrayRecord ends a name."""
    if found := [c for c in "*?[\n" + "\\" * (os.sep == "/") if c in os.fspath(absolute(path))]:
        raise InputError(f"{absolute(path)} holds {found[0]!r}, so that arrays cannot be stored below it: rename it")


def write_atomic(path: str | os.PathLike, data: bytes | str) -> None:
    """Writes `data` so that a reader sees the old file or the whole new one, never a part of it."""
    with _atomic(path) as f:
        f.write(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def _atomic(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    path = as_path(path)
    if is_remote(path):  # an object in a bucket appears whole
        buffer = io.BytesIO()
        yield buffer
        path.write_bytes(buffer.getvalue())
        return
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # nobody can have put a link there
    try:
        with open(temporary, "xb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def inside(folder: pathlib.Path, name: str, where: object) -> pathlib.Path:
    """`folder / name`, for a name that others chose, in `where`; `InputError` where it could lead out of the folder."""
    target = folder / name
    bad = {"", ".", ".."} & set(name.split("/")) or "\\" in name or name != visible(name)
    if bad or not os.path.realpath(target).startswith(os.path.join(os.path.realpath(folder), "")):
        raise InputError(f"{where} names {name!r}, which may lie outside of its folder; rename or remove that")
    return target


def user_path(path: str | os.PathLike) -> pathlib.PurePath:
    """`path` with the home folder in place of a leading `~`.

    Raises:
      InputError: there is no home folder of that user, or libraries that expect UTF-8 could not open the path.
    """
    try:
        os.fspath(path).encode()
        return as_path(path) if is_remote(path) else as_path(path).expanduser()
    except UnicodeEncodeError:
        raise InputError(
            f"path {os.fsencode(path)!r} is not in the encoding of this locale, or not UTF-8; set PYTHONUTF8=1, or "
            "rename it"
        ) from None
    except RuntimeError:
        raise InputError(f"path {path}: there is no such user's home folder; write the path in full") from None


def at_home(value: Any) -> Any:
    """`value`, and what is in its dicts, lists and tuples, with the home folder in place of `~` or `~NAME` where a text
    is that, or begins with it and a slash, as a shell has it. `InputError` as `user_path`."""
    if isinstance(value, dict):
        return {name: at_home(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(map(at_home, value))
    return str(user_path(value)) if isinstance(value, str) and re.match(r"~$|~[\w.-]*/", value) else value


def check_new_directory(path: str | os.PathLike, what: str) -> None:
    """Raises `InputError` when `path` is anything but absent or an empty folder."""
    path = user_path(path)
    try:
        taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    except OSError as e:
        raise InputError(f"{what} {path} cannot be used ({e.strerror}); choose another place") from None
    if taken:
        raise InputError(f"{what} {path} exists and is not empty; choose another or remove it")


@contextlib.contextmanager
def new_directory(path: str | os.PathLike, what: str, size: int = 0) -> Iterator[pathlib.Path]:
    """A temporary folder to fill, which appears at `path` complete, or not at all when the body fails.

    What a killed process leaves behind (`.NAME.partial`) goes when the same folder is written again.

    Args:
      path: must not exist, or be an empty folder.
      what: its name in errors.
      size: bytes that will be written, as far as known; refused up front when the disk has less room.

    Raises:
      InputError: the path is taken, another process is writing it, or the system refuses to write there (a full disk, a
        quota, no permission).
    """
    path = user_path(path)
    try:
        check_new_directory(path, what)
        target = pathlib.Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if size > free:
            raise InputError(
                f"{what} {path} needs {size:,} bytes, but its disk has {free:,} free; choose another place"
            )
        temporary = target.with_name(f".{target.name}.partial")
        with held(target.with_name(f".{target.name}.lock"), f"{what} {path} is being written"):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            try:
                yield temporary
                os.replace(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as e:
        reason = " ".join((e.strerror or str(e)).split())
        raise InputError(f"{what} {path} cannot be written ({reason}); make room or choose another place") from None


def json_text(value: Any, **how: Any) -> str:
    """`json.dumps` in strict JSON, which any reader takes: NaN and infinities as null."""
    try:
        return json.dumps(value, allow_nan=False, **how)
    except ValueError:
        plain = json.dumps(value, default=how.get("default"))
        return json.dumps(json.loads(plain, parse_constant=lambda _: None), **how)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """`value` as indented JSON, written by `write_atomic`."""
    write_atomic(path, json_text(value, indent=2) + "\n")


def read_json(path: str | os.PathLike, what: str = "file") -> Any:
    """The JSON value in `path`; `InputError` naming `what` when it is missing or broken."""
    try:
        return json.loads(as_path(path).read_bytes().decode("utf-8-sig"), object_pairs_hook=fields_once)
    except FileNotFoundError:
        raise InputError(f"{what} not found: {path}") from None
    except OSError as e:
        raise InputError(f"{what} {path} cannot be read ({e.strerror or e})") from None
    except (ValueError, RecursionError) as e:
        raise InputError(f"{what} {path} is not valid JSON: {e}") from None


def fields_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `object_pairs_hook` of `json.loads`, which by itself takes the last of several values of one field;
    `ValueError` where they are not the same."""
    fields = dict(pairs)
    for name, value in pairs:
        if fields[name] is not value and fields[name] != value:
            raise ValueError(f"an object has the field {name!r} twice")
    return fields


def read_arrays(path: str | os.PathLike, what: str) -> dict[str, Any]:
    """The numpy arrays of an `.npz` file of a stage; `InputError` naming `what` when it is missing or damaged."""
    import numpy as np

    with _readable(path, what), np.load(path, allow_pickle=False) as arrays:
        # By the name in the archive: "x" would find "x.npy.npy" where that is the name of another array.
        return {name: arrays[f"{name}.npy"] for name in arrays.files}


@contextlib.contextmanager
def _readable(path: str | os.PathLike, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as e:  # zipfile, zlib and numpy each raise their own
        raise InputError(
            f"{what} {path} is missing or damaged ({one_line(e)[:200]}): remove {os.path.dirname(path)} and run the "
            "same command again"
        ) from None


def map_arrays(path: str | os.PathLike, what: str) -> dict[str, Any]:
    """As `read_arrays`, but the arrays stay on disk until they are looked at; what is damaged is found at once."""
    import numpy as np

    found = {}
    with _readable(path, what), zipfile.ZipFile(path) as archive, open(path, "rb") as f:
        if broken := archive.testzip():
            raise zipfile.BadZipFile(f"bad checksum of {broken}")
        for member in archive.infolist():
            # 30 bytes go before its name, then come the extra fields, and then the array as a file of its own.
            f.seek(member.header_offset + 26)
            f.seek(sum(struct.unpack("<HH", f.read(4))), os.SEEK_CUR)
            np.lib.format.read_magic(f)
            shape, by_columns, dtype = np.lib.format.read_array_header_1_0(f)
            if dtype.hasobject:
                raise ValueError(f"{member.filename} holds Python objects")
            array = np.memmap(path, dtype, "r", f.tell(), shape, "F" if by_columns else "C")
            found[member.filename.removesuffix(".npy")] = np.asarray(array)
    return found


@dataclasses.dataclass(frozen=True)
class Blocks:
    """An array that is made block by block along its first axis."""

    shape: tuple[int, ...]
    dtype: Any
    blocks: Iterable[Any]


def write_arrays(path: str | os.PathLike, arrays: Mapping[str, Any]) -> None:
    """Writes an `.npz` file of arrays and `Blocks`, whole or not at all; `read_arrays` and `map_arrays` read it."""
    import numpy as np

    with _atomic(path) as f, zipfile.ZipFile(f, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                if not isinstance(array, Blocks):
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
                    continue
                about = {"descr": np.lib.format.dtype_to_descr(np.dtype(array.dtype)), "fortran_order": False}
                np.lib.format.write_array_header_1_0(member, about | {"shape": array.shape})
                size = sum(member.write(np.ascontiguousarray(block, array.dtype).tobytes()) for block in array.blocks)
                if size != math.prod(array.shape) * np.dtype(array.dtype).itemsize:
                    raise ValueError(f"array {name}: {size} bytes came where its shape is {array.shape}")


def write_jsonl(path: str | os.PathLike, rows: Iterable[dict]) -> None:
    """One JSON object per line, written by `write_atomic`."""
    write_atomic(path, "".join(json_text(row, ensure_ascii=False) + "\n" for row in rows))


def fingerprint(value: Any) -> str:
    """A short, stable hash of a JSON-like value (dataclasses and paths included)."""

    def plain(x):
        if dataclasses.is_dataclass(x):
            return dataclasses.asdict(x)
        return str(x)

    text = json.dumps(value, sort_keys=True, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_fingerprint(*paths: str | os.PathLike) -> str:
    """A short hash of the contents of `paths`, in the order given; `InputError` when one cannot be read."""
    try:
        found = [os.stat(path) for path in paths]
        if strange := [path for path, s in zip(paths, found) if not stat.S_ISREG(s.st_mode)]:
            raise InputError(f"file {strange[0]} cannot be read (it is none, and may have no end)")
        # The time of the last change cannot be set, as that of the last writing can.
        versions = ((s.st_ino, s.st_ctime_ns, s.st_mtime_ns, s.st_size) for s in found)
        return _hash(*((os.path.abspath(path), *version) for path, version in zip(paths, versions)))
    except OSError as e:
        raise InputError(f"file {e.filename} cannot be read ({e.strerror})") from None


class Fingerprints(Mapping[str, str]):
    """Name -> fingerprint, taken when it is asked for: of those that cannot be taken, the others still can."""

    def __init__(self, looks: Mapping[str, Callable[[], str]]):
        self._looks = dict(looks)

    @classmethod
    def of_files(cls, paths: Mapping[str, str | os.PathLike]) -> "Fingerprints":
        return cls({name: functools.partial(file_fingerprint, path) for name, path in paths.items()})

    def __getitem__(self, name: str) -> str:
        return self._looks[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._looks)

    def __len__(self) -> int:
        return len(self._looks)

    def __or__(self, other: "Fingerprints") -> "Fingerprints":
        return Fingerprints(self._looks | other._looks)


@functools.lru_cache(1024)
def _hash(*versions: tuple) -> str:
    """Of files as (path, what changes with its contents), read once by a process."""
    digest = hashlib.sha256()
    for path, *_ in versions:
        with open(path, "rb") as f:
            while block := f.read(1 << 20):
                digest.update(block)
        digest.update(b"\0")
    return digest.hexdigest()[:16]
