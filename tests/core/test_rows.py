"""What a file holds is what its ending says, whatever wrote it; or one line says what is wrong with it."""

import gzip
import json
import os
import pathlib
import tempfile
import warnings
import zipfile

import hypothesis
import hypothesis.strategies as st
import pytest

from selftrain_jax.core import rows
from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.files import write_jsonl

ROWS = [{"text": "naïve “quotes” 🎉\u2028new\nline\r\nnul \0"}, {"text": "", "n": [1, 2.5, None]}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
VALUE = json.dumps(ROWS, indent=1, ensure_ascii=False).encode()
COLUMNS = json.dumps({"text": [row["text"] for row in ROWS], "n": [row.get("n") for row in ROWS]}).encode()


def read(path, *arguments):
    return list(rows.read_rows(path, *arguments))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "name, content",
    [
        *((name, LINES) for name in ("a.jsonl", "a.JSONL", "a.ndjson", "a.jsonlines", "a.b.Json", "a.json")),
        *(("a.json", content) for content in (VALUE, VALUE.replace(b"\n", b""), b"\xef\xbb\xbf" + VALUE)),
        ("crlf.jsonl", LINES.replace(b"\n", b"\r\n")),
        ("mark.jsonl", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\n\xef\xbb\xbf", 1)),
        ("blank.json", b"\n \n" + LINES + b"\n"),
    ],
)
def test_rows_are_the_same_whatever_they_are_written_as(tmp_path, name, content, packed):
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(content) if packed else content)
    assert read(path) == ROWS


def test_columns_become_rows(tmp_path):
    (tmp_path / "c.json").write_bytes(COLUMNS)
    assert read(tmp_path / "c.json", ("text", "n")) == [{"text": row["text"], "n": row.get("n")} for row in ROWS]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet", "a", "a.jsonl.zst", "a.txt", "jsonl"])
def test_other_endings_are_refused_with_the_list(tmp_path, name):
    (tmp_path / name).write_bytes(LINES)
    with pytest.raises(InputError, match=f"probe file .*{name} is of no known kind: .*end in .jsonl,.*ndjson.*, .json"):
        read(tmp_path / name, (), "probe file")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "line, message",
    [
        (b'{"text": "a', "not valid JSON"),
        (b'{"text": "\xff"}', "not valid UTF-8"),
        ('{"text": "a"}'.encode("utf-16"), "not valid UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
        (b"9" * 5_000, "not valid JSON"),
        (b'{"txt": "a"}', r"missing field\(s\) text"),
        (b'["text"]', r"missing field\(s\) text"),
        (b'{"text": "a", "more": [{"x": 1, "x": 2}]}', "not valid JSON .an object has the field 'x' twice"),
    ],
    ids=["cut short", "not UTF-8", "UTF-16", "deep", "long number", "another field", "no object", "twice"],
)
def test_a_broken_line_is_named_by_its_number_in_the_file(tmp_path, line, message, compressed):
    content = b'{"text": "a"}\n\n  \n{"text": "b"}\n' + line + b'\n{"text": "c"}\n'
    path = tmp_path / ("f.jsonl.gz" if compressed else "f.jsonl")
    path.write_bytes(gzip.compress(content) if compressed else content)
    found = rows.read_rows(path, ("text",), "text set")
    assert [next(found)["text"], next(found)["text"]] == ["a", "b"]  # blank lines count but are skipped
    with pytest.raises(InputError, match=f"^text set {path}, line 5: {message}") as e:
        next(found)
    assert "\n" not in str(e.value)


