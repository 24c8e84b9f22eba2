import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest

from selftrain_jax.core import files
from selftrain_jax.core.errors import InputError


def test_a_reader_sees_the_old_file_or_the_new_one_never_a_part(tmp_path):
    path = tmp_path / "f"
    versions = [bytes([65 + i]) * 1_000_000 for i in range(2)]
    files.write_atomic(path, versions[0])
    seen, done = set(), threading.Event()

    def read():
        while not done.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(40):
        files.write_atomic(path, versions[i % 2])
    done.set()
    reader.join()
    assert seen <= set(versions)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, step):
    path = tmp_path / "f.json"
    files.write_json(path, {"old": 1})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_json(path, {"new": 2})
    monkeypatch.undo()
    assert files.read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["f.json"]


@pytest.mark.parametrize(
    "name", ["", "/etc/x", "a//x", "../x", "a/../../x", "a/..", "./x", "a\\x", "a\0x", "a\nx", "\ud800", "link/x"]
)
def test_a_name_that_others_chose_stays_in_its_folder(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match="bucket b names .*may lie outside"):
        files.inside(folder, name, "bucket b")
    assert files.inside(folder, "a/b..c/.x", "bucket b") == folder / "a/b..c/.x"


def test_what_is_written_follows_no_link_that_waits_for_it(tmp_path, monkeypatch):
    (tmp_path / "precious").write_text("theirs")
    for name in (f".f.{os.getpid()}.tmp", ".00.tmp", ".out.lock"):
        (tmp_path / name).symlink_to(tmp_path / "precious")
    files.write_atomic(tmp_path / "f", "ours")
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "00")  # though it were guessed
    for write in (
        lambda: files.write_atomic(tmp_path / "g", "ours"),
        files.new_directory(tmp_path / "out", "x").__enter__,
    ):
        with pytest.raises((FileExistsError, InputError)):
            write()
    assert (tmp_path / "precious").read_text() == "theirs" and (tmp_path / "f").read_text() == "ours"


def test_text_and_json_read_back(tmp_path):
    rows = [{"text": "naïve “quotes” 🎉\u2028new\nline"}, {"n": [1, 2.5, None]}]
    files.write_atomic(tmp_path / "t", "naïve")
    assert (tmp_path / "t").read_bytes() == "naïve".encode()
    files.write_json(tmp_path / "j", rows)
    assert files.read_json(tmp_path / "j") == rows


def test_what_is_no_number_is_written_as_null(tmp_path):
    value = {"loss": float("nan"), "all": [1.5, float("inf"), {"low": float("-inf")}]}
    files.write_json(tmp_path / "j", value)
    files.write_jsonl(tmp_path / "l", [value])
    for name in ("j", "l"):
        found = json.loads((tmp_path / name).read_text(), parse_constant=pytest.fail)
        assert found == {"loss": None, "all": [1.5, None, {"low": None}]}
    assert json.loads(files.json_text([float("nan"), tmp_path], default=str)) == [None, str(tmp_path)]


def test_json_is_written_by_one_function():
    """`json.dumps` elsewhere makes messages between processes, or writes again what was read or checked."""
    package = pathlib.Path(files.__file__).parents[1]
    found = {str(p.relative_to(package)) for p in package.rglob("*.py") if "json.dump" in p.read_text()}
    run = {f"run/{name}.py" for name in ("export", "publish", "tables")}
    assert found == {"core/files.py", "core/lock.py", "distributed/job.py", "lab/tokenization.py"} | run


@pytest.mark.parametrize("content", [b'{"a": 1', b"", b"\xff\xfe"], ids=["cut short", "empty", "not UTF-8"])
def test_broken_json_names_the_file(tmp_path, content):
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(InputError, match=r"^manifest .*f\.json is not valid JSON") as e:
        files.read_json(tmp_path / "f.json", "manifest")
    assert "\n" not in str(e.value)


