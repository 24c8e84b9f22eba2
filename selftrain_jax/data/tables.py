"""Rows of a user's tables: CSV and Parquet beside what `core.rows` reads."""

import codecs
import mmap
import os
import re
from typing import Any, Collection, Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from selftrain_jax.core.errors import InputError, one_line
from selftrain_jax.core.rows import ROWS, check_file, has_ending, read_rows


def read_table(
    path: str | os.PathLike, fields: Iterable[str], what: str, texts: Collection[str] = ()
) -> Iterator[dict[str, Any]]:
    """Yields the rows of a .csv, .tsv or .parquet file, or of one that `core.rows.read_rows` reads, without the cells
    that are empty.

    Args:
      fields: columns that every row must have.
      texts: columns of a CSV file that are text whatever they look like; of others, numbers are numbers.

    Raises:
      InputError: the file is missing or broken, or a row lacks one of `fields`.
    """
    path = check_file(path, (*ROWS, ".csv", ".tsv", ".parquet"), what)
    if has_ending(path, ROWS):
        rows = read_rows(path, what=what)
    else:
        try:
            table = (_parquet if has_ending(path, (".parquet",)) else _csv)(path, texts)
        except (pa.ArrowException, UnicodeDecodeError, OSError) as e:  # OSError: of checksums that do not hold, too
            raise InputError(f"{what} {path} cannot be read: {one_line(e)[:200]}") from None
        names = table.column_names
        if twice := [name for name in names if names.count(name) > 1]:  # of which a row would have the last alone
            raise InputError(f"{what} {path} has the column {twice[0]!r} twice: rename one of them")
        rows = table.to_pylist()
    for number, row in enumerate(rows, 1):
        found = {name: cell for name, cell in row.items() if cell is not None} if isinstance(row, dict) else {}
        if missing := [name for name in fields if name not in found]:
            empty = " (an empty cell is none)" * (not has_ending(path, ROWS) and missing[0] in row)
            raise InputError(f"{what} {path}, item {number}: missing field(s) {', '.join(missing)}{empty}")
        if odd := [name for name, cell in found.items() if not isinstance(cell, (str, int, float, list, dict))]:
            kind = type(found[odd[0]]).__name__
            raise InputError(f"{what} {path}, item {number}: {odd[0]} is of type {kind}; make it a text or a number")
        yield found


def _parquet(path: os.PathLike, texts: Collection[str]) -> pa.Table:
    return pyarrow.parquet.read_table(path, page_checksum_verification=True)


def _csv(path: os.PathLike, texts: Collection[str]) -> pa.Table:
    cells = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(texts, pa.string()), null_values=[""], strings_can_be_null=True
    )
    delimiter = "\t" if has_ending(path, (".tsv",)) else ","
    lines = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    table = pyarrow.csv.read_csv(path, convert_options=cells, parse_options=lines)
    _check_quotes(path, delimiter)
    if delimiter == "\t":
        _check_whole_rows(path, table)
    return table


def _check_quotes(path: os.PathLike, delimiter: str) -> None:
    """Raises `InputError` where a cell begins with a quote, and perhaps spaces before it, but is not quoted as RFC 4180
    has it: readers make other text of that, or other cells, without a word."""
    cell = rf'(?:"[^"]*+(?:""[^"]*+)*+"|(?! *")[^{delimiter}\r\n]*+)(?:{delimiter}|\r\n?|\n|\Z)'
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
        begin = len(codecs.BOM_UTF8) if data[:3] == codecs.BOM_UTF8 else 0
        end = re.compile(f"(?:{cell})*+".encode()).match(data, begin).end()
        if end < len(data):
            line = len(re.findall(rb"\r\n?|\n", data[begin:end])) + 1
            raise InputError(
                f"{os.fspath(path)}, line {line}: a cell that begins with a quote must end with one, have those within "
                'doubled ("a ""b"" c"), and nothing around them; write the file anew as csv of Python or pandas does'
            )


def _check_whole_rows(path: os.PathLike, table: pa.Table) -> None:
    """Raises `InputError` where one cell of a TSV file holds rows: most who write such files quote nothing, and where
    one text begins with a quote and a later one ends with one, readers take all between them for a cell."""
    for name, column in zip(table.column_names, table.columns):
        if pa.types.is_string(column.type) and table.num_columns > 1:
            breaks, tabs = (pc.count_substring(column, character) for character in "\n\t")
            held = pc.and_(pc.greater(breaks, 0), pc.equal(tabs, pc.multiply(breaks, table.num_columns - 1)))
            if (row := pc.index(held, True).as_py()) >= 0:
                raise InputError(
                    f"{os.fspath(path)}, item {row + 1}: {name} is a cell in quotes that holds the end of a row and "
                    f"the beginning of another ({column[row].as_py()[:60]!r}): in this file, quotes seem to be text; "
                    "write it anew as JSON lines"
                )
