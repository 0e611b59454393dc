"""A whole partition as one Parquet file and one CSV file, for readers that cannot read a folder.

The CSV has the columns path, label and score first, and no lists: spreadsheets show it as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from afinar.predictions.manifest import Partition
from afinar.predictions.part_reader import iter_parts
from afinar.predictions.schema import PREDICTIONS
from afinar.storage.csv_cells import escape_formulas
from afinar.storage.objects import ObjectWriter
from afinar.storage.store import Store

# Columns of the CSV, where `uri` is called path.
_COLUMNS: Final = ("uri", "label", "score", "sample_id", "etag", "model_version")

# A row group ends at the first of the two: memory does not grow with the archive. 64 MB are 8,000
# rows with features of width 2048.
_GROUP_ROWS: Final = 2**17
_GROUP_BYTES: Final = 64 * 2**20


def single_folder(name: str) -> str:
    """Return the folder of a single file, outside `parts/`: its readers would find rows twice."""
    return f"single/model={name}"


def write_single(store: Store, name: str, partition: Partition) -> str:
    """Write all labelled rows of a partition to one Parquet file, and to a CSV file beside it.

    Files that exist are left alone. Returns the path of the Parquet file. Rows come part by part,
    not in the order of their uris.
    """
    path = _path(name, partition)
    existing = {info.name for info in store.walk(single_folder(name))}
    if csv_path(path) not in existing:
        _write_csv(store, name, partition)
    if path not in existing:
        _write_parquet(store, name, partition)
    return path


def csv_path(path: str) -> str:
    """Return the path of the CSV file beside a Parquet file."""
    return f"{path.removesuffix('.parquet')}.csv"


def _write_csv(store: Store, name: str, partition: Partition) -> None:
    no_rows = PREDICTIONS.empty_table().select(_COLUMNS)
    parts = iter_parts(store, partition, list(_COLUMNS))
    with ObjectWriter(store, single_folder(name), large=True) as sink:
        file = pa.PythonFile(sink, mode="w")
        with pyarrow.csv.CSVWriter(file, _as_cells(no_rows).schema) as writer:
            for table in parts:
                writer.write_table(_as_cells(table.select(_COLUMNS)))
        sink.save(csv_path(_path(name, partition)), partition.rows)


def _as_cells(table: pa.Table) -> pa.Table:
    """Return the columns with their names in the CSV; no text begins a formula."""
    names = ["path" if name == "uri" else name for name in table.column_names]
    cells = [
        escape_formulas(column) if pa.types.is_string(column.type) else column
        for column in table.columns
    ]
    return pa.Table.from_arrays(cells, names)


def _write_parquet(store: Store, name: str, partition: Partition) -> None:
    groups = _row_groups(iter_parts(store, partition))
    first = next(groups)
    with ObjectWriter(store, single_folder(name), large=True) as sink:
        file = pa.PythonFile(sink, mode="w")
        with pq.ParquetWriter(file, first.schema, compression="zstd") as writer:
            for group in chain([first], groups):
                writer.write_table(group, row_group_size=len(group) or None)
        sink.save(_path(name, partition), partition.rows)


def delete_old_singles(
    store: Store, name: str, partition: Partition | None, paths: list[str]
) -> None:
    """Delete those of `paths` that are not the current single file or its CSV.

    `partition` must have been read after the paths were listed, None if there is none.
    """
    current = _path(name, partition) if partition else None
    kept = {current, csv_path(current)} if current else set()
    for path in paths:
        if path not in kept:
            store.delete(path)


def _path(name: str, partition: Partition) -> str:
    return f"{single_folder(name)}/predictions-{partition.list_digest}.parquet"


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Concatenate parts into row groups; yield one empty group if there are no parts."""
    parts: list[pa.Table] = []
    rows = size = groups = 0

    for table in tables:
        parts.append(table)
        rows, size = rows + len(table), size + table.nbytes
        if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
            yield pa.concat_tables(parts)
            parts, rows, size, groups = [], 0, 0, groups + 1
    if parts or not groups:
        yield pa.concat_tables(parts or [PREDICTIONS.empty_table()])
