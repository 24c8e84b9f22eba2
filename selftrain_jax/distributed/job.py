"""A job of several processes: joining it, waiting for each other, who of them is lost, and stopping together."""

import collections
import contextlib
import itertools
import json
import os
import re
import socket
import threading
import time
from typing import Any, Callable, Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from selftrain_jax.core.errors import InputError, PeerLost, RunStopped, one_line
from selftrain_jax.core.files import fingerprint
from selftrain_jax.distributed import preemption

PEER_TIMEOUT = 30
"""Seconds without a sign of life after which a process of the job counts as dead."""

NAME_TIMEOUT = 60
"""Seconds in which the name of the coordinator's host must become known: that of a pod is, once the pod has started."""


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = 300,
) -> None:
    """Joins this process to the others of its job, if there are any; call it before anything asks JAX for its devices.

    What is not given comes from `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`, then from JAX's own detection (Cloud TPU, GKE, Slurm, Open MPI, Kubernetes jobs). Where none of
    them says anything, or the job is joined already, nothing happens. A process that dies is noticed within
    `PEER_TIMEOUT` seconds, instead of JAX's 100. Those that have not come after `timeout` seconds are not waited for.

    Raises:
      InputError: a part is set without the others, is impossible, or the coordinator cannot be reached.
    """
    address = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS") or _slurm_coordinator()
    given = {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": _whole_number("JAX_NUM_PROCESSES", num_processes),
        "JAX_PROCESS_ID": _whole_number("JAX_PROCESS_ID", process_id),
    }
    _, count, number = given.values()
    if address is not None and not (
        re.fullmatch(r".+:[0-9]{1,5}", address) and int(address.rpartition(":")[2]) < 65_536
    ):
        raise InputError(f"JAX_COORDINATOR_ADDRESS={address!r} must be HOST:PORT of process 0, for example node1:1234")
    if count is not None and count < 1:
        raise InputError(f"JAX_NUM_PROCESSES={count} must be at least 1")
    if number is not None and not 0 <= number < (count or number + 1):
        raise InputError(f"JAX_PROCESS_ID={number} must lie between 0 and JAX_NUM_PROCESSES - 1 = {(count or 1) - 1}")
    if not jax.distributed.is_initialized() and _join(given, timeout):
        Peers().listen()
    preemption.joined(Peers() if jax.distributed.is_initialized() else preemption.Alone())


def _slurm_coordinator() -> str | None:
    """What JAX would find in a Slurm step, said here since JAX does not say it before it has joined: None elsewhere."""
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if not all(name in os.environ for name in needed):
        return None
    first = re.match(r"([^,\[]*)\[?([^,\-\]]*)", os.environ["SLURM_STEP_NODELIST"])  # node1,node7 or node[01-16,20]
    port = os.environ.get("JAX_COORDINATOR_PORT") or 61_440 + int(os.environ["SLURM_JOB_ID"]) % 4096
    return f"{''.join(first.groups())}:{port}"


def _bind_address(coordinator: str | None) -> str | None:
    """Where process 0 listens: at the job's address alone, where that is this machine's; None leaves it to JAX.

    Raises:
      InputError: the coordinator's host has no address here. JAX would wait five minutes, and abort.
    """
    if coordinator is None:
        return None
    host, _, port = coordinator.rpartition(":")
    host = host.strip("[]")
    until = time.monotonic() + NAME_TIMEOUT
    while True:
        try:
            family, *_, (address, *_) = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
            break
        except OSError as e:
            if time.monotonic() >= until:
                raise InputError(
                    f"the coordinator's host {host} has no address on {socket.gethostname()} ({e.strerror}): let "
                    "JAX_COORDINATOR_ADDRESS=HOST:PORT name process 0 as every machine of the job knows it"
                ) from None
            time.sleep(1)
    # /etc/hosts may give the machine's own name an address that means "here" on every machine.
    if address.startswith("127.") != (host == "localhost" or host.startswith("127.")) or address == "::1":
        return None
    with contextlib.suppress(OSError), socket.socket(family) as probe:
        probe.bind((address, 0))
        return f"[{address}]:{port}" if family == socket.AF_INET6 else f"{address}:{port}"
    return None


