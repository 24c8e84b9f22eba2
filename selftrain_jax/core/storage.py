"""Where a run lives: a folder on disk, or a bucket.

Checkpoints go straight to a bucket: Orbax writes and reads them there, every process its own part. Everything else
passes through a copy on each machine, because the libraries that read and write it (ArrayRecord, safetensors,
TensorBoard) know files only: what a stage reads is fetched before it begins, and what it writes is sent while it works.
"""

import atexit
import contextlib
import fcntl
import itertools
import os
import pathlib
import shutil
import stat
import sys
import tempfile
import threading
import warnings
from typing import IO, Any, Iterable, Iterator, Mapping

from selftrain_jax.core.errors import InputError, InputWarning, RunStopped, one_line
from selftrain_jax.core.files import file_fingerprint, inside, is_remote, user_path
from selftrain_jax.core.lock import held

SEND_EVERY = 10
"""Seconds between two looks for what a stage has written; so much of its work may be lost with the machine."""

CHECKPOINTS = "checkpoints"
_REPLACED, _REDONE = "replaced", "before-redo"
_LOGS = ("tensorboard", "profile", "wandb", CHECKPOINTS)
_SMALL = 1 << 24
"""Bytes of a file whose contents are compared, not its size alone."""
RECORDS = ("manifest.json", "started.json")
_copies: dict[str, str] = {}  # the copies of this process -> the folders in buckets


