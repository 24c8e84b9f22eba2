import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import pytest

from selftrain_jax.core import progress, storage
from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import Fingerprints
from selftrain_jax.core.storage import Workdir
from selftrain_jax.run import execute, stages
from selftrain_jax.run.stages import Stage
from tests.killing import Killed, kill_at
from tests.waiting import HANGS

ROOT = pathlib.Path(__file__).resolve().parents[2]


def plan(sample=None, train=None, text="text v1", calls=None):
    """sample/self -> train/self-0, which also reads an outside file; every call of a stage's work goes to `calls`."""

    def work(name):
        def do(directory):
            (calls if calls is not None else []).append(name)
            (directory / "result").write_text(name)
            return {"of": name}

        return do

    return [
        Stage("sample/self", {"seed": 0, "warp": {"top_k": 0, "sizes": (1, 2)}, **(sample or {})}, [], work("sample")),
        Stage("train/self-0", {"epochs": 2, **(train or {})}, ["sample/self"], work("train"), lambda: {"texts": text}),
    ]


def run(workdir, stages_, wanted=lambda name: True):
    said = []
    execute.run(workdir, stages_, wanted, said.append)
    return said


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_stages_run_in_order_and_leave_what_they_found(tmp_path):
    calls = []
    assert run(tmp_path, plan(calls=calls)) == ["[1/2] sample/self", "[2/2] train/self-0"]
    assert calls == ["sample", "train"]
    manifest = stages.read_manifest(tmp_path, "train/self-0")
    assert manifest["result"] == {"of": "train"} and manifest["settings"] == {"epochs": 2}
    fingerprint = stages.read_manifest(tmp_path, "sample/self")["fingerprint"]
    assert manifest["inputs"] == {"sample/self": fingerprint, "texts": "text v1"}


def test_what_is_done_is_skipped(tmp_path):
    run(tmp_path, plan())
    before, calls = contents(tmp_path), []
    said = run(tmp_path, plan(calls=calls))
    assert said == ["[1/2] sample/self: done before", "[2/2] train/self-0: done before"]
    assert calls == [] and contents(tmp_path) == before


NO_RECORDS = [[1], {}, {"settings": 7}, {"inputs": [1]}, {"files": 7}, {"earlier": 7}]


@pytest.mark.parametrize("change", NO_RECORDS, ids=str)
def test_a_record_of_another_kind_is_one_line(tmp_path, change):
    run(tmp_path, plan())
    path = tmp_path / "train" / "self-0" / "manifest.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | change if change and isinstance(change, dict) else change)
    )
    with pytest.raises(InputError, match="self-0/manifest.json is no record of a stage: remove .*train/self-0 and run"):
        stages.check(tmp_path, plan())
        stages.stale(tmp_path, plan())


def test_what_a_record_names_is_read_only_where_it_is_a_file(tmp_path, monkeypatch):
    read = storage.file_fingerprint
    ends = lambda path: read(path) if path.is_file() else pytest.fail("a device or a pipe never ends")  # noqa: E731
    monkeypatch.setattr(storage, "file_fingerprint", ends)
    run(tmp_path, plan())
    path = tmp_path / "train" / "self-0" / "manifest.json"
    os.mkfifo(path.with_name("pipe"))
    for name in ("/dev/zero", "pipe"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"files": {name: "0123"}}))
        assert f"{name} has changed in its folder" in stages.stale(tmp_path, plan())["train/self-0"].why


