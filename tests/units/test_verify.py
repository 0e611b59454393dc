"""Verification of committed objects."""

from __future__ import annotations

from pathlib import Path

from afinar.storage.objects import put_object
from afinar.storage.open import open_store
from afinar.units.verify import needed_objects, verify_objects


def test_object_of_several_versions_is_read_once_and_damage_names_them(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    shared, own, missing = (
        put_object(store, f"shards/{name}-{{hash}}", name.encode(), 1)
        for name in ("shared", "own", "missing")
    )
    needed_by = needed_objects([(1, [shared, missing]), (2, [shared, own])])
    assert needed_by == {shared: [1, 2], missing: [1], own: [2]}
    assert verify_objects(store, needed_by).damaged == []

    store.delete(shared.path)
    store.put_if_absent(shared.path, b"SHARED")
    store.delete(missing.path)
    verification = verify_objects(store, needed_by)
    assert verification.read == 3
    assert {(damage.path, *damage.needed_by) for damage in verification.damaged} == {
        (shared.path, 1, 2),
        (missing.path, 1),
    }
