"""Open a dataset: its index, and pixels gathered from memory-mapped shards."""

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

from afinar.config.strict import structure
from afinar.dataset.manifest import (
    FOLDER,
    DatasetObject,
    Manifest,
    current_manifest,
    get_manifest,
    list_objects,
    read_tables,
)
from afinar.dataset.schema import INDEX, INDEX_REQUIRED, REJECTS
from afinar.dataset.shards import MappedShard, OriginalSize
from afinar.errors import NotFoundError, RecordError, RequestError, StorageError
from afinar.pictures.preprocessing import StoredView
from afinar.storage.cache import (
    DEFAULT_BYTES,
    BackgroundChecks,
    Cache,
    map_file,
    open_verified,
)
from afinar.storage.contents import kinds_in
from afinar.storage.objects import ObjectRef
from afinar.storage.open import open_store
from afinar.storage.records import REMEDY
from afinar.storage.store import Store
from afinar.storage.versions import versions

Pixels = NDArray[np.uint8]


class Dataset:
    """One version of a dataset. Each object is read when it is first needed, and once.

    With `verify_later` local shards are hashed by threads while they are read. A damaged one is
    then noticed by a later `read`, at the latest by `wait_verified`, which the caller calls before
    it publishes anything.
    """

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        cache: Cache | None = None,
        *,
        verify_later: bool = False,
    ) -> None:
        self.store = store
        self._checks = BackgroundChecks() if verify_later else None
        self.manifest = manifest
        self.view = structure(manifest.preprocessing, StoredView)
        self._cache = cache or Cache()
        self._mapped: OrderedDict[int, MappedShard] = OrderedDict()
        self._mapping = Lock()

    @cached_property
    def index(self) -> pa.Table:
        """One row per sample, sorted by uri: INDEX."""
        index = self._read_rows("index", INDEX, INDEX_REQUIRED)
        self._check_index(index)
        return index

    @cached_property
    def rejects(self) -> pa.Table:
        """One row per picture that could not be used: REJECTS."""
        return self._read_rows("rejects", REJECTS, ["uri", "reason"])

    @cached_property
    def objects(self) -> list[DatasetObject]:
        """All objects of this version with their kinds."""
        return list_objects(self.store, self.manifest)

    def objects_of(self, kind: str) -> list[ObjectRef]:
        """Return the objects of one kind: "shard", "index", "rejects" or "labels"."""
        return [entry.ref for entry in self.objects if entry.kind == kind]

    def _read_rows(self, kind: str, schema: pa.Schema, required: list[str]) -> pa.Table:
        tables = read_tables(self.store, self.objects_of(kind), schema, required)
        return pa.concat_tables(
            [schema.empty_table(), *(table.select(schema.names) for table in tables)]
        )

    def _check_index(self, index: pa.Table) -> None:
        """Raise RecordError for rows outside of their shards and for uris of unknown schemes."""
        shards = self.objects_of("shard")
        names = pa.array([ref.path for ref in shards], index.schema.field("shard").type)
        counts = pa.array([ref.rows for ref in shards], pa.int64())
        limits = counts.take(pc.index_in(index.column("shard"), names).combine_chunks())
        is_row = pc.and_(
            pc.greater_equal(index.column("row"), 0), pc.less(index.column("row"), limits)
        )
        uris = index.column("uri")
        is_uri = pc.or_(pc.starts_with(uris, "/"), pc.starts_with(uris, "s3://"))

        for problem, is_good in (
            ("names no row of its shards", is_row),
            ("leads elsewhere than to a file or s3://", is_uri),
        ):
            if not pc.all(pc.fill_null(is_good, False)).as_py():
                wrong = index.column("uri").filter(pc.invert(pc.fill_null(is_good, False)))[0]
                raise RecordError(
                    f"the index of version {self.manifest.version} of {self.store.root} is damaged "
                    f"or forged: the sample of {wrong.as_py()!a} {problem}; {REMEDY}"
                )

    @property
    def classes(self) -> list[str]:
        """Class names in the order of their numbers."""
        return self.manifest.classes

    @property
    def is_remote(self) -> bool:
        """True if shards are fetched before they are mapped."""
        return self.store.is_remote

    @cached_property
    def shards(self) -> list[ObjectRef]:
        """The shards that hold samples, sorted by name. `shard_numbers` refers to this list."""
        names = set(self.index.column("shard").unique().to_pylist())
        shards = [ref for ref in self.objects_of("shard") if ref.path in names]
        return sorted(shards, key=lambda ref: ref.path)

    @cached_property
    def shard_numbers(self) -> NDArray[np.int64]:
        """Position in `shards` of the shard that holds each row of `index`: int64 [n]."""
        names = pa.array([ref.path for ref in self.shards], self.index.schema.field("shard").type)
        numbers = pc.index_in(self.index.column("shard"), names)
        result: NDArray[np.int64] = numbers.to_numpy().astype(np.int64)
        return result

    @cached_property
    def _rows_in_shards(self) -> NDArray[np.int64]:
        rows: NDArray[np.int64] = self.index.column("row").to_numpy().astype(np.int64)
        return rows

    def read(self, rows: Sequence[int] | NDArray[np.int64]) -> Pixels:
        """Return the pixels of `rows` (positions in `index`), in that order. Thread-safe.

        Shards are memory-mapped; a remote one is fetched once per machine into a bounded cache.
        Returns uint8 [n, size, size, 3]. Raises IntegrityError for a shard with other bytes than
        those that were committed.
        """
        if self._checks is not None:
            self._checks.raise_failed()
        wanted = np.asarray(rows, dtype=np.int64)
        images = np.empty((len(wanted), self.view.size, self.view.size, 3), dtype=np.uint8)
        shards = self.shard_numbers[wanted]
        rows_in_shards = self._rows_in_shards[wanted].tolist()

        # Shard by shard: a small cache then holds each remote shard once.
        for position in np.argsort(shards, kind="stable").tolist():
            shard = self._map(int(shards[position]))
            images[position] = shard.picture(rows_in_shards[position])
        return images

    def original_sizes(self, rows: Sequence[int] | NDArray[np.int64]) -> list[OriginalSize]:
        """Return the sizes of the original pictures of `rows` (positions in `index`)."""
        wanted = np.asarray(rows, dtype=np.int64)
        shards = self.shard_numbers[wanted].tolist()
        in_shards = self._rows_in_shards[wanted].tolist()
        return [
            self._map(shard).original_size(row)
            for shard, row in zip(shards, in_shards, strict=True)
        ]

    def fetch(self, shard: int) -> None:
        """Fetch, verify and map a shard before it is read. Thread-safe."""
        self._map(shard)

    def map_shard(self, path: str) -> MappedShard:
        """Fetch, verify and map the shard of that name, without the index and without caching it.

        It is for a reader that goes through all shards once. Raises StorageError if this version
        has no such shard, IntegrityError for one with other bytes than those that were committed.
        """
        if path not in self._shards_by_name:
            version = self.manifest.version
            raise StorageError(f"{self.store.uri(path)} is not a shard of version {version}")
        return self._open(self._shards_by_name[path])

    @cached_property
    def _shards_by_name(self) -> dict[str, ObjectRef]:
        return {ref.path: ref for ref in self.objects_of("shard")}

    @property
    def shard_names(self) -> list[str]:
        """Names of the shards of this version."""
        return list(self._shards_by_name)

    def _map(self, shard: int) -> MappedShard:
        with self._mapping:
            if shard in self._mapped:
                self._mapped.move_to_end(shard)
                return self._mapped[shard]

        mapped = self._open(self.shards[shard])
        with self._mapping:
            self._mapped[shard] = mapped
            # A file that is evicted from the cache takes space for as long as it is mapped.
            limit = max(self._cache.bytes, 2 * self.shards[shard].bytes)
            while self.is_remote and self._mapped_bytes() > limit:
                self._mapped.popitem(last=False)
        return mapped

    def _mapped_bytes(self) -> int:
        return sum(self.shards[shard].bytes for shard in self._mapped)

    def wait_verified(self) -> None:
        """Wait until all shards that were read are verified. Raises IntegrityError."""
        if self._checks is not None:
            self._checks.wait()

    def _open(self, ref: ObjectRef) -> MappedShard:
        start_check = self._checks.start if self._checks is not None else None
        with open_verified(self.store, ref, self._cache, start_check) as file:
            return MappedShard(map_file(file), self.view, self.store.uri(ref.path), ref.rows)


