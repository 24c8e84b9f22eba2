"""benchmarks/sensitivity.py on a finished run: asked as in the run, its models answer as in the run."""

import argparse
import json
import pathlib
import sys

import numpy as np
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.evaluation.items import Items
from selftrain_jax.evaluation.memorization import Probe
from selftrain_jax.run import summary

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "benchmarks"))
import sensitivity  # noqa: E402


def asked(run, **changed):
    usual = {"models": "self-0", "template": ["{question}"], "prefix": [1.0, 0.5], "temperatures": [1.0], "samples": 10}
    return list(sensitivity.measure(argparse.Namespace(run=run, **usual | changed)))


def test_models_asked_as_in_the_run_answer_as_in_the_run(finished):
    workdir, _ = finished
    rows = {(row["asked"], row["figure"], row["model"]): row for row in asked(workdir)}
    report = json.loads((workdir / "report" / "report.json").read_text())
    held_out = {row["model"]: row for row in report["metrics"] if row["metric"] == "extraction/held_out"}
    settings = json.loads((workdir / "config.json").read_text())["evaluate"]
    for model, name in (("base", "base"), ("self-0", "self")):
        items = Items.load(workdir / "evaluate" / model)
        capability = rows[f"prompt {settings['template']!r}", "capability", model]
        assert capability["value"] == pytest.approx(summary.mean_capability(items))
        extraction = rows["last 100% of the prefix", "extraction", model]
        assert extraction["value"] == pytest.approx(held_out[name]["value"]) and extraction["n"] == held_out[name]["n"]
    after, before = (rows["last 50% of the prefix", "suffix tokens right", m] for m in ("self-0", "base"))
    assert after["change"] == pytest.approx(after["value"] - before["value"])
    assert after["low"] <= after["change"] <= after["high"] and before["change"] is None
    sampled = [row["value"] for (how, _, _), row in rows.items() if how.startswith("10 samples")]
    assert len(sampled) == 2 and all(0 <= value <= 1 for value in sampled)
    with pytest.raises(InputError, match="has no model 'other-7'"):
        asked(workdir, models="base,other-7")


def test_a_cut_prefix_keeps_what_stands_before_the_suffix():
    probe = Probe(np.arange(5, dtype=np.int32), np.array([9], np.int32), "repeats=4", cluster="a")
    row = {"suffix": [9], "group": "repeats=4", "cluster": "a"}
    assert sensitivity._cut(probe, 0.5) == {"prefix": [3, 4], **row}
    assert sensitivity._cut(probe, 1.0) == {"prefix": [0, 1, 2, 3, 4], **row}
    assert sensitivity._cut(probe, 0.01)["prefix"] == [4]
