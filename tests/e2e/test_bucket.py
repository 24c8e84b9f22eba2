"""A run in a bucket is the same run as on disk, killed or not, and a laptop can look at it."""

import signal

import pytest

from selftrain_jax.core.storage import Workdir
from tests.waiting import wait_until


def killed_once(selftrain, processes, victim, there):
    """Kills `victim` when `there`, and waits for the others."""
    wait_until(there, victim)
    victim.send_signal(signal.SIGKILL)
    return selftrain.ends(processes)


@pytest.mark.large
def test_a_run_in_a_bucket_killed_twice_is_the_run_on_disk(finished, selftrain, hold, bucket, tmp_path):
    """The process may come to the end of the stage in which it is killed, and no further."""
    home = Workdir(bucket).path
    process = selftrain.start("run", bucket, hold=hold("sample/self/manifest.json$"))
    killed_once(selftrain, [process], process, lambda: list((home / "sample/self/corpus").glob("corpus-*-of-00016")))
    assert not (home / "sample/self/manifest.json").exists()
    process = selftrain.start("run", bucket, hold=hold("train/other-0/manifest.json$"))
    killed_once(selftrain, [process], process, lambda: (home / "train/other-0/checkpoints/2").exists())
    status = selftrain.succeeds("status", bucket).splitlines()
    assert "done     sample/self" in status and any(line.startswith("started  train/other-0") for line in status)

    out = selftrain.succeeds("run", bucket)
    assert selftrain.table(out) == selftrain.table(finished[1]) and f"report: {bucket}/report/report.html" in out
    place = Workdir(bucket)
    place.fetch()
    assert selftrain.report(place.local) == selftrain.report(finished[0])
    corpus, audited = "sample/self/corpus", "audit/self/audit.json"
    shards = sorted((finished[0] / corpus).glob("corpus-*"))
    assert shards and [p.read_bytes() for p in shards] == [(place.local / corpus / p.name).read_bytes() for p in shards]
    assert (place.local / audited).read_bytes() == (finished[0] / audited).read_bytes()
    steps = [
        len((folder / "train/self-0/metrics.jsonl").read_text().splitlines()) for folder in (place.local, finished[0])
    ]
    assert steps[0] == steps[1]

    for source, name in ((bucket, "a"), (finished[0], "b")):
        export = selftrain.command("export", str(source), str(tmp_path / name))
        assert export.returncode == 0, export.stderr[-3000:]
    assert selftrain.contents(tmp_path / "a").keys() == selftrain.contents(tmp_path / "b").keys()
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


@pytest.mark.large
def test_two_processes_in_a_bucket_and_one_that_goes_on_alone(finished, selftrain, bucket):
    """Processes share nothing but the bucket."""
    home = Workdir(bucket).path
    survivor, victim = selftrain.start_job(2, "run", bucket)
    [(code, _, err)] = killed_once(
        selftrain, [survivor], victim, lambda: (home / "train/self-0/checkpoints/4").exists()
    )
    assert code != 0, err[-3000:]
    assert not (home / "train/self-0/manifest.json").exists()
    assert selftrain.table(selftrain.succeeds("run", bucket)) == selftrain.table(finished[1])
