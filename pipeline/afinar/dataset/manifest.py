"""Manifest: one immutable version of a dataset.

The JSON head stays small at any size. What grows with the dataset lies in one content-addressed
Parquet list of objects that the head names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Final, NamedTuple, TypedDict

import pyarrow as pa

from afinar.config.strict import Count, conforms_to
from afinar.dataset.schema import OBJECTS
from afinar.errors import RecordError, RequestError, ShortfallError, UnsafePathError
from afinar.pictures.preprocessing import StoredView
from afinar.storage.arrow import get_table, to_parquet
from afinar.storage.names import check_sha256
from afinar.storage.objects import ObjectRef, put_object
from afinar.storage.records import REMEDY, Record, as_record
from afinar.storage.store import Store
from afinar.storage.versions import (
    latest,
    publish,
    read_consistently,
    read_version,
    record_name,
    versions,
)

FOLDER: Final = "manifests"
FORMAT: Final = "afinar-dataset/1"

OBJECT_KINDS: Final = frozenset({"shard", "index", "rejects", "labels"})

_READS: Final = 16  # of small objects at once: latency, not work


class _Source(TypedDict):
    uri: str
    fingerprint: str


class _LaterCounts(TypedDict, total=False):
    left_out: dict[str, Count]


class _Counts(_LaterCounts):
    listed: Count
    samples: Count
    rejects: Count
    rejects_by_reason: dict[str, Count]
    splits: dict[str, Count]
    labels: dict[str, Count]
    repeats: dict[str, Count]


REPEATS: Final = {
    "duplicates": "exact copies of another picture",
    "held_out": "copies in no split, because the same picture is in a safer one",
    "two_labels": "pictures in no split, because the same content has two labels",
}
"""The counts of `repeats` in a manifest, with what they count."""


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

    version: Count
    parent: Count | None
    lineage: Count
    created: str
    source: Annotated[dict[str, Any], conforms_to(_Source)]
    recipe: dict[str, Any]
    preprocessing: Annotated[dict[str, Any], conforms_to(StoredView)]
    classes: list[str]
    counts: Annotated[dict[str, Any], conforms_to(_Counts)]
    objects: ObjectRef
    forgotten: list[Annotated[str, check_sha256]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, **self.__dict__, "objects": self.objects.as_dict()}


class DatasetObject(NamedTuple):
    """One object of a version: its kind (of OBJECT_KINDS) and its reference."""

    kind: str
    ref: ObjectRef


def current_manifest(store: Store) -> Manifest | None:
    """Return the manifest with the highest number, None if the dataset has no version yet.

    Raises RequestError for the manifest of something else.
    """
    found = latest(store, FOLDER)
    return None if found is None else _parse(store, *found)


def get_manifest(store: Store, version: int) -> Manifest:
    """Return the manifest of one version. Raises RequestError for that of something else."""
    return _parse(store, version, read_version(store, FOLDER, version))


def get_manifests(store: Store) -> list[Manifest]:
    """Return the manifests of all kept versions, oldest first.

    Raises RequestError if there is none, or for the manifest of something else.
    """
    manifests = read_consistently(
        store,
        FOLDER,
        lambda numbers: [get_manifest(store, number) for number in numbers],
    )
    if not manifests:
        raise RequestError(f"{store.root} holds no dataset")
    return manifests


def _parse(store: Store, number: int, record: Record) -> Manifest:
    if record.get("format") != FORMAT:
        content = str(record.get("format", "something else"))[:200]
        raise RequestError(f"{store.root} holds {content}, not a dataset")

    uri = store.uri(record_name(FOLDER, number))
    manifest = as_record(record, Manifest, uri)
    if manifest.version != number:
        raise RecordError(f"{uri} is the head of version {manifest.version}; {REMEDY}")
    return manifest


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
    return [
        DatasetObject(*entry) for entry in read_object_list(store, manifest.objects, OBJECT_KINDS)
    ]


def read_object_list(
    store: Store, ref: ObjectRef, kinds: Collection[str]
) -> list[tuple[str, ObjectRef]]:
    """Read a list of objects, OBJECTS: kind and reference of each. Raises RecordError."""
    uri = store.uri(ref.path)
    rows = get_table(store, ref, OBJECTS, required=OBJECTS.names).to_pylist()
    entries = []
    for number, row in enumerate(rows):
        kind = row.pop("kind")
        if kind not in kinds:
            raise RecordError(f"{uri}: row {number} has the unknown kind {kind[:60]!a}; {REMEDY}")
        try:
            entries.append((kind, ObjectRef(**row)))
        except UnsafePathError as error:
            raise RecordError(f"{uri}: row {number}: {error}; {REMEDY}") from error
    return entries


def read_tables(
    store: Store, refs: Iterable[ObjectRef], schema: pa.Schema, required: Collection[str]
) -> list[pa.Table]:
    """Read verified Parquet objects, several at a time, in the order of `refs`; see `get_table`."""
    with ThreadPoolExecutor(_READS) as pool:
        return list(pool.map(lambda ref: get_table(store, ref, schema, required=required), refs))
