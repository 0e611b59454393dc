"""Opening a dataset: its index, and pixels gathered from memory-mapped shards."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from afinar.dataset.manifest import Manifest, current_manifest, get_manifest, get_objects, read_rows
from afinar.dataset.schema import INDEX, REJECTS
from afinar.dataset.shards import MappedShard
from afinar.errors import RequestError, StorageError
from afinar.pictures.preprocessing import StoredView
from afinar.storage.cache import DEFAULT_BYTES, Cache, map_file, open_verified
from afinar.storage.objects import ObjectRef
from afinar.storage.open import open_store
from afinar.storage.store import Store

Pixels = NDArray[np.uint8]


class Dataset:
    """One version of a dataset, opened for reading."""

    def __init__(self, store: Store, manifest: Manifest, cache: Cache | None = None) -> None:
        self.store = store
        self.manifest = manifest
        self.view = StoredView.from_dict(manifest.preprocessing)
        self._cache = cache or Cache()
        self._mapped: OrderedDict[int, MappedShard] = OrderedDict()
        self._mapping = Lock()

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

    @property
    def is_remote(self) -> bool:
        """Whether shards have to be fetched before they are mapped."""
        return self.store.is_remote

    @cached_property
    def shards(self) -> list[ObjectRef]:
        """The shards that hold samples, by name: what `shard_numbers` counts."""
        names = set(self.index.column("shard").unique().to_pylist())
        found = get_objects(self.store, self.manifest, "shard")
        return sorted((ref for ref in found if ref.path in names), key=lambda ref: ref.path)

    @cached_property
    def shard_numbers(self) -> NDArray[np.int64]:
        """For each row of `index`, which of `shards` holds its pixels."""
        names = pa.array([ref.path for ref in self.shards], self.index.schema.field("shard").type)
        numbers: NDArray[np.int64] = (
            pc.index_in(self.index.column("shard"), names).to_numpy().astype(np.int64)
        )
        return numbers

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        places: NDArray[np.int64] = self.index.column("row").to_numpy().astype(np.int64)
        return places

    def read(self, rows: Sequence[int] | NDArray[np.int64]) -> Pixels:
        """Gather the pixels of `rows` (positions in `index`): uint8 [n, size, size, 3], in that order. Thread-safe.

        Shards are memory-mapped; a remote one is fetched once per machine, into a bounded cache. Raises
        IntegrityError when a shard's bytes are not those that were committed.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        images = np.empty((len(wanted), self.view.size, self.view.size, 3), dtype=np.uint8)
        shards = self.shard_numbers[wanted]
        places = self._places[wanted].tolist()
        for position in np.argsort(
            shards, kind="stable"
        ).tolist():  # shard by shard, for a small cache's sake
            images[position] = self._map(int(shards[position])).picture(places[position])
        return images

    def fetch(self, shard: int) -> None:
        """Fetch, verify and map a shard ahead of its reading. Thread-safe."""
        self._map(shard)

    def map_shard(self, path: str) -> MappedShard:
        """Fetch, verify and map the shard of that name, for whoever goes through a dataset once, shard by shard.

        Needs no index and remembers nothing. Raises StorageError where this version has no such shard, IntegrityError
        where its bytes are not those that were committed.
        """
        if path not in self._named:
            raise StorageError(
                f"{self.store.uri(path)} is no shard of version {self.manifest.version}"
            )
        return self._open(self._named[path])

    @cached_property
    def _named(self) -> dict[str, ObjectRef]:
        return {ref.path: ref for ref in get_objects(self.store, self.manifest, "shard")}

    @property
    def shard_names(self) -> list[str]:
        """Names of the shards that this version has."""
        return list(self._named)

    def _map(self, shard: int) -> MappedShard:
        with self._mapping:
            if shard in self._mapped:
                self._mapped.move_to_end(shard)
                return self._mapped[shard]
        mapped = self._open(self.shards[shard])
        with self._mapping:
            self._mapped[shard] = mapped
            while self.is_remote and self._mapped_bytes() > max(
                self._cache.bytes, 2 * self.shards[shard].bytes
            ):
                self._mapped.popitem(
                    last=False
                )  # an evicted file takes space for as long as it is mapped
        return mapped

    def _mapped_bytes(self) -> int:
        return sum(self.shards[one].bytes for one in self._mapped)

    def _open(self, ref: ObjectRef) -> MappedShard:
        with open_verified(self.store, ref, self._cache) as file:
            return MappedShard(map_file(file), self.view)


def open_dataset(
    uri: str,
    *,
    version: int | None = None,
    cache: Path | None = None,
    cache_bytes: int = DEFAULT_BYTES,
) -> Dataset:
    """Open a version of the dataset at `uri` (a folder or s3://BUCKET/PREFIX), the current one by default.

    Remote shards are kept in the folder `cache` (default: one of the user's own in the temporary folder), up to
    `cache_bytes`. Raises RequestError when there is no dataset.
    """
    store = open_store(uri)
    try:
        manifest = current_manifest(store) if version is None else get_manifest(store, version)
    except StorageError as error:
        raise RequestError(f"cannot read {store.root}: {error}") from error
    if manifest is None:
        raise RequestError(
            f"{store.root} holds no dataset: make one with `afinar ingest SOURCE {uri}`"
        )
    return Dataset(store, manifest, Cache(cache, cache_bytes))
