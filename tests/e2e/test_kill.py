import signal

import numpy as np


def test_a_run_killed_in_every_stage_ends_as_if_it_had_not_been(finished, selftrain, hold, tmp_path):
    """`kill -9` inside pre-training, sampling, training and evaluation, Ctrl-C once, SIGTERM once; always one
    command.
    """

    def shards(stage):
        return len(list((tmp_path / stage / "corpus").glob("corpus-*-of-00016")))

    def stop_inside(stage, moment, count=1, sent=signal.SIGKILL):
        """Stops the run before the `count`-th file of this name is there; returns its exit code and stderr."""
        held = hold(f"{stage}/{moment}", count)
        process = selftrain.start("run", tmp_path, hold=held)
        held.reached(process)
        process.send_signal(sent)
        held.release()
        [(code, _, err)] = selftrain.ends([process])
        assert (tmp_path / stage / "started.json").exists() and not (tmp_path / stage / "manifest.json").exists()
        return code, err

    stop_inside("lab/base", "checkpoints/8$")
    stop_inside("evaluate/base", "items.npz$")
    stop_inside("sample/self", "corpus/corpus-", 2)
    assert shards("sample/self") == 1
    code, err = stop_inside("sample/other", "corpus/corpus-", 2, signal.SIGINT)
    assert (code, err.splitlines()[-1]) == (1, "selftrain: interrupted; the same command goes on from here")
    assert "Traceback" not in err and shards("sample/self") == 16
    stop_inside("train/self-0", "checkpoints/4$")
    code, err = stop_inside("train/other-0", "checkpoints/4$", 1, signal.SIGTERM)
    assert code == 143 and "selftrain: stopped: SIGTERM came; step " in err and "Traceback" not in err

    status = selftrain.succeeds("status", tmp_path).splitlines()
    assert {line.split()[0] for line in status} == {"done", "started", "waiting"}
    out = selftrain.succeeds("run", tmp_path)
    assert selftrain.table(out) == selftrain.table(finished[1])
    assert selftrain.report(tmp_path) == selftrain.report(finished[0])
    for model in ("self-0", "real-0", "other-0"):
        wanted = selftrain.params(finished[0], model)
        for name, leaf in selftrain.params(tmp_path, model).items():
            np.testing.assert_array_equal(leaf, wanted[name], err_msg=f"{model}: {name}")
    weights = "lab/base/model/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (finished[0] / weights).read_bytes()
