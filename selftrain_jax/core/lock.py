"""Who is at work in a folder: a lock file that every machine sees which shares the disk or the bucket.

The file says who holds it, and its holder renews it. So one that a crash has left behind is told from one that is held:
on the same machine by the process, elsewhere by whether it is renewed. No clocks are compared, nor `flock` trusted.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import secrets
import socket
import stat
import threading
import time
import warnings
from typing import Any, Iterator

from selftrain_jax.core.errors import InputError, InputWarning, one_line

RENEW_EVERY = 15
GONE_AFTER = 120
"""Seconds after which a holder on another machine that has not renewed its lock counts as gone."""


@contextlib.contextmanager
def held(path: str | os.PathLike, what: str, *, fenced: bool = False) -> Iterator[None]:
    """Holds the lock file `path`, on disk or in a bucket; its folder must be there.

    Args:
      what: begins messages, for example "folder x is being written".
      fenced: whether this process ends should another have taken the lock, because this one had stood still.

    Raises:
      InputError: another process holds it.
    """
    lock = _acquire(os.fspath(path), what)
    over = threading.Event()

    def renew():
        while not over.wait(RENEW_EVERY):
            with contextlib.suppress(Exception):  # a disk or a bucket that is away for a while
                if not lock.renew() and fenced:
                    os.write(
                        2, f"\nselftrain: stopped: {what} by another process now, as this one stood still\n".encode()
                    )
                    os._exit(1)

    thread = threading.Thread(target=renew, name=f"lock {path}", daemon=True)
    thread.start()
    _held.append(lock)
    try:
        yield
    finally:
        over.set()
        thread.join()
        _held.remove(lock)
        with contextlib.suppress(Exception):  # it is then left behind as by a crash
            lock.release()


def in_use(path: str | os.PathLike) -> bool:
    """Whether a process holds the lock file, as far as can be told at once: of another machine, whether it is there."""
    lock = _lock(os.fspath(path))
    found = lock.read()
    return bool(found) and (found[0].get("machine") != _machine() or _lives(found[0]))


_held: list["_File"] = []


def release_all() -> None:
    """Releases what this process holds, which is about to end at once."""
    for lock in list(_held):
        with contextlib.suppress(Exception):
            lock.release()


def _acquire(path: str, what: str) -> "_File":
    lock = _lock(path)
    seen, since, warned = None, time.monotonic(), False
    while not lock.create():
        found = lock.read()
        if found is None:  # released meanwhile
            continue
        holder, version = found
        here = holder.get("machine") == _machine()
        who = "process {pid} on {host} since {started}".format(**{"pid": "?", "host": "?", "started": "?"} | holder)
        if not here and version == seen and not warned:
            message = f"{what} by {who}; looking for {GONE_AFTER:.0f} s whether it still is"
            warnings.warn(message, InputWarning, stacklevel=3)
            warned = True
        if not _lives(holder) if here else version == seen and time.monotonic() - since > GONE_AFTER:
            lock.remove(version)
            continue
        if here or holder and version != (seen or version):
            raise InputError(
                f"{what} by {who}; wait for it, stop it, or choose another place; should it be gone, remove {path}"
            )
        if version != seen:
            seen, since = version, time.monotonic()
        time.sleep(0.5)
    return lock


def _lock(path: str) -> "_File":
    return _Object(path) if "://" in path else _File(os.path.abspath(path))


def _machine() -> list[str]:
    """What two processes that can see each other have in common: their host, since when it is up, and the container."""
    known = [socket.gethostname()]
    for find in (pathlib.Path("/proc/sys/kernel/random/boot_id").read_text, lambda: os.readlink("/proc/self/ns/pid")):
        with contextlib.suppress(OSError):
            known.append(find().strip())
    return known


def _started(pid: int) -> str:
    """When the process began, in ticks since the machine did; "" where that is not told. Numbers are given again."""
    with contextlib.suppress(OSError, IndexError):
        return pathlib.Path(f"/proc/{pid}/stat").read_text("latin-1").rpartition(")")[2].split()[19]
    return ""


def _lives(holder: dict[str, Any]) -> bool:
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        pass
    return _started(holder["pid"]) in ("", holder["ticks"])  # of somebody else's, the machine may not tell


class _File:
    """A lock file on disk."""

    def __init__(self, path: str):
        self.path, pid = path, os.getpid()
        self.holder = {"host": socket.gethostname(), "pid": pid, "started": time.strftime("%Y-%m-%d %H:%M:%S")}
        self.holder |= {"machine": _machine(), "ticks": _started(pid), "token": secrets.token_hex(8)}
        self.payload = json.dumps(self.holder).encode()

    def create(self) -> bool:
        """Makes it, unless it is there."""
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        except FileExistsError:
            return False
        try:
            with open(file, "wb") as f:
                f.write(self.payload)
        except OSError:  # a full disk: an empty lock would hold up the next
            os.unlink(self.path)
            raise
        return True

    def read(self) -> tuple[dict[str, Any], Any] | None:
        """Its holder, {} while that is not written, and what changes when it is renewed; None where it is not."""
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as e:
            if e.errno != errno.ELOOP:
                raise
            raise InputError(f"{self.path} is a link, where a lock is to be; remove it") from None
        with open(file, "rb") as f:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode):
                raise InputError(f"{self.path} is no file, where a lock is to be; remove it")
            return _parse(f.read(1 << 16)), (found.st_ino, found.st_mtime_ns, found.st_size)

    def remove(self, version: Any) -> None:
        """Removes it as long as it has this version; of those on this machine that want to, one at a time does."""
        folder = os.open(os.path.dirname(os.path.abspath(self.path)), os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(folder, fcntl.LOCK_EX)
            found = self.read()
            if found and found[1] == version:
                os.unlink(self.path)
        finally:
            os.close(folder)

    def touch(self) -> None:
        os.utime(self.path)

    def renew(self) -> bool:
        """Whether it is still this process's own, which it then shows."""
        found = self.read()
        if found and found[0].get("token") != self.holder["token"]:
            return False
        self.touch() if found else self.create()
        return True

    def release(self) -> None:
        found = self.read()
        if found and found[0].get("token") == self.holder["token"]:
            self.remove(found[1])


class _Object(_File):
    """A lock file in a bucket, which writes and removes on condition."""

    def __init__(self, path: str):
        import fsspec

        super().__init__(path)
        self.filesystem, self.name = fsspec.url_to_fs(path)

    def create(self) -> bool:
        try:
            self.filesystem.pipe_file(self.name, self.payload, mode="create")
        except Exception as e:
            if isinstance(e, FileExistsError) or "412" in one_line(e) or "recondition" in one_line(e):
                return False
            raise
        return True

    def read(self) -> tuple[dict[str, Any], Any] | None:
        try:
            version = self.filesystem.info(self.name).get("generation")
            return _parse(self.filesystem.cat_file(self.name)), version
        except FileNotFoundError:
            return None

    def remove(self, version: Any) -> None:
        bucket, _, name = self.name.partition("/")
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.call("DELETE", "b/{}/o/{}", bucket, name, ifGenerationMatch=version)

    def touch(self) -> None:
        self.filesystem.pipe_file(self.name, self.payload)


def _parse(payload: bytes) -> dict[str, Any]:
    try:
        found = json.loads(payload)
        known = {"machine", "ticks", "token"} <= set(found) and isinstance(pid := found["pid"], int)
        return found if known and 0 < pid < 1 << 31 else {}
    except (ValueError, TypeError, KeyError):
        return {}
