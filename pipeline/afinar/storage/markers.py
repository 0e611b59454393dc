"""Unit markers: the record that one unit of work is complete.

A unit writes its objects first and its marker last, put-if-absent. A unit without a marker is not
committed, and the objects that a killed worker wrote for it are named by nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Final

from afinar.errors import RecordError
from afinar.storage.names import check_identifier
from afinar.storage.objects import ObjectRef
from afinar.storage.records import REMEDY, read_record
from afinar.storage.store import Store

UnitName = Annotated[str, lambda value: check_identifier(value, "the name of a unit")]

_READ_THREADS: Final = 16  # a marker is about 1 kB: reading it is latency, not work


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitMarker:
    """The record of a completed unit: its objects by kind ("shard", "facts", "part", "rejects")."""

    unit: UnitName
    objects: dict[str, ObjectRef]


def commit_unit(store: Store, marker: UnitMarker) -> UnitMarker:
    """Write a unit's marker and return the committed one.

    Two workers may run the same unit at the same time. The first marker counts: the second worker
    gets the first one's marker back, and its own objects stay unreferenced.
    """
    objects = {kind: ref.as_dict() for kind, ref in marker.objects.items()}
    body = json.dumps({"unit": marker.unit, "objects": objects}).encode()
    if store.put_if_absent(marker_name(marker.unit), body):
        return marker
    return read_marker(store, marker.unit)


def read_marker(store: Store, unit: str) -> UnitMarker:
    """Return the committed marker of `unit`. Raises NotFoundError if the unit is not committed."""
    marker = read_record(store, marker_name(unit), UnitMarker)
    if marker.unit != unit:
        raise RecordError(
            f"{store.uri(marker_name(unit))} is the marker of another unit, {marker.unit}; {REMEDY}"
        )
    return marker


def read_markers(
    store: Store,
    units: Iterable[str],
    *,
    required: Collection[str] = (),
    known: Collection[str] | None = None,
) -> list[UnitMarker]:
    """Return the markers of committed units, in the order of `units`.

    Raises RecordError for a marker without an object of a `required` kind, or with one of a kind
    that is not `known`.
    """

    def read(unit: str) -> UnitMarker:
        marker = read_marker(store, unit)
        missing = set(required) - marker.objects.keys()
        unknown = marker.objects.keys() - set(marker.objects if known is None else known)
        if missing or unknown:
            kinds = ", ".join(sorted(missing | unknown))[:200]
            fault = "has no" if missing else "has an unknown"
            raise RecordError(f"{store.uri(marker_name(unit))} {fault} object {kinds!a}; {REMEDY}")
        return marker

    with ThreadPoolExecutor(_READ_THREADS) as pool:
        return list(pool.map(read, units))


def committed_units(store: Store) -> set[str]:
    """Return the names of all units that have a marker."""
    return {info.name.split("/")[-1].removesuffix(".json") for info in store.walk("units")}


def marker_name(unit: str) -> str:
    """Return the name of a unit's marker in its store."""
    return f"units/{unit}.json"
