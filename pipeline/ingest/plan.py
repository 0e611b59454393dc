"""Planning an ingest: what is known already stands, every other picture goes into a unit.

A plan is a pure function of the listing, of what the parent version knows, and of the recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from pipeline.dataset.schema import FACTS, Entry
from pipeline.dataset.units import plan_units, units_of
from pipeline.pictures.contract import StoredView

_SHARD_BYTES: Final = 128 * 2**20


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

    `known` has FACTS' columns. The version is part of a unit's identity so that a picture rejected in
    transit is read again by the next one.
    """
    settled = set(zip(known.column("uri").to_pylist(), known.column("etag").to_pylist(), strict=True))
    per_shard = max(1, _SHARD_BYTES // (view.size * view.size * 3))
    return plan_units(listing, settled, f"{view.key()}:{version}", per_shard)


def tasks_of(plan: pa.Table, view: StoredView, source: str, dataset: str) -> list[ShardTask]:
    """The plan's units, in order."""
    return [
        ShardTask(unit=unit, source=source, dataset=dataset, view=view, entries=entries)
        for unit, entries in units_of(plan).items()
    ]


def standing_facts(index: pa.Table, rejects: pa.Table, retried: set[str]) -> pa.Table:
    """What a version knows about its pictures, as FACTS; rejects whose reason is in `retried` are unknown."""
    stands = [reason not in retried for reason in rejects.column("reason").to_pylist()]
    return pa.concat_tables([_as_facts(index), _as_facts(rejects.filter(pa.array(stands, pa.bool_())))])


def _as_facts(table: pa.Table) -> pa.Table:
    columns = [
        table.column(field.name) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in FACTS
    ]
    return pa.Table.from_arrays(columns, schema=FACTS)
