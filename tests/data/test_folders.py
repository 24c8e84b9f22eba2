"""What is said of a folder whose files are perhaps not all of it."""

import pyarrow.parquet
import pytest

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.files import write_jsonl
from selftrain_jax.data.sources import open_source


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / name, [{"text": name}])


@pytest.mark.parametrize("begin", ["data/train-", "c4-train.", "a_2-"])
def test_parts_that_are_missing_are_told(tmp_path, recwarn, begin):
    """As where a download ended early; that some of many were fetched may be meant."""
    fill(tmp_path, *(f"{begin}{number}-of-00003.jsonl" for number in ("00000", "00002")))
    with pytest.warns(
        InputWarning, match=rf"2 of the 3 parts {begin}\*-of-00003 are there, and the others are not read"
    ):
        assert len(list(open_source(tmp_path).texts("text"))) == 2
    recwarn.clear()
    fill(tmp_path, f"{begin}00001-of-00003.jsonl")
    assert len(list(open_source(tmp_path).texts("text"))) == 3 and not recwarn


@pytest.mark.parametrize("name", ["a.jsonl.1", "a.jsonl~", "a.jsonl.bak", "b.JSON.orig", "b.csv", "a.parquet (1)"])
def test_what_looks_like_data_and_is_not_read_is_told(tmp_path, name):
    fill(tmp_path, "a.jsonl", name)
    with pytest.warns(InputWarning, match="not read, .*: [ab]"):
        assert list(open_source(tmp_path).texts("text")) == ["a.jsonl"]


def test_other_files_are_no_matter(tmp_path, recwarn):
    fill(tmp_path, "a.jsonl", "README.md", "notes.jsonlog", "dataset_info.json")
    assert list(open_source(tmp_path).texts("text")) == ["a.jsonl"] and not recwarn


def test_splits_as_partitions_are_not_mixed(tmp_path):
    """The `datasets` library takes all of them for one split."""
    fill(tmp_path, "split=train/a.jsonl", "Split=test/b.jsonl")
    with pytest.raises(InputError, match=r"keeps each split in a folder \([Ss]plit=t\w+\): name one of these"):
        open_source(tmp_path)
    assert list(open_source(tmp_path / "split=train").texts("text")) == ["split=train/a.jsonl"]


def test_a_part_that_is_missing_between_others_is_told(tmp_path, recwarn):
    fill(tmp_path, *(f"part-0000{number}-c000.jsonl" for number in (0, 2)))
    assert len(list(open_source(tmp_path).texts("text"))) == 2
    [said] = recwarn
    assert "part-00001 is missing (1 of 3 parts are not there)" in str(said.message)


def test_two_generations_of_parts_are_refused(tmp_path):
    fill(tmp_path, *(f"data/train-{part}.jsonl" for part in ("00000-of-00001", "00000-of-00002", "00001-of-00002")))
    with pytest.raises(InputError, match="train-.*-of-00001 and .*train-.*-of-00002 seem to be one data set twice"):
        open_source(tmp_path)


@pytest.mark.parametrize("name", ["a (1)", "a copy 2", "a - Copy (3)", "a (conflicted copy 2026-01-02)", "a.partial"])
def test_another_version_of_a_file_is_told(tmp_path, name):
    fill(tmp_path, "a.jsonl", f"{name}.jsonl", "a-b.jsonl")
    with pytest.warns(InputWarning, match="seems to be another version of a.jsonl, and both are read") as said:
        assert len(list(open_source(tmp_path).texts("text"))) == 3
    assert len(said) == 1 and f"{name}.jsonl seems" in str(said[0].message)


@pytest.mark.parametrize(
    "log, kind",
    [("_delta_log/0.json", "Delta"), (".hoodie/hoodie.properties", "Hudi"), ("metadata/snap-1.avro", "Iceberg")],
)
def test_a_table_that_keeps_its_earlier_states_is_refused(tmp_path, log, kind):
    fill(tmp_path, "table/data/0.jsonl", "table/data/1.jsonl", f"table/{log}")
    for named in (tmp_path, tmp_path / "table"):
        with pytest.raises(InputError, match=f"table is a {kind} table, of which files of earlier states"):
            open_source(named)


def test_two_states_of_a_cache_are_refused_and_one_is_read(tmp_path):
    fill(tmp_path, "snapshots/aaa/train.jsonl", "snapshots/bbb/train.jsonl", "refs/main")
    with pytest.raises(InputError, match="2 states of one data set in .*snapshots: name one of these folders"):
        open_source(tmp_path)
    assert len(list(open_source(tmp_path / "snapshots" / "bbb").texts("text"))) == 1


def test_configurations_of_the_hubs_conversion_are_not_mixed(tmp_path):
    for config in ("wikitext-103", "wikitext-2"):
        folder = tmp_path / config / "train"
        folder.mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.table({"text": [config]}), folder / "0000.parquet")
    with pytest.raises(InputError, match="holds the configurations wikitext-103, wikitext-2: name the folder of one"):
        open_source(tmp_path)
    assert list(open_source(tmp_path / "wikitext-2").texts("text")) == ["wikitext-2"]
