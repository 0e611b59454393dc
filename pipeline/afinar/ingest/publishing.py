"""Carrying a version into the store: what the parent knew, compaction, and the objects that a manifest names."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pyarrow as pa

from afinar.dataset.manifest import Manifest, put_objects, read_rows
from afinar.dataset.schema import INDEX, OUTCOMES, REJECTS
from afinar.ingest.compaction import CompactTask, compact
from afinar.ingest.plan import known_outcomes
from afinar.pictures.preprocessing import StoredView
from afinar.pictures.rejects import TRANSIENT
from afinar.storage.arrow import to_parquet
from afinar.storage.markers import UnitMarker, committed_units, read_markers
from afinar.storage.objects import ObjectRef, get_object, put_object
from afinar.storage.store import Store
from afinar.units.executor import Executor
from afinar.units.progress import ProgressReporter

_INDEX_ROWS: Final = 1_000_000
_READS: Final = 16  # of small objects at once: latency, not work


def parent_outcomes(store: Store, parent: Manifest, view: StoredView) -> pa.Table:
    """What the parent version knows of its pictures; nothing where its preprocessing was another."""
    if parent.preprocessing != view.as_dict():
        return OUTCOMES.empty_table()
    index = read_rows(store, parent, "index", INDEX)
    return known_outcomes(index, read_rows(store, parent, "rejects", REJECTS), TRANSIENT)


def compact_shards(store: Store, executor: Executor, tasks: list[CompactTask]) -> list[UnitMarker]:
    """Carry out compaction, skipping what an earlier run committed; its markers, in order."""
    done = committed_units(store)
    left = [task for task in tasks if task.unit not in done]
    with ProgressReporter("compact", sum(task.pictures for task in left)) as meter:
        for task in executor.run(compact, left):
            meter.add(task.pictures)
    return read_markers(store, (task.unit for task in tasks))


def get_all(store: Store, refs: list[ObjectRef]) -> list[bytes]:
    """Several verified objects, in order."""
    with ThreadPoolExecutor(_READS) as pool:
        return list(pool.map(lambda ref: get_object(store, ref), refs))


def put_version_objects(
    store: Store, index: pa.Table, rejects: pa.Table, shards: list[ObjectRef]
) -> ObjectRef:
    """Write a version's index and rejects, and the list of all its objects."""
    objects = [("shard", ref) for ref in shards]
    slices = [index.slice(start, _INDEX_ROWS) for start in range(0, len(index), _INDEX_ROWS)]
    objects += [("index", put_table(store, "index", part)) for part in slices]
    if len(rejects):
        objects.append(("rejects", put_table(store, "rejects", rejects)))
    return put_objects(store, sorted(objects, key=lambda item: (item[0], item[1].path)))


def put_table(store: Store, folder: str, table: pa.Table) -> ObjectRef:
    """Write a table under its hash."""
    return put_object(store, f"{folder}/{{hash}}.parquet", to_parquet(table), len(table))
