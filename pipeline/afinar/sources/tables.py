"""Tables that users give: CSV, TSV, Parquet, and text files with a URI in each line."""

from __future__ import annotations

import codecs
import re
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from afinar.errors import NotFoundError, RequestError, StorageError
from afinar.storage.arrow import arrow_reader
from afinar.storage.csv_cells import unescape_formulas
from afinar.storage.open import read_uri

TABLE_ENDINGS: Final = (".csv", ".tsv", ".parquet")
LIST_ENDINGS: Final = (*TABLE_ENDINGS, ".txt")
"""File name endings of a table that names the pictures of a source."""
_HEADER_BYTES: Final = 2**16


def read_table(
    flag: str, location: str, column: str, optional: tuple[str, ...] = ("split",)
) -> pa.Table:
    """Read the table at a location: `uri`, `column` and those optional ones that it has, as text.

    A file in .txt has one URI in each line. NaN is null. Raises RequestError, which begins with
    `flag`, if there is no such table, or a column cannot be text.
    """
    wanted = tuple(dict.fromkeys(("uri", column, *optional)))
    try:
        data = read_uri(location)
    except NotFoundError as error:
        raise RequestError(f"{flag}: there is no such table: {error}") from error
    except StorageError as error:
        raise RequestError(f"{flag}: cannot read {error}") from error

    try:
        table = _parse(data, location, column, wanted)
    except (pa.ArrowException, OSError, ValueError) as error:
        # Broken Parquet files raise OSError. Only the first line is for people.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise RequestError(f"{flag} {location} is not a readable table: {reason}") from error

    names = table.column_names
    for required in ("uri", column):
        if required not in names:
            raise RequestError(
                f"{flag} {location} has no column {required!r}; it has {', '.join(names)}"
            )
    kept = [name for name in wanted if name in names]
    for name in kept:
        if names.count(name) > 1:
            raise RequestError(
                f"{flag} {location} has {names.count(name)} columns {name!r}: rename all but one"
            )
    return pa.table({name: _as_text(table.column(name), flag, location, name) for name in kept})


def _parse(data: bytes, location: str, column: str, wanted: tuple[str, ...]) -> pa.Table:
    match location.lower().rpartition(".")[2]:
        case "parquet":
            file = pq.ParquetFile(arrow_reader(data))
            names = file.schema_arrow.names
            if not {"uri", column}.issubset(names):
                return file.schema_arrow.empty_table()  # the caller reports all its names
            return file.read(columns=[name for name in wanted if name in names])
        case "txt":
            lines = (line.strip() for line in data.decode("utf-8-sig").splitlines())
            return pa.table({"uri": pa.array([line or None for line in lines], pa.large_string())})
        case _:
            return _read_csv(data, wanted)


def _read_csv(data: bytes, wanted: tuple[str, ...]) -> pa.Table:
    """Read all values as text: a class may be called 007 or NA. Only an empty field is null.

    Spreadsheets write a semicolon where the comma is the decimal point, tabs, and UTF-16. The
    delimiter is the one that gives the header a column `uri`.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        data = data.decode("utf-16").encode()
    header = re.split(rb"[\r\n]", data[:_HEADER_BYTES].removeprefix(codecs.BOM_UTF8), maxsplit=1)[0]
    names = {
        delimiter: [name.strip(b' "') for name in header.split(delimiter.encode())]
        for delimiter in (",", ";", "\t")
    }
    delimiter = next((mark for mark, found in names.items() if b"uri" in found), ",")
    options = pyarrow.csv.ConvertOptions(
        column_types={name: pa.string() for name in wanted},
        strings_can_be_null=True,
        null_values=[""],
    )
    try:
        table = pyarrow.csv.read_csv(
            arrow_reader(data),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter),
            convert_options=options,
        )
    except pa.ArrowInvalid as error:
        if "UTF8" in str(error):
            raise ValueError("it is not UTF-8: save it as CSV UTF-8") from error
        raise
    for position, name in enumerate(table.column_names):
        if name in wanted:
            # corrections.csv has an apostrophe before what would be a formula.
            cells = unescape_formulas(table.column(position))
            table = table.set_column(position, name, cells)
    return table


def _as_text(column: pa.ChunkedArray, flag: str, location: str, name: str) -> pa.ChunkedArray:
    """Return a column as text. Raises RequestError for lists, structs, bytes and the like."""
    dtype = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_number = pa.types.is_integer(dtype) or pa.types.is_floating(dtype)
    is_text = pa.types.is_string(dtype) or pa.types.is_large_string(dtype)
    is_text = is_text or pa.types.is_string_view(dtype) or pa.types.is_null(dtype)
    if not is_text and (name == "uri" or not (is_number or pa.types.is_boolean(dtype))):
        raise RequestError(
            f"{flag} {location}: the column {name!r} is of type {column.type}: write it as text"
        )

    column = pc.cast(column, dtype)
    if pa.types.is_floating(dtype):
        is_nan = pc.is_nan(pc.cast(column, pa.float64()))
        column = pc.if_else(is_nan, pa.scalar(None, dtype), column)
    return pc.cast(column, pa.large_string())
