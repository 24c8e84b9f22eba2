"""A suite that is added to a run that is done: what is measured stays, and nothing else is done again."""

import contextlib
import dataclasses
import json
import os
import pathlib

import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import write_json
from selftrain_jax.run import execute, stages
from selftrain_jax.run.stages import Stage
from tests.killing import Killed, kill_at


def run(workdir, plan):
    said = []
    execute.run(workdir, plan, lambda name: True, said.append)
    return said


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def measuring(suites, calls, bad=()):
    """train/self-0, whose curve names the suites, and its evaluation, which keeps what is there of them."""

    def measure(directory):
        path = directory / "items.json"
        found = json.loads(path.read_text()) if path.is_file() else {}
        for name in [name for name in suites if name not in found]:
            if name in bad:
                raise InputError(f"suite {name} is broken")
            calls.append(name)
        write_json(path, suites)

    def train(directory):
        calls.append("train")
        (directory / "result").write_text("trained")

    def read():
        return {f"suites.{name}": value for name, value in suites.items()}

    how = {"curve": {"suites": suites, "points": 2}}, [], train, read
    after = ["train/self-0", "lab/world"] if "of the lab" in suites else ["train/self-0"]
    return [
        Stage("lab/world", {}, [], lambda directory: None),
        Stage("train/self-0", *how, settled=["curve.suites"]),
        Stage("evaluate/self-0", {"suites": suites, "dtype": "f"}, after, measure, read, grows=["suites"]),
        Stage("report", {}, ["evaluate/self-0"], lambda directory: calls.append("report"), again=True),
    ]


def test_a_suite_that_is_added_redoes_nothing_else(tmp_path):
    calls, more = [], {"a": "1", "b": "2", "of the lab": "3"}
    run(tmp_path, measuring({"a": "1"}, calls))
    assert [stages.state(tmp_path, stage) for stage in measuring(more, calls)[:3]] == ["done", "done", "started"]
    assert stages.outdated(tmp_path, measuring(more, calls)) == {}
    said = run(tmp_path, measuring(more, calls))
    assert said[1:3] == ["[2/4] train/self-0: done before", "[3/4] evaluate/self-0"]
    assert calls == ["train", "a", "report", "b", "of the lab", "report"]
    assert stages.stale(tmp_path, measuring(more, calls)) == {}
    (tmp_path / "again").mkdir()
    run(tmp_path / "again", [stage for stage in measuring(more, []) if stage.name != "report"])
    # Training knows which suites its curve has; the evaluation is that of one which had them from the start.
    one, other = (stages.read_manifest(at, "evaluate/self-0") for at in (tmp_path, tmp_path / "again"))
    assert one["settings"] == other["settings"] and one["inputs"].keys() == other["inputs"].keys()
    assert one["files"] == other["files"]


@pytest.mark.parametrize(
    "asked, setting",
    [({"a": "2"}, "suites.a"), ({"b": "1"}, "suites.a"), ({}, "suites.a"), ({"a": "2", "b": "1"}, "suites.a")],
)
def test_a_suite_that_is_changed_or_dropped_is_refused(tmp_path, asked, setting):
    run(tmp_path, measuring({"a": "1"}, []))
    with pytest.raises(InputError, match=f"setting (curve.)?{setting} is "):
        run(tmp_path, measuring(asked, []))


def test_training_that_is_not_done_has_the_suites_that_it_began_with(tmp_path):
    begun = measuring({"a": "1"}, [])

    def killed(directory):
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        run(tmp_path, [begun[0], dataclasses.replace(begun[1], work=killed), *begun[2:]])
    with pytest.raises(InputError, match="setting curve.suites.b is '2' but .*train/self-0 was made with None"):
        run(tmp_path, measuring({"a": "1", "b": "2"}, []))


def test_a_suite_that_is_broken_costs_nothing_of_what_was_measured(tmp_path):
    calls = []
    run(tmp_path, measuring({"a": "1"}, calls))
    before = contents(tmp_path / "evaluate")
    with pytest.raises(InputError, match="suite b is broken"):
        run(tmp_path, measuring({"a": "1", "b": "2"}, calls, bad=["b"]))
    assert contents(tmp_path / "evaluate") == before
    assert run(tmp_path, measuring({"a": "1"}, calls))[2] == "[3/4] evaluate/self-0: done before"


@pytest.mark.parametrize("killed_at", range(10))
def test_growth_that_is_killed_leaves_the_old_or_the_new(tmp_path, killed_at, monkeypatch):
    """Killed before any of its writes: what declares itself done is whole, the same command goes on, and what was
    measured is not measured again."""
    calls, more = [], {"a": "1", "b": "2"}
    run(tmp_path, measuring({"a": "1"}, calls))
    kill_at(monkeypatch, killed_at, (os, "replace"), (pathlib.Path, "unlink"))
    with contextlib.suppress(Killed):
        run(tmp_path, measuring(more, calls))
    monkeypatch.undo()
    for suites in ({"a": "1"}, more):
        plan = measuring(suites, calls)
        evaluated = plan[2]
        with contextlib.suppress(InputError):
            stages.check(tmp_path, plan)
            if stages.state(tmp_path, evaluated) == "done" and not stages.stale(tmp_path, plan[:3]):
                assert json.loads((tmp_path / "evaluate/self-0/items.json").read_text()) == suites
    run(tmp_path, measuring(more, calls))
    assert json.loads((tmp_path / "evaluate/self-0/items.json").read_text()) == more
    assert calls.count("train") == calls.count("a") == 1 and "b" in calls
    assert stages.stale(tmp_path, measuring(more, calls)) == {}
