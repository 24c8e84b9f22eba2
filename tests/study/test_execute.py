"""What a study says of a unit that failed, leaves for its other shards, and makes anew."""

import json
import types

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import file_fingerprint
from selftrain_jax.run.stages import Stage, read_manifest
from selftrain_jax.study.execute import Execution
from selftrain_jax.study.model import Unit


def test_why_a_unit_failed_is_told_and_kept_without_passwords(tmp_path):
    def refused():
        raise InputError("no answer from http://me:secret@host/")

    unit = types.SimpleNamespace(name="sample/a", needs=(), done=refused)
    study = types.SimpleNamespace(units=[unit], workdir=tmp_path, config={})
    said = []
    assert Execution(study, said.append).do([0]) == ["sample/a: no answer from http://***@host/"]
    assert said == ["[1/1] sample/a: FAILED: no answer from http://***@host/"]
    assert "secret" not in (tmp_path / "failed" / "sample_a.json").read_text()


def study_of(workdir, rate, *, broken=False):
    """Four units: the second has a stage that reads what the first noted, and one that reads a file of that stage; the
    last is their report."""

    def stage(name, settings, externals=dict, models=dict, again=False):
        def work(folder):
            if broken and name == "train/a":
                raise InputError("no such luck")
            assert again or not (workdir / "report").exists()  # it would be found stale by who reads a model
            (folder / "made.json").write_text(json.dumps([settings, externals()]))
            return {}

        return Stage(name, settings, (), work, externals, models, again=again, root=workdir)

    def noted():
        return {"first": read_manifest(workdir, "sample/a")["fingerprint"]}

    def made():
        return {"model": file_fingerprint(workdir / "train/a/made.json")}

    stages = [stage("train/a", {}, noted), stage("evaluate/a", {}, models=made)]
    units = [
        Unit("sample/a", workdir, [stage("sample/a", {"rate": rate})]),
        Unit("train/a", workdir, stages, ("sample/a",)),
        Unit("sample/b", workdir, [stage("sample/b", {"rate": 1})]),
        Unit("report", workdir, [stage("report", {}, again=True)], ("train/a",)),
    ]
    return types.SimpleNamespace(units=units, workdir=workdir, config={})


STAGES = "sample/a", "train/a", "evaluate/a", "sample/b"


def test_what_other_settings_make_and_what_was_made_from_it_is_done_anew_when_asked_for(tmp_path):
    said = []
    assert Execution(study_of(tmp_path, 1), said.append).do([0, 1, 2, 3]) == []
    before = {name: read_manifest(tmp_path, name) for name in STAGES}
    changed = study_of(tmp_path, 2)
    assert [unit.done() for unit in changed.units] == [False, True, True, True]
    failed, *_ = Execution(changed, said.append).do([0, 1, 2, 3])
    assert "setting rate is 2 but" in failed and "which `selftrain study --redo` does" in failed
    assert {name: read_manifest(tmp_path, name) for name in before} == before

    said.clear()
    assert Execution(changed, said.append, redo=True).do([0, 1, 2, 3]) == []
    assert json.loads((tmp_path / "sample/a/made.json").read_text()) == [{"rate": 2}, {}]
    after = {name: read_manifest(tmp_path, name)["fingerprint"] for name in before}
    assert [after[name] == before[name]["fingerprint"] for name in STAGES] == [False, False, False, True]
    assert said == [
        "[1/4] sample/a, sample/a: anew, since setting rate is 2 and was 1",
        "[1/4] sample/a",
        "[2/4] train/a, train/a: anew, since its input first has changed since",
        "[2/4] train/a",
        "[2/4] train/a, evaluate/a: anew, since its input model has changed since",
        "[2/4] train/a, evaluate/a",
        "[3/4] sample/b: done before",
        "[4/4] report",
    ]
    assert all(unit.done() for unit in changed.units)


def test_what_was_is_kept_until_all_is_done_anew(tmp_path):
    Execution(study_of(tmp_path, 1), print).do([0, 1, 2, 3])
    failed = Execution(study_of(tmp_path, 2, broken=True), print, redo=True).do([0, 1, 2, 3])
    assert failed[0] == "train/a: no such luck"
    assert json.loads((tmp_path / "before-redo/sample/a/made.json").read_text()) == [{"rate": 1}, {}]
    assert (tmp_path / "before-redo/train/a/made.json").is_file()
    assert Execution(study_of(tmp_path, 2), print, redo=True).do([0, 1, 2, 3]) == []


def test_no_shard_waits_for_what_another_one_makes_with_other_settings(tmp_path):
    """Both were started at once, so that neither found the other's work when it looked."""
    ours, theirs = study_of(tmp_path, 1), study_of(tmp_path, 2)
    assert Execution(theirs, print).do([0, 2]) == []
    failed, _ = Execution(ours, print).do([1, 3])
    assert failed.startswith("train/a: stage sample/a: setting rate is 1 but ") and "was made with 2" in failed
    assert [line.partition(":")[0] for line in Execution(ours, print).wait_for_all()] == [
        "sample/a",
        "train/a",
        "report",
    ]