def test_a_field_with_two_values_is_refused(tmp_path):
    """A parser takes the last one: settings would not be what somebody reads in the file."""
    (tmp_path / "f.json").write_text('{"train": {"epochs": 1, "epochs": 2}}')
    with pytest.raises(InputError, match="f.json is not valid JSON: an object has the field 'epochs' twice"):
        files.read_json(tmp_path / "f.json", "settings")
    (tmp_path / "f.json").write_text('{"dtype": "float16", "none": NaN, "dtype": "float16"}')
    assert files.read_json(tmp_path / "f.json")["dtype"] == "float16"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="probe file not found: .*gone"):
        files.read_json(tmp_path / "gone", "probe file")


@pytest.mark.parametrize("write", [lambda path, arrays: np.savez(path, **arrays), files.write_arrays])
@pytest.mark.parametrize("read", [files.read_arrays, files.map_arrays])
def test_arrays_read_back_under_their_own_names(tmp_path, read, write):
    arrays = {
        **{"x": np.arange(3), "x.npy": np.ones(2), "g/é": np.zeros(0), "one": np.int64(7)},
        **{"text": np.array(["a", "bc"]), "columns": np.asfortranarray(np.arange(6).reshape(2, 3))},
    }
    write(tmp_path / "a.npz", arrays)
    found = read(tmp_path / "a.npz", "subset")
    assert {name: array.tolist() for name, array in found.items()} == {n: a.tolist() for n, a in arrays.items()}
    assert {name: array.dtype for name, array in found.items()} == {n: a.dtype for n, a in arrays.items()}


@pytest.mark.parametrize("read", [files.read_arrays, files.map_arrays])
def test_an_array_may_come_in_blocks(tmp_path, read):
    whole = np.arange(35, dtype=np.int32).reshape(7, 5)
    files.write_arrays(tmp_path / "a.npz", {"x": files.Blocks((7, 5), np.int32, iter([whole[:4], whole[4:]])), "n": 3})
    found = read(tmp_path / "a.npz", "subset")
    np.testing.assert_array_equal(found["x"], whole)
    assert found["x"].dtype == np.int32 and found["n"] == 3
    before = (tmp_path / "a.npz").read_bytes()
    with pytest.raises(ValueError, match="array x: 80 bytes came where its shape is"):
        files.write_arrays(tmp_path / "a.npz", {"x": files.Blocks((7, 5), np.int32, [whole[:4]])})
    assert (tmp_path / "a.npz").read_bytes() == before


@pytest.mark.parametrize("read", [files.read_arrays, files.map_arrays])
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "no archive", "pickled", "gone"])
def test_damaged_arrays_are_named(tmp_path, damage, read):
    path = tmp_path / "stage" / "a.npz"
    path.parent.mkdir()
    np.savez(path, x=np.array([{}]) if damage == "pickled" else np.arange(1000))
    whole = path.read_bytes()
    flipped = whole[:300] + bytes([whole[300] ^ 1]) + whole[301:]
    contents = {"cut": whole[:200], "flipped": flipped, "empty": b"", "no archive": b"no archive at all"}
    path.write_bytes(contents.get(damage, whole))
    if damage == "gone":
        path.unlink()
    with pytest.raises(InputError, match=f"subset {path} is missing or damaged .*remove {path.parent} and run") as e:
        read(path, "subset")
    assert "\n" not in str(e.value)


@dataclasses.dataclass(frozen=True)
class Settings:
    path: pathlib.Path
    sizes: tuple[int, ...] = (1, 2)


def test_fingerprints_tell_values_apart_and_ignore_the_order_of_names():
    value = {"a": 1, "b": Settings(pathlib.Path("x"))}
    same = {"b": {"sizes": [1, 2], "path": "x"}, "a": 1}
    others = [{**value, "a": 2}, {**value, "a": 1.5}, {**value, "c": 0}, {**value, "b": Settings(pathlib.Path("y"))}]
    assert files.fingerprint(value) == files.fingerprint(same)
    assert len({files.fingerprint(v) for v in (value, *others)}) == 5