def test_a_log_dates_what_was_begun_and_done(tmp_path):
    with progress.kept_in(tmp_path / "log.txt"):
        execute.run(tmp_path, plan(), lambda name: True, progress.note)
    lines = [line[20:] for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert lines[0] == "[1/2] sample/self" and lines[1].startswith("[1/2] sample/self: done in 0")
    assert lines[-1] == "done" and len(lines) == 5


def test_an_unfinished_stage_goes_on_where_it_was(tmp_path):
    found = []

    def killed(directory):
        (directory / "half").write_text("half of the work")
        raise SystemExit("killed")

    def resumed(directory):
        found.append((directory / "half").read_text())

    with pytest.raises(SystemExit):
        run(tmp_path, [Stage("sample/self", {}, [], killed)])
    assert stages.state(tmp_path, Stage("sample/self", {}, [], resumed)) == "started"
    run(tmp_path, [Stage("sample/self", {}, [], resumed)])
    assert found == ["half of the work"]


def test_a_stage_notes_all_software_that_worked_on_it(tmp_path, monkeypatch):
    def begin(version, work):
        monkeypatch.setattr(execute.facts, "software", lambda: {"jax": version})
        with contextlib.suppress(SystemExit):
            run(tmp_path, [Stage("sample/self", {}, [], work)])

    for version in "1213":
        begin(version, lambda directory: sys.exit())
    begin("1", lambda directory: {})
    begin("4", lambda directory: {})  # which finds it done
    noted = stages.read_manifest(tmp_path, "sample/self")["software"]
    assert [of["jax"] for of in noted] == ["2", "3", "1"]


def test_what_nothing_tells_of_is_not_gone_on_with(tmp_path):
    """As where a copy of the folder broke off: checkpoints come before the record of what they are of."""
    (tmp_path / "train" / "self-0" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match="self-0 holds checkpoints, and nothing says how that was made"):
        run(tmp_path, plan())
    (tmp_path / "train" / "self-0" / "checkpoints").rmdir()
    (tmp_path / "train" / "self-0" / ".started.json.0123.tmp").write_text("")
    run(tmp_path, plan())


def test_states(tmp_path):
    first, second = plan()
    run(tmp_path, [first, second], lambda name: name == "sample/self")
    (tmp_path / "train/self-0").mkdir(parents=True)
    assert [stages.state(tmp_path, s) for s in (first, second)] == ["done", "waiting"]
    (tmp_path / "train/self-0/started.json").write_text("{}")
    assert stages.state(tmp_path, second) == "started"


CHANGES = [
    (dict(sample={"seed": 1}), "sample/self", "setting seed is 1 .* made with 0"),
    (dict(sample={"warp": {"top_k": 5, "sizes": (1, 2)}}), "sample/self", "setting warp.top_k is 5 .* made with 0"),
    (dict(sample={"warp": {"top_k": 0, "sizes": (1, 3)}}), "sample/self", r"setting warp.sizes is \[1, 3\]"),
    (dict(sample={"new": "x"}), "sample/self", "setting new is 'x' .* made with None"),
    (dict(train={"epochs": 3}), "train/self-0", "setting epochs is 3 .* made with 2"),
    (dict(text="text v2"), "train/self-0", "its input texts has changed"),
]


@pytest.mark.parametrize("state", ["done", "started"])
@pytest.mark.parametrize("change, stage, message", CHANGES, ids=[m for *_, m in CHANGES])
def test_a_change_is_refused_by_name_and_nothing_is_overwritten(tmp_path, change, stage, message, state):
    run(tmp_path, plan())
    if state == "started":
        (tmp_path / stage / "manifest.json").unlink()
    before, calls = contents(tmp_path), []
    with pytest.raises(InputError, match=f"stage {stage}.*: {message}.*--workdir") as e:
        run(tmp_path, plan(**change, calls=calls))
    assert "\n" not in str(e.value)
    assert contents(tmp_path) == before and not calls


@pytest.mark.parametrize("change, message", [(dict(train={"epochs": 3}), "epochs"), (dict(text="v2"), "input texts")])
def test_a_change_is_refused_before_an_earlier_stage_works(tmp_path, change, message):
    run(tmp_path, plan())
    (tmp_path / "sample/self/manifest.json").unlink()
    calls = []
    with pytest.raises(InputError, match=message):
        run(tmp_path, plan(**change, calls=calls))
    assert calls == []


def test_a_setting_that_is_not_there_equals_none(tmp_path):
    """So that a setting that a later version adds, off by default, does not lock out older runs."""
    run(tmp_path, plan())
    assert len(run(tmp_path, plan(sample={"new": None}))) == 2


def test_a_stage_whose_origin_was_made_anew_differently_is_refused(tmp_path):
    run(tmp_path, plan())
    shutil.rmtree(tmp_path / "sample")
    calls, changed = [], plan(sample={"seed": 1})
    message = "stage train/self-0 .*is stale: it was made from another sample/self"
    with pytest.raises(InputError, match=message):  # before the sampling, not after it
        run(tmp_path, plan(sample={"seed": 1}, calls=calls))
    assert calls == [] and not (tmp_path / "sample").exists()
    run(tmp_path, changed, lambda name: name == "sample/self")
    assert set(stages.stale(tmp_path, changed)) == {"train/self-0"}
    with pytest.raises(InputError, match=message):
        stages.current(tmp_path, changed, "sample/self", "train/self-0")
    shutil.rmtree(tmp_path / "sample")
    assert run(tmp_path, plan()) == ["[1/2] sample/self", "[2/2] train/self-0: done before"]
    assert stages.stale(tmp_path, plan()) == {}


def with_report(title="T", arms=("self",), calls=None, **change):
    """`plan`, with a report on the trainings of `arms`, which is made anew each time."""
    made = plan(calls=calls, **change)
    for arm in arms[1:]:
        made.append(dataclasses.replace(made[1], name=f"train/{arm}-0"))

    def report(directory):
        (directory / "report").write_text(title)

    return [*made, Stage("report", {"title": title}, [f"train/{arm}-0" for arm in arms], report, again=True)]


def test_what_is_made_from_a_stale_stage_is_stale_and_no_report_is_made_of_it(tmp_path):
    run(tmp_path, with_report())
    shutil.rmtree(tmp_path / "sample/self")
    changed = with_report(sample={"seed": 1})
    run(tmp_path, changed, lambda name: name == "sample/self")
    assert set(stages.stale(tmp_path, changed)) == {"train/self-0", "report"}
    with pytest.raises(InputError, match="stage train/self-0 .*is stale"):
        run(tmp_path, changed, lambda name: name == "report")
    with pytest.raises(
        InputError, match="report .*is stale: it was made from stage train/self-0, of which it was made"
    ):
        stages.current(tmp_path, changed, "report")


def test_a_report_is_written_again_whatever_was_there(tmp_path):
    run(tmp_path, with_report())
    calls, asked = [], with_report("New", ("self", "control"))
    assert "report" in stages.stale(tmp_path, asked)
    stages.current(tmp_path, asked, "report")  # for what it holds
    (tmp_path / "report/report").unlink()
    with pytest.raises(InputError, match="report is gone"):
        stages.current(tmp_path, asked, "report")
    run(tmp_path, asked)
    assert (tmp_path / "report/report").read_text() == "New" and stages.stale(tmp_path, asked) == {}
    run(tmp_path, with_report("New", ("self", "control"), calls))
    assert calls == []


def test_a_report_on_what_is_no_longer_asked_for_is_stale(tmp_path):
    """What it says of the others may depend on that: what is held out, p-values that are adjusted."""
    run(tmp_path, with_report("T", ("self", "control")))
    asked = with_report("T")
    why = "it was made from train/control-0 as well, which is no longer asked for"
    assert stages.stale(tmp_path, asked)["report"].why == why
    with pytest.raises(InputError, match=f"stage report .*is stale: {why}"):
        stages.current(tmp_path, asked, "report")
    run(tmp_path, asked)
    assert stages.stale(tmp_path, asked) == {}


def test_a_report_on_what_is_being_made_anew_is_stale(tmp_path):
    """Until that is done, a redo that was cut off or refused leaves the report of the settings before."""
    place, changed = Workdir(tmp_path), with_report(sample={"seed": 1})
    run(tmp_path, with_report())
    for name in reversed(stages.outdated(tmp_path, changed)):
        place.keep_until_redone(name)
    run(tmp_path, changed, lambda name: name == "sample/self")
    assert stages.state(tmp_path, changed[1]) == "waiting"
    with pytest.raises(InputError, match="report .*is stale: it was made from stage train/self-0, which --redo began"):
        stages.current(tmp_path, changed, "report")
    run(tmp_path, changed)
    place.redone()
    stages.current(tmp_path, changed, "report")


def test_a_file_of_a_finished_stage_that_is_gone_is_noticed(tmp_path):
    run(tmp_path, plan())
    (tmp_path / "sample/self/result").unlink()
    assert stages.stale(tmp_path, plan())["sample/self"].why == "result is gone from its folder"
    with pytest.raises(InputError, match="stage sample/self .*result is gone.*sample/self"):
        run(tmp_path, plan())
    shutil.rmtree(tmp_path / "sample")
    assert run(tmp_path, plan()) == ["[1/2] sample/self", "[2/2] train/self-0: done before"]


def test_bad_input_found_at_work_can_be_mended_in_place(tmp_path):
    """A stage that refuses its input has made nothing, so the next attempt may ask for something else."""

    def picky(directory):
        raise InputError("raise ngram")

    with pytest.raises(InputError, match="raise ngram"):
        run(tmp_path, [Stage("audit/self", {"ngram": 1}, [], picky)])
    assert run(tmp_path, [Stage("audit/self", {"ngram": 8}, [], lambda directory: None)]) == ["[1/1] audit/self"]


def test_bad_input_found_at_work_does_not_discard_what_is_there(tmp_path):
    def picky(directory):
        (directory / "shard").write_text("made with ngram=1")
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        run(tmp_path, [Stage("audit/self", {"ngram": 1}, [], picky)])
    with pytest.raises(InputError, match="setting ngram is 8"):
        run(tmp_path, [Stage("audit/self", {"ngram": 8}, [], picky)])
    assert (tmp_path / "audit/self/shard").exists()


def test_a_missing_prerequisite_names_the_command_that_makes_it(tmp_path):
    calls = []
    with pytest.raises(InputError, match="sample/self is not done .*`selftrain sample`"):
        run(tmp_path, plan(calls=calls), lambda name: name == "train/self-0")
    assert calls == [] and contents(tmp_path) == {}


@pytest.mark.parametrize("file", ["manifest.json", "started.json"])
def test_a_damaged_record_is_named(tmp_path, file):
    run(tmp_path, plan())
    (tmp_path / "sample/self" / file).write_text(json.dumps({"settings": {}})[:-1])
    with pytest.raises(InputError, match=f"sample/self/{file} is not valid JSON"):
        run(tmp_path, plan())


def growing(count, calls, other=0):
    def sample(directory):
        calls.append("sample")
        (directory / "result").write_text(str(count))

    def train(directory):
        calls.append("train")
        (directory / "result").write_text("trained")

    return [
        Stage("sample/self", {"count": count, "other": other}, [], sample, grows=("count",)),
        Stage("train/self-0", {}, ["sample/self"], train),
    ]


def test_a_setting_that_grows_takes_the_stage_up_again(tmp_path):
    calls = []
    first, more = growing(5, calls), growing(8, calls)
    run(tmp_path, first, lambda name: name == "sample/self")
    assert [stages.state(tmp_path, stage) for stage in more] == ["started", "waiting"]
    assert run(tmp_path, more) == ["[1/2] sample/self", "[2/2] train/self-0"]
    assert calls == ["sample", "sample", "train"]
    assert (tmp_path / "sample/self/result").read_text() == "8"
    assert [stages.state(tmp_path, stage) for stage in more] == ["done", "done"]


def test_growth_is_carried_through_and_what_was_made_from_less_is_kept(tmp_path):
    calls = []
    run(tmp_path, growing(5, calls))
    before = contents(tmp_path / "train")
    assert list(stages.outdated(tmp_path, growing(8, calls), outgrown=True)) == ["train/self-0"]
    assert stages.outdated(tmp_path, growing(8, calls)) == {}
    run(tmp_path, growing(8, calls))
    assert calls == ["sample", "train"] * 2
    assert contents(tmp_path / "replaced/1/train") == before
    assert run(tmp_path, growing(8, calls)) == ["[1/2] sample/self: done before", "[2/2] train/self-0: done before"]
    run(tmp_path, growing(9, calls))
    assert calls == ["sample", "train"] * 3 and (tmp_path / "replaced/2/train/self-0/result").is_file()


def test_growth_that_was_cut_off_or_done_alone_is_carried_through_later(tmp_path):
    calls = []
    run(tmp_path, growing(5, calls))
    more = growing(8, calls)

    def killed(directory):
        raise KeyboardInterrupt

    def only_sample(name):
        return name == "sample/self"

    for work in (killed, more[0].work):
        with contextlib.suppress(KeyboardInterrupt):
            run(tmp_path, [dataclasses.replace(more[0], work=work), more[1]], only_sample)
        assert stages.stale(tmp_path, more)["train/self-0"].outgrown
        with pytest.raises(InputError, match="stage train/self-0 .*made from less of sample/self"):
            stages.current(tmp_path, more, "train/self-0")
    run(tmp_path, more)
    assert stages.stale(tmp_path, more) == {} and calls == ["sample", "train", "sample", "train"]


def test_a_stage_does_not_run_on_less_than_is_asked_for(tmp_path):
    calls = []
    run(tmp_path, growing(5, calls), lambda name: name == "sample/self")
    with pytest.raises(InputError, match="sample/self has less than is asked for: run `selftrain sample` first"):
        run(tmp_path, growing(8, calls), lambda name: name != "sample/self")
    assert calls == ["sample"]


@pytest.mark.parametrize("asked", [growing(4, []), growing(8, [], other=1)], ids=["shrunk", "another setting"])
def test_what_does_not_grow_is_refused_as_ever(tmp_path, asked):
    run(tmp_path, growing(5, []), lambda name: name == "sample/self")
    with pytest.raises(InputError, match="sample/self: setting (count is 4|other is 1)"):
        run(tmp_path, asked)


def test_a_killed_growth_goes_on(tmp_path):
    calls = []
    run(tmp_path, growing(5, calls), lambda name: name == "sample/self")
    more = growing(8, calls)

    def killed(directory):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [dataclasses.replace(more[0], work=killed), more[1]])
    assert stages.state(tmp_path, more[0]) == "started"
    with pytest.raises(InputError, match="count is 5"):
        run(tmp_path, growing(5, calls))
    run(tmp_path, more)
    assert calls == ["sample", "sample", "train"]


