"""Manifest: one immutable version of a dataset.

The JSON head stays small at any size. What grows with the dataset lies in one content-addressed
Parquet list of objects that the head names.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import pyarrow as pa

from afinar.dataset.schema import OBJECTS
from afinar.errors import RequestError, ShortfallError
from afinar.storage.arrow import from_parquet, to_parquet
from afinar.storage.objects import ObjectRef, get_object, put_object
from afinar.storage.store import Store
from afinar.storage.versions import Record, latest, publish, read_version, versions

FOLDER: Final = "manifests"
FORMAT: Final = "afinar-dataset/1"

_READS: Final = 16  # of small objects at once: latency, not work


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Head of one version.

    - `lineage`: the version that began this preprocessing.
    - `created`: time in UTC, ISO 8601.
    - `source`: its uri and the fingerprint of its listing.
    - `recipe`: source, labels, extensions, split, seed and group of the ingest.
    - `preprocessing`: the stored view.
    - `counts`: samples and rejects, the latter by reason; splits, labels and repeats.
    - `objects`: the list of the version's objects.
    - `forgotten`: content hashes that were erased and must not come back.
    """

    version: int
    parent: int | None
    lineage: int
    created: str
    source: dict[str, Any]
    recipe: dict[str, Any]
    preprocessing: dict[str, Any]
    classes: list[str]
    counts: dict[str, Any]
    objects: ObjectRef
    forgotten: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, **self.__dict__, "objects": self.objects.as_dict()}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Manifest:
        """Return the manifest of a record; keys that are not the head's are ignored."""
        fields = {name: record[name] for name in cls.__dataclass_fields__}
        return cls(**{**fields, "objects": ObjectRef(**record["objects"])})


class DatasetObject(NamedTuple):
    """One object of a version: its kind ("shard", "index" or "rejects") and its reference."""

    kind: str
    ref: ObjectRef


def current_manifest(store: Store) -> Manifest | None:
    """Return the manifest with the highest number, None if the dataset has no version yet.

    Raises RequestError for the manifest of something else.
    """
    found = latest(store, FOLDER)
    return None if found is None else _parse(store, found[1])


def get_manifest(store: Store, version: int) -> Manifest:
    """Return the manifest of one version. Raises RequestError for that of something else."""
    return _parse(store, read_version(store, FOLDER, version))


def get_manifests(store: Store) -> list[Manifest]:
    """Return the manifests of all kept versions, oldest first.

    Raises RequestError if there is none, or for the manifest of something else.
    """
    manifests = [get_manifest(store, number) for number in versions(store, FOLDER)]
    if not manifests:
        raise RequestError(f"{store.root} holds no dataset")
    return manifests


def _parse(store: Store, record: Record) -> Manifest:
    if record.get("format") != FORMAT:
        content = record.get("format", "something else")
        raise RequestError(f"{store.root} holds {content}, not a dataset")
    return Manifest.from_dict(record)


def is_dataset(store: Store) -> bool:
    """Return True if the newest manifest in a store is that of a dataset."""
    found = latest(store, FOLDER)
    return found is not None and found[1].get("format") == FORMAT


def require_not_erased(store: Store, version: int) -> None:
    """Raise ShortfallError if `forget` has erased pictures from this version since it was opened.

    An erasure publishes a version without the pictures, then deletes all earlier versions."""
    kept = versions(store, FOLDER)
    if version in kept:
        forgotten = set(get_manifest(store, version).forgotten)
        if set(get_manifest(store, kept[-1]).forgotten) <= forgotten:
            return
    raise ShortfallError(
        f"version {version} of {store.root} has been deleted, or pictures were erased from it: "
        "nothing that was made of it is published. Run the command again, on the current version"
    )


def publish_manifest(store: Store, manifest: Manifest, owner: str) -> bool:
    """Publish a version; False if another job published this number first."""
    return publish(store, FOLDER, manifest.version, manifest.as_dict(), owner)


def now_utc() -> str:
    """Return the time as a manifest has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def put_objects(store: Store, objects: Iterable[DatasetObject]) -> ObjectRef:
    """Write the list of a version's objects."""
    rows = [{"kind": kind, **ref.as_dict()} for kind, ref in objects]
    table = pa.Table.from_pylist(rows, schema=OBJECTS)
    return put_object(store, "lists/{hash}.parquet", to_parquet(table), len(rows))


def list_objects(store: Store, manifest: Manifest) -> list[DatasetObject]:
    """Read the list of a version's objects."""
    rows = from_parquet(get_object(store, manifest.objects)).to_pylist()
    return [DatasetObject(row.pop("kind"), ObjectRef(**row)) for row in rows]


def read_tables(store: Store, refs: Iterable[ObjectRef]) -> list[pa.Table]:
    """Read verified Parquet objects, several at a time, in the order of `refs`."""
    with ThreadPoolExecutor(_READS) as pool:
        return list(pool.map(lambda ref: from_parquet(get_object(store, ref)), refs))
