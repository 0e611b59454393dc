"""Opening a dataset: its index, and pixels gathered from memory-mapped shards."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dataset.manifest import Manifest, current_manifest, get_manifest, get_objects, read_rows
from pipeline.dataset.schema import INDEX, REJECTS
from pipeline.dataset.shards import MappedShard
from pipeline.errors import RequestError, StorageError
from pipeline.pictures.contract import StoredView
from pipeline.storage.objects import ObjectRef, local_copy
from pipeline.storage.store import Store, open_store

Pixels = NDArray[np.uint8]


class Dataset:
    """One version of a dataset, opened for reading."""

    def __init__(self, store: Store, manifest: Manifest, cache: Path | None = None) -> None:
        self.store = store
        self.manifest = manifest
        self.view = StoredView.from_dict(manifest.preprocessing)
        self._cache = cache
        self._mapped: dict[str, MappedShard] = {}

    @cached_property
    def index(self) -> pa.Table:
        """One row per sample, sorted by uri: uri, etag, sample_id, label, split, group, shard, row."""
        return read_rows(self.store, self.manifest, "index", INDEX)

    @cached_property
    def rejects(self) -> pa.Table:
        """One row per picture that could not be used: uri, etag, label, reason, detail."""
        return read_rows(self.store, self.manifest, "rejects", REJECTS)

    @property
    def classes(self) -> list[str]:
        """Class names in the order of their numbers."""
        return self.manifest.classes

    @cached_property
    def _shards(self) -> dict[str, ObjectRef]:
        return {ref.path: ref for ref in get_objects(self.store, self.manifest, "shard")}

    @cached_property
    def _places(self) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
        shards = self.index.column("shard").to_numpy(zero_copy_only=False)
        return shards, self.index.column("row").to_numpy().astype(np.int64)

    def read(self, rows: Sequence[int] | NDArray[np.int64]) -> Pixels:
        """Gather the pixels of `rows` (positions in `index`): uint8 [n, size, size, 3], in that order.

        Shards are memory-mapped; a remote one is fetched once per machine. Raises IntegrityError when a
        shard's bytes are not those that were committed.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        shards, places = self._places
        images = np.empty((len(wanted), self.view.size, self.view.size, 3), dtype=np.uint8)
        of_shard = shards[wanted]
        for shard in dict.fromkeys(of_shard):
            here = np.flatnonzero(of_shard == shard)
            self._map(shard).gather(places[wanted[here]], images, here)
        return images

    def _map(self, shard: str) -> MappedShard:
        if shard not in self._mapped:
            path = local_copy(self.store, self._shards[shard], self._cache)
            self._mapped[shard] = MappedShard(path, self.view)
        return self._mapped[shard]


def open_dataset(uri: str, *, version: int | None = None, cache: Path | None = None) -> Dataset:
    """Open a version of the dataset at `uri` (a folder or s3://BUCKET/PREFIX), the current one by default.

    Raises RequestError when there is none.
    """
    store = open_store(uri)
    try:
        manifest = current_manifest(store) if version is None else get_manifest(store, version)
    except StorageError as error:
        raise RequestError(f"cannot read {store.root}: {error}") from error
    if manifest is None:
        raise RequestError(f"{store.root} holds no dataset: make one with `afinar ingest SOURCE {uri}`")
    return Dataset(store, manifest, cache)
