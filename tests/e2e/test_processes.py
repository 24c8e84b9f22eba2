"""A job of several processes is the same run as one process; when one dies, the others say so and end."""

import re
import shutil
import signal
import socket
import subprocess
import time

import pytest

from selftrain_jax.data.corpus import read_corpus
from selftrain_jax.training.checkpoint import saved_steps
from selftrain_jax.training.metrics import read_metrics
from tests.e2e.conftest import CONFIG


def same_run(selftrain, out, workdir, finished):
    """Up to the rounding of sums over several devices, which a training carries on: some 3e-6 of a likelihood."""
    assert selftrain.table(out) == selftrain.table(finished[1])
    found, wanted = (selftrain.report(folder) for folder in (workdir, finished[0]))
    for row, expected in zip(found["metrics"], wanted["metrics"], strict=True):
        assert row == {k: pytest.approx(v, rel=1e-5) if isinstance(v, float) else v for k, v in expected.items()}


LAUNCHERS = {
    "mpirun": ["mpirun", "-n", "2", "--oversubscribe", "--allow-run-as-root", "--bind-to", "none"],
    "srun": ["srun", "--ntasks=2", "--immediate=60"],
}


def says(*command):
    """Its standard output; empty where it is not installed or fails."""
    done = shutil.which(command[0]) and subprocess.run(command, capture_output=True, text=True, timeout=600)
    return done.stdout if done and done.returncode == 0 else ""


@pytest.mark.large
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_processes_of_a_cluster_launcher_find_each_other(launcher, finished, selftrain, tmp_path):
    if launcher == "mpirun" and not re.search(r"Open MPI\) [1-4]\.", says("mpirun", "--version")):
        pytest.skip("no mpirun of Open MPI 1 to 4, which JAX detects")
    if launcher == "srun" and not says("sinfo", "--noheader", "--states=idle,mixed"):
        pytest.skip("no Slurm answers, or no node of it is free")
    [(code, out, err)] = selftrain.ends([selftrain.start_under(LAUNCHERS[launcher], "run", tmp_path / "run")])
    assert code == 0, err[-3000:]
    assert err.count("selftrain: 2 processes; 2 x cpu; mesh data=2, fsdp=1, tensor=1") == err.count("writing to") == 1
    same_run(selftrain, out, tmp_path / "run", finished)


def test_two_processes_make_the_same_model(finished, selftrain, copy_of):
    """From sampling to the report, without controls; rounded differently, one item or so may be a near tie. The
    training goes on where one process was killed.
    """
    workdir = copy_of("lab", "train/self-0")
    training = workdir / "train" / "self-0"
    (training / "manifest.json").unlink()
    first, last = saved_steps(training / "checkpoints")[-2:]
    shutil.rmtree(training / "checkpoints" / str(last))
    taken = [line for line in read_metrics(training / "metrics.jsonl") if line["step"] <= first]
    ended = selftrain.ends(selftrain.start_job(2, "run", workdir, "--config.controls={}"))
    assert [code for code, *_ in ended] == [0, 0], "\n".join(err[-2000:] for *_, err in ended)
    (_, out, err), (_, other_out, other_err) = ended
    assert f"selftrain: 2 processes; 2 x cpu; mesh data=2, fsdp=1, tensor=1; writing to {workdir}" in err
    assert "selftrain:" not in other_err and "[1/" not in other_out and "report:" not in other_out
    corpora = [[(d.id, d.text) for d in read_corpus(w / "sample" / "self" / "corpus")] for w in (workdir, finished[0])]
    assert corpora[0] == corpora[1]
    lines = read_metrics(training / "metrics.jsonl")
    assert lines[: len(taken)] == taken and lines[-1]["step"] == last  # with their speeds: no step was taken twice
    rows = [{(r["model"], r["metric"]): r for r in selftrain.report(w)["metrics"]} for w in (workdir, finished[0])]
    assert {model for model, _ in rows[0]} == {"base", "self"} and "report: " in out
    for (model, metric), row in rows[0].items():
        if "held_out" not in metric:  # which depends on the text of the controls
            expected = rows[1][model, metric]
            allowed = {"rel": 1e-6} if metric.startswith("nll") else {"abs": 1.01 / row["n"]}
            assert row["value"] == pytest.approx(expected["value"], **allowed), metric


@pytest.mark.large
def test_four_processes_make_the_same_table(finished, selftrain, tmp_path):
    ended = selftrain.ends(selftrain.start_job(4, "run", tmp_path / "run"))
    assert [code for code, *_ in ended] == [0] * 4, "\n".join(err[-1000:] for *_, err in ended)
    (_, out, err), *others = ended
    assert f"selftrain: 4 processes; 4 x cpu; mesh data=4, fsdp=1, tensor=1; writing to {tmp_path / 'run'}" in err
    for _, other_out, other_err in others:
        assert "selftrain:" not in other_err and "[1/" not in other_out and "report:" not in other_out
    same_run(selftrain, out, tmp_path / "run", finished)


