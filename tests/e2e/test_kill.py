"""A run that signals stop anywhere, and that one command goes on with, ends as if nothing had stopped it."""

import signal

import numpy as np
import pytest

from selftrain_jax.data.corpus import read_corpus

INTERRUPTED = "selftrain: interrupted; the same command goes on from here"


@pytest.fixture
def stop_inside(selftrain, hold):
    """`stop_inside(workdir, stage, moment)` stops a run before the `count`-th file of this name is there; returns its
    exit code and stderr.
    """

    def stop(workdir, stage, moment, *settings, count=1, sent=signal.SIGKILL):
        held = hold(f"{stage}/{moment}", count)
        process = selftrain.start("run", workdir, *settings, hold=held)
        held.reached(process)
        process.send_signal(sent)
        held.release()
        [(code, _, err)] = selftrain.ends([process])
        assert (workdir / stage / "started.json").exists() and not (workdir / stage / "manifest.json").exists()
        return code, err

    return stop


def shards(workdir, stage):
    return len(list((workdir / stage / "corpus").glob("corpus-*-of-00016")))


def assert_same_params(selftrain, found, expected, model):
    wanted = selftrain.params(expected, model)
    for name, leaf in selftrain.params(found, model).items():
        np.testing.assert_array_equal(leaf, wanted[name], err_msg=f"{model}: {name}")


def test_a_run_killed_and_interrupted_ends_as_if_it_had_not_been(finished, selftrain, stop_inside, copy_of):
    """`kill -9` inside sampling, Ctrl-C inside training; the arm of the model's own text alone."""
    workdir, alone = copy_of("lab", "evaluate/base"), "--config.controls={}"
    stop_inside(workdir, "sample/self", "corpus/corpus-", alone, count=2)
    assert shards(workdir, "sample/self") == 1
    code, err = stop_inside(workdir, "train/self-0", "checkpoints/4$", alone, sent=signal.SIGINT)
    assert (code, err.splitlines()[-1]) == (1, INTERRUPTED) and "Traceback" not in err
    status = selftrain.succeeds("status", workdir, alone).splitlines()
    assert {line.split()[0] for line in status} == {"done", "started", "waiting", "about"}  # the time that is left
    selftrain.succeeds("run", workdir, alone)
    corpora = [[(d.id, d.text) for d in read_corpus(w / "sample/self/corpus")] for w in (workdir, finished[0])]
    assert corpora[0] == corpora[1]
    assert_same_params(selftrain, workdir, finished[0], "self-0")
    # What counts as held out depends on the text of all arms.
    rows = [{(r["model"], r["metric"]): r for r in selftrain.report(w)["metrics"]} for w in (workdir, finished[0])]
    same = [key for key in rows[0] if "held_out" not in key[1]]
    assert {model for model, _ in same} == {"base", "self"}
    assert [rows[0][key] for key in same] == [rows[1][key] for key in same]


@pytest.mark.large
def test_a_run_killed_in_every_stage_ends_as_if_it_had_not_been(finished, selftrain, stop_inside, tmp_path):
    """`kill -9` inside pre-training, sampling, training and evaluation, Ctrl-C once, SIGTERM once; always one
    command.
    """
    stop_inside(tmp_path, "lab/base", "checkpoints/8$")
    stop_inside(tmp_path, "evaluate/base", "items.npz$")
    stop_inside(tmp_path, "sample/self", "corpus/corpus-", count=2)
    assert shards(tmp_path, "sample/self") == 1
    code, err = stop_inside(tmp_path, "sample/other", "corpus/corpus-", count=2, sent=signal.SIGINT)
    assert (code, err.splitlines()[-1]) == (1, INTERRUPTED)
    assert "Traceback" not in err and shards(tmp_path, "sample/self") == 16
    stop_inside(tmp_path, "train/self-0", "checkpoints/4$")
    code, err = stop_inside(tmp_path, "train/other-0", "checkpoints/4$", sent=signal.SIGTERM)
    assert code == 143 and "selftrain: stopped: SIGTERM came; step " in err and "Traceback" not in err

    status = selftrain.succeeds("status", tmp_path).splitlines()
    assert {line.split()[0] for line in status} == {"done", "started", "waiting", "about"}
    out = selftrain.succeeds("run", tmp_path)
    assert selftrain.table(out) == selftrain.table(finished[1])
    assert selftrain.report(tmp_path) == selftrain.report(finished[0])
    for model in ("self-0", "real-0", "other-0"):
        assert_same_params(selftrain, tmp_path, finished[0], model)
    weights = "lab/base/model/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (finished[0] / weights).read_bytes()
