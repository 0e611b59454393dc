"""Markers of completed units."""

from __future__ import annotations

from afinar.storage.markers import UnitMarker, commit_unit, committed_units, read_marker
from afinar.storage.objects import ObjectRef
from afinar.storage.store import Store


def test_unit_committed_twice_keeps_first_marker(store: Store) -> None:
    ref = ObjectRef(path="shards/a", rows=1, bytes=1, sha256="0" * 64)
    first = UnitMarker(unit="u1", objects={"shard": ref})
    duplicate = UnitMarker(unit="u1", objects={})
    assert commit_unit(store, first) == first
    assert commit_unit(store, duplicate) == first
    assert read_marker(store, "u1") == first
    assert committed_units(store) == {"u1"}
