"""Conversion between Arrow tables and bytes. What is read may come from a stranger.

Arrow and Parquet trust offsets and sizes in a file. So the sizes are compared with those of the
file, and those that a record states, before memory is taken for rows, and what was read is
validated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from afinar.errors import RecordError
from afinar.storage.objects import ObjectRef, get_object
from afinar.storage.records import REMEDY
from afinar.storage.store import Store

NULL: Final = "\0"
"""Replacement for null in joined columns. No URI, etag or label contains it."""

# A table may take so many bytes of memory, and so many for each byte of its file. A column of URIs
# of one folder is compressed to a fiftieth.
_MEMORY_BYTES: Final = 256 * 2**20
_MEMORY_RATIO: Final = 500
_VALUE_BYTES: Final = 8
# A column of text with fewer bytes per row than this repeats values of its dictionary.
_DICTIONARY_BYTES_PER_ROW: Final = 16
_RAISED: Final = (
    pa.ArrowException,
    OSError,
    MemoryError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
)


def concat_columns(*texts: Any, separator: str) -> pa.ChunkedArray:
    """Join text columns row by row. A plain string is repeated in every row."""
    dtype = pa.large_string()
    columns = [
        pa.scalar(text, dtype) if isinstance(text, str) else pc.cast(text, dtype) for text in texts
    ]
    return pc.binary_join_element_wise(
        *columns, pa.scalar(separator, dtype), null_handling="replace", null_replacement=NULL
    )


def fill_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the table with the columns of a schema, in its order; missing columns are null."""
    columns = [
        table.column(field.name)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def arrow_reader(data: bytes | memoryview) -> pa.BufferReader:
    """Return a reader of a copy of `data` in memory of Arrow's own.

    Arrow's threads may drop their last reference to what was read a moment after it is returned. If
    the memory belonged to an object of Python, that thread would need the interpreter. When the
    interpreter has begun to exit, Python ends such a thread, and C++ aborts the process (SIGABRT,
    in 1 of 100 runs that exit right after reading).
    """
    buffer = pa.allocate_buffer(len(data))
    if len(data):
        memoryview(buffer).cast("B")[:] = memoryview(data).cast("B")
    return pa.BufferReader(buffer)


def group_by(table: pa.Table, keys: list[str]) -> pa.TableGroupBy:
    """Group a table in the calling thread: its columns may be memory of NumPy.

    See `arrow_reader`. Arrow's threads are not faster here: 0.3 s for 3 million pairs of integers.
    """
    return table.group_by(keys, use_threads=False)


def to_parquet(table: pa.Table) -> memoryview:
    """Return the table as Parquet, compressed with zstd. Equal tables give equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return memoryview(sink.getvalue())


def from_parquet(
    data: bytes | memoryview,
    columns: list[str] | None = None,
    *,
    uri: str = "the table",
    rows: int | None = None,
) -> pa.Table:
    """Read a Parquet file, or only some of its columns.

    Raises RecordError, which names `uri`, for a damaged file, for one with other than `rows` rows,
    and for one that would take far more memory than its size.
    """
    with _damage_of(uri):
        file = pq.ParquetFile(arrow_reader(data))
        if rows is not None and file.metadata.num_rows != rows:
            raise ValueError("it has another number of rows than its record states")
        _require_sane_size(file.metadata, data)
        table = file.read(columns=columns)
        table.validate(full=True)
    return table


def to_ipc(table: pa.Table) -> memoryview:
    """Return the table as an Arrow IPC file, uncompressed: a reader can map it without a copy."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def from_ipc(
    data: bytes | memoryview, *, uri: str = "the table", rows: int | None = None
) -> pa.Table:
    """Read an Arrow IPC file without a copy: the table refers to `data`.

    Raises RecordError, which names `uri`, for a damaged file, for one with other than `rows` rows,
    and for one that is compressed, which none of ours is.
    """
    with _damage_of(uri):
        reader = pa.ipc.open_file(pa.BufferReader(data))
        batches, size = [], 0
        for number in range(reader.num_record_batches):
            batches.append(reader.get_batch(number))
            size += batches[-1].nbytes
            if size > len(data):
                raise ValueError("its columns are larger than the file")

        table = pa.Table.from_batches(batches, reader.schema)
        if rows is not None and len(table) != rows:
            raise ValueError("it has another number of rows than its record states")
        # Offsets of text and lists are not checked before: they may lead outside of the file.
        table.validate(full=True)
    return table


