"""Shards written batch by batch and read from a memory map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from afinar import open_dataset
from afinar.dataset.shards import batch_rows
from afinar.pictures.preprocessing import StoredView
from afinar.storage.arrow import from_ipc
from afinar.storage.open import open_store
from tests.archives import ingest
from tests.datasets import assert_pixels_match_files, shard_names


@pytest.mark.parametrize("store", ["pixels", "jpeg"])
def test_shard_of_many_batches_reads_as_one(archive: Path, location: str, store: str) -> None:
    size = 740
    assert batch_rows(StoredView(size=size, fit="crop")) == 5
    ingest(archive, location, store=store, size=size)
    (name,) = shard_names(location)
    table = from_ipc(open_store(location).get(name))
    assert [len(batch) for batch in table.to_batches()] == [5, 5, 5, 5, 4]
    opened = open_dataset(location)
    assert_pixels_match_files(opened)
    order = np.random.default_rng(0).permutation(24)
    np.testing.assert_array_equal(opened.read(order), opened.read(range(24))[order])
    np.testing.assert_array_equal(opened.read([7, 7, 3])[2], opened.read([3])[0])
    for path in sorted((archive / "moss").iterdir())[:6]:
        path.unlink()
    summary = ingest(archive, location, store=store, size=size)
    assert summary.shards_compacted == 1
    assert_pixels_match_files(open_dataset(location))


def test_batch_has_at_most_8_mb_and_at_least_one_picture() -> None:
    assert batch_rows(StoredView(size=256, fit="crop")) == 42
    assert batch_rows(StoredView(size=4096, fit="crop")) == 1


def test_shard_is_memory_mapped_without_a_copy(archive: Path, tmp_path: Path) -> None:
    ingest(archive, tmp_path / "dataset")
    (name,) = shard_names(tmp_path / "dataset")
    before = pa.total_allocated_bytes()
    with pa.memory_map(str(tmp_path / "dataset" / name)) as source:
        table = pa.ipc.open_file(source).read_all()
    assert table.nbytes > 24 * 64 * 64 * 3
    assert pa.total_allocated_bytes() == before