def test_settings_that_name_paths_in_a_folder_may_move_with_it(tmp_path):
    def stages_in(root, model="lab/model"):
        settings = {"student": f"{root}/{model}", "files": {"a": f"{root}/a.jsonl", "b": "elsewhere/b.jsonl"}}
        return [Stage("train/self-0", settings, [], lambda directory: None, root=root)]

    run(tmp_path / "old", stages_in(tmp_path / "old"))
    (tmp_path / "old").rename(tmp_path / "new")
    assert run(tmp_path / "new", stages_in(tmp_path / "new")) == ["[1/1] train/self-0: done before"]
    with pytest.raises(InputError, match="setting student is .*lab/other"):
        run(tmp_path / "new", stages_in(tmp_path / "new", "lab/other"))


def test_no_report_compares_what_was_made_before_a_file_changed_with_what_was_made_after(tmp_path):
    text = ["v1"]
    first, last = (dataclasses.replace(plan()[1], name=f"evaluate/{name}", after=[]) for name in ("base", "self-0"))
    first, last = (dataclasses.replace(stage, externals=lambda: {"texts": text[0]}) for stage in (first, last))

    def changes(directory):
        text[0] = "v2"

    train = Stage("train/self-0", {}, [], changes)
    report = Stage("report", {}, [first.name, last.name], lambda directory: None, again=True)
    with pytest.raises(InputError, match="stage evaluate/base .*is stale: its input texts has changed since"):
        run(tmp_path, [first, train, last, report])
    assert not (tmp_path / "report").exists()


