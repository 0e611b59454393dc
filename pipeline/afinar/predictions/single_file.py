"""A whole partition as one Parquet file, for readers that take no folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from afinar.predictions.manifest import PREDICTIONS
from afinar.predictions.part_reader import list_digest, part_tables
from afinar.storage.objects import ObjectWriter
from afinar.storage.store import Store
from afinar.storage.versions import Record

_GROUP_ROWS: Final = 2**17
_GROUP_BYTES: Final = (
    64 * 2**20
)  # what is held in memory, whatever the archive: 8,000 rows with features of 2048


def single_folder(partition: str) -> str:
    """Where a partition's single file lies; apart from `parts/`, whose plain readers must not see a row twice."""
    return f"single/model={partition}"


def write_single(store: Store, partition: str, entry: Record) -> str:
    """Write all labelled rows of a partition as one file, unless that is done; its name.

    Rows come part by part, not in the order of their uris; memory does not grow with them.
    """
    folder = single_folder(partition)
    name = f"{folder}/{_file(entry)}"
    if any(info.name == name for info in store.walk(folder)):
        return name
    groups = _row_groups(part_tables(store, entry))
    first = next(groups)
    with ObjectWriter(store, folder, large=True) as sink:
        with pq.ParquetWriter(
            pa.PythonFile(sink, mode="w"), first.schema, compression="zstd"
        ) as writer:
            for group in chain([first], groups):
                writer.write_table(group, row_group_size=len(group) or None)
        sink.commit(name, entry["rows"])
    return name


def sweep_single(store: Store, partition: str, entry: Record | None, found: list[str]) -> None:
    """Remove those `found` files of a partition that are superseded; `entry` was read after they were listed."""
    current = f"{single_folder(partition)}/{_file(entry)}" if entry else None
    for name in found:
        if name != current:
            store.delete(name)


def _file(entry: Record) -> str:
    return f"predictions-{list_digest(entry)}.parquet"


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Parts gathered into groups that are worth reading; one group without rows where there are no parts."""
    held: list[pa.Table] = []
    rows = size = groups = 0
    for table in tables:
        held.append(table)
        rows, size = rows + len(table), size + table.nbytes
        if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
            yield pa.concat_tables(held)
            held, rows, size, groups = [], 0, 0, groups + 1
    if held or not groups:
        yield pa.concat_tables(held or [PREDICTIONS.empty_table()])
