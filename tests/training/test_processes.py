"""Two processes of four devices each train as one process does; one that dies does not leave the other waiting."""

import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from selftrain_jax.distributed.mesh import make_mesh
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.training import loop
from selftrain_jax.training.checkpoint import restore_params
from selftrain_jax.training.metrics import read_metrics
from tests.training import test_loop
from tests.training.test_loop import CONFIG, MODEL, STEPS, Killed, kill_at, make_params, make_rows
from tests.waiting import HANGS, wait_until

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROCESS = """
import os, signal, sys
from selftrain_jax.core.errors import PeerLost
from selftrain_jax.distributed import job
from selftrain_jax.distributed.mesh import make_mesh, to_global
from selftrain_jax.distributed.settings import MeshConfig
job.initialize(sys.argv[1], 2, int(sys.argv[2]))
import jax
import numpy as np
from selftrain_jax.models.decoder import param_shardings
from selftrain_jax.training import loop
from tests.training import test_loop
original, calls = loop.batch_indices, iter(range(1, 1000))
def held(*args, **settings):
    if next(calls) == int(sys.argv[4]):
        signal.pause()
    return original(*args, **settings)
loop.batch_indices = held
params = jax.tree.map(np.asarray, test_loop.make_params())
mesh = make_mesh(MeshConfig(2, 2, 2))
params = to_global(mesh, params, param_shardings(test_loop.MODEL, mesh))  # as loaded weights come
assert mesh.devices.size == 8 and jax.process_count() == 2
try:
    last = loop.train(params, test_loop.MODEL, test_loop.make_rows(), test_loop.CONFIG, sys.argv[3], mesh=mesh)
except PeerLost as e:
    print(e, flush=True)
    os._exit(e.exit_code)
print("finished step", last["step"])
"""


def start(directory, held_at=0):
    """Two workers, each a process, with their output; the second one waits before this batch for a signal."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    workers = []
    for i in range(2):
        log = open(directory.with_name(f"worker{i}.log"), "w+")
        command = [sys.executable, "-c", PROCESS, address, str(i), str(directory), str(i * held_at)]
        workers.append((subprocess.Popen(command, env=environment, stdout=log, stderr=log), pathlib.Path(log.name)))
        log.close()
    return workers


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])


@pytest.fixture(scope="module")
def whole(mesh, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    loop.train(make_params(), MODEL, make_rows(), CONFIG, directory, mesh=mesh)
    return directory


def assert_same_run(found, whole, mesh):
    """Sums over devices round differently by some 1e-8, which Adam divides by no less than eps."""
    params = (restore_params(path / "checkpoints", MODEL, mesh, STEPS) for path in (found, whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), *params)
    lines = [read_metrics(path / "metrics.jsonl") for path in (found, whole)]
    assert [line["step"] for line in lines[0]] == test_loop.LOGGED
    assert [line["loss"] for line in lines[0]] == pytest.approx([line["loss"] for line in lines[1]], rel=1e-5)


@pytest.mark.large
def test_two_processes_go_on_where_one_was_killed(whole, mesh, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_at(patch, 6)
        with pytest.raises(Killed):
            loop.train(make_params(), MODEL, make_rows(), CONFIG, run, mesh=mesh)
    for process, log in start(run):
        assert process.wait(timeout=HANGS) == 0, log.read_text()[-3000:]
        assert f"finished step {STEPS}" in log.read_text()
    assert_same_run(run, whole, mesh)


@pytest.mark.large
def test_when_one_process_dies_the_other_ends_and_one_alone_can_go_on(whole, mesh, tmp_path):
    run = tmp_path / "run"
    (survivor, log), (victim, _) = workers = start(run, held_at=9)
    try:
        wait_until(lambda: any(line["step"] >= 8 for line in read_metrics(run / "metrics.jsonl")), survivor)
        victim.send_signal(signal.SIGKILL)
        assert survivor.wait(timeout=HANGS) == 1
        message = f": process 1 on {socket.gethostname()} is gone"  # in a step, or while it saved
        assert message in log.read_text(), log.read_text()[-3000:]
    finally:
        for process, _ in workers:
            process.kill()
            process.wait()
    loop.train(make_params(), MODEL, make_rows(), CONFIG, run, mesh=mesh)
    assert_same_run(run, whole, mesh)
