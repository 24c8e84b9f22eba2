"""A job of several processes is the same run as one process; when one dies, the others say so and end."""

import re
import signal
import socket
import time

import pytest


@pytest.mark.large
def test_four_processes_make_the_same_table(finished, selftrain, tmp_path):
    """Up to the rounding of sums over four devices."""
    ended = selftrain.ends(selftrain.start_job(4, "run", tmp_path / "run"), seconds=1800)
    assert [code for code, *_ in ended] == [0] * 4, "\n".join(err[-1000:] for *_, err in ended)
    (_, out, err), *others = ended
    assert f"selftrain: 4 processes; 4 x cpu; mesh data=4, fsdp=1, tensor=1; writing to {tmp_path / 'run'}" in err
    for _, other_out, other_err in others:
        assert "selftrain:" not in other_err and "[1/" not in other_out and "report:" not in other_out
    assert selftrain.table(out) == selftrain.table(finished[1])
    found, wanted = (selftrain.report(workdir) for workdir in (tmp_path / "run", finished[0]))
    for row, expected in zip(found["metrics"], wanted["metrics"], strict=True):
        assert row == {k: pytest.approx(v, rel=1e-6) if isinstance(v, float) else v for k, v in expected.items()}


@pytest.mark.large
def test_when_one_dies_the_others_say_so_and_fewer_finish(finished, selftrain, copy_of):
    """Process 2 of 4 is killed while it samples, then process 3 while it trains; two finish the run."""
    workdir = copy_of("lab")

    def kill(victim, has_begun):
        job = selftrain.start_job(4, "run", workdir)
        try:
            while not has_begun() and all(process.poll() is None for process in job):
                time.sleep(0.01)
            job[victim].send_signal(signal.SIGKILL)
            killed = time.monotonic()
            ended = selftrain.ends([process for process in job if process is not job[victim]], seconds=60)
        finally:
            for process in job:
                process.kill()
        said = [re.findall(f"selftrain: stopped: .*|.*heartbeat.*task:{victim}.*|.*task died.*", err) for *_, err in ended]
        print(f"process {victim} killed: {time.monotonic() - killed:.1f} s, {[code for code, *_ in ended]}, {said}")
        named = re.compile(f"process {victim} on {re.escape(socket.gethostname())} is gone|task:{victim}\\b")
        for code, _, err in ended:
            # Where nothing is exchanged, and while the other part of a checkpoint is awaited, JAX ends the process itself.
            assert code in (1, -signal.SIGABRT), err[-3000:]
            assert named.search(err), err[-3000:]

    kill(2, lambda: any((workdir / "sample" / "self" / "corpus").glob("corpus-*")))
    assert not (workdir / "sample" / "self" / "manifest.json").exists()
    kill(3, lambda: any(p.name.isdigit() for p in (workdir / "train" / "self-0" / "checkpoints").glob("*")))
    assert not (workdir / "train" / "self-0" / "manifest.json").exists()
    ended = selftrain.ends(selftrain.start_job(2, "run", workdir), seconds=1800)
    assert [code for code, *_ in ended] == [0, 0], "\n".join(err[-1000:] for *_, err in ended)
    assert "sample/self" in ended[0][1] and selftrain.table(ended[0][1]) == selftrain.table(finished[1])