class Workdir:
    """A run's folder as its stages see it.

    Attributes:
      path: the folder itself, on disk or in a bucket. Records of stages and checkpoints are read and written there.
      local: the folder on this machine in which stages work; `path` itself where that is on disk, otherwise a copy that
        starts empty and goes with the process.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = self.local = user_path(path)
        self._remote = is_remote(self.path)
        if self._remote:
            self._check()
            self.local = _new_copy()
            _copies[str(self.local)] = str(self.path)
            self._lock = threading.RLock()
            self._fetched: dict[str, str] = {}  # file below the folder -> what the bucket calls the version of our copy
            self._sent: dict[str, tuple[int, int]] = {}  # file -> time and size of the copy when both were the same

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds the folder, made where there is none, for the work of this process alone.

        Raises:
          InputError: another process works in it, or it cannot be written.
        """
        coding = sys.getfilesystemencoding()
        if not self._remote and not str(self.path.absolute()).isascii() and coding != "utf-8":
            raise InputError(
                f"workdir {self.path} has a character beyond ASCII, which libraries would write in UTF-8 and this "
                f"locale reads as {coding}: set LC_ALL=C.UTF-8, or name another --workdir"
            )
        new = not self._remote and not self.path.exists()
        with contextlib.ExitStack() as holding:
            try:
                if new:
                    self.path.mkdir(parents=True, exist_ok=True)
                    holding.callback(self._remove_if_empty)
                holding.enter_context(held(self.lock, f"workdir {self.path} is in use", fenced=True))
            except OSError as e:
                raise InputError(
                    f"workdir {self.path} cannot be written ({e.strerror or e}): name another --workdir"
                ) from None
            yield

    @property
    def lock(self) -> pathlib.PurePath:
        """The file that says who is at work here."""
        return self.path / ".lock"

    def _remove_if_empty(self) -> None:
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def fetch(self, *names: str) -> None:
        """Copies what the bucket holds below these folders, or anywhere, and is not here yet. Checkpoints stay there.

        Raises:
          RunStopped: the bucket cannot be read.
        """
        if not self._remote:
            return
        with self._lock, self._at_work("read"):
            filesystem, root = self._filesystem()
            for name in names or ("",):
                top = f"{root}/{name}".rstrip("/")
                for found, info in filesystem.find(top, detail=True).items():
                    file = found[len(root) + 1 :]
                    version = str(info.get("etag") or (info.get("size"), info.get("updated")))
                    own = file in self._sent and file not in self._fetched
                    elsewhere = CHECKPOINTS in file.split("/") or file.startswith((f"{_REPLACED}/", f"{_REDONE}/", "."))
                    if own or elsewhere or self._fetched.get(file) == version or found.endswith("/"):
                        continue
                    target = inside(self.local, file, self.path)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    filesystem.get_file(found, str(target))
                    self._fetched[file], self._sent[file] = version, _mark(target)

    def send(self, name: str) -> None:
        """Copies what was written here below the folder `name` to the bucket, and removes there what is gone here.

        Raises:
          RunStopped: the bucket cannot be written.
        """
        if not self._remote:
            return
        with self._lock, self._at_work("written"):
            top = self.local / name
            files = [p for p in top.rglob("*") if p.is_file() and not p.name.startswith(".")]
            here = {str(p.relative_to(self.local)): p for p in files if p.parent != top or p.name not in RECORDS}
            # What declares other files complete goes last.
            for file, source in sorted(here.items(), key=lambda item: (item[1].name == "manifest.json", item[0])):
                with contextlib.suppress(FileNotFoundError):  # renamed or removed meanwhile
                    mark = _mark(source)
                    if self._sent.get(file) != mark:
                        with open(source, "rb") as copy, (self.path / file).open("wb") as original:
                            shutil.copyfileobj(copy, original, 1 << 24)
                        self._sent[file] = mark
                        self._fetched.pop(file, None)
            below = [file for file in self._sent if file.startswith(f"{name}/") and file not in here]
            for file in below:
                if (self.local / file).exists():
                    continue  # a record, which is not ours to send
                with contextlib.suppress(FileNotFoundError):
                    (self.path / file).unlink()
                del self._sent[file]

    @contextlib.contextmanager
    def sending(self, name: str) -> Iterator[None]:
        """Sends what the body writes below `name` every `SEND_EVERY` seconds, and the rest however it ends."""
        if not self._remote:
            yield
            return
        over = threading.Event()

        def keep_sending():
            while not over.wait(SEND_EVERY):
                try:
                    self.send(name)
                except RunStopped as e:  # said once; the last attempt, or the next, decides
                    warnings.warn(f"{e}; trying again", InputWarning, stacklevel=1)

        thread = threading.Thread(target=keep_sending, name=f"send {name}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.send(name)

    def result_files(self, name: str) -> dict[str, str | int | None]:
        """What a stage has left below the folder `name`, hidden files, records and logs excepted, and of its
        checkpoints the last: the fingerprint of a small file, the size of a large one, None of what checks
        itself."""
        top, last = self.local / name, self.path / name / CHECKPOINTS
        found = [p.relative_to(top) for p in top.rglob("*") if p.is_file()]
        shown = [p for p in found if not any(part.startswith(".") or part in _LOGS for part in p.parts)]
        steps = [step.name for step in last.iterdir() if step.name.isdigit()] if last.is_dir() else []
        files = {p.as_posix(): _contents(top / p) for p in sorted(shown) if p.as_posix() not in RECORDS}
        for step in sorted(steps, key=int)[-1:]:
            files[f"{CHECKPOINTS}/{step}"] = None
            sums = (top / CHECKPOINTS / step / "checksums").rglob("*")  # of the arrays
            files |= {p.relative_to(top).as_posix(): _contents(p) for p in sorted(sums) if p.is_file()}
        return files

    def refuse_links(self, name: str) -> None:
        """Raises `InputError` for a link in the place of the folder `name`, or within it, where work would write;
        Weights & Biases leaves some of its own."""
        if self._remote:
            return
        folder = self.path / name
        above = [self.path / part for part in pathlib.PurePath(name).parents if part.name]
        within = (path for path in folder.rglob("*") if "wandb" not in path.relative_to(folder).parts)
        if link := next((path for path in (*above, folder, *within) if path.is_symlink()), None):
            raise InputError(
                f"{link} is a link, and stages write into their own folders alone: put what it leads to in its place, "
                "or let the whole workdir lie elsewhere"
            )

    def set_aside(self, name: str) -> pathlib.PurePath:
        """Moves the folder `name` away; returns where it is now, below `replaced`."""
        return self._move(
            name,
            next(target for n in itertools.count(1) if not (target := self.path / _REPLACED / str(n) / name).exists()),
        )

    def keep_until_redone(self, name: str) -> None:
        """Moves the folder `name` away until `redone`; what another attempt has made of it meanwhile is removed."""
        kept = self.kept / name
        if kept.exists():
            self._remove(name)
        else:
            self._move(name, kept)

    @property
    def kept(self) -> pathlib.PurePath:
        """Where `keep_until_redone` moves folders."""
        return self.path / _REDONE

    def put_back(self, name: str) -> None:
        """Undoes `keep_until_redone`, in whose place there is nothing yet."""
        self._move(f"{_REDONE}/{name}", self.path / name)
        with contextlib.suppress(OSError):  # a bucket has no folders, and others may be kept there
            for above in itertools.takewhile(self.path.__ne__, (self.kept / name).parents):
                pathlib.Path(above).rmdir()

    def redone(self) -> None:
        """Removes what `keep_until_redone` has kept."""
        if self.kept.exists():
            self._remove(_REDONE)

    def _remove(self, name: str) -> None:
        if not self._remote:
            removed = self.path / ".removed"  # in one go: half a folder might be taken for unfinished work
            shutil.rmtree(removed, ignore_errors=True)
            (self.path / name).rename(removed)
            shutil.rmtree(removed)
            return
        with self._lock, self._at_work("written"):
            filesystem, root = self._filesystem()
            filesystem.rm(f"{root}/{name}", recursive=True)
            self._forget(name)

    def _forget(self, name: str) -> None:
        shutil.rmtree(self.local / name, ignore_errors=True)
        for known in (self._fetched, self._sent):
            for file in [file for file in known if file.startswith(f"{name}/")]:
                del known[file]

    def _move(self, name: str, target: pathlib.PurePath) -> pathlib.PurePath:
        if not self._remote:
            target.parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).rename(target)
            return target
        with self._lock, self._at_work("written"):
            filesystem, root = self._filesystem()
            filesystem.copy(f"{root}/{name}", f"{root}/{target.relative_to(self.path)}", recursive=True)
            filesystem.rm(f"{root}/{name}", recursive=True)
            self._forget(name)
        return target

    def _check(self) -> None:
        try:
            self._filesystem()[0].find(os.fspath(self.path), maxdepth=1)
        except Exception as e:
            if isinstance(e, FileNotFoundError):
                e = "there is no such bucket"
            elif not is_storage_error(e):
                raise
            raise InputError(
                f"workdir {self.path} cannot be reached ({e}): check the bucket's name and your rights, or log in with "
                "`gcloud auth application-default login`"
            ) from None

    def _filesystem(self) -> tuple[Any, str]:
        """fsspec's file system, and the name that the folder has in it."""
        import fsspec

        return fsspec.url_to_fs(os.fspath(self.path))

    @contextlib.contextmanager
    def _at_work(self, doing: str) -> Iterator[None]:
        try:
            yield
        except Exception as e:
            if not is_storage_error(e):
                raise
            raise RunStopped(
                f"{self.path} cannot be {doing} ({one_line(e)[:200]}); the same command goes on from what is there"
            ) from e


