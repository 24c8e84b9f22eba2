"""A workdir in a bucket, against an emulator of Google's object store on this machine (tests/bucket.py)."""

import os
import pathlib
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest

from selftrain_jax.cli import main as cli
from selftrain_jax.core import files, storage
from selftrain_jax.core.errors import InputError, InputWarning, RunStopped
from selftrain_jax.core.storage import Workdir
from selftrain_jax.distributed.mesh import make_mesh
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.training import loop
from selftrain_jax.training.checkpoint import restore_params, saved_steps
from tests.training.test_loop import CONFIG, MODEL, SAVED, Killed, kill_at, make_params, make_rows
from tests.waiting import wait_until

ROOT = pathlib.Path(__file__).resolve().parents[2]


def write(place, **contents):
    """Files below "sample/self"; "__" in a name stands for a folder."""
    for name, text in contents.items():
        path = place.local / "sample/self" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def held(folder):
    """Name -> text of everything below a folder."""
    if not files.is_remote(folder):
        return {
            str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"
        }
    import fsspec

    filesystem, root = fsspec.url_to_fs(str(folder))
    return {found[len(root) + 1 :]: filesystem.cat_file(found).decode() for found in filesystem.find(root)}


def test_on_disk_there_is_one_folder(tmp_path):
    place = Workdir(tmp_path)
    assert place.path == place.local == tmp_path
    write(place, a="1")
    place.fetch()
    place.send("sample/self")
    with place.sending("sample/self"):
        pass
    assert held(tmp_path) == {"sample/self/a": "1"}


def test_a_folder_that_libraries_would_call_by_another_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-1")
    with pytest.raises(InputError, match="a character beyond ASCII, .* this locale reads as iso8859-1: set LC_ALL"):
        with Workdir(tmp_path / "caf\u00e9").held():
            pass
    assert not list(tmp_path.iterdir())
    with Workdir(tmp_path / "cafe").held():
        pass


def test_what_one_process_sends_another_fetches(bucket):
    one, other = Workdir(bucket), Workdir(bucket)
    write(one, corpus__shard="text", metrics="1")
    one.send("sample/self")
    assert held(one.path) == {"sample/self/corpus/shard": "text", "sample/self/metrics": "1"}
    other.fetch("sample/self")
    assert held(other.local) == held(one.path)
    write(one, metrics="12")
    write(other, corpus__second="more")
    for place in (one, other):
        place.send("sample/self")
    for place in (one, other):
        place.fetch()
        assert (
            held(place.local)
            == held(one.path)
            == {"sample/self/corpus/shard": "text", "sample/self/corpus/second": "more", "sample/self/metrics": "12"}
        )


def test_what_is_renamed_or_removed_here_goes_there_and_what_another_sent_stays(bucket):
    one, other = Workdir(bucket), Workdir(bucket)
    write(one, a="1", b="2")
    write(other, c="3")
    one.send("sample/self")
    other.send("sample/self")
    folder = one.local / "sample/self"
    (folder / "a").rename(folder / "renamed")
    (folder / "b").unlink()
    one.send("sample/self")
    assert held(one.path) == {"sample/self/renamed": "1", "sample/self/c": "3"}


def test_only_what_is_new_is_copied(bucket, monkeypatch):
    one, other = Workdir(bucket), Workdir(bucket)
    write(one, a="1", b="2")
    one.send("sample/self")
    other.fetch()
    times = {path: path.stat().st_mtime_ns for path in other.local.rglob("*")}
    other.fetch()
    assert times == {path: path.stat().st_mtime_ns for path in other.local.rglob("*")}
    copied = []
    copy = storage.shutil.copyfileobj
    monkeypatch.setattr(
        storage.shutil, "copyfileobj", lambda source, *a: (copied.append(source.name), copy(source, *a))
    )
    write(one, b="changed")
    one.send("sample/self")
    other.send("sample/self")  # nothing of its own
    assert [pathlib.Path(name).name for name in copied] == ["b"]


