"""Arrow tables to bytes and back."""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

NULL: Final = "\0"
"""Stands for null where columns are joined; no uri, mark or label holds one."""


def concat_columns(*texts: Any, separator: str) -> pa.ChunkedArray:
    """Text columns joined row by row; plain strings stand for themselves in every row."""
    kind = pa.large_string()
    parts = [
        pa.scalar(text, kind) if isinstance(text, str) else pc.cast(text, kind) for text in texts
    ]
    return pc.binary_join_element_wise(
        *parts, pa.scalar(separator, kind), null_handling="replace", null_replacement=NULL
    )


def to_parquet(table: pa.Table) -> memoryview:
    """Parquet bytes, zstd; equal tables give equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return memoryview(sink.getvalue())


def from_parquet(data: bytes | memoryview, columns: list[str] | None = None) -> pa.Table:
    """Table of Parquet bytes; of `columns` alone where they are named."""
    return pq.read_table(pa.BufferReader(data), columns=columns)


def to_ipc(table: pa.Table) -> memoryview:
    """Arrow IPC file bytes, uncompressed, so that a reader can map them without a copy."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def from_ipc(data: bytes | memoryview) -> pa.Table:
    """Table of Arrow IPC file bytes, without a copy."""
    return pa.ipc.open_file(pa.BufferReader(data)).read_all()