def _join(given: dict[str, Any], timeout: int) -> bool:
    """Whether there was a job to join; `given` are the arguments of `jax.distributed.initialize`, by variable."""
    options = dict(
        initialization_timeout=timeout, heartbeat_timeout_seconds=PEER_TIMEOUT, shutdown_timeout_seconds=PEER_TIMEOUT
    )
    if None not in given.values() or given["JAX_COORDINATOR_ADDRESS"] == _slurm_coordinator():
        bound = _bind_address(given["JAX_COORDINATOR_ADDRESS"])
        if bound and "JAX_COORDINATOR_BIND_ADDRESS" not in os.environ:
            options["coordinator_bind_address"] = bound
    try:
        jax.distributed.initialize(*given.values(), **options)
    except ValueError as e:  # no cluster was found that would fill in what is not given
        missing = [name for name, value in given.items() if value is None]
        if not missing:
            raise InputError(f"this process cannot join its job: {one_line(e)}") from None
        if len(missing) < len(given):
            known = ", ".join(f"{name}={value}" for name, value in given.items() if value is not None)
            raise InputError(
                f"{' and '.join(missing)} must be set beside {known}: several processes need all three, one alone none"
            ) from None
        return False
    except RuntimeError as e:
        if "before any JAX" in str(e):  # in a program that has used its devices: nobody can be joined any more
            if all(value is None for value in given.values()):
                return False
            raise
        coordinator = given["JAX_COORDINATOR_ADDRESS"] or "that the cluster names"
        raise InputError(
            f"this process cannot join its job ({one_line(e)[:300]}): start all processes, and let them reach the "
            f"coordinator {coordinator}; for one process alone, leave the cluster's environment"
        ) from None
    return True


def _whole_number(name: str, given: int | None) -> int | None:
    text = os.environ.get(name, "") if given is None else str(given)
    try:
        return int(text) if text.strip() else None
    except ValueError:
        raise InputError(f"{name}={text!r} must be a whole number") from None


def _runtime():
    """JAX's own record of the job; its `client` is the connection to the coordinator, None in a process that is alone.

    The only use of something private to JAX: neither `jax.distributed` nor `multihost_utils` names the coordinator's
    key-value store, nor a barrier with a time-out, nor the number of a process before it has asked for its devices.
    """
    from jax._src import distributed

    return distributed.global_state


_PREFIX = "selftrain"


