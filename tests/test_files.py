import dataclasses
import gzip
import json
import os
import pathlib
import threading

import pytest

from selftrain_jax import files
from selftrain_jax.errors import InputError


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


def test_text_and_json_read_back(tmp_path):
    rows = [{"text": "naïve “quotes” 🎉\u2028new\nline"}, {"n": [1, 2.5, None]}]
    files.write_atomic(tmp_path / "t", "naïve")
    assert (tmp_path / "t").read_bytes() == "naïve".encode()
    files.write_json(tmp_path / "j", rows)
    assert files.read_json(tmp_path / "j") == rows
    files.write_jsonl(tmp_path / "l.jsonl", rows)
    assert list(files.read_jsonl(tmp_path / "l.jsonl")) == rows
    (tmp_path / "l.jsonl.gz").write_bytes(gzip.compress((tmp_path / "l.jsonl").read_bytes()))
    assert list(files.read_jsonl(tmp_path / "l.jsonl.gz")) == rows


@pytest.mark.parametrize("content", [b'{"a": 1', b"", b"\xff\xfe"], ids=["cut short", "empty", "not UTF-8"])
def test_broken_json_names_the_file(tmp_path, content):
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(InputError, match=r"^manifest .*f\.json is not valid JSON") as e:
        files.read_json(tmp_path / "f.json", "manifest")
    assert "\n" not in str(e.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="probe file not found: .*gone"):
        files.read_json(tmp_path / "gone", "probe file")
    for path in (tmp_path / "gone.jsonl", tmp_path / "gone.jsonl.gz", tmp_path):
        with pytest.raises(InputError, match=f"probe file not found: {path}$"):
            list(files.read_jsonl(path, what="probe file"))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "line, message",
    [
        (b'{"text": "a', "not valid JSON"),
        (b'{"text": "\xff"}', "not valid UTF-8"),
        (b'{"txt": "a"}', r"missing field\(s\) text"),
        (b'["text"]', r"missing field\(s\) text"),
    ],
    ids=["cut short", "not UTF-8", "another field", "no object"],
)
def test_a_broken_line_is_named_by_its_number_in_the_file(tmp_path, line, message, compressed):
    content = b'{"text": "a"}\n\n  \n{"text": "b"}\n' + line + b'\n{"text": "c"}\n'
    path = tmp_path / ("f.jsonl.gz" if compressed else "f.jsonl")
    path.write_bytes(gzip.compress(content) if compressed else content)
    rows = files.read_jsonl(path, ("text",), "text set")
    assert [next(rows)["text"], next(rows)["text"]] == ["a", "b"]  # blank lines count but are skipped
    with pytest.raises(InputError, match=f"^text set {path}, line 5: {message}") as e:
        next(rows)
    assert "\n" not in str(e.value)


def test_a_damaged_archive_is_named(tmp_path):
    whole = gzip.compress(b"".join(json.dumps({"i": i}).encode() + b"\n" for i in range(1000)))
    for content in (whole[: len(whole) // 2], b"no archive", whole[:60] + bytes(60) + whole[120:]):
        (tmp_path / "f.jsonl.gz").write_bytes(content)
        with pytest.raises(InputError, match=r"f\.jsonl\.gz"):
            list(files.read_jsonl(tmp_path / "f.jsonl.gz"))


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


def test_file_fingerprints_depend_on_contents_and_on_where_a_file_ends(tmp_path):
    def fingerprint(*contents):
        paths = [tmp_path / str(i) for i in range(len(contents))]
        for path, content in zip(paths, contents):
            path.write_text(content)
        return files.file_fingerprint(*paths)

    assert fingerprint("ab", "c") == fingerprint("ab", "c")
    assert len({fingerprint(*c) for c in (("ab", "c"), ("a", "bc"), ("c", "ab"), ("abc",), ("ab", "c", ""))}) == 5
