"""Planning an ingest: a pure function of the listing, what is known already, and the recipe.

The plan is the whole listing with a `unit` for every picture that has to be read; null where what is
known from the parent version still holds. It never depends on the number of workers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from pipeline.dataset.schema import FACTS, LISTING, Entry
from pipeline.pictures.contract import StoredView

PLAN: Final = LISTING.append(pa.field("unit", pa.string()))

_SHARD_BYTES: Final = 128 * 2**20
_SMALL_ARCHIVE_UNITS: Final = 32  # enough for a few dozen cores to share a small archive …
_MIN_UNIT: Final = 64  # … in shards that are still worth opening


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """One unit of work: the pictures of one shard."""

    unit: str
    source: str
    dataset: str
    view: StoredView
    entries: tuple[Entry, ...]


def make_plan(listing: pa.Table, known: pa.Table, view: StoredView, version: int) -> pa.Table:
    """Assign every picture without a known fact to a unit of the coming `version`.

    `known` has FACTS' columns.
    """
    old = set(zip(known.column("uri").to_pylist(), known.column("etag").to_pylist(), strict=True))
    uris, etags = listing.column("uri").to_pylist(), listing.column("etag").to_pylist()
    fresh = np.array([key not in old for key in zip(uris, etags, strict=True)], dtype=bool)
    units = np.full(len(uris), None, dtype=object)
    positions = np.flatnonzero(fresh)
    for group in np.array_split(positions, count_units(len(positions), view)):
        if len(group):
            units[group] = unit_id([(uris[i], etags[i]) for i in group], view, version)
    return listing.append_column(PLAN.field("unit"), pa.array(units, pa.string()))


def count_units(pictures: int, view: StoredView) -> int:
    """Shards are bounded in bytes; a small archive is cut finer, so that its cores share it."""
    by_bytes = -(-pictures * view.size * view.size * 3 // _SHARD_BYTES)
    for_sharing = min(_SMALL_ARCHIVE_UNITS, pictures // _MIN_UNIT)
    return max(by_bytes, for_sharing, 1)


def unit_id(entries: list[tuple[str, str]], view: StoredView, version: int) -> str:
    """Name of the unit that reads these (uri, etag) into this view for this version: a digest of just that.

    The version is in it so that a picture rejected in transit is read again by the next one.
    """
    digest = hashlib.sha256(f"{view.key()}:{version}".encode())
    for uri, etag in entries:
        digest.update(f"\n{uri}\t{etag}".encode())
    return digest.hexdigest()[:16]


def tasks_of(plan: pa.Table, view: StoredView, source: str, dataset: str) -> list[ShardTask]:
    """The plan's units, in order."""
    members: dict[str, list[Entry]] = {}
    columns = (plan.column(name).to_pylist() for name in ("unit", "name", "uri", "etag"))
    for unit, name, uri, etag in zip(*columns, strict=True):
        if unit is not None:
            members.setdefault(unit, []).append(Entry(name=name, uri=uri, etag=etag))
    return [
        ShardTask(unit=unit, source=source, dataset=dataset, view=view, entries=tuple(entries))
        for unit, entries in members.items()
    ]


def standing_facts(index: pa.Table, rejects: pa.Table, retried: set[str]) -> pa.Table:
    """What a version knows about its pictures, as FACTS; rejects whose reason is in `retried` are unknown."""
    kept = rejects.filter(pa.array([reason not in retried for reason in rejects.column("reason").to_pylist()], pa.bool_()))
    return pa.concat_tables([_as_facts(index), _as_facts(kept)])


def _as_facts(table: pa.Table) -> pa.Table:
    columns = [
        table.column(field.name) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in FACTS
    ]
    return pa.Table.from_arrays(columns, schema=FACTS)
