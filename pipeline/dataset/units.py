"""Cutting a listing into units of work: pure functions of the listing, never of the number of workers.

A plan is stored before its first unit runs, so that whoever comes after an interruption continues it.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
import pyarrow as pa

from pipeline.dataset.schema import LISTING, Entry
from pipeline.dataset.tables import from_parquet, to_parquet
from pipeline.errors import NotFoundError
from pipeline.storage.store import Store
from pipeline.work import say

PLAN: Final = LISTING.append(pa.field("unit", pa.string()))
"""The whole listing; `unit` is null for a picture that needs no work."""

_SMALL_ARCHIVE_UNITS: Final = 32  # enough for a few dozen cores to share a small archive …
_MIN_UNIT: Final = 48  # … in units that are still worth a file


def plan_units(listing: pa.Table, settled: set[tuple[str, str]], identity: str, unit_pictures: int) -> pa.Table:
    """Assign every picture whose (uri, etag) is not settled to a unit of at most `unit_pictures`.

    A unit's name is a digest of its pictures and of `identity`, which holds everything else that
    determines what the unit writes.
    """
    keys = list(zip(listing.column("uri").to_pylist(), listing.column("etag").to_pylist(), strict=True))
    open_ones = np.flatnonzero([key not in settled for key in keys])
    units = np.full(len(keys), None, dtype=object)
    for group in np.array_split(open_ones, count_units(len(open_ones), unit_pictures)):
        if len(group):
            units[group] = _unit_name([keys[position] for position in group], identity)
    return listing.append_column(PLAN.field("unit"), pa.array(units, pa.string()))


def count_units(pictures: int, unit_pictures: int) -> int:
    """Units are bounded; a small archive is cut finer, so that its cores share it."""
    return max(-(-pictures // unit_pictures), min(_SMALL_ARCHIVE_UNITS, pictures // _MIN_UNIT), 1)


def _unit_name(keys: list[tuple[str, str]], identity: str) -> str:
    digest = hashlib.sha256(identity.encode())
    for uri, etag in keys:
        digest.update(f"\n{uri}\t{etag}".encode())
    return digest.hexdigest()[:16]


def units_of(plan: pa.Table) -> dict[str, tuple[Entry, ...]]:
    """The plan's units in order, each with its pictures."""
    members: dict[str, list[Entry]] = {}
    columns = (plan.column(name).to_pylist() for name in ("unit", "name", "uri", "etag", "size"))
    for unit, name, uri, etag, size in zip(*columns, strict=True):
        if unit is not None:
            members.setdefault(unit, []).append(Entry(name=name, uri=uri, etag=etag, size=size))
    return {unit: tuple(entries) for unit, entries in members.items()}


def interrupted_plan(store: Store, name: str) -> pa.Table | None:
    """The plan that an earlier run left under `name`, if one did."""
    try:
        plan = from_parquet(store.get(name))
    except NotFoundError:
        return None
    say(f"resuming the plan that an earlier run left at {store.uri(name)}")
    return plan


def store_plan(store: Store, name: str, plan: pa.Table) -> pa.Table:
    """Store a plan; the one to carry out is a rival's where that came first, so that both work on one."""
    if store.put_if_absent(name, to_parquet(plan)):
        return plan
    return from_parquet(store.get(name))


def retire_plan(store: Store, name: str, plan: pa.Table) -> None:
    """Remove a plan that is carried out, unless somebody stored the next one under its name already."""
    try:
        if store.get(name) == to_parquet(plan):
            store.delete(name)
    except NotFoundError:
        return  # a twin was quicker


def planned_units(store: Store) -> set[str]:
    """Units of every plan that is stored: somebody is carrying it out, or will."""
    units: set[str] = set()
    for info in store.walk("plans"):
        try:
            units |= set(from_parquet(store.get(info.name)).column("unit").unique().to_pylist())
        except NotFoundError:
            continue  # carried out meanwhile
    return units
