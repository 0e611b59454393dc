"""Manifest of cached features: one version of one key, as that of a dataset.

    <dataset>/features/<key>/manifests/00000001.json      head, put if absent, the last write
                             lists/<hash>.parquet         the objects of a version
                             index/<hash>.parquet         content hash → shard, row
                             shards/<unit>-<hash>.arrow   content hash, features
                             units/<unit>.json            the unit's marker, deleted when published

`<dataset>/features/plans/` has the plans of jobs that compute features, for one or more keys.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from afinar.config.strict import Count
from afinar.dataset.manifest import now_utc, read_object_list, read_tables
from afinar.dataset.schema import OBJECTS
from afinar.errors import RecordError, ShortfallError
from afinar.features.key import FOLDER, FeatureSpec
from afinar.features.schema import INDEX
from afinar.storage.arrow import to_parquet
from afinar.storage.names import check_identifier
from afinar.storage.objects import ObjectRef, put_object
from afinar.storage.open import open_store
from afinar.storage.records import REMEDY, as_record
from afinar.storage.store import Store
from afinar.storage.versions import latest, publish, read_consistently, record_name

MANIFESTS: Final = "manifests"
FORMAT: Final = "afinar-features/1"

_PUBLISH_ATTEMPTS: Final = 20
_KINDS: Final = frozenset({"shard", "index"})


@dataclass(frozen=True, kw_only=True)
class FeatureManifest:
    """Head of one version. `width` is the number of features of a picture, `rows` of pictures."""

    version: Count
    created: str
    spec: FeatureSpec
    width: Count
    rows: Count
    bytes: Count
    objects: ObjectRef


@dataclass(frozen=True)
class FeatureVersion:
    """The newest version of one key: its manifest (None: there is none yet), index and shards."""

    manifest: FeatureManifest | None
    index: pa.Table
    shards: list[ObjectRef]

    @property
    def number(self) -> int:
        return self.manifest.version if self.manifest else 0

    @property
    def units(self) -> set[str]:
        """Names of the units whose shards are published."""
        return {unit_of(ref.path) for ref in self.shards}


NONE: Final = FeatureVersion(None, INDEX.empty_table(), [])
"""The state of a key before its first version."""


def open_features_store(dataset: str, key: str = "") -> Store:
    """Return the store of one key of a dataset, or of what all its keys share."""
    return open_store(f"{dataset.rstrip('/')}/{FOLDER}" + (f"/{key}" if key else ""))


def feature_keys(dataset: str) -> list[str]:
    """Return the keys of a dataset that have a folder, in their order."""
    store = open_store(dataset)
    names = {info.name.split("/")[1] for info in store.walk(FOLDER) if info.name.count("/") > 1}
    return sorted(name for name in names if name != "plans" and len(name) == 16)


def unit_of(path: str) -> str:
    """Return the unit that wrote a shard, from its name."""
    unit = path.rsplit("/", maxsplit=1)[-1].rpartition("-")[0]
    return check_identifier(unit, "the name of a unit")


def current_features(store: Store) -> FeatureManifest | None:
    """Return the newest manifest of a key. Raises RecordError for a forged one."""
    found = latest(store, MANIFESTS)
    if found is None:
        return None
    number, record = found
    uri = store.uri(record_name(MANIFESTS, number))
    if record.get("format") != FORMAT:
        raise RecordError(f"{uri} is no manifest of features; {REMEDY}")
    manifest = as_record(record, FeatureManifest, uri)
    if manifest.version != number or manifest.spec.key != store.root.rstrip("/").split("/")[-1]:
        raise RecordError(f"{uri} is the manifest of other features; {REMEDY}")
    return manifest


def list_features(store: Store, manifest: FeatureManifest) -> list[tuple[str, ObjectRef]]:
    """Read the list of a version's objects: ("shard" or "index", reference)."""
    return read_object_list(store, manifest.objects, _KINDS)


def read_features(store: Store) -> FeatureVersion:
    """Read the newest version of a key, while other jobs may publish and delete."""
    return read_consistently(store, MANIFESTS, lambda _: _read_features(store))


