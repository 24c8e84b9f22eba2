import shutil
import signal
import time

import numpy as np


def test_a_run_killed_in_every_stage_ends_as_if_it_had_not_been(finished, selftrain, tmp_path):
    """`kill -9` inside pre-training, sampling, training and evaluation, Ctrl-C once, SIGTERM once; always one command."""

    def checkpoints(stage):
        return len([p for p in (tmp_path / stage / "checkpoints").glob("*") if p.name.isdigit()])

    def shards(stage):
        return len(list((tmp_path / stage / "corpus").glob("corpus-*")))

    def stop_inside(stage, has_begun, sent=signal.SIGKILL):
        """Starts the run and stops it once `has_begun`; again from that stage on if it was faster than the signal."""
        for _ in range(5):
            process = selftrain.start("run", tmp_path)
            while not has_begun() and process.poll() is None:
                time.sleep(0.002)
            process.send_signal(sent)
            _, err = process.communicate(timeout=60)
            if not (tmp_path / stage / "manifest.json").exists():
                assert has_begun(), err[-3000:]
                return process.returncode, err
            shutil.rmtree(tmp_path / stage)
        raise AssertionError(f"{stage} always ended before the signal")

    stop_inside("lab/base", lambda: checkpoints("lab/base"))
    stop_inside("sample/self", lambda: shards("sample/self"))
    kept = shards("sample/self")
    code, err = stop_inside("sample/other", lambda: shards("sample/other"), signal.SIGINT)
    assert (code, err.splitlines()[-1]) == (1, "selftrain: interrupted; the same command goes on from here")
    assert "Traceback" not in err
    stop_inside("train/self-0", lambda: checkpoints("train/self-0"))
    code, err = stop_inside("train/other-0", lambda: checkpoints("train/other-0"), signal.SIGTERM)
    assert code == 143 and "selftrain: stopped: SIGTERM came; step " in err and "Traceback" not in err
    stop_inside("evaluate/real-0", lambda: (tmp_path / "evaluate" / "base" / "started.json").exists())
    assert 0 < kept < 16 == shards("sample/self")

    status = selftrain.succeeds("status", tmp_path).splitlines()
    assert {line.split()[0] for line in status} == {"done", "started", "waiting"}
    out = selftrain.succeeds("run", tmp_path)
    assert out.split("\n\n", 1)[1].splitlines()[:-1] == finished[1].split("\n\n", 1)[1].splitlines()[:-1]
    assert selftrain.report(tmp_path) == selftrain.report(finished[0])
    for model in ("self-0", "real-0", "other-0"):
        wanted = selftrain.params(finished[0], model)
        for name, leaf in selftrain.params(tmp_path, model).items():
            np.testing.assert_array_equal(leaf, wanted[name], err_msg=f"{model}: {name}")
    weights = "lab/base/model/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (finished[0] / weights).read_bytes()