def test_records_hidden_files_and_checkpoints_are_not_copied(bucket):
    place = Workdir(bucket)
    write(place, **{".tmp": "half"}, **{"started.json": "{}", "manifest.json": "{}"}, corpus__data="text")
    write(place, **{"corpus__manifest.json": "{}"})
    place.send("sample/self")
    assert set(held(place.path)) == {"sample/self/corpus/data", "sample/self/corpus/manifest.json"}
    (place.path / "train/self-0/checkpoints/4/params").write_text("weights")
    (place.path / "train/self-0/metrics.jsonl").write_text("{}")
    other = Workdir(bucket)
    other.fetch("train/self-0")
    assert set(held(other.local)) == {"train/self-0/metrics.jsonl"}


def test_what_declares_the_others_complete_goes_last(bucket, monkeypatch):
    place, sent = Workdir(bucket), []
    copy = storage.shutil.copyfileobj
    monkeypatch.setattr(storage.shutil, "copyfileobj", lambda source, *a: (sent.append(source.name), copy(source, *a)))
    write(place, corpus__a="1", corpus__z="2", **{"corpus__manifest.json": "{}"})
    place.send("sample/self")
    assert [pathlib.Path(name).name for name in sent] == ["a", "z", "manifest.json"]


def test_what_is_set_aside_is_kept_and_made_anew(bucket):
    place = Workdir(bucket)
    write(place, a="1", corpus__b="2")
    place.send("sample/self")
    (place.path / "sample/self/checkpoints/4/params").write_text("weights")
    assert set(place.result_files("sample/self")) == {"a", "corpus/b", "checkpoints/4"}
    assert storage.missing_files(place.path / "sample/self", ["a", "checkpoints/4", "c"]) == ["c"]
    assert str(place.set_aside("sample/self")) == f"{bucket}/replaced/1/sample/self"
    write(place, a="3")
    place.send("sample/self")
    other = Workdir(bucket)
    other.fetch()
    assert held(other.local) == {"sample/self/a": "3"}
    kept = {f"replaced/1/sample/self/{name}" for name in ("a", "corpus/b", "checkpoints/4/params")}
    assert set(held(place.path)) == kept | {"sample/self/a"}


def test_work_is_sent_while_it_goes_on_and_when_it_fails(bucket, monkeypatch):
    monkeypatch.setattr(storage, "SEND_EVERY", 0.05)
    place = Workdir(bucket)
    with pytest.raises(ValueError, match="broken"), place.sending("sample/self"):
        write(place, first="1")
        wait_until((place.path / "sample/self/first").exists)
        monkeypatch.setattr(storage, "SEND_EVERY", 1000)
        write(place, last="2")
        raise ValueError("broken")
    assert held(place.path) == {"sample/self/first": "1", "sample/self/last": "2"}


