"""Cells of CSV and TSV files are what their writer meant, or refused."""

import csv
import datetime

import hypothesis
import hypothesis.strategies as st
import pyarrow.parquet
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.data.tables import read_table

CELLS = st.text(st.sampled_from("ab \",\t\n\r'\\;é"), min_size=1, max_size=8)


@hypothesis.given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5), st.sampled_from([".csv", ".tsv"]))
def test_what_python_writes_is_read_as_it_was(tmp_path_factory, rows, ending):
    path = tmp_path_factory.getbasetemp() / f"table{ending}"
    with open(path, "w", newline="", encoding="utf-8") as f:
        csv.writer(f, delimiter="," if ending == ".csv" else "\t").writerows([("a", "b"), *rows])
    whole = any(cell.count("\n") and cell.count("\n") == cell.count("\t") for row in rows for cell in row)
    if ending == ".tsv" and whole:
        with pytest.raises(InputError, match="holds the end of a row"):
            list(read_table(path, ("a", "b"), "table"))
    else:
        assert [(row["a"], row["b"]) for row in read_table(path, ("a", "b"), "table", texts=("a", "b"))] == rows


@pytest.mark.parametrize(
    "line",
    [
        r'"He said \"hi\" there"," and left"',  # as Spark and MySQL write
        '"He said hi", " and left"',
        '"He said hi, and left\n"A"," b"',
        '"He" said hi," and left"',
        '"He said hi," and left',
    ],
)
@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_a_cell_that_readers_would_take_apart_is_refused(tmp_path, line, ending):
    path = tmp_path / f"table{ending}"
    path.write_text("\ufeffprefix,suffix\nx,y\n".replace(",", "," if ending == ".csv" else "\t") + line + "\n")
    with pytest.raises(InputError, match="table.*, line 3: a cell that begins with a quote|cannot be read: CSV parse"):
        list(read_table(path, ("prefix", "suffix"), "table"))


@pytest.mark.parametrize("between", ["", "c\td\n", "c\td\ne\tf\n"])
def test_rows_of_a_tsv_file_do_not_vanish_between_two_quotes(tmp_path, between):
    path = tmp_path / "a.tsv"
    path.write_text(f'prefix\tsuffix\nx\ty\n"He said\tyes\n{between}so"\tand left\n')
    with pytest.raises(InputError, match="a.tsv, item 2: prefix is a cell in quotes that holds the end of a row"):
        list(read_table(path, ("prefix", "suffix"), "table"))


def test_quotes_within_a_cell_are_text(tmp_path):
    (tmp_path / "a.csv").write_text('a,b\n5" pipe,He said "hi"\n')
    assert list(read_table(tmp_path / "a.csv", ("a", "b"), "table")) == [{"a": '5" pipe', "b": 'He said "hi"'}]


def test_a_cell_that_no_json_holds_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"a": ["x"], "day": [datetime.date(2026, 1, 2)]}), path)
    with pytest.raises(InputError, match="a.parquet, item 1: day is of type date; make it a text or a number"):
        list(read_table(path, ("a",), "table"))