def test_a_damaged_archive_is_named(tmp_path):
    whole = gzip.compress(b"".join(json.dumps({"i": i}).encode() + b"\n" for i in range(1000)))
    for content in (whole[: len(whole) // 2], b"no archive", whole[:60] + bytes(60) + whole[120:]):
        (tmp_path / "f.jsonl.gz").write_bytes(content)
        with pytest.raises(InputError, match=r"f\.jsonl\.gz"):
            read(tmp_path / "f.jsonl.gz")


@pytest.mark.parametrize("name, limit", [("a.jsonl.gz", "MAX_LINE_BYTES"), ("a.json.gz", "MAX_JSON_BYTES")])
def test_a_small_archive_does_not_fill_the_memory(tmp_path, monkeypatch, name, limit):
    monkeypatch.setattr(rows, limit, 1000)
    (tmp_path / name).write_bytes(gzip.compress(b'["' + b"a" * 995 + b'"]\n'))
    assert read(tmp_path / name)
    (tmp_path / name).write_bytes(gzip.compress(b'["' + b"a" * 1000 + b'"]'))
    with pytest.raises(InputError, match=f"{name}.*er than core.rows.{limit}=1,000; "):
        read(tmp_path / name)


def test_missing_and_forbidden_files_are_named(tmp_path, monkeypatch):
    for path in (tmp_path / "gone.jsonl", tmp_path / "gone.jsonl.gz", tmp_path, tmp_path / ("a" * 300)):
        with pytest.raises(InputError, match=f"probe file not found: {path}$"):
            read(path, (), "probe file")
    (tmp_path / "f.jsonl").write_text("{}")

    def denied(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(InputError, match="text set .*f.jsonl cannot be read .Permission denied"):
        read(tmp_path / "f.jsonl", (), "text set")


@pytest.mark.parametrize("name", ["a.txt", "wiki.test.RAW", "wiki.valid.tokens", "a.md"])
def test_line_ends_and_byte_order_marks_are_no_part_of_a_text(tmp_path, name):
    for content in ("naïve\n\n{a}\n", "\ufeffnaïve\r\n\r\n{a}\r\n", "naïve\r\r{a}\r"):
        (tmp_path / name).write_bytes(content.encode())
        assert rows.read_text(tmp_path / name) == "naïve\n\n{a}\n"


@pytest.mark.parametrize(
    "content, message",
    [
        (b"caf\xe9", r"not valid UTF-8 \(byte 3\)"),
        ("a".encode("utf-16"), "not valid UTF-8"),
        ("a".encode("utf-16-le"), "zero byte"),
        (LINES, "holds JSON lines: end its name in .jsonl"),
        (b"\n" + LINES, "holds JSON lines"),
        (VALUE, "holds JSON: end its name in .json"),
        (json.dumps(ROWS[0], indent=1).encode(), "holds JSON: end its name in .json"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "is a Git LFS pointer"),
    ],
)
def test_what_is_no_plain_text_is_refused(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InputError, match=f"^text set .*a.txt .*{message}"):
        rows.read_text(tmp_path / "a.txt", "text set")


@pytest.mark.parametrize(
    "content, kind",
    [
        ("<!DOCTYPE html>\n<title>Not found</title>", "HTML"),
        ("\n <html lang=en>", "HTML"),
        ('<?xml version="1.0"?>\n<!DOCTYPE html>', "HTML"),
        ("<!-- saved from url=(0014)about:internet -->\n<html>", "HTML"),
        ("{\\rtf1\\ansi Hello}", "RTF"),
        ("WARC/1.0\nWARC-Type: response", "WARC"),
        ("id,text\n1,a b\n", "CSV"),
        ('"text"\t"label"\na b\t1\n', "CSV"),
        ("A text, of a <html> page,\nsentence", None),
        ("text\nand more", None),
    ],
)
def test_a_text_that_looks_like_something_else_is_warned_of(tmp_path, recwarn, content, kind):
    (tmp_path / "a.txt").write_text(content)
    assert rows.read_text(tmp_path / "a.txt", "text set") == content
    assert [f"looks like {kind}, and all of it" in str(warning.message) for warning in recwarn] == [True] * bool(kind)


@pytest.mark.parametrize("text", ["a", " .", "\u3042", "\u0e01", "é", "🎉", "\u200ba"])
def test_a_visible_character_is_text(text):
    assert rows.has_text(text)


@pytest.mark.parametrize(
    "text", ["", " \n\t\u3000", "\0", "\u200b\u200d\ufeff\u2060", "\u00ad", "\u3164", "\u2800", "\ufe0f"]
)
def test_what_shows_nothing_is_empty(text):
    assert not rows.has_text(text)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@hypothesis.given(st.lists(st.dictionaries(st.text(), JSON, max_size=4), max_size=4), st.data())
def test_what_is_written_is_read_in_every_spelling(written, data):
    """Line ends, byte order marks, blank lines, escapes, packing and the ending change nothing."""
    ascii_only, end = data.draw(st.booleans()), data.draw(st.sampled_from(["\n", "\r\n", "\n\n", " \n"]))
    text = "".join(json.dumps(row, ensure_ascii=ascii_only) + end for row in written)
    content = data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + text.encode()
    name = data.draw(st.sampled_from(rows.LINES))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        assert read(path) == written
        write_jsonl(path.with_suffix(".jsonl"), written)
        assert read(path.with_suffix(".jsonl")) == written


@hypothesis.given(st.binary(max_size=60), st.sampled_from(rows.ROWS + rows.TEXT))
def test_no_bytes_are_too_odd_for_one_line(content, ending):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"a{ending}")
        pathlib.Path(path).write_bytes(content)
        try:
            rows.read_text(path) if ending in rows.TEXT else read(path)
        except InputError as e:
            assert "\n" not in str(e)


def test_the_json_lines_of_a_zip_file_are_read_by_their_names(tmp_path):
    path = tmp_path / "pairs.ZIP"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (
            ("b.jsonl", '{"i": 2}\n'),
            ("a/x.jsonl", '{"i": 0}\n{"i": 1}\n'),
            ("README.md", "no row"),
            ("c.ndjson", '{"i": 3}\n'),
            (".ipynb_checkpoints/b.jsonl", '{"i": 8}\n'),
            ("__MACOSX/._b.jsonl", "\0\5"),
        ):
            archive.writestr(name, content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [row["i"] for row in read(path, ("i",))] == [0, 1, 2, 3]
    with pytest.raises(InputError, match=r"pairs.ZIP, a/x.jsonl, line 1: missing field\(s\) j"):
        read(path, ("j",))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("d.json", "[]")
        archive.writestr("e.jsonl.gz", b"")
    with pytest.warns(InputWarning, match=r"pairs.ZIP: d.json and 1 more of it not read"):
        read(path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("b.jsonl", '{"i": 9}\n')
    with pytest.warns(InputWarning), pytest.raises(InputError, match="pairs.ZIP holds b.jsonl twice"):
        read(path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match="pairs.ZIP is not a whole zip file"):
        read(path)
