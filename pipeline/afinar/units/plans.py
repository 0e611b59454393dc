"""Stored plans: the units that a job carries out to build a version.

A plan is stored before its first unit runs, so that the next run of the same command resumes an
interrupted one. While it is stored it is also a lease: garbage collection leaves its objects alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from afinar.config.strict import Count
from afinar.errors import ChangedError, NotFoundError
from afinar.storage.arrow import conform, from_parquet, to_parquet
from afinar.storage.records import as_record, parse_object
from afinar.storage.store import Store
from afinar.units.cut import PLAN, unit_names

logger = logging.getLogger(__name__)

FOLDER: Final = "plans"

_LEFT_OUT: Final = b"left_out"


def with_left_out(table: pa.Table, counts: Mapping[str, int]) -> pa.Table:
    """Return a plan that records what the listing left out, as metadata of its schema."""
    return table.replace_schema_metadata({_LEFT_OUT: json.dumps(dict(counts))})


def left_out_of(table: pa.Table) -> dict[str, int]:
    """Return what `with_left_out` recorded; nothing for a plan of an earlier release."""
    data = (table.schema.metadata or {}).get(_LEFT_OUT, b"{}")
    uri = "the counts of a plan"
    return as_record(parse_object(data, uri), dict[str, Count], uri)


@dataclass(frozen=True)
class Plan:
    """A plan as it is stored: `table` is PLAN, `etag` identifies the stored object.

    `resumed` is True if another run stored it: one that was interrupted, or that runs now.
    """

    name: str
    table: pa.Table
    etag: str
    resumed: bool

    @property
    def units(self) -> list[str]:
        """Names of the units, in order."""
        return unit_names(self.table)


def load_plan(store: Store, name: str) -> Plan | None:
    """Return the plan that an earlier run stored under `name`, or None if there is none."""
    plan = _read(store, name, resumed=True)
    if plan is not None:
        logger.info(f"resuming the plan that an earlier run left at {store.uri(name)}")
    return plan


def store_plan(store: Store, name: str, table: pa.Table) -> Plan:
    """Store a plan and return the stored one.

    If a concurrent run of the same command stored its plan first, that one is returned, so that
    both carry out the same units.
    """
    if not store.put_if_absent(name, to_parquet(table)):
        plan = _read(store, name, resumed=False)
        if plan is not None:
            return plan

    try:
        etag = store.stat(name).etag
    except NotFoundError:  # a concurrent run of the same command has carried it out and deleted it
        etag = ""
    return Plan(name, table, etag, resumed=False)


def _read(store: Store, name: str, resumed: bool) -> Plan | None:
    while True:
        try:
            etag = store.stat(name).etag
            return Plan(name, _parse(store, name, store.get(name, etag)), etag, resumed)
        except NotFoundError:
            return None
        except ChangedError:
            continue  # deleted and stored anew between the two requests


def _parse(store: Store, name: str, data: bytes, columns: list[str] | None = None) -> pa.Table:
    uri = store.uri(name)
    table = from_parquet(data, columns, uri=uri)
    return conform(table, PLAN, uri, columns, required=["uri"])


def is_stored(store: Store, plan: Plan) -> bool:
    """Return True if this plan is still stored under its name.

    It costs one request for the etag, not a download. A concurrent run of the same command that
    carried the plan out has deleted it.
    """
    try:
        return store.stat(plan.name).etag == plan.etag
    except NotFoundError:
        return False


def delete_plan(store: Store, plan: Plan) -> None:
    """Delete a plan that is carried out, unless another plan is stored under its name by now."""
    if is_stored(store, plan):
        store.delete(plan.name)


@dataclass(frozen=True)
class StoredUnits:
    """Name of a stored plan and the names of its units."""

    name: str
    units: frozenset[str]


def stored_plans(store: Store) -> Iterator[StoredUnits]:
    """Yield every stored plan: a job is carrying it out, or was interrupted."""
    for info in store.walk(FOLDER):
        try:
            table = _parse(store, info.name, store.get(info.name), ["unit"])
        except NotFoundError:
            continue  # carried out and deleted since it was listed
        yield StoredUnits(info.name, frozenset(unit_names(table)))


def planned_units(store: Store) -> set[str]:
    """Return the units of every stored plan."""
    return {unit for plan in stored_plans(store) for unit in plan.units}