@pytest.mark.large
@pytest.mark.parametrize("axis", ["fsdp", "tensor"])
def test_a_mesh_axis_may_span_processes(axis, finished, selftrain, tmp_path):
    """No process holds the whole of the weights, nor, with a tensor axis, samples or evaluates alone."""
    settings = ("--config.mesh.data=1", f"--config.mesh.{axis}=2")
    (code, out, err), _ = selftrain.ends(selftrain.start_job(2, "run", tmp_path / "run", *settings))
    assert code == 0, err[-3000:]
    same_run(selftrain, out, tmp_path / "run", finished)


@pytest.mark.large
@pytest.mark.parametrize("differ", ["settings", "versions"])
def test_processes_that_differ_are_refused(selftrain, tmp_path, differ):
    (tmp_path / "same.py").write_text(
        "import optax\nimport tiny\n\noptax.__version__ = '9.9'\nget_config = tiny.get_config\n"
    )
    shutil.copy(CONFIG, tmp_path)
    shutil.copy(CONFIG.parents[2] / "configs" / "smoke.py", tmp_path)
    last = "--config.sample.top_k=1" if differ == "settings" else f"--config={tmp_path / 'same.py'}"
    job = selftrain.start_job(2, "run", tmp_path / "run", last=(last,))
    for code, _, err in selftrain.ends(job):
        assert code == 2 and "have different settings, workdirs or versions" in err, err[-3000:]
    assert not (tmp_path / "run").exists()


@pytest.mark.large
@pytest.mark.parametrize("bad", [0, 1])
def test_one_with_a_bad_config_is_missed_at_once_by_the_others(selftrain, tmp_path, bad):
    last = ("--config.sample.top_p=7",)
    job = selftrain.start_job(2, "run", tmp_path / "run", bad=bad, last=last)
    ended = selftrain.ends(job)  # left alone, the other would wait for 300 s, and end by JAX's abort
    assert ended[bad][0] == 2 and "top_p=7" in ended[bad][2]
    code, _, err = ended[1 - bad]
    assert code == 1 and f"process {bad}" in err and "is gone" in err, err[-3000:]
    assert not (tmp_path / "run").exists()


@pytest.mark.large
def test_one_that_is_interrupted_is_missed_by_the_others(selftrain, hold, copy_of):
    workdir, held = copy_of("lab"), hold("sample/self/corpus/corpus-", 2)
    job = selftrain.start_job(2, "run", workdir, holds={1: held})
    held.reached(job[1])
    job[1].send_signal(signal.SIGINT)
    held.release()
    (code, _, err), (interrupted, _, other_err) = selftrain.ends(job)
    assert interrupted == 1 and "selftrain: interrupted" in other_err
    assert code == 1 and f"process 1 on {socket.gethostname()} is gone" in err, err[-3000:]


@pytest.mark.large
def test_when_one_dies_the_others_say_so_and_fewer_finish(finished, selftrain, hold, copy_of):
    """Process 2 of 4 is killed while it samples, then process 3 while it trains; two finish the run."""
    workdir = copy_of("lab")

    def kill(victim, number, moment):
        """Kills a process when the one of this number is at a moment."""
        held = hold(moment)
        job = selftrain.start_job(4, "run", workdir, holds={number: held})
        try:
            held.reached(job[number])
            job[victim].send_signal(signal.SIGKILL)
            killed = time.monotonic()
            held.release()
            ended = selftrain.ends([process for process in job if process is not job[victim]])
        finally:
            for process in job:
                process.kill()
        print(f"process {victim} killed: {time.monotonic() - killed:.1f} s, {[code for code, *_ in ended]}")
        for code, _, err in ended:
            stopped = [line for line in err.splitlines() if line.startswith("selftrain: stopped: ")]
            assert (code, len(stopped)) == (1, 1), err[-3000:]
            # With it, perhaps, another that noticed first, and ended.
            assert re.search(f"process {victim} on {re.escape(socket.gethostname())}.* (is|are) gone", stopped[0])

    kill(2, 2, "sample/self/corpus/corpus-")
    assert not (workdir / "sample" / "self" / "manifest.json").exists()
    kill(
        3, 0, "train/self-0/checkpoints/4$"
    )  # which process 0 finishes; the others wait for it in one of the next steps
    assert not (workdir / "train" / "self-0" / "manifest.json").exists()
    ended = selftrain.ends(selftrain.start_job(2, "run", workdir))
    assert [code for code, *_ in ended] == [0, 0], "\n".join(err[-1000:] for *_, err in ended)
    assert "sample/self" in ended[0][1] and selftrain.table(ended[0][1]) == selftrain.table(finished[1])
