"""Verification of a dataset, and deletion of the objects that nothing needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from afinar import open_dataset
from afinar.dataset.gc import (
    collect_garbage,
    find_unreferenced,
    open_plans,
    verify_dataset,
    version_in,
)
from afinar.dataset.manifest import get_manifests
from afinar.dataset.reader import Dataset
from afinar.errors import RequestError
from afinar.storage.open import open_store
from afinar.storage.store import Store
from tests.archives import ingest, interrupt_addition
from tests.conftest import jpeg, make_archive
from tests.datasets import assert_pixels_match_files, shard_names
from tests.executors import RecordingExecutor


def object_names(store: Store) -> set[str]:
    return {info.name for info in store.walk()}


def needed_names(store: Store) -> set[str]:
    """Return the names of all manifests, their lists, and the shards that an index names."""
    names = {f"manifests/{manifest.version:08d}.json" for manifest in get_manifests(store)}
    for manifest in get_manifests(store):
        dataset = Dataset(store, manifest)
        names |= {manifest.objects.path, *dataset.index.column("shard").unique().to_pylist()}
    return names


def test_version_is_read_from_the_name_of_a_plan_unit_or_object() -> None:
    assert version_in("plans/00000012-forget.parquet") == 12
    assert version_in("shards/00000003-0123abcd-4567.arrow") == 3
    assert version_in("index/0123abcd.parquet") == 0


def test_whole_dataset_verifies_and_damaged_shard_is_named(archive: Path, location: str) -> None:
    ingest(archive, location)
    store = open_store(location)
    verification = verify_dataset(store, get_manifests(store))
    read, damage = verification.read, verification.damaged
    assert (read, damage) == (3, []), "list, index and one shard"
    (shard,) = shard_names(location)
    data = bytearray(store.get(shard))
    data[len(data) // 2] ^= 1
    store.delete(shard)
    store.put_if_absent(shard, bytes(data))
    damage = verify_dataset(store, get_manifests(store)).damaged
    assert [(found.path, found.needed_by) for found in damage] == [(shard, [1])]
    assert "not what was committed" in damage[0].error
    store.delete(shard)
    damage = verify_dataset(store, get_manifests(store)).damaged
    assert [found.path for found in damage] == [shard]


def test_damaged_list_of_objects_is_reported(archive: Path, tmp_path: Path) -> None:
    ingest(archive, tmp_path / "dataset")
    store = open_store(str(tmp_path / "dataset"))
    (manifest,) = get_manifests(store)
    store.delete(manifest.objects.path)
    verification = verify_dataset(store, [manifest])
    assert verification.read == 1
    assert [damage.path for damage in verification.damaged] == [manifest.objects.path]


def test_unneeded_objects_are_deleted_and_no_others(archive: Path, location: str) -> None:
    ingest(archive, location)
    (archive / "moss" / "000.jpg").write_bytes(jpeg(777))
    ingest(archive, location)
    store = open_store(location)
    store.put_if_absent("shards/00000001-dead-beef.arrow", b"left by a killed worker")
    collect_garbage(store, set())
    left = object_names(store)
    assert needed_names(store) <= left
    assert not {
        name
        for name in left
        if name.startswith(("units/", "facts/", "plans/", "shards/00000001-dead"))
    }
    assert collect_garbage(store, set()) == []
    assert verify_dataset(store, get_manifests(store)).damaged == []
    assert len(open_dataset(location, version=1).index) == 24
    reads = RecordingExecutor()
    summary = ingest(archive, location, reads)
    assert (summary.units_run, reads.names) == (0, []), "the next run needs no deleted object"

    collect_garbage(store, {1})
    assert [manifest.version for manifest in get_manifests(store)] == [2]
    assert_pixels_match_files(open_dataset(location))
    with pytest.raises(RequestError):
        open_dataset(location, version=1)


def test_scratch_files_of_killed_writers_are_deleted_after_a_day(
    archive: Path, tmp_path: Path
) -> None:
    ingest(archive, tmp_path / "dataset")
    old, young = (tmp_path / "dataset" / "shards" / f".tmp-{name}" for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half a shard")
    os.utime(old, (0, 0))
    collect_garbage(open_store(str(tmp_path / "dataset")), set())
    assert (old.exists(), young.exists()) == (False, True)


def test_objects_of_an_unfinished_job_are_kept(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "pictures", 60)
    dataset = str(tmp_path / "dataset")
    ingest(archive, dataset)
    interrupt_addition(archive, dataset)
    store = open_store(dataset)
    leased = {name for name in object_names(store) if version_in(name) == 2}
    assert len(leased) == 4, "plan, shard, facts, marker"
    (plan,) = open_plans(store, 1)
    assert len(plan.units) == 2
    assert not leased & set(find_unreferenced(store, set()))
    collect_garbage(store, set())
    assert leased <= object_names(store)
    assert ingest(archive, dataset).samples == 220
