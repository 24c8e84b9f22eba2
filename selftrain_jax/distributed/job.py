"""A job of several processes: joining it, waiting for each other, and who of them is lost."""

import collections
import contextlib
import json
import os
import re
import socket
import threading
import time
from typing import Any, Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from selftrain_jax.core.errors import InputError, PeerLost, RunStopped, one_line

PEER_TIMEOUT = 30
"""Seconds without a sign of life after which a process of the job counts as dead."""


def initialize(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins this process to the others of its job, if there are any; call it before anything asks JAX for its devices.

    What is not given comes from `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`, then from JAX's own detection (Cloud TPU, GKE, Slurm, Open MPI, Kubernetes jobs). Where none of
    them says anything, or the job is joined already, nothing happens. A process that dies is noticed within
    `PEER_TIMEOUT` seconds, instead of JAX's 100.

    Raises:
      InputError: a part is set without the others, is impossible, or the coordinator cannot be reached.
    """
    given = {
        "JAX_COORDINATOR_ADDRESS": coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS") or None,
        "JAX_NUM_PROCESSES": _whole_number("JAX_NUM_PROCESSES", num_processes),
        "JAX_PROCESS_ID": _whole_number("JAX_PROCESS_ID", process_id),
    }
    address, count, number = given.values()
    if address is not None and not (
        re.fullmatch(r".+:[0-9]{1,5}", address) and int(address.rpartition(":")[2]) < 65_536
    ):
        raise InputError(f"JAX_COORDINATOR_ADDRESS={address!r} must be HOST:PORT of process 0, for example node1:1234")
    if count is not None and count < 1:
        raise InputError(f"JAX_NUM_PROCESSES={count} must be at least 1")
    if number is not None and not 0 <= number < (count or number + 1):
        raise InputError(f"JAX_PROCESS_ID={number} must lie between 0 and JAX_NUM_PROCESSES - 1 = {(count or 1) - 1}")
    if jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(
            address, count, number, heartbeat_timeout_seconds=PEER_TIMEOUT, shutdown_timeout_seconds=PEER_TIMEOUT
        )
    except ValueError as e:  # no cluster was found that would fill in what is not given
        missing = [name for name, value in given.items() if value is None]
        if not missing:
            raise InputError(f"this process cannot join its job: {one_line(e)}") from None
        if len(missing) < len(given):
            known = ", ".join(f"{name}={value}" for name, value in given.items() if value is not None)
            raise InputError(
                f"{' and '.join(missing)} must be set beside {known}: several processes need all three, one alone none"
            ) from None
    except RuntimeError as e:
        if "before any JAX" in str(e):  # in a program that has used its devices: nobody can be joined any more
            if all(value is None for value in given.values()):
                return
            raise
        raise InputError(
            f"this process cannot join its job ({one_line(e)[:300]}): start all processes, and let them reach the "
            f"coordinator {address or 'that the cluster names'}; for one process alone, leave the cluster's environment"
        ) from None
    else:
        _listen()


def _whole_number(name: str, given: int | None) -> int | None:
    text = os.environ.get(name, "") if given is None else str(given)
    try:
        return int(text) if text.strip() else None
    except ValueError:
        raise InputError(f"{name}={text!r} must be a whole number") from None


def _job():
    """JAX's own record of the job; its `client` is the connection to the coordinator, None in a process that is alone.

    JAX has no public name for it, nor for barriers with a time-out.
    """
    from jax._src import distributed

    return distributed.global_state


_uses: collections.Counter = collections.Counter()


_PREFIX = "selftrain"


def _listen() -> None:
    """Opens a port that the system answers for as long as this process lives, and tells the others where."""
    client, number, host = _job().client, _job().process_id, "localhost"
    coordinator = _job().coordinator_address.rsplit(":", 1)[0].strip("[]")
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((coordinator, 9))  # sends nothing: asks the system which of its addresses faces the coordinator
        host = probe.getsockname()[0]
    with contextlib.suppress(OSError):
        server = socket.create_server(("", 0), backlog=1024)
        threading.Thread(target=_answer, args=(server,), name="answers", daemon=True).start()
        client.key_value_set(f"{_PREFIX}/listens/{number}", f"{host}:{server.getsockname()[1]}:{socket.gethostname()}")


def _answer(server: socket.socket) -> None:
    while True:
        with contextlib.suppress(OSError):
            server.accept()[0].close()


def _told(what: str) -> dict[str, str]:
    """What the processes said under this name: number -> text."""
    return {key.rsplit("/", 1)[1]: text for key, text in _job().client.key_value_dir_get(f"{_PREFIX}/{what}/")}


def _look_for_lost() -> None:
    """Tells all ("process 3 on host") of those that do not answer, and did not say that they leave."""
    listening = _told("listens")
    for number in listening.keys() - _told("leaves").keys() - _told("lost").keys():
        host, port, name = listening[number].split(":", 2)
        if not (_answers(host, int(port)) or _answers(host, int(port))) and number not in _told("leaves"):
            _job().client.key_value_set(f"{_PREFIX}/lost/{number}", f"process {number} on {name}", allow_overwrite=True)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=3).close()
    except OSError:
        time.sleep(0.5)
        return False
    return True


def lost_peers() -> str:
    """The processes of the job that are gone without a word ("process 3 on host is gone"), "" while there are none.

    Process 0 looks; the others hear of it through the coordinator.
    """
    if not has_joined():
        return ""
    try:
        if _job().process_id == 0:
            _look_for_lost()
        lost = _told("lost")
    except jax.errors.JaxRuntimeError:
        return "process 0 (the coordinator) is gone"
    return f"{', '.join(lost.values())} {'is' if len(lost) == 1 else 'are'} gone" if lost else ""


def _lost_processes() -> str:
    """The processes that are gone, in words; the caller is leaving, and says so to the others."""
    _say("leaves")
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        time.sleep(1)  # others that leave at the same moment get to say so
        _look_for_lost()
    return lost_peers() or "another process of the job is gone, or its network"


def has_joined() -> bool:
    """Whether this process has joined a job and may ask its coordinator; what is asked earlier makes JAX abort."""
    return _job().preemption_sync_manager is not None  # the last thing that JAX sets


def told_to_stop() -> bool:
    """Whether SIGTERM has come to a process of the job: to any of them, which only JAX's own handler knows."""
    if not has_joined():
        return False
    try:
        # Where the runtime tells all processes of it, for `multihost_utils.reached_preemption_sync_point`. That
        # function must be asked by all in step; the key may be read at any time. It has had this name since JAX has the
        # service.
        _job().client.key_value_try_get("RECEIVED_PREEMPTION_NOTICE")
    except jax.errors.JaxRuntimeError:  # not there (or nobody to ask)
        return False
    return True


def says_it_leaves(in_order: bool = True) -> None:
    """Tells process 0 that this one is about to end; unless `in_order`, the others will miss it."""
    if in_order:
        _say("leaves")
    _say("left")


def _say(what: str) -> None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _job().client.key_value_set(f"{_PREFIX}/{what}/{_job().process_id}", "", allow_overwrite=True)


def same_on_all(fingerprint: str) -> bool:
    """Whether all processes of the job, which all call this, give the same one (of `files.fingerprint`)."""
    if jax.process_count() == 1:
        return True
    own = np.frombuffer(bytes.fromhex(fingerprint), np.uint8)
    with naming_lost_peers("comparing settings with the other processes"):
        return not (multihost_utils.process_allgather(own) != own).any()


def outlive(timeout: float, unless: Callable[[], bool] = lambda: False) -> None:
    """In process 0, returns when all others have left or are lost, or after `timeout` seconds, or when `unless()`; in
    the others, at once. JAX aborts those that outlive process 0.
    """
    until = time.monotonic() + timeout
    if not has_joined() or _job().process_id != 0:
        return
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        while time.monotonic() < until and not unless():
            ended = _told("left").keys() | _told("lost").keys()
            if len(ended - {"0"}) == _job().num_processes - 1:
                time.sleep(0.5)
                return
            time.sleep(0.1)


def is_first() -> bool:
    """Whether this is process 0, which alone writes manifests and reports and speaks to the user."""
    return jax.process_index() == 0


def barrier(name: str, timeout: float = 86_400) -> None:
    """Returns when every process of the job is here, after at most `timeout` seconds; `PeerLost` otherwise."""
    if jax.process_count() == 1:
        return
    client = _job().client
    if client is None:
        multihost_utils.sync_global_devices(name)
        return
    _uses[name] += 1
    with naming_lost_peers(f"waiting for the other processes ({name})"):
        client.wait_at_barrier(f"{_PREFIX}/{name}/{_uses[name]}", round(1000 * timeout))


def on_first(name: str, work: Callable[[], Any], timeout: float = 86_400) -> Any:
    """What `work` returns on process 0, which alone does it, on all; the others wait for it, at most `timeout` seconds.

    The value must be JSON. An `InputError` or `RunStopped` of process 0 is raised on all of them.
    """
    if jax.process_count() == 1:
        return work()
    client = _job().client
    _uses[name] += 1
    key = f"{_PREFIX}/first/{name}/{_uses[name]}"
    if jax.process_index() != 0:
        with naming_lost_peers(f"waiting for process 0 ({name})"):
            kind, value = json.loads(client.blocking_key_value_get(key, round(1000 * timeout)))
        if kind == "value":
            return value
        raise InputError(value) if kind == "InputError" else RunStopped(value)
    try:
        told = "value", work()
    except (InputError, RunStopped) as e:
        client.key_value_set(key, json.dumps(["InputError" if isinstance(e, InputError) else "RunStopped", str(e)]))
        raise
    client.key_value_set(key, json.dumps(told))
    return json.loads(json.dumps(told[1]))


@contextlib.contextmanager
def naming_lost_peers(doing: str) -> Iterator[None]:
    """In a job of several processes, turns the runtime's error of a broken connection into `PeerLost`.

    `doing` begins the message, which names the processes that no longer answer. Nothing that waits for the others may
    follow.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as e:
        lost = peer_lost(doing, e)
        if lost is None:
            raise
        raise lost from e


def peer_lost(doing: str, error: Exception) -> PeerLost | None:
    """The `PeerLost` that an error of a broken connection means in a job of several processes; None for other
    errors.
    """
    texts = [one_line(e)[:200] for e in (error, error.__cause__, error.__context__) if isinstance(e, Exception)]
    found = re.search("gloo|nccl|connection|heartbeat|unavailable|deadline|barrier", " ".join(texts), re.IGNORECASE)
    if jax.process_count() == 1 or not found:
        return None
    return PeerLost(
        f"{doing}: {_lost_processes()} ({texts[0]}). Start all {jax.process_count()} again: the same command goes on "
        "from "
        "what is saved"
    )
