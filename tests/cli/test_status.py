import contextlib
import dataclasses
import os
import pathlib

from selftrain_jax.cli import status
from selftrain_jax.cli.config import load_config
from selftrain_jax.core.files import write_json
from selftrain_jax.core.storage import Workdir
from selftrain_jax.run import stages
from tests.cli.command import TINY, loaded, run


def test_status_tells_done_started_and_waiting_and_writes_nothing(tmp_path, capsys):
    workdir = tmp_path / "run"
    arguments = ("status", f"--config={TINY}", f"--workdir={workdir}")
    assert run(*arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == {"waiting"} and not workdir.exists()

    from selftrain_jax.run.pipeline import Pipeline

    plan = {stage.name: stage for stage in Pipeline(load_config(TINY), workdir).stages()}
    for name, file in (("lab/world", "manifest.json"), ("lab/base", "started.json")):
        (workdir / name).mkdir(parents=True)
        inputs = dict.fromkeys(plan[name].after, "a fingerprint")
        write_json(
            workdir / name / file, {"settings": plan[name].settings, "inputs": inputs, "fingerprint": "a fingerprint"}
        )
    before = sorted(workdir.rglob("*"))
    assert run(*arguments) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == [["done", "lab/world"], ["started", "lab/base"], ["waiting", "lab/other"]]
    assert [name for _, name in lines] == list(plan)
    assert sorted(workdir.rglob("*")) == before


def test_status_tells_how_far_a_stage_is(tmp_path, capsys):
    from selftrain_jax.run.pipeline import Pipeline

    plan = {stage.name: stage for stage in Pipeline(load_config(TINY), tmp_path).stages()}
    for name in ("lab/base", "sample/self", "train/self-0"):
        (tmp_path / name).mkdir(parents=True)
        inputs = dict.fromkeys(plan[name].after, "unknown")
        write_json(tmp_path / name / "started.json", {"settings": plan[name].settings, "inputs": inputs})
    (tmp_path / "lab/base/metrics.jsonl").write_text('{"step": 5, "epoch": 0.25}\n')
    (tmp_path / "train/self-0/metrics.jsonl").write_text('{"step": 4, "epoch": 2.0}\n{"step": 6, "epoch": 3.0}\n{"st')
    (tmp_path / "sample/self/corpus").mkdir()
    for shard in range(3):
        (tmp_path / f"sample/self/corpus/corpus-train.array_record-{shard:05}-of-00016").touch()
    assert run("status", f"--config={TINY}", f"--workdir={tmp_path}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("about")], (
        "nothing is done that tells how long the rest takes"
    )
    assert "started  lab/base: step 5 of 20" in lines and "started  train/self-0: step 6 of 8" in lines
    assert "started  sample/self: 12 of 64 documents" in lines
    assert loaded("status", f"--config={TINY}", f"--workdir={tmp_path}") == ["numpy"]


def test_status_looks_at_no_weights(tmp_path, monkeypatch, capsys):
    looked, outside = [], stages.outside_inputs

    def look(stage, models):
        looked.append(models)
        return outside(stage, models)

    from selftrain_jax.run.pipeline import Pipeline

    first = Pipeline(load_config(TINY), tmp_path).stages()[0]
    (tmp_path / first.name).mkdir(parents=True)
    record = {"settings": first.settings, "inputs": {}, "fingerprint": "", "seconds": 1.0}
    write_json(tmp_path / first.name / "manifest.json", record)
    monkeypatch.setattr(stages, "outside_inputs", look)
    assert run("status", f"--config={TINY}", f"--workdir={tmp_path}") == 0
    assert looked and not any(looked)


def test_status_tells_how_the_units_of_a_study_stand(tmp_path, capsys):
    from selftrain_jax.study.expand import Study
    from selftrain_jax.study.failures import Failures

    config = load_config(str(pathlib.Path(TINY).with_name("tiny_study.py")), study=True)
    study = Study(config, tmp_path)
    units = study.units
    for number, (file, left) in enumerate([("manifest.json", []), ("manifest.json", ["gone"]), ("started.json", [])]):
        unit = units[number]
        for stage in unit.stages:
            folder = unit.workdir / stage.name
            folder.mkdir(parents=True)
            inputs = {**stage.externals(), **dict.fromkeys(stage.after, "")}
            record = {"settings": stage.settings, "inputs": inputs, "files": left}
            write_json(folder / file, record | {"fingerprint": "", "seconds": 30.0})
    Failures(study).write(units[3].name, "the loss is not finite")
    write_json(tmp_path / "study.json", dataclasses.asdict(config))
    assert run("status", f"--workdir={tmp_path}") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    states = ["done", "stale", "started", "failed", *["waiting"] * (len(units) - 4)]
    assert [line.split()[0] for line in lines] == states
    assert lines[1] == f"stale    {units[1].name}: gone is gone from its folder"
    assert lines[3] == f"failed   {units[3].name}: the loss is not finite"
    assert last.startswith(f"1 of {len(units)} units done")
    assert loaded("status", f"--workdir={tmp_path}") == ["numpy"]


def test_status_watches_until_nobody_is_at_work(tmp_path, monkeypatch, capsys):
    """What is shown again is what has changed; the run ends while the watcher waits for the third time."""
    held_by, waits = contextlib.ExitStack(), []
    held_by.enter_context(Workdir(tmp_path).held())

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            from selftrain_jax.run.pipeline import Pipeline

            world = Pipeline(load_config(TINY), tmp_path).stages()[0]
            (tmp_path / world.name).mkdir(parents=True)
            write_json(tmp_path / world.name / "started.json", {"settings": world.settings, "inputs": {}})
        if len(waits) == 3:
            held_by.close()

    monkeypatch.setattr(status.time, "sleep", wait)
    assert run("status", "--watch", f"--config={TINY}", f"--workdir={tmp_path}") == 0
    out = capsys.readouterr().out
    assert waits == [2.0] * 3 and "\x1b" not in out
    assert out.count("waiting  lab/world") == out.count("started  lab/world") == 1
    assert out.endswith("nobody is at work in the folder\n")


def test_a_watch_that_is_interrupted_ends_well(tmp_path, monkeypatch, capsys):
    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(status.time, "sleep", interrupted)
    with Workdir(tmp_path).held():
        assert run("status", "--watch", f"--config={TINY}", f"--workdir={tmp_path}") == 0
    assert capsys.readouterr().err == ""


def test_status_refuses_settings_that_are_not_those_of_the_workdir(tmp_path, capsys):
    (tmp_path / "lab/world").mkdir(parents=True)
    write_json(tmp_path / "lab/world/started.json", {"settings": {"seed": 5}, "inputs": {}})
    assert run("status", f"--config={TINY}", f"--workdir={tmp_path}") == 2
    err = capsys.readouterr().err
    assert err.startswith("selftrain: error: stage lab/world: setting ") and err.count("\n") == 1


def test_a_second_run_in_one_folder_is_refused_at_once_while_status_works(tmp_path, capsys):
    arguments = (f"--config={TINY}", f"--workdir={tmp_path}")
    with Workdir(tmp_path).held():
        assert run("run", *arguments) == 2
        assert f"workdir {tmp_path} is in use by process {os.getpid()} on " in capsys.readouterr().err
        assert run("status", *arguments) == 0
    assert list(tmp_path.iterdir()) == []