def test_what_never_ends_has_no_fingerprint(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_hash", lambda *_: pytest.fail("it would be read"))
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(InputError, match=f"file {path} cannot be read .it is none"):
            files.file_fingerprint(path)


def test_file_fingerprints_depend_on_contents_and_on_where_a_file_ends(tmp_path):
    def fingerprint(*contents):
        paths = [tmp_path / str(i) for i in range(len(contents))]
        for path, content in zip(paths, contents):
            path.write_text(content)
        return files.file_fingerprint(*paths)

    assert fingerprint("ab", "c") == fingerprint("ab", "c")
    assert len({fingerprint(*c) for c in (("ab", "c"), ("a", "bc"), ("c", "ab"), ("abc",), ("ab", "c", ""))}) == 5


def test_a_file_of_the_same_size_and_time_is_read_anew(tmp_path):
    """As by `cp -p`."""
    found = []
    for content in ("one", "two"):
        (tmp_path / "a").write_text(content)
        os.utime(tmp_path / "a", (1e9, 1e9))
        found.append(files.file_fingerprint(tmp_path / "a"))
    assert len(set(found)) == 2


@pytest.mark.parametrize("content", [b"[" * 100_000 + b"]" * 100_000, b"9" * 5_000], ids=["deep", "long number"])
def test_json_past_the_parser_is_refused(tmp_path, content):
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(InputError, match="not valid JSON") as e:
        files.read_json(tmp_path / "f.json")
    assert "\n" not in str(e.value)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "f").write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    assert files.read_json(tmp_path / "f") == {"a": 1}


LONG = "a" * 300


def test_paths_that_the_system_refuses_are_named(tmp_path):
    (tmp_path / "file").write_text("{}")
    odd = [tmp_path, tmp_path / LONG, tmp_path / "file" / "below"]
    for path in odd:
        with pytest.raises(InputError, match="cannot be read"):
            files.read_json(path)
        with pytest.raises(InputError, match="cannot be read"):
            files.file_fingerprint(path)
    with pytest.raises(InputError, match="out .* cannot be used .File name too long"):
        files.check_new_directory(tmp_path / LONG, "out")
    for action in (files.user_path, lambda path: files.check_new_directory(path, "out")):
        with pytest.raises(InputError, match="~nobody-of-that-name/x"):
            action("~nobody-of-that-name/x")


def test_a_new_directory_goes_where_an_empty_link_points(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    with files.new_directory(tmp_path / "link", "out") as directory:
        (directory / "f").touch()
    assert (tmp_path / "link").is_symlink() and os.listdir(tmp_path / "there") == ["f"]
    assert sorted(os.listdir(tmp_path)) == ["link", "there"]


WRITER = """
import sys, time
from selftrain_jax.core import files
with files.new_directory(sys.argv[1], "out") as directory:
    (directory / "half").touch()
    print("writing", flush=True)
    time.sleep(3600)
"""


def test_one_process_writes_a_new_directory_and_what_it_leaves_when_killed_goes(tmp_path):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / "out"], stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "writing\n"
    with pytest.raises(InputError, match="out .*out is being written by process"):
        with files.new_directory(tmp_path / "out", "out"):
            pass
    assert (tmp_path / ".out.partial" / "half").exists()
    writer.kill()
    writer.communicate()
    assert not (tmp_path / "out").exists()
    with files.new_directory(tmp_path / "out", "out") as directory:
        (directory / "whole").touch()
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["whole"]


def test_a_path_that_no_library_could_open_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(InputError, match=r"caf\\xe9' is not in the encoding of this locale.*PYTHONUTF8=1"):
        files.user_path(tmp_path / os.fsdecode(b"caf\xe9"))
    assert files.user_path(tmp_path / "caf\u00e9") == tmp_path / "caf\u00e9"
