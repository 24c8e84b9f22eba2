"""What a command does when it is told to stop, by SIGTERM or by a notice that the cloud takes the machine away; and
when a process of its job dies.

Training saves its step and stops by itself (`training.loop`); it gets `PATIENCE` seconds to come to the end of a step.
Everything else leaves at once: what is on disk is whole, and the same command goes on from it. In a job of several
processes all of them stop, whichever was told.
"""

import contextlib
import functools
import os
import pathlib
import select
import signal
import socket
import sys
import threading
import time
import urllib.request
from typing import Any, Iterator

EXIT_CODE = 128 + signal.SIGTERM
PATIENCE = 20
"""Seconds in which a training that is told to stop must begin to save; clouds and schedulers leave some 30 in all."""
POLL = 3
"""Seconds between two questions to the metadata server of the cloud, and between two looks whether all processes live.
"""


class _Watch:
    """A thread that waits for SIGTERM, here or in another process of the job, and ends this process.

    A thread, since Python runs signal handlers between two steps of the main one, which may be compiling, or waiting
    for a device or another process."""

    def __init__(self):
        self.doing = "the start"
        self.job: Any = None  # the module `job`, in a process that has joined others
        self.joining, self.obeyed = True, False
        self.training = self.saving = False  # the phases of `during`
        self._lock = threading.Lock()
        self._until = 0.0
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._over = threading.Event()
        self._handler = signal.signal(signal.SIGTERM, lambda *_: None)
        self._wakeup = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._wait, name="preemption", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._write.send(b"\0")  # wakes the thread
        self._thread.join(PATIENCE + 10)  # it may be about to end the process
        signal.set_wakeup_fd(self._wakeup)
        if not self.obeyed and self.job is None:  # in a job, the handler is no longer ours but JAX's
            signal.signal(signal.SIGTERM, self._handler)
        self._read.close()
        self._write.close()

    def _wait(self) -> None:
        looked = time.monotonic()
        while not self._over.is_set():
            ready, _, _ = select.select([self._read], [], [], 0.5)
            here = bool(ready) and signal.SIGTERM in self._read.recv(64)
            if here and self.joining:  # the others are told as soon as they can be
                self._wait_while(lambda: self.joining and not self._over.is_set())
                if self.job:
                    os.kill(os.getpid(), signal.SIGTERM)
                    continue
            if here or self.told_elsewhere():
                return self._stop()
            if self.job and time.monotonic() > looked + POLL:
                if lost := self.job.lost_peers():
                    return self._lose(lost)
                looked = time.monotonic()

    def told_elsewhere(self) -> bool:
        return self.job is not None and self.job.told_to_stop()

    def _stop(self) -> None:
        self._until = time.monotonic() + PATIENCE + 5
        if self.job:
            time.sleep(1)  # all hear of it, and those in training agree on a step, before the first one leaves
        self._wait_while(lambda: self.training and not self.obeyed and not self._over.is_set())
        self.leave()

    def _lose(self, lost: str) -> None:
        """Leaves a job of which a process is gone, some seconds before JAX would abort this one without naming it."""
        self._over.wait(POLL)  # where data is exchanged, the main thread notices, too, and says what it was about
        if not self._over.is_set():
            self._until = time.monotonic() + 10
            self.leave(
                f"{lost}, as seen in {self.doing}; start all again, the same command goes on from what is saved", 1
            )

    def _wait_while(self, goes_on) -> None:
        until, told = time.monotonic() + PATIENCE, False
        while goes_on() and (self.saving or time.monotonic() < until):
            if time.monotonic() >= until and not told:
                _tell("SIGTERM came; waiting for the checkpoint that is being written")
                told = True
            time.sleep(0.05)

    def leave(self, why: str = "", code: int = EXIT_CODE) -> None:
        """Ends the process, unless the training stops by itself, be it that it began only meanwhile."""
        if self.job:
            self.job.outlive(self._until - time.monotonic(), lambda: self.obeyed)
        with self._lock:
            if self.obeyed:
                return
            try:
                late = f", which came to no end of a step within {PATIENCE} s" if self.training else ""
                told = f"SIGTERM came during {self.doing}{late}; the same command goes on from what is saved"
                # The main thread may hold the lock of stdout; nobody may read what is written.
                for last in (sys.stdout.flush, functools.partial(_tell, f"stopped: {why or told}")):
                    thread = threading.Thread(target=last, daemon=True)
                    thread.start()
                    thread.join(1)
                if self.job:
                    self.job.says_it_leaves()
            finally:
                os._exit(code)

    def obey(self) -> None:
        with self._lock:
            self.obeyed = True


