"""Rewrite shards with many dead rows: pure planning, and a copy of the live rows.

A row is dead if the index does not name it: its picture changed or left the source. Nothing is
decoded again.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from afinar.dataset.schema import INDEX, shard_schema
from afinar.dataset.shards import ShardWriter, batch_rows
from afinar.ingestion.plan import shard_pictures
from afinar.pictures.preprocessing import StoredView
from afinar.storage.arrow import conform, from_ipc, group_by
from afinar.storage.markers import UnitMarker, commit_unit, committed_units, read_markers
from afinar.storage.objects import ObjectRef, get_object
from afinar.storage.open import open_store
from afinar.storage.store import Store
from afinar.units.executor import Executor
from afinar.units.progress import ProgressReporter
from afinar.units.results import UnitResult

MAX_DEAD: Final = 0.2  # fraction of a shard's rows


class Place(NamedTuple):
    """Place of a sample: a shard and a row in it."""

    shard: str
    row: int


@dataclass(frozen=True, slots=True)
class LiveRows:
    """The live rows of one shard, in their order."""

    shard: ObjectRef
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactTask:
    """One unit of work: write one new shard from the live rows of old ones."""

    unit: str
    dataset: str
    view: StoredView
    sources: tuple[LiveRows, ...]

    @property
    def pictures(self) -> int:
        """Number of rows of the new shard."""
        return sum(len(source.rows) for source in self.sources)


def shards_to_compact(index: pa.Table, shards: list[ObjectRef]) -> list[LiveRows]:
    """Return the shards with more than `MAX_DEAD` dead rows, with their live rows, by name.

    A shard without any live row is left out: the next version does not name it.
    """
    count = count_live(index)
    # Shards by path: the index names each of them at least once.
    worn = {
        ref.path: ref
        for ref in shards
        if ref.path in count and ref.rows - count[ref.path] > MAX_DEAD * ref.rows
    }
    rows = live_rows(index, worn)
    return [LiveRows(worn[path], tuple(sorted(rows[path]))) for path in sorted(worn)]


def count_live(index: pa.Table) -> dict[str, int]:
    """Return the number of live rows of each shard. Copies of a picture share one row."""
    places = group_by(index.select(["shard", "row"]), ["shard", "row"]).aggregate([])
    counts = pc.value_counts(places.column("shard"))
    shards, rows = counts.field("values").to_pylist(), counts.field("counts").to_pylist()
    return dict(zip(shards, rows, strict=True))


def live_rows(index: pa.Table, shards: Collection[str]) -> dict[str, set[int]]:
    """Return the live rows of these shards, by shard."""
    names = pa.array(sorted(shards), pa.string())
    named = index.filter(pc.is_in(index.column("shard"), names))
    columns = named.column("shard").to_pylist(), named.column("row").to_pylist()

    rows: dict[str, set[int]] = defaultdict(set)
    for shard, row in zip(*columns, strict=True):
        rows[shard].add(row)
    return rows


def plan_compaction(
    worn: list[LiveRows], dataset: str, version: int, view: StoredView
) -> list[CompactTask]:
    """Combine the live rows of shards in new shards of the usual size. Pure.

    Shards are put together in their order for as long as they fit: with room for 100 rows, shards
    with 60, 30 and 50 live rows make two new shards of 90 and 50.
    """
    max_rows = shard_pictures(view)
    groups: list[list[LiveRows]] = []
    room = 0
    for shard in worn:
        if not groups or len(shard.rows) > room:
            groups.append([])
            room = max_rows
        groups[-1].append(shard)
        room -= len(shard.rows)

    return [
        CompactTask(
            unit=f"{version:08d}-{_digest(group)}", dataset=dataset, view=view, sources=tuple(group)
        )
        for group in groups
    ]


def _digest(group: list[LiveRows]) -> str:
    digest = hashlib.sha256(b"compact")
    for live in group:
        digest.update(f"\n{live.shard.path}:{live.rows}".encode())
    return digest.hexdigest()[:16]


def compact(task: CompactTask) -> UnitResult:
    """Copy live rows to one new shard and commit it. Running a unit twice is harmless."""
    store = open_store(task.dataset)
    schema = shard_schema(task.view.size, task.view.store)
    with ShardWriter(store, task.view) as writer:
        step = batch_rows(task.view)
        for source in task.sources:
            shard = from_ipc(
                get_object(store, source.shard),
                uri=store.uri(source.shard.path),
                rows=source.shard.rows,
            )
            shard = conform(shard, schema, store.uri(source.shard.path), required=schema.names)
            for start in range(0, len(source.rows), step):
                rows = pa.array(source.rows[start : start + step], pa.int64())
                writer.write(shard.take(rows).combine_chunks().to_batches()[0])
        ref = writer.save(task.unit)

    commit_unit(store, UnitMarker(unit=task.unit, objects={"shard": ref}))
    return UnitResult(task.unit, task.pictures)


def compact_shards(store: Store, executor: Executor, tasks: list[CompactTask]) -> list[UnitMarker]:
    """Run the units that no earlier run committed; return the markers of all, in order."""
    done = committed_units(store)
    pending = [task for task in tasks if task.unit not in done]
    with ProgressReporter("compact", sum(task.pictures for task in pending)) as progress:
        for result in executor.run(lambda: compact, pending):
            progress.add(result.pictures)
    return read_markers(store, (task.unit for task in tasks), required=("shard",))


def remap_index(index: pa.Table, tasks: list[CompactTask], markers: list[UnitMarker]) -> pa.Table:
    """Return the index with the places of samples after compaction.

    Row n of a task's new shard is the n-th of the rows of its sources, one source after the other.
    """
    moved: dict[Place, Place] = {}
    for task, marker in zip(tasks, markers, strict=True):
        new_shard = marker.objects["shard"].path
        old = (Place(source.shard.path, row) for source in task.sources for row in source.rows)
        moved |= {place: Place(new_shard, row) for row, place in enumerate(old)}

    # Only rows in compacted shards change; the others keep their Arrow buffers.
    compacted = pa.array(sorted({place.shard for place in moved}), pa.string())
    affected = pc.indices_nonzero(pc.is_in(index.column("shard"), compacted))
    rows = index.select(["shard", "row"]).take(affected)
    places = zip(rows.column("shard").to_pylist(), rows.column("row").to_pylist(), strict=True)
    new = [moved[Place(*place)] for place in places]

    mask = np.zeros(len(index), dtype=bool)
    mask[affected.to_numpy()] = True
    for name in Place._fields:
        field = INDEX.field(name)
        values = pa.array([getattr(place, name) for place in new], field.type)
        old_values = index.column(name).combine_chunks()
        column = pc.replace_with_mask(old_values, pa.array(mask), values)
        index = index.set_column(INDEX.get_field_index(name), field, column)
    return index
