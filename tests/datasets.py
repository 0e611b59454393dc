"""Contents of a dataset, as tests compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from afinar.dataset.reader import Dataset
from afinar.pictures.decode import decode
from afinar.storage.objects import sha256
from afinar.storage.open import open_store


def shard_names(dataset: Path | str) -> set[str]:
    """Return the names of the stored shards, of all versions."""
    return {info.name for info in open_store(str(dataset)).walk("shards")}


def object_hashes(dataset: Path | str, folder: str = "") -> dict[str, str]:
    """Return the hash of each stored object by its name, of one folder or of all."""
    store = open_store(str(dataset))
    return {info.name: sha256(store.get(info.name)) for info in store.walk(folder)}


def values_by_file(table: pa.Table, column: str) -> dict[str, Any]:
    """Return a column of a table that has uris, by file name."""
    uris, values = table.column("uri").to_pylist(), table.column(column).to_pylist()
    return {Path(uri).name: value for uri, value in zip(uris, values, strict=True)}


def assert_pixels_match_files(dataset: Dataset) -> None:
    """Require that each sample has the pixels that its file decodes to."""
    rows = dataset.index.to_pylist()
    for row, image in zip(rows, dataset.read(range(len(rows))), strict=True):
        decoded = decode(Path(row["uri"]).read_bytes(), dataset.view)
        np.testing.assert_array_equal(image, decoded.image)