class Peers(preemption.Alone):
    """The other processes of the job, as far as the coordinator has heard of them.

    Each opens a port that the system answers for as long as the process lives. Process 0 looks which of them still
    answer; the others hear of it through the coordinator.
    """

    in_job = True

    def __init__(self):
        job = _runtime()
        self._client, self._number, self._count = job.client, job.process_id, job.num_processes
        self._coordinator = job.coordinator_address

    def listen(self) -> None:
        """Opens the port of this process, and tells the others where."""
        host = "localhost"
        coordinator = self._coordinator.rsplit(":", 1)[0].strip("[]")
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((coordinator, 9))  # sends nothing: asks the system which of its addresses faces it
            host = probe.getsockname()[0]
        with contextlib.suppress(OSError):
            server = socket.create_server((host, 0), backlog=1024)
            threading.Thread(target=_answer, args=(server,), name="answers", daemon=True).start()
            self._say("listens", self._number, f"{host}:{server.getsockname()[1]}:{socket.gethostname()}")

    def _say(self, what: str, number: int | str, text: str = "") -> None:
        self._client.key_value_set(f"{_PREFIX}/{what}/{number}", text, allow_overwrite=True)

    def _said(self, what: str) -> dict[str, str]:
        """What the processes said under this name: number -> text."""
        return {key.rsplit("/", 1)[1]: text for key, text in self._client.key_value_dir_get(f"{_PREFIX}/{what}/")}

    def told_to_stop(self) -> bool:
        try:
            # Where the runtime tells all processes of a SIGTERM, which its own handler notices, for
            # `multihost_utils.reached_preemption_sync_point`. That function must be asked by all in step; the key may
            # be read at any time. It has had this name since JAX has the service.
            self._client.key_value_try_get("RECEIVED_PREEMPTION_NOTICE")
        except jax.errors.JaxRuntimeError:  # not there (or nobody to ask)
            return False
        return True

    def lost(self) -> str:
        try:
            if self._number == 0:
                self._look_for_lost()
            lost = self._said("lost")
        except jax.errors.JaxRuntimeError:
            return "process 0 (the coordinator) is gone"
        return f"{', '.join(lost.values())} {'is' if len(lost) == 1 else 'are'} gone" if lost else ""

    def _look_for_lost(self) -> None:
        """Tells all ("process 3 on host") of those that do not answer, and did not say that they leave."""
        listening = self._said("listens")
        for number in listening.keys() - self._said("leaves").keys() - self._said("lost").keys():
            host, port, name = listening[number].split(":", 2)
            answers = _answers(host, int(port)) or _answers(host, int(port))
            if not answers and number not in self._said("leaves"):
                self._say("lost", number, f"process {number} on {name}")

    def lost_while_leaving(self) -> str:
        """`lost` for a process that leaves because its connection broke, so some process is gone; it says so itself."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._say("leaves", self._number)
            time.sleep(1)  # others that leave at the same moment get to say so
            self._look_for_lost()
        return self.lost() or "another process of the job is gone, or its network"

    def announce_leaving(self, in_order: bool = True) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            for what in ("leaves", "left") if in_order else ("left",):
                self._say(what, self._number)

    def announce_failure(self) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            if self._number == 0:
                self._say("lost", 0, f"process 0 on {socket.gethostname()}")

    def wait_for_others_to_leave(self, seconds: float, unless: Callable[[], bool] = lambda: False) -> None:
        until = time.monotonic() + seconds
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            while self._number == 0 and time.monotonic() < until and not unless():
                ended = self._said("left").keys() | self._said("lost").keys()
                if len(ended - {"0"}) == self._count - 1:
                    time.sleep(0.5)
                    return
                time.sleep(0.1)


def _answer(server: socket.socket) -> None:
    while True:
        with contextlib.suppress(OSError):
            server.accept()[0].close()


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=3).close()
    except OSError:
        time.sleep(0.5)
        return False
    return True


_numbers = itertools.count(1)


@contextlib.contextmanager
def training(description: str) -> Iterator[Callable[[], bool]]:
    """Within the body, SIGTERM leaves a training the time to save: the yielded function tells whether it came.

    All processes of a job ask it once a step, and hear of the signal at the same step, whichever it came to.

    Raises:
      PeerLost: another process of the job is gone.
    """
    with preemption.during("training"), naming_lost_peers(f"{description} stopped"):
        if jax.process_count() > 1:
            # JAX lets them agree on one more than the last number asked about, maybe by the training before: so
            # numbers never repeat.
            yield lambda: multihost_utils.reached_preemption_sync_point(next(_numbers))
        else:
            with preemption.noticing_sigterm() as came:
                yield came


def is_first() -> bool:
    """Whether this is process 0, which alone writes manifests and reports and speaks to the user."""
    return jax.process_index() == 0


def same_on_all(hashed: str) -> bool:
    """Whether all processes of the job, which all call this, give the same `hashed`, of `files.fingerprint`."""
    if jax.process_count() == 1:
        return True
    own = np.frombuffer(bytes.fromhex(hashed), np.uint8)
    with naming_lost_peers("comparing settings with the other processes"):
        return not (multihost_utils.process_allgather(own) != own).any()


def differing(look: Callable[[], Mapping[str, str]]) -> list[str]:
    """The names of which `look`, called by all processes of the job, does not find on all of them what it finds on
    process 0; it is not called where there is one process."""
    if jax.process_count() == 1:
        return []
    own = dict(look())
    return [name for name in on_first("names", lambda: sorted(own)) if not same_on_all(fingerprint(own.get(name)))]


_uses: collections.Counter = collections.Counter()


def _next_key(name: str) -> str:
    """A key of the coordinator's that all processes come to at the same call."""
    _uses[name] += 1
    return f"{_PREFIX}/{name}/{_uses[name]}"


def barrier(name: str, timeout: float = 86_400) -> None:
    """Returns when every process of the job is here, after at most `timeout` seconds; `PeerLost` otherwise."""
    if jax.process_count() > 1:
        with naming_lost_peers(f"waiting for the other processes ({name})"):
            _runtime().client.wait_at_barrier(_next_key(name), round(1000 * timeout))


def on_first(name: str, work: Callable[[], Any], timeout: float = 86_400) -> Any:
    """What `work` returns on process 0, which alone does it, on all; the others wait for it, at most `timeout` seconds.

    The value must be JSON. An `InputError` or `RunStopped` of process 0 is raised on all of them.
    """
    if jax.process_count() == 1:
        return work()
    client, key = _runtime().client, _next_key(f"first/{name}")
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
    """The `PeerLost` that an error of a broken connection means in a job of several processes; None for others."""
    texts = [one_line(e)[:200] for e in (error, error.__cause__, error.__context__) if isinstance(e, Exception)]
    found = re.search("gloo|nccl|connection|heartbeat|unavailable|deadline|barrier", " ".join(texts), re.IGNORECASE)
    if jax.process_count() == 1 or not found:
        return None
    return PeerLost(
        f"{doing}: {Peers().lost_while_leaving()} ({texts[0]}). Start all {jax.process_count()} again: the same "
        "command goes on from what is saved"
    )
