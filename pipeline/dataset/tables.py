"""Arrow tables to bytes and back."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq


def to_parquet(table: pa.Table) -> bytes:
    """Parquet bytes, zstd; equal tables give equal bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def from_parquet(data: bytes) -> pa.Table:
    """Table of Parquet bytes."""
    return pq.read_table(pa.BufferReader(data))


def to_ipc(table: pa.Table) -> bytes:
    """Arrow IPC file bytes, uncompressed, so that a reader can map them without a copy."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