def get_table(
    store: Store,
    ref: ObjectRef,
    schema: pa.Schema,
    columns: list[str] | None = None,
    required: Collection[str] = (),
) -> pa.Table:
    """Read and verify a Parquet object, with the columns of a schema; see `conform`."""
    uri = store.uri(ref.path)
    table = from_parquet(get_object(store, ref), columns, uri=uri, rows=ref.rows)
    return conform(table, schema, uri, columns, required)


def conform(
    table: pa.Table,
    schema: pa.Schema,
    uri: str,
    columns: list[str] | None = None,
    required: Collection[str] = (),
) -> pa.Table:
    """Return the table with the types of a schema; more columns than the schema has are kept.

    Raises RecordError if one of the schema's columns (of `columns` only, if given) is missing or
    has another type, or if a `required` one contains null.
    """
    for field in schema:
        name = field.name
        if columns is not None and name not in columns:
            continue
        if table.column_names.count(name) != 1:
            raise RecordError(f"{uri} must have the column {name!r} once; {REMEDY}")

        column = table.column(name)
        if column.type != field.type:
            try:
                column = column.cast(field.type)
            except pa.ArrowException:
                raise RecordError(
                    f"{uri}: the column {name!r} is {column.type}, not {field.type}; {REMEDY}"
                ) from None
            table = table.set_column(table.column_names.index(name), field, column)
        if name in required and column.null_count:
            raise RecordError(f"{uri}: the column {name!r} has rows without a value; {REMEDY}")
    return table


@contextmanager
def _damage_of(uri: str) -> Iterator[None]:
    try:
        yield
    except _RAISED as error:
        reason = " ".join(str(error).split())[:200]
        raise RecordError(f"{uri} is not a readable table: {reason}; {REMEDY}") from error


def _require_sane_size(metadata: pq.FileMetaData, data: bytes | memoryview) -> None:
    """Raise ValueError if the rows of a Parquet file would take far more memory than its bytes.

    A few kilobytes can describe a thousand million rows: equal values are stored once, with a
    count, and equal pages are compressed to nothing.
    """
    limit = _MEMORY_BYTES + _MEMORY_RATIO * len(data)
    total = 0
    repeated: set[str] = set()

    for group in range(metadata.num_row_groups):
        for position in range(metadata.num_columns):
            column = metadata.row_group(group).column(position)
            size, count = column.total_uncompressed_size, column.num_values
            if size < 0 or count < 0:
                raise ValueError("a size in it is negative")
            total += max(size, _VALUE_BYTES * count)
            if (
                column.physical_type == "BYTE_ARRAY"
                and size < _DICTIONARY_BYTES_PER_ROW * count
                and size * count > limit
            ):
                repeated.add(column.path_in_schema)

    for name in repeated if total <= limit else ():
        total += _decoded_bytes(data, name)
    if total > limit:
        raise ValueError("its rows would take far more memory than it has bytes")


def _decoded_bytes(data: bytes | memoryview, path: str) -> int:
    """Return the size of a column of text with repeated values, without decoding it."""
    file = pq.ParquetFile(arrow_reader(data), read_dictionary=[path])
    column = file.read(columns=[path]).column(0)
    if not pa.types.is_dictionary(column.type):  # nested: no table of ours has such a column
        return 0
    return sum(
        pc.sum(pc.binary_length(chunk.dictionary).take(chunk.indices)).as_py() or 0
        for chunk in column.chunks
    )