def test_that_a_file_is_gone_hides_no_change_of_another(tmp_path):
    paths = {name: tmp_path / name for name in ("first", "second")}
    for path in paths.values():
        path.write_text("before")
    [*_, last] = plan()
    planned = [dataclasses.replace(last, after=(), externals=lambda: Fingerprints.of_files(paths))]
    run(tmp_path / "run", planned)
    for path in (tmp_path / "first", tmp_path / "second"):
        path.unlink()
        assert not stages.stale(tmp_path / "run", planned), "what is gone may be archived"
        other = next(other for other in paths.values() if other != path)
        other.write_text("behind")
        assert f"input {other.name} has changed" in stages.stale(tmp_path / "run", planned)[last.name].why
        path.write_text("before")
        other.write_text("before")


def test_a_file_of_a_finished_stage_that_was_changed_is_noticed(tmp_path):
    run(tmp_path, with_report())
    (tmp_path / "train/self-0/checkpoints/4").mkdir(parents=True)
    (tmp_path / "sample/self/result").write_text("elpmas")
    assert stages.stale(tmp_path, with_report())["sample/self"].why == "result has changed in its folder"
    with pytest.raises(InputError, match="stage train/self-0 .*is stale: it was made from stage sample/self, of"):
        run(tmp_path, with_report(), lambda name: name == "report")
    with pytest.raises(InputError, match="report .*is stale: it was made from stage sample/self, of which result has"):
        stages.current(tmp_path, with_report(), "report")
    (tmp_path / "sample/self/result").write_text("sample")
    assert stages.stale(tmp_path, with_report()) == {}


