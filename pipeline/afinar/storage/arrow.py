"""Conversion between Arrow tables and bytes."""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

NULL: Final = "\0"
"""Replacement for null in joined columns. No URI, etag or label contains it."""


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


def to_parquet(table: pa.Table) -> memoryview:
    """Return the table as Parquet, compressed with zstd. Equal tables give equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return memoryview(sink.getvalue())


def from_parquet(data: bytes | memoryview, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file, or only some of its columns."""
    return pq.read_table(pa.BufferReader(data), columns=columns)


def to_ipc(table: pa.Table) -> memoryview:
    """Return the table as an Arrow IPC file, uncompressed: a reader can map it without a copy."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def from_ipc(data: bytes | memoryview) -> pa.Table:
    """Read an Arrow IPC file without a copy: the table refers to `data`."""
    return pa.ipc.open_file(pa.BufferReader(data)).read_all()