def test_a_bucket_that_fails_is_an_error_that_names_it(bucket, monkeypatch):
    place = Workdir(bucket)
    write(place, a="1")

    def fails(*_):
        raise ConnectionResetError("connection lost")

    monkeypatch.setattr(storage.shutil, "copyfileobj", fails)
    with pytest.raises(RunStopped, match=rf"{bucket} cannot be written \(connection lost\)"):
        place.send("sample/self")
    monkeypatch.setattr(storage.shutil, "copyfileobj", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # an error of ours is not blamed on the bucket
        place.send("sample/self")


def test_the_copy_of_a_killed_process_is_removed_by_the_next(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(storage.tempfile, "tempdir", None)
    alive = Workdir(bucket)
    script = f"import os; from selftrain_jax.core.storage import Workdir; Workdir({bucket!r}); {{}}"
    for ending, left in (("os._exit(0)", 2), ("", 1)):  # the second removes what the first left behind, and its own
        subprocess.run([sys.executable, "-c", script.format(ending)], check=True, cwd=ROOT)
        assert len(list(tmp_path.glob("selftrain-*"))) == left and alive.local.is_dir()


@pytest.mark.parametrize("name", ["/{}/x", "a\\x", "report//x"])
def test_names_in_a_bucket_write_nowhere_else(bucket, tmp_path, name):
    import fsspec

    place = Workdir(bucket)
    filesystem, root = fsspec.url_to_fs(str(place.path))
    filesystem.pipe_file(f"{root}/{name.format(tmp_path)}", b"theirs")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="may lie outside"):
        place.fetch()
    assert set(tmp_path.rglob("*")) == before and held(place.local) == {}


def test_what_others_leave_in_the_folder_for_temporary_files_is_neither_opened_nor_followed(
    bucket, tmp_path, monkeypatch
):
    monkeypatch.setattr(storage.tempfile, "tempdir", str(tmp_path))
    for name in ("selftrain-pipe", "selftrain-link", "precious"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "selftrain-pipe" / ".lock")
    (tmp_path / "precious" / ".lock").touch()
    (tmp_path / "selftrain-link" / ".lock").symlink_to(tmp_path / "precious" / ".lock")
    (tmp_path / "selftrain-folder").symlink_to(tmp_path / "precious")
    Workdir(bucket)
    assert (tmp_path / "precious" / ".lock").exists() and (tmp_path / "selftrain-pipe").exists()


@pytest.mark.parametrize(
    "workdir, message",
    [
        ("s3://bucket/run", "other storage is not supported"),
        ("gs://", "write gs://BUCKET/FOLDER"),
        ("gs:/bucket/run", "write gs://BUCKET/FOLDER"),
        ("gs://nobody-has-this/run", "there is no such bucket"),
    ],
)
def test_a_bad_workdir_is_bad_input(bucket, workdir, message):
    with pytest.raises(InputError, match=message):
        Workdir(workdir)


def test_a_file_is_named_as_it_stands_in_the_bucket(bucket, monkeypatch, capsys):
    """Not by the copy on this machine, which is gone when the command ends."""
    place = Workdir(bucket)

    def fail(*args):
        warnings.warn(f"{place.local}/lab is odd", InputWarning, stacklevel=1)
        raise InputError(f"{place.local}/report/report.json is damaged")

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert cli.main(["status", f"--workdir={bucket}"]) == 2
    wanted = f"selftrain: warning: {bucket}/lab is odd\nselftrain: error: {bucket}/report/report.json is damaged\n"
    assert capsys.readouterr().err == wanted


def test_without_its_library_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert cli.main(["status", "--config=configs/smoke.py", "--workdir=gs://bucket/run"]) == 2
    assert "pip install 'selftrain_jax[gcs]'" in capsys.readouterr().err


def test_a_study_in_a_bucket_is_refused(capsys):
    assert cli.main(["study", "--config=configs/lab.py", "--workdir=gs://bucket/study"]) == 2
    assert "a study needs a folder on disk" in capsys.readouterr().err


@pytest.mark.large
def test_a_training_goes_on_from_its_checkpoints_in_a_bucket(bucket, tmp_path, monkeypatch):
    """On another machine, which has nothing else; then without the newest of them, which is damaged."""
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    checkpoints, sent = files.as_path(f"{bucket}/train/checkpoints"), []

    def train(folder, **options):
        loop.train(make_params(), MODEL, make_rows(), CONFIG, tmp_path / folder, mesh=mesh, **options)
        return jax.tree.map(
            np.asarray, restore_params(options.get("checkpoints", tmp_path / folder / "checkpoints"), MODEL)
        )

    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 10)
        train("one", checkpoints=checkpoints)
    assert saved_steps(checkpoints) == [4, 8] and not (tmp_path / "one/checkpoints").exists()
    whole = train("whole")
    other = train("other", checkpoints=checkpoints, before_save=lambda: sent.append(0))
    jax.tree.map(np.testing.assert_array_equal, other, whole)
    assert saved_steps(checkpoints) == SAVED and len(sent) == 2

    for data in (checkpoints / "15/params").glob("ocdbt.process_0/d/*"):
        data.write_bytes(b"damaged")
    with pytest.warns(InputWarning, match="Going on from step 12"):
        jax.tree.map(np.testing.assert_array_equal, train("third", checkpoints=str(checkpoints)), whole)
    assert (checkpoints.parent / "damaged-15").is_dir() and saved_steps(checkpoints) == SAVED


def test_json_files_in_a_bucket(bucket):
    path = files.as_path(f"{bucket}/run/value.json")
    with pytest.raises(InputError, match=f"thing not found: {path}"):
        files.read_json(path, "thing")
    files.write_json(path, {"a": [1, 2]})
    assert files.read_json(path) == {"a": [1, 2]}
    path.write_text("{")
    with pytest.raises(InputError, match="is not valid JSON"):
        files.read_json(path)
    assert files.absolute(str(path)) == path