def test_what_is_outdated_by_settings_or_by_what_it_was_made_from(tmp_path):
    run(tmp_path, plan())
    assert stages.outdated(tmp_path, plan()) == {}
    assert stages.outdated(tmp_path, plan(train={"epochs": 3})) == {"train/self-0": "setting epochs is 3 and was 2"}
    assert stages.outdated(tmp_path, plan(text="text v2")) == {"train/self-0": "its input texts has changed since"}
    assert stages.outdated(tmp_path, plan(sample={"seed": 1})) == {
        "sample/self": "setting seed is 1 and was 0",
        "train/self-0": "it was made from stage sample/self, of which setting seed is 1 and was 0",
    }


@pytest.mark.parametrize("killed_at", range(18))
def test_a_redo_that_is_killed_leaves_the_old_or_the_new(tmp_path, killed_at, monkeypatch):
    """Killed before any rename, write or removal: the old results stay where they are or in `before-redo`, the
    same command goes on, and nothing current is made of both."""
    place, changed = Workdir(tmp_path), plan(sample={"seed": 1})
    run(tmp_path, plan())
    old = {stage.name: contents(tmp_path / stage.name) for stage in changed}

    def redo():
        for name in reversed(stages.outdated(tmp_path, changed)):
            place.keep_until_redone(name)
        run(tmp_path, changed)
        place.redone()

    finished, moving = False, ((pathlib.Path, "rename"), (os, "replace"), (pathlib.Path, "unlink"), (shutil, "rmtree"))
    kill_at(monkeypatch, killed_at, *moving)
    with contextlib.suppress(Killed):
        redo()
        finished = True
    monkeypatch.undo()
    assert finished or killed_at < 17, "it could be killed later, too"
    for name, files in old.items():
        here, kept = contents(tmp_path / name), contents(tmp_path / "before-redo" / name)
        finished = not stages.outdated(tmp_path, changed) and stages.state(tmp_path, changed[1]) == "done"
        assert here == files or kept == files or finished
    redo()
    assert [stages.state(tmp_path, stage) for stage in changed] == ["done", "done"]
    assert stages.outdated(tmp_path, changed) == {} and not (tmp_path / "before-redo").exists()
    assert stages.read_manifest(tmp_path, "sample/self")["settings"]["seed"] == 1