def _tell(text: str) -> None:
    """One line on stderr, past Python's buffers; a progress bar may have left its line open."""
    os.write(2, f"\nselftrain: {text}\n".encode())


_watch: _Watch | None = None


@contextlib.contextmanager
def watching() -> Iterator[None]:
    """Within the body, SIGTERM ends the process with one line and exit code 143; see the module.

    For the main thread of a command, and nothing else: the end is `os._exit`, from any point of the body.
    """
    global _watch
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's business
        yield
        return
    _watch = watch = _Watch()
    stop = threading.Event()
    if host := _metadata_host():
        threading.Thread(target=_ask_cloud, args=(host, stop), name="cloud notices", daemon=True).start()
    try:
        yield
        if watch.job:
            watch.job.says_it_leaves()
    except Exception:
        # Another process may have left before this one heard why.
        if watch.told_elsewhere():
            watch.leave()
        raise
    finally:
        stop.set()
        watch.close()
        _watch = None


def joined(job: Any) -> None:
    """Says that the process has joined its job, or is alone. Before, SIGTERM is kept, since the others could not be
    told.

    `job` is the module of that name, which this one does not import: it must be there before JAX is.
    """
    if _watch:
        _watch.job = job if job.has_joined() else None
        _watch.joining = False


def begins(doing: str) -> None:
    """Says what the process does from here on."""
    if _watch:
        _watch.doing = doing


@contextlib.contextmanager
def during(phase: str) -> Iterator[None]:
    """Within the body the process does not leave at once.

    Args:
      phase: "training", which gets `PATIENCE` to end a step, to call `obey` and to save; or "saving", which takes the
        time it takes.
    """
    if _watch:
        setattr(_watch, phase, True)
    try:
        yield
    finally:
        if _watch:
            setattr(_watch, phase, False)


def obey() -> None:
    """Says that the training stops by itself from here on."""
    if _watch:
        _watch.obey()


def _metadata_host() -> str:
    """The metadata server of a machine in Google's cloud, "" elsewhere; found without asking the network."""
    product = pathlib.Path("/sys/class/dmi/id/product_name")
    with contextlib.suppress(OSError):
        if not os.environ.get("GCE_METADATA_HOST") and product.read_text().startswith("Google"):
            return "metadata.google.internal"
    return os.environ.get("GCE_METADATA_HOST", "")


_NOTICES = {"maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE", "preempted": "TRUE"}


def _ask_cloud(host: str, stop: threading.Event) -> None:
    """Sends this process SIGTERM when the server begins to tell of maintenance that ends the machine, or of preemption.

    A notice that is there from the start was for a run before: maintenance of GPUs is told an hour ahead, in which this
    one may go on.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    before: dict[str, str] = {}
    while not stop.is_set():
        for name, notice in _NOTICES.items():
            url = f"http://{host}/computeMetadata/v1/instance/{name}"
            try:
                request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
                with opener.open(request, timeout=POLL) as answer:
                    value = answer.read().decode().strip()
            except (OSError, ValueError):  # not there, not now (it answers 503 during maintenance), or not this key
                continue
            if value == notice != before.get(name, notice):
                _tell(f"the metadata server says {name}: {value}")
                os.kill(os.getpid(), signal.SIGTERM)
                return
            before[name] = value
        stop.wait(POLL)
