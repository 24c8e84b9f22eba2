"""What a command does when it is told to stop, by SIGTERM, Ctrl-C or a notice that the cloud takes the machine away;
and when a process of its job dies.

Training saves its step and stops by itself (`training.loop`); it gets `PATIENCE` seconds to come to the end of a step.
Everything else leaves at once: what is on disk is whole, and the same command goes on from it. In a job of several
processes all of them stop, whichever was told.

Nothing here imports JAX, so that signals are heeded while it is imported; `job.Peers` takes the place of `Alone` once
this process has joined its job.
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
from typing import Callable, Iterator

from selftrain_jax.core import lock

EXIT_CODE = 128 + signal.SIGTERM
PATIENCE = 20
"""Seconds in which a training that is told to stop must begin to save; clouds and schedulers leave some 30 in all."""
POLL = 3
"""Seconds between two questions to the metadata server of the cloud, and between two looks whether all processes
live."""


class Alone:
    """The other processes of a job, for one that has none."""

    in_job = False

    def told_to_stop(self) -> bool:
        """Whether SIGTERM has come to any process of the job."""
        return False

    def lost(self) -> str:
        """The processes that are gone without a word ("process 3 on host is gone"), "" while there are none."""
        return ""

    def announce_leaving(self, in_order: bool = True) -> None:
        """Tells process 0 that this one is about to end; unless `in_order`, the others will miss it."""

    def announce_failure(self) -> None:
        """In process 0, tells the others that it is about to end, so that they can say so before JAX aborts them."""

    def wait_for_others_to_leave(self, seconds: float, unless: Callable[[], bool] = lambda: False) -> None:
        """In process 0, returns when all others have left or are lost, after `seconds`, or when `unless()`; elsewhere,
        at once. JAX aborts those that outlive process 0."""


class _Process:
    """What this process does, with whom, and whether it was told to stop.

    Once `watch` is called, a thread waits for SIGTERM, here or in another process of the job, or for SIGINT, and ends
    this process. A thread, since Python runs signal handlers between two steps of the main one, which may be compiling,
    or waiting for a device or another process; an exception in the middle of that has ended in segmentation faults.
    """

    def __init__(self):
        self.doing, self.others = "the start", Alone()
        self.joining = True  # not yet known whether there are others
        self.training = self.saving = False  # the phases of `during`
        self.sigterm = self.stopping_by_itself = False
        self.watched = False
        self.leaving = threading.Lock()
        self._over = threading.Event()

    def note_sigterm(self, *_) -> None:
        self.sigterm = True

    def watch(self) -> None:
        self.watched = True
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._handler = signal.signal(signal.SIGTERM, self.note_sigterm)
        self._interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # jobs of a shell ignore it
        if self._interrupts:
            signal.signal(signal.SIGINT, lambda *_: None)
        self._wakeup = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._wait, name="preemption", daemon=True)
        self._thread.start()
        if host := _metadata_host():
            threading.Thread(target=_ask_cloud, args=(host, self._over), name="cloud notices", daemon=True).start()

    def close(self) -> None:
        self.watched = False
        self._over.set()
        self._write.send(b"\0")  # wakes the thread
        self._thread.join(PATIENCE + 10)  # it may be about to end the process
        signal.set_wakeup_fd(self._wakeup)
        if self._interrupts:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if not self.stopping_by_itself and not self.others.in_job:  # in a job, the handler is no longer ours but JAX's
            signal.signal(signal.SIGTERM, self._handler)
        self._read.close()
        self._write.close()

    def _wait(self) -> None:
        looked = time.monotonic()
        while not self._over.is_set():
            ready, _, _ = select.select([self._read], [], [], 0.5)
            came = self._read.recv(64) if ready else b""
            if signal.SIGINT in came and self._interrupts:
                told = "interrupted; the same command goes on from here"
                return self.leave(time.monotonic() + 10, told, code=1, in_order=False)
            here = signal.SIGTERM in came
            if here and self.joining:  # the others are told as soon as they can be
                self._wait_while(lambda: self.joining)
                if self.others.in_job:
                    os.kill(os.getpid(), signal.SIGTERM)
                    continue
            if here or self.others.told_to_stop():
                return self._stop()
            if time.monotonic() > looked + POLL:
                if lost := self.others.lost():
                    return self._lose(lost)
                looked = time.monotonic()

    def _stop(self) -> None:
        until = time.monotonic() + PATIENCE + 5
        self.sigterm = True  # in a job, even of one process, JAX's handler has taken the place of ours
        if self.others.in_job:
            time.sleep(1)  # all hear of it, and those in training agree on a step, before the first one leaves
        self._wait_while(lambda: self.training and not self.stopping_by_itself)
        self.leave(until)

    def _lose(self, lost: str) -> None:
        """Leaves a job of which a process is gone, some seconds before JAX would abort this one without naming it."""
        self._over.wait(POLL)  # where data is exchanged, the main thread notices, too, and says what it was about
        if not self._over.is_set():
            way_out = "start all again, the same command goes on from what is saved"
            self.leave(time.monotonic() + 10, f"stopped: {lost}, as seen in {self.doing}; {way_out}", 1)

    def _wait_while(self, goes_on: Callable[[], bool]) -> None:
        until, told = time.monotonic() + PATIENCE, False
        while goes_on() and not self._over.is_set() and (self.saving or time.monotonic() < until):
            if time.monotonic() >= until and not told:
                _tell("SIGTERM came; waiting for the checkpoint that is being written")
                told = True
            time.sleep(0.05)

    def leave(self, until: float = 0, told: str = "", code: int = EXIT_CODE, in_order: bool = True) -> None:
        """Ends the process, unless a training, even one that began only meanwhile, stops by itself.

        Process 0 waits for the others until that time of `time.monotonic`.
        """
        if not in_order:
            self.others.announce_failure()
        self.others.wait_for_others_to_leave(until - time.monotonic(), lambda: self.stopping_by_itself)
        with self.leaving:
            if self.stopping_by_itself:
                return
            try:
                late = f", which came to no end of a step within {PATIENCE} s" if self.training else ""
                sigterm = (
                    f"stopped: SIGTERM came during {self.doing}{late}; the same command goes on from what is saved"
                )
                # The main thread may hold the lock of stdout; nobody may read what is written.
                tell = functools.partial(_tell_last, told or sigterm)
                for last in (sys.stdout.flush, tell, lock.release_all):
                    thread = threading.Thread(target=last, daemon=True)
                    thread.start()
                    thread.join(1)
                self.others.announce_leaving(in_order)
            finally:
                os._exit(code)


def _tell(text: str) -> None:
    """One line on stderr, past Python's buffers; a progress bar may have left its line open."""
    _write(2, text)


