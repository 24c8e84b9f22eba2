"""A job of several processes is the same run as one process; when one dies, the others say so and end."""

import concurrent.futures
import re
import shutil
import signal
import socket
import subprocess
import time

import pytest


def ends(processes, seconds=150):
    """(exit code, stdout, stderr) of every process; all are read at once, since they wait for each other."""
    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
        found = list(pool.map(lambda process: process.communicate(timeout=seconds), processes))
    return [(process.returncode, *texts) for process, texts in zip(processes, found)]


def table(out):
    """What the command prints after the stages, without the report's path."""
    return out.split("\n\n", 1)[1].splitlines()[:-1]


def same_run(selftrain, out, workdir, finished):
    """Up to the rounding of sums over several devices."""
    assert table(out) == table(finished[1])
    found, wanted = (selftrain.report(folder) for folder in (workdir, finished[0]))
    for row, expected in zip(found["metrics"], wanted["metrics"], strict=True):
        assert row == {k: pytest.approx(v, rel=1e-6) if isinstance(v, float) else v for k, v in expected.items()}


@pytest.mark.large
def test_two_processes_make_the_same_table(finished, selftrain, tmp_path):
    (code, out, err), (other_code, other_out, other_err) = ends(selftrain.start_job(2, "run", tmp_path / "run"))
    assert code == other_code == 0, err[-3000:] + other_err[-3000:]
    assert f"selftrain: 2 processes; 2 x cpu; mesh data=2, fsdp=1, tensor=1; writing to {tmp_path / 'run'}" in err
    assert "selftrain:" not in other_err and "[1/" not in other_out and "report:" not in other_out
    same_run(selftrain, out, tmp_path / "run", finished)


LAUNCHERS = {
    "mpirun": ["mpirun", "-n", "2", "--oversubscribe", "--allow-run-as-root", "--bind-to", "none"],
    "srun": ["srun", "--ntasks=2", "--immediate=60"],
}


def says(*command):
    """Its standard output; empty where it is not installed or fails."""
    done = shutil.which(command[0]) and subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.stdout if done and done.returncode == 0 else ""


@pytest.mark.large
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_processes_of_a_cluster_launcher_find_each_other(launcher, finished, selftrain, tmp_path):
    if launcher == "mpirun" and not re.search(r"Open MPI\) [1-4]\.", says("mpirun", "--version")):
        pytest.skip("no mpirun of Open MPI 1 to 4, which JAX detects")
    if launcher == "srun" and not says("sinfo", "--noheader", "--states=idle,mixed"):
        pytest.skip("no Slurm answers, or no node of it is free")
    [(code, out, err)] = ends([selftrain.start_under(LAUNCHERS[launcher], "run", tmp_path / "run")], seconds=600)
    assert code == 0, err[-3000:]
    assert err.count("selftrain: 2 processes; 2 x cpu; mesh data=2, fsdp=1, tensor=1") == err.count("writing to") == 1
    same_run(selftrain, out, tmp_path / "run", finished)


@pytest.mark.large
def test_when_one_dies_the_other_says_so_and_one_alone_finishes(finished, selftrain, copy_of):
    workdir = copy_of("lab")
    survivor, victim = selftrain.start_job(2, "run", workdir)
    try:
        checkpoints = workdir / "train" / "self-0" / "checkpoints"
        while not any(path.name.isdigit() for path in checkpoints.glob("*")) and survivor.poll() is None:
            time.sleep(0.01)
        victim.send_signal(signal.SIGKILL)
        [(code, _, err)] = ends([survivor], seconds=60)
    finally:
        victim.kill()
        survivor.kill()
        victim.communicate()
    assert not (workdir / "train" / "self-0" / "manifest.json").exists()
    stopped = [line for line in err.splitlines() if line.startswith("selftrain: stopped: ")]
    if code == 1:
        assert f"process 1 on {socket.gethostname()} is gone" in stopped[0], err[-3000:]
    else:  # while it waits for the other half of a checkpoint, JAX's runtime ends the process itself
        assert code == -signal.SIGABRT and "another task died" in err, err[-3000:]
    assert table(selftrain.succeeds("run", workdir)) == table(finished[1])
