"""Runs of the command line: `main` of the command in this process where only its outcome counts, and processes where
signals, jobs or the end of the process are looked at. Each on one device.
"""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import io
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
import traceback
import unittest.mock

import jax
import numpy as np
import pytest

from selftrain_jax.cli import main as cli
from selftrain_jax.models import hf
from selftrain_jax.training.checkpoint import restore_params
from tests.waiting import HANGS, wait_until

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = ROOT / "tests" / "e2e" / "tiny.py"

SECRETS = {
    name: f"planted-{name.lower()}-0f3a9c"
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "GOOGLE_OAUTH_ACCESS_TOKEN")
}
"""In the environment of every run here; test_export.py looks for them in what runs write."""
os.environ.update(SECRETS)
os.environ["COLUMNS"] = "100"  # what is printed is then as wide as what is written


@dataclasses.dataclass(frozen=True)
class Hold:
    """A moment at which a process waits, for a signal, say: before the `count`-th file or folder whose path matches
    `pattern` gets its final name. See held.py.
    """

    mark: pathlib.Path
    pattern: str
    count: int = 1

    def environment(self) -> dict[str, str]:
        return {"SELFTRAIN_HELD": json.dumps([self.pattern, self.count, str(self.mark)])}

    def reached(self, process: subprocess.Popen) -> None:
        """Returns when the process waits."""
        wait_until(self.mark.exists, process)

    def release(self) -> None:
        self.mark.unlink()


class Selftrain:
    """`selftrain` on the tiny config, and what it leaves in a workdir."""

    def start(self, name, workdir, *settings, config=CONFIG, hold=None, **environment) -> subprocess.Popen:
        """The command on a config as a process of its own, which computes the same bits as this one; it waits at
        `hold`.
        """
        return self._open(name, f"--config={config}", f"--workdir={workdir}", *settings, hold=hold, **environment)

    def __call__(self, name, workdir, *settings, config=CONFIG, devices=1) -> subprocess.CompletedProcess:
        """The same in this process: its exit code and what it printed, whatever that is."""
        return self.command(name, f"--config={config}", f"--workdir={workdir}", *settings, devices=devices)

    def start_job(
        self, count, name, workdir, *settings, last=(), bad=-1, holds=None, **environment
    ) -> list[subprocess.Popen]:
        """The same command as `count` processes of one job; one of them, the last unless `bad` says which, with
        settings of its own, too; some of them (number -> `Hold`) wait somewhere."""
        with socket.socket() as s:
            s.bind(("localhost", 0))
            address = f"localhost:{s.getsockname()[1]}"
        job = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)} | environment
        arguments = [name, f"--config={CONFIG}", f"--workdir={workdir}", *settings]
        own, holds = [()] * count, holds or {}
        own[bad] = last
        return [self._open(*arguments, *own[i], JAX_PROCESS_ID=str(i), hold=holds.get(i), **job) for i in range(count)]

    def start_under(self, launcher, name, workdir, *settings) -> subprocess.Popen:
        """The same command as the processes that `launcher`, a command line, makes of it."""
        return self._open(name, f"--config={CONFIG}", f"--workdir={workdir}", *settings, launcher=launcher)

    @staticmethod
    def ends(processes, seconds=HANGS) -> list[tuple[int, str, str]]:
        """(exit code, stdout, stderr) of every process; all are read at once, since they wait for each other."""
        with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
            found = list(pool.map(lambda process: process.communicate(timeout=seconds), processes))
        return [(process.returncode, *texts) for process, texts in zip(processes, found)]

    @staticmethod
    def table(out: str) -> list[str]:
        """What the command prints after the stages, without the report's path."""
        return out.split("\n\n", 1)[1].splitlines()[:-1]

    @staticmethod
    def command(*arguments, devices=1) -> subprocess.CompletedProcess:
        """Any sub-command, in this process, which has more devices."""
        found = jax.devices()[:devices]
        seen = {"devices": lambda *_: found, "local_devices": lambda *_: found, "device_count": lambda *_: len(found)}
        out, err = io.StringIO(), io.StringIO()
        with (
            unittest.mock.patch.multiple(jax, **seen),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                code = cli.main([str(argument) for argument in arguments])
            except SystemExit as e:  # of argparse
                code = e.code
            except Exception:
                traceback.print_exc()
                code = 1
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    @staticmethod
    def _open(*arguments, launcher=(), hold=None, **environment) -> subprocess.Popen:
        job = launcher or "JAX_NUM_PROCESSES" in environment
        known = {name: value for name, value in os.environ.items() if not (job and name == "XLA_FLAGS")}
        environment = known | {"PYTHONPATH": str(ROOT)} | (hold.environment() if hold else {}) | environment
        program = ["-m", "selftrain_jax"] if job and not hold else [ROOT / "tests" / "e2e" / "held.py"]
        command = [*launcher, sys.executable, *program, *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def succeeds(self, *arguments, **options) -> str:
        """Its standard output."""
        done = self(*arguments, **options)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    @staticmethod
    def contents(folder: pathlib.Path) -> dict[str, bytes]:
        """Every file below `folder`, but for the log, which every command goes on with."""
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "log.txt")
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    @staticmethod
    def report(workdir: pathlib.Path) -> dict:
        """report.json without what may differ between equal runs: how long they took, and the command."""
        value = json.loads((workdir / "report" / "report.json").read_text())
        return {k: v for k, v in value.items() if k not in ("command", "durations")}

    @staticmethod
    def params(workdir: pathlib.Path, model: str) -> dict[str, np.ndarray]:
        """The last checkpoint of a trained model, leaf by leaf."""
        config = hf.load_config(workdir / "lab" / "base" / "model")
        leaves = jax.tree.leaves_with_path(restore_params(workdir / "train" / model / "checkpoints", config))
        return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


@pytest.fixture(scope="session")
def selftrain():
    return Selftrain()


@pytest.fixture(scope="session")
def hold(tmp_path_factory):
    """`hold(pattern, count=1)`: a `Hold`, for one process."""
    folder = tmp_path_factory.mktemp("held")
    return lambda pattern, count=1: Hold(folder / str(time.monotonic_ns()), pattern, count)


@pytest.fixture(scope="session")
def finished(selftrain, tmp_path_factory):
    """(workdir, standard output) of one uninterrupted run. Tests copy the folder before they change it.

    The processes of pytest-xdist share it: the first to come makes it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    folder.mkdir(exist_ok=True)
    workdir, out = folder / "run", folder / "stdout"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            shutil.rmtree(workdir, ignore_errors=True)
            out.write_text(selftrain.succeeds("run", workdir))
    return workdir, out.read_text()


@pytest.fixture
def copy_of(finished, tmp_path):
    """`copy_of("lab", "sample")`: the path of a copy of the finished run with these stages only."""

    def copy(*stages):
        for stage in stages:
            shutil.copytree(finished[0] / stage, tmp_path / "copy" / stage)
        return tmp_path / "copy"

    return copy