def _contents(file: pathlib.Path) -> str | int | None:
    if ".array_record" in file.name:  # it checks itself, and a damaged shard is drawn again alone
        return None
    size = file.stat().st_size
    return file_fingerprint(file) if size <= _SMALL else size


def half_redone(folder: pathlib.PurePath, name: str) -> bool:
    """Whether what a stage left in `folder` was moved away to be made anew, and is not yet."""
    manifest = f"{name}/{RECORDS[0]}"
    return (folder / _REDONE / manifest).is_file() and not (folder / manifest).is_file()


def missing_files(folder: pathlib.PurePath, names: Iterable[str]) -> list[str]:
    """Which of `names`, files or folders below `folder`, are not there; on disk, also which of them are not what
    `Workdir.result_files` has found, where `names` is that."""
    if not is_remote(folder):
        found = names if isinstance(names, Mapping) else dict.fromkeys(names)
        return [
            name
            for name, before in found.items()
            if not (folder / name).exists()
            or before is not None
            and not ((folder / name).is_file() and before == _contents(folder / name))  # no device, which never ends
        ]
    import fsspec

    filesystem, root = fsspec.url_to_fs(os.fspath(folder))
    there = filesystem.find(root, withdirs=True) if names else ()
    return [name for name in names if f"{root}/{name}" not in there]


def is_storage_error(error: Exception) -> bool:
    """Whether this comes from a bucket: gcsfs, its HTTP library and Google's authentication each raise their own."""
    libraries = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
    return bool(libraries & {"gcsfs", "aiohttp", "google", "requests"}) or isinstance(error, OSError)


_locks: list[IO] = []


def in_its_bucket(text: str) -> str:
    """`text` with the folder in the bucket where it names a copy on this machine, which goes with the process."""
    for local, path in _copies.items():
        text = text.replace(local, path)
    return text


def _new_copy() -> pathlib.Path:
    """An empty folder that goes when this process ends; or, if it is killed, when the next one asks for one."""
    for lock in pathlib.Path(tempfile.gettempdir()).glob("selftrain-*/.lock"):
        # The folder is everybody's: what is no file of this user may be a trap.
        with contextlib.suppress(OSError), open(lock, opener=_open_without_waiting) as f:
            found = os.fstat(f.fileno())
            if stat.S_ISREG(found.st_mode) and found.st_uid == lock.parent.lstat().st_uid == os.getuid():
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system releases it with its process
                shutil.rmtree(lock.parent, ignore_errors=True)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="selftrain-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _locks.append(open(folder / ".new", "w"))
    fcntl.flock(_locks[-1], fcntl.LOCK_EX)
    os.replace(folder / ".new", folder / ".lock")
    return folder


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)


def _mark(path: pathlib.Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size