def open_dataset(
    uri: str,
    *,
    version: int | None = None,
    cache: Path | None = None,
    cache_bytes: int = DEFAULT_BYTES,
    verify_later: bool = False,
) -> Dataset:
    """Open a version of the dataset at `uri`, by default the current one.

    `uri` is a folder or s3://BUCKET/PREFIX. Remote shards are kept in the folder `cache` (by
    default a folder of the user's in the temporary folder), up to `cache_bytes`. For `verify_later`
    see `Dataset`. Raises RequestError if there is no dataset."""
    store = open_store(uri)
    try:
        manifest = current_manifest(store) if version is None else get_manifest(store, version)
    except StorageError as error:
        if version is not None and isinstance(error, NotFoundError):
            kept = ", ".join(map(str, versions(store, FOLDER))) or "none"
            raise RequestError(
                f"{store.root} has no version {version} (kept versions: {kept}): `afinar forget` "
                "and `afinar status --gc --keep` delete versions"
            ) from error
        raise RequestError(f"cannot read {store.root}: {error}") from error

    if manifest is None:
        if held := kinds_in(store):
            raise RequestError(
                f"{store.root} holds {held[0]}, not a dataset: are two arguments swapped?"
            )
        raise RequestError(
            f"{store.root} holds no dataset: make one with `afinar ingest SOURCE {uri}`"
        )
    return Dataset(store, manifest, Cache(cache, cache_bytes), verify_later=verify_later)


def open_current(store: Store) -> Dataset | None:
    """Open the current version of the dataset in `store`, None if it has no version yet."""
    manifest = current_manifest(store)
    return None if manifest is None else Dataset(store, manifest)