@pytest.mark.parametrize("linked", ["train", "train/self-0", "train/self-0/curve", "train/self-0/result"])
def test_no_stage_writes_through_a_link(tmp_path, linked):
    """A stranger's workdir may hold one; the workdir itself may be a link."""
    (tmp_path / "target").mkdir()
    (tmp_path / "run" / linked).parent.mkdir(parents=True)
    (tmp_path / "run" / linked).symlink_to(tmp_path / "target")
    with pytest.raises(InputError, match=f"run/{linked} is a link"):
        run(tmp_path / "run", plan())
    assert list((tmp_path / "target").iterdir()) == []
    logs = tmp_path / "run" / "train" / "self-0" / "wandb"
    if linked == "train/self-0/curve":
        (tmp_path / "run" / linked).unlink()
        run(tmp_path / "run", plan())
        (tmp_path / "run" / "train" / "self-0" / "manifest.json").unlink()
        logs.mkdir()
        (logs / "latest-run").symlink_to(tmp_path / "target")
        assert run(tmp_path / "run", plan())[-1] == "[2/2] train/self-0"
        (tmp_path / "target").rmdir()
        (tmp_path / "target").mkdir()
    (tmp_path / "elsewhere").symlink_to(tmp_path / "target")
    assert run(tmp_path / "elsewhere", plan()) == ["[1/2] sample/self", "[2/2] train/self-0"]


PROCESS = """
import pathlib, sys
from selftrain_jax.core.errors import InputError
from selftrain_jax.distributed import job
from selftrain_jax.run import execute, stages
address, number, folder, *read = sys.argv[1:]
job.initialize(address, 2, int(number))
work = lambda directory: (directory / number).write_text("")
inputs = lambda: {"texts.same": "of one version", "texts.news": read[int(number)]}
plan = [
    stages.Stage("audit/self", {}, [], work, lambda: {"of_first": read[int(number)]}, together=lambda: False),
    stages.Stage("train/self-0", {}, ["audit/self"], work, inputs, together=True),
]
try:
    execute.run(pathlib.Path(folder), plan, bool, print)
except InputError as e:
    print("refused:", e)
"""


@pytest.mark.parametrize("of_second", ["v1", "v2"])
def test_processes_that_read_different_files_do_not_work_together(tmp_path, of_second):
    """A file may lie on each machine under the same path, and process 0 alone notes what it is."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    commands = ([sys.executable, "-c", PROCESS, address, n, tmp_path / "run", "v1", of_second] for n in "01")
    job = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for command in commands]
    said = [process.communicate(timeout=HANGS)[0] for process in job]
    assert [process.returncode for process in job] == [0, 0]
    made = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("[01]")}
    if of_second == "v1":
        assert made == {"audit/self/0", "train/self-0/0", "train/self-0/1"} and "refused" not in "".join(said)
    else:  # before any work
        assert not made
        assert all("train/self-0: texts.news is not the same for all processes of this job" in text for text in said)
