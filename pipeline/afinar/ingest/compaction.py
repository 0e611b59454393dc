"""Rewriting shards of which much is dead: pure planning, and copying the rows that live.

A row is dead when no index names it: its picture changed, or left the source. Nothing is decoded again.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from afinar.dataset.schema import INDEX
from afinar.dataset.shards import ShardWriter, batch_rows
from afinar.ingest.plan import shard_pictures
from afinar.pictures.preprocessing import StoredView
from afinar.storage.arrow import from_ipc
from afinar.storage.markers import UnitMarker, commit_unit
from afinar.storage.objects import ObjectRef, get_object
from afinar.storage.open import open_store

MAX_DEAD: Final = 0.2
Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class LiveRows:
    """The rows of one shard that live, in their order."""

    shard: ObjectRef
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactTask:
    """One unit of work: one new shard out of what lives in old ones."""

    unit: str
    dataset: str
    view: StoredView
    sources: tuple[LiveRows, ...]

    @property
    def pictures(self) -> int:
        """Rows of the new shard."""
        return sum(len(source.rows) for source in self.sources)


def shards_to_compact(index: pa.Table, shards: list[ObjectRef]) -> list[LiveRows]:
    """Shards of which more than a fifth is dead, with what lives in them."""
    count = count_live(index)
    worn = [
        ref
        for ref in shards
        if ref.path in count and ref.rows - count[ref.path] > MAX_DEAD * ref.rows
    ]
    live = live_rows(index, {ref.path for ref in worn})
    return [
        LiveRows(ref, tuple(sorted(live[ref.path])))
        for ref in sorted(worn, key=lambda ref: ref.path)
    ]


def count_live(index: pa.Table) -> dict[str, int]:
    """Rows that an index names, by shard. Copies of a picture may name the same one."""
    places = index.select(["shard", "row"]).group_by(["shard", "row"]).aggregate([])
    counts = pc.value_counts(places.column("shard"))
    return dict(
        zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)
    )


def live_rows(index: pa.Table, shards: set[str]) -> dict[str, set[int]]:
    """The rows of these shards that an index names."""
    named = index.filter(pc.is_in(index.column("shard"), pa.array(sorted(shards), pa.string())))
    live: dict[str, set[int]] = defaultdict(set)
    for shard, row in zip(
        named.column("shard").to_pylist(), named.column("row").to_pylist(), strict=True
    ):
        live[shard].add(row)
    return live


def plan_compaction(
    worn: list[LiveRows], dataset: str, version: int, view: StoredView
) -> list[CompactTask]:
    """Put what lives in worn shards together, in new shards of the usual size: a pure function of its arguments."""
    max_rows = shard_pictures(view)
    groups: list[list[LiveRows]] = []
    room = 0
    for survivors in worn:
        if not groups or len(survivors.rows) > room:
            groups.append([])
            room = max_rows
        groups[-1].append(survivors)
        room -= len(survivors.rows)
    return [
        CompactTask(
            unit=f"{version:08d}-{_digest(group)}", dataset=dataset, view=view, sources=tuple(group)
        )
        for group in groups
    ]


def _digest(group: list[LiveRows]) -> str:
    digest = hashlib.sha256(b"compact")
    for survivors in group:
        digest.update(f"\n{survivors.shard.path}:{survivors.rows}".encode())
    return digest.hexdigest()[:16]


def compact(task: CompactTask) -> CompactTask:
    """Carry out one unit: copy what lives into one new shard and commit it. Twice is once."""
    store = open_store(task.dataset)
    with ShardWriter(store, task.view) as writer:
        step = batch_rows(task.view)
        for source in task.sources:
            old = from_ipc(get_object(store, source.shard))
            for start in range(0, len(source.rows), step):
                rows = old.take(pa.array(source.rows[start : start + step], pa.int64()))
                writer.write(rows.combine_chunks().to_batches()[0])
        shard = writer.commit(task.unit)
    commit_unit(store, UnitMarker(unit=task.unit, objects={"shard": shard}))
    return task


def remap_index(index: pa.Table, tasks: list[CompactTask], markers: list[UnitMarker]) -> pa.Table:
    """The index with the rows of worn shards where compaction put them."""
    moved: dict[Place, Place] = {}
    for task, marker in zip(tasks, markers, strict=True):
        places = ((source.shard.path, row) for source in task.sources for row in source.rows)
        moved |= {place: (marker.objects["shard"].path, row) for row, place in enumerate(places)}
    worn = pa.array(sorted({shard for shard, _ in moved}), pa.string())
    affected = pc.indices_nonzero(pc.is_in(index.column("shard"), worn))
    old = index.select(["shard", "row"]).take(affected)
    new = [
        moved[place]
        for place in zip(
            old.column("shard").to_pylist(), old.column("row").to_pylist(), strict=True
        )
    ]
    mask = np.zeros(len(index), dtype=bool)
    mask[affected.to_numpy()] = True
    for name, values in (("shard", [shard for shard, _ in new]), ("row", [row for _, row in new])):
        kind = INDEX.field(name)
        column = pc.replace_with_mask(
            index.column(name).combine_chunks(), pa.array(mask), pa.array(values, kind.type)
        )
        index = index.set_column(INDEX.get_field_index(name), kind, column)
    return index
