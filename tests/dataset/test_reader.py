"""Reading a dataset: its index, its objects and pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from afinar import open_dataset
from afinar.dataset import reader
from afinar.errors import IntegrityError, RequestError, StorageError
from tests.archives import ingest
from tests.conftest import jpeg
from tests.datasets import assert_pixels_match_files, shard_names


def test_rows_are_read_in_the_order_asked_for(archive: Path, location: str, tmp_path: Path) -> None:
    ingest(archive, location)
    for number in range(3):
        (archive / "rust" / f"new-{number}.jpg").write_bytes(jpeg(7000 + number))
    ingest(archive, location)
    dataset = open_dataset(location, cache=tmp_path / "cache")
    assert len(dataset.shards) == 2
    assert_pixels_match_files(dataset)
    order = np.random.default_rng(0).permutation(27)
    np.testing.assert_array_equal(dataset.read(order), dataset.read(range(27))[order])
    np.testing.assert_array_equal(dataset.read([7, 7, 3])[2], dataset.read([3])[0])
    assert dataset.read([]).shape == (0, 64, 64, 3)


def test_objects_are_those_of_the_opened_version(archive: Path, tmp_path: Path) -> None:
    (archive / "moss" / "empty.jpg").write_bytes(b"")
    ingest(archive, tmp_path / "dataset")
    dataset = open_dataset(str(tmp_path / "dataset"))
    assert [entry.kind for entry in dataset.objects] == ["index", "rejects", "shard"]
    assert set(dataset.shard_names) == shard_names(tmp_path / "dataset")
    assert (len(dataset.index), len(dataset.rejects)) == (24, 1)
    assert (dataset.classes, dataset.is_remote) == (["moss", "rust"], False)
    assert set(dataset.shard_numbers) == {0}


def test_shard_is_mapped_by_name_without_the_index(archive: Path, tmp_path: Path) -> None:
    ingest(archive, tmp_path / "dataset")
    dataset = open_dataset(str(tmp_path / "dataset"))
    (name,) = dataset.shard_names
    row = dataset.index.column("row")[5].as_py()
    picture = dataset.map_shard(name).picture(row)
    np.testing.assert_array_equal(picture, dataset.read([5])[0])
    with pytest.raises(StorageError, match="not a shard of version 1"):
        dataset.map_shard("shards/another.arrow")


def test_folder_without_dataset_or_version_is_refused(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no dataset"):
        open_dataset(str(tmp_path / "nothing"))
    ingest(archive, tmp_path / "dataset")
    with pytest.raises(RequestError, match=r"has no version 2 \(kept versions: 1\)"):
        open_dataset(str(tmp_path / "dataset"), version=2)


def test_damaged_shard_is_verified_later_the_caller_is_told(archive: Path, tmp_path: Path) -> None:
    ingest(archive, tmp_path / "dataset")
    dataset = reader.open_dataset(
        str(tmp_path / "dataset"), cache=tmp_path / "cache", verify_later=True
    )
    good = dataset.read([5])
    dataset.wait_verified()

    path = Path(dataset.store.uri(dataset.shards[0].path))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    damaged = reader.open_dataset(
        str(tmp_path / "dataset"), cache=tmp_path / "cache", verify_later=True
    )
    assert damaged.read([5]).shape == good.shape, "its pixels are used while it is hashed"
    with pytest.raises(IntegrityError, match="not what was committed"):
        damaged.wait_verified()
    with pytest.raises(IntegrityError, match="not what was committed"):
        damaged.read([5])