def _read_features(store: Store) -> FeatureVersion:
    manifest = current_features(store)
    if manifest is None:
        return NONE
    objects = list_features(store, manifest)
    refs = [ref for kind, ref in objects if kind == "index"]
    tables = read_tables(store, refs, INDEX, required=INDEX.names)
    index = pa.concat_tables(
        [INDEX.empty_table(), *(table.select(INDEX.names) for table in tables)]
    )
    shards = [ref for kind, ref in objects if kind == "shard"]
    _check_index(store, index, shards)
    return FeatureVersion(manifest, index, shards)


def _check_index(store: Store, index: pa.Table, shards: list[ObjectRef]) -> None:
    """Raise RecordError for rows outside of their shards."""
    counts = pa.array([ref.rows for ref in shards], pa.int64())
    names = pa.array([ref.path for ref in shards], pa.string())
    limits = counts.take(pc.index_in(index.column("shard"), names).combine_chunks())
    rows = index.column("row")
    is_row = pc.and_(pc.greater_equal(rows, 0), pc.less(rows, limits))
    if not pc.all(pc.fill_null(is_row, False)).as_py():
        raise RecordError(
            f"the index of the features in {store.root} names rows that no shard has; {REMEDY}"
        )


@dataclass(frozen=True)
class NewShard:
    """A shard to publish, and the content hashes of its rows."""

    ref: ObjectRef
    sample_ids: pa.Array


def index_of(shards: Collection[NewShard]) -> pa.Table:
    """Return the index of shards: INDEX."""
    tables = [
        pa.table(
            {
                "sample_id": shard.sample_ids,
                "shard": pa.array([shard.ref.path] * len(shard.sample_ids), pa.string()),
                "row": pa.array(range(len(shard.sample_ids)), pa.int32()),
            },
            schema=INDEX,
        )
        for shard in shards
    ]
    return pa.concat_tables([INDEX.empty_table(), *tables])


def publish_features(
    store: Store,
    current: FeatureVersion,
    spec: FeatureSpec,
    width: int,
    index: pa.Table,
    shards: list[ObjectRef],
    owner: str,
) -> bool:
    """Publish a version with this index and these shards on top of `current`.

    Returns False if another job has published a version meanwhile.
    """
    index = index.sort_by([("sample_id", "ascending"), ("shard", "ascending")])
    ref = put_object(store, "index/{hash}.parquet", to_parquet(index), len(index))
    rows = [{"kind": "index", **ref.as_dict()}]
    rows += [{"kind": "shard", **shard.as_dict()} for shard in shards]
    table = pa.Table.from_pylist(rows, schema=OBJECTS)
    manifest = FeatureManifest(
        version=current.number + 1,
        created=now_utc(),
        spec=spec,
        width=width,
        rows=len(index),
        bytes=sum(shard.bytes for shard in shards),
        objects=put_object(store, "lists/{hash}.parquet", to_parquet(table), len(rows)),
    )
    record = {
        "format": FORMAT,
        **manifest.__dict__,
        "spec": spec.as_dict(),
        "objects": manifest.objects.as_dict(),
    }
    return publish(store, MANIFESTS, manifest.version, record, owner)


def add_shards(
    store: Store, spec: FeatureSpec, width: int, new: list[NewShard], owner: str
) -> FeatureVersion:
    """Publish new shards on top of whatever is current, and return the version that has them.

    Shards whose unit is published already are left out, so that two jobs may publish the same.
    """
    for _ in range(_PUBLISH_ATTEMPTS):
        current = read_features(store)
        added = [shard for shard in new if unit_of(shard.ref.path) not in current.units]
        if not added:
            return current
        index = pa.concat_tables([current.index, index_of(added)])
        shards = current.shards + [shard.ref for shard in added]
        if publish_features(store, current, spec, width, index, shards, owner):
            return read_features(store)
    raise ShortfallError(f"{_PUBLISH_ATTEMPTS} other jobs published to {store.root} first")