def _tell_last(text: str) -> None:
    """The same as the last line: what the main thread writes until the end of the process goes nowhere."""
    stderr = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    _write(stderr, text)


def _write(descriptor: int, text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it
        os.write(descriptor, f"\nselftrain: {text}\n".encode())


_process = _Process()


@contextlib.contextmanager
def watching() -> Iterator[None]:
    """Within the body, SIGTERM ends the process with one line and exit code 143; see the module.

    For the main thread of a command, and nothing else: the end is `os._exit`, from any point of the body.
    """
    global _process
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's business
        yield
        return
    _process = process = _Process()
    process.watch()
    try:
        yield
        process.others.announce_leaving()
    except Exception:
        # Another process may have left before this one heard why.
        if process.others.told_to_stop():
            process.leave()
        raise
    finally:
        process.close()


def joined(others: Alone = Alone()) -> None:
    """Says that the process has joined its job, with these `others`, or is alone. Before, SIGTERM is kept, since the
    others could not be told."""
    _process.others, _process.joining = others, False


def joining() -> bool:
    """Whether it is not known yet if there are others."""
    return _process.joining


def in_job() -> bool:
    """Whether the process has joined others."""
    return _process.others.in_job


def leave_job(code: int) -> None:
    """Ends a process that has joined others, and says so to them. An orderly exit of JAX would wait for the others,
    which may go on until they miss this one."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    lock.release_all()
    in_order = code == EXIT_CODE
    if not in_order:
        _process.others.announce_failure()
    _process.others.wait_for_others_to_leave(10)
    _process.others.announce_leaving(in_order)
    os._exit(code)


def begins(doing: str) -> None:
    """Says what the process does from here on."""
    _process.doing = doing


@contextlib.contextmanager
def during(phase: str) -> Iterator[None]:
    """Within the body the process does not leave at once.

    Args:
      phase: "training", which gets `PATIENCE` to end a step, to call `stop_by_itself` and to save; or "saving", which
        takes the time it takes.
    """
    process = _process
    setattr(process, phase, True)
    try:
        yield
    finally:
        setattr(process, phase, False)


def stop_by_itself() -> None:
    """Says that the training ends the process from here on, once it has saved."""
    with _process.leaving:
        _process.stopping_by_itself = True


@contextlib.contextmanager
def noticing_sigterm() -> Iterator[Callable[[], bool]]:
    """Within the body, a function that tells whether SIGTERM has come to this process, which it does not end (but for
    `watching`). In threads other than the main one it never comes."""
    process = _process
    if process.watched or threading.current_thread() is not threading.main_thread():
        yield lambda: process.sigterm
        return
    process.sigterm = False
    before = signal.signal(signal.SIGTERM, process.note_sigterm)
    try:
        yield lambda: process.sigterm
    finally:
        signal.signal(signal.SIGTERM, before)


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
    import urllib.request

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
