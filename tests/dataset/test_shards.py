"""Shards written batch by batch and read from a map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from afinar import open_dataset
from afinar.dataset import shards
from afinar.dataset.shards import batch_rows
from afinar.errors import StorageError
from afinar.pictures.preprocessing import StoredView
from afinar.storage.arrow import from_ipc
from afinar.storage.objects import ObjectWriter, check_hash, get_object
from afinar.storage.open import open_store
from tests.ingest.test_versions import ingest, require_pixels_of_files, shards_in


@pytest.mark.parametrize("store", ["pixels", "jpeg"])
def test_a_shard_of_many_batches_reads_as_one(
    archive: Path, location: str, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_BATCH_BYTES", 5 * 32 * 32 * 3)
    ingest(archive, location, store=store)
    (name,) = shards_in(location)
    table = from_ipc(open_store(location).get(name))
    assert [len(batch) for batch in table.to_batches()] == [5, 5, 5, 5, 4]
    opened = open_dataset(location)
    require_pixels_of_files(opened)
    order = np.random.default_rng(0).permutation(24)
    np.testing.assert_array_equal(opened.read(order), opened.read(range(24))[order])
    np.testing.assert_array_equal(opened.read([7, 7, 3])[2], opened.read([3])[0])
    for path in sorted((archive / "moss").iterdir())[:6]:
        path.unlink()
    summary, _ = ingest(archive, location, store=store)
    assert summary.shards_compacted == 1
    require_pixels_of_files(open_dataset(location))


def test_a_batch_is_a_few_megabytes_and_never_empty() -> None:
    assert batch_rows(StoredView(size=256, fit="crop")) == 42
    assert batch_rows(StoredView(size=4096, fit="crop")) == 1


def test_a_shard_maps_without_a_copy(archive: Path, tmp_path: Path) -> None:
    ingest(archive, tmp_path / "dataset")
    (name,) = shards_in(tmp_path / "dataset")
    before = pa.total_allocated_bytes()
    with pa.memory_map(str(tmp_path / "dataset" / name)) as source:
        table = pa.ipc.open_file(source).read_all()
    assert table.nbytes > 24 * 32 * 32 * 3
    assert pa.total_allocated_bytes() == before


def test_an_object_written_in_pieces_is_one_object(location: str) -> None:
    store = open_store(location)
    with ObjectWriter(store, "shards") as writer:
        for piece in (b"one ", memoryview(b"two "), bytearray(b"three")):
            assert writer.write(piece) == len(piece)
        assert list(store.walk()) == [], "nobody sees it before it is committed"
        ref = writer.commit("shards/u-{hash}.arrow", 3)
    assert get_object(store, ref) == b"one two three"
    check_hash(b"one two three", ref, store)
    with ObjectWriter(store, "shards") as twin:
        twin.write(b"one two three")
        assert twin.commit("shards/u-{hash}.arrow", 3) == ref, "written again it is the same object"
    assert [info.name for info in store.walk()] == [ref.path]


def test_what_is_not_committed_leaves_nothing(location: str, tmp_path: Path) -> None:
    store = open_store(location)
    with pytest.raises(StorageError), ObjectWriter(store, "shards") as writer:
        writer.write(b"half")
        raise StorageError("the disk is full")
    assert list(store.walk()) == []
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
