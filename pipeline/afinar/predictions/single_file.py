"""A whole partition as one Parquet file, for readers that cannot read a folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from afinar.predictions.manifest import Partition
from afinar.predictions.part_reader import iter_parts
from afinar.predictions.schema import PREDICTIONS
from afinar.storage.objects import ObjectWriter
from afinar.storage.store import Store

# A row group ends at the first of the two: memory does not grow with the archive. 64 MB are 8,000
# rows with features of width 2048.
_GROUP_ROWS: Final = 2**17
_GROUP_BYTES: Final = 64 * 2**20


def single_folder(name: str) -> str:
    """Return the folder of a single file, outside `parts/`: its readers would find rows twice."""
    return f"single/model={name}"


def write_single(store: Store, name: str, partition: Partition) -> str:
    """Write all labelled rows of a partition to one file, if it is missing, and return its path.

    Rows come part by part, not in the order of their uris.
    """
    path = _path(name, partition)
    if any(info.name == path for info in store.walk(single_folder(name))):
        return path

    groups = _row_groups(iter_parts(store, partition))
    first = next(groups)
    with ObjectWriter(store, single_folder(name), large=True) as sink:
        file = pa.PythonFile(sink, mode="w")
        with pq.ParquetWriter(file, first.schema, compression="zstd") as writer:
            for group in chain([first], groups):
                writer.write_table(group, row_group_size=len(group) or None)
        sink.save(path, partition.rows)
    return path


def delete_old_singles(
    store: Store, name: str, partition: Partition | None, paths: list[str]
) -> None:
    """Delete those of `paths` that are not the current single file.

    `partition` must have been read after the paths were listed, None if there is none.
    """
    current = _path(name, partition) if partition else None
    for path in paths:
        if path != current:
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
