"""Manifests of a dataset."""

from __future__ import annotations

from pathlib import Path

import pytest

from afinar.dataset.manifest import (
    DatasetObject,
    Manifest,
    current_manifest,
    get_manifest,
    get_manifests,
    is_dataset,
    list_objects,
    publish_manifest,
    put_objects,
)
from afinar.errors import RequestError
from afinar.pictures.preprocessing import StoredView
from afinar.storage.objects import ObjectRef
from afinar.storage.open import open_store
from afinar.storage.store import Store
from afinar.storage.versions import publish

SHARD = DatasetObject("shard", ObjectRef(path="shards/a", rows=3, bytes=10, sha256="0" * 64))


def manifest_of(store: Store, version: int) -> Manifest:
    return Manifest(
        version=version,
        parent=version - 1 or None,
        lineage=1,
        created="2026-11-26T00:00:00+00:00",
        source={"uri": "/archive", "fingerprint": "f"},
        recipe={"labels": "folder"},
        preprocessing=StoredView(size=64, fit="crop").as_dict(),
        classes=["moss", "rust"],
        counts={
            "listed": 3,
            "samples": 3,
            "rejects": 0,
            **{name: {} for name in ("rejects_by_reason", "splits", "labels", "repeats")},
        },
        objects=put_objects(store, [SHARD]),
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "dataset"))


def test_published_manifest_is_read_back_with_its_objects(store: Store) -> None:
    assert current_manifest(store) is None
    assert not is_dataset(store)
    manifests = [manifest_of(store, version) for version in (1, 2)]
    assert all(publish_manifest(store, manifest, "owner") for manifest in manifests)
    assert is_dataset(store)
    assert current_manifest(store) == manifests[1]
    assert get_manifest(store, 1) == manifests[0]
    assert get_manifests(store) == manifests
    assert list_objects(store, manifests[0]) == [SHARD]


def test_number_that_is_taken_is_published_by_its_owner_only(store: Store) -> None:
    manifest = manifest_of(store, 1)
    assert publish_manifest(store, manifest, "owner")
    assert publish_manifest(store, manifest, "owner"), "its reply was lost: it is published"
    assert not publish_manifest(store, manifest, "another")


def test_folder_without_manifests_or_with_others_is_refused(store: Store) -> None:
    with pytest.raises(RequestError, match="holds no dataset"):
        get_manifests(store)
    publish(store, "manifests", 1, {"format": "afinar-predictions/1"}, "owner")
    assert not is_dataset(store)
    reads = (get_manifests, current_manifest, lambda store: get_manifest(store, 1))
    for read in reads:
        with pytest.raises(RequestError, match="holds afinar-predictions/1, not a dataset"):
            read(store)
