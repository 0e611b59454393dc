"""Manifest: one immutable version of a dataset.

The JSON head stays small at any size; what grows with the dataset lies in one content-addressed Parquet
list of objects that the head names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa

from afinar.dataset.schema import OBJECTS
from afinar.storage.arrow import from_parquet, to_parquet
from afinar.storage.commit import latest, publish, read_version
from afinar.storage.objects import ObjectRef, get_object, put_object
from afinar.storage.store import Store

FOLDER: Final = "manifests"
FORMAT: Final = "afinar-dataset/1"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Head of one version.

    `recipe` holds what determines the dataset besides the source; `preprocessing` the stored view; `lineage` is the
    version that began it; `counts` samples and rejects, the latter by reason, splits, labels and repeats; `created` is
    UTC, ISO 8601; `forgotten` lists the content hashes that were erased and must not come back.
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
        """JSON form."""
        return {"format": FORMAT, **self.__dict__, "objects": self.objects.as_dict()}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Manifest:
        """Inverse of `as_dict`; keys of the record that are not the head's are left out."""
        fields = {name: record[name] for name in cls.__dataclass_fields__}
        return cls(**{**fields, "objects": ObjectRef(**record["objects"])})


def current_manifest(store: Store) -> Manifest | None:
    """The highest version, or None in a dataset that has none yet."""
    found = latest(store, FOLDER)
    return None if found is None else Manifest.from_dict(found[1])


def get_manifest(store: Store, version: int) -> Manifest:
    """One version."""
    return Manifest.from_dict(read_version(store, FOLDER, version))


def publish_manifest(store: Store, manifest: Manifest, owner: str) -> bool:
    """Publish; False when another job published this number first."""
    return publish(store, FOLDER, manifest.version, manifest.as_dict(), owner)


def now_utc() -> str:
    """The time, as manifests say it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def put_objects(store: Store, objects: Iterable[tuple[str, ObjectRef]]) -> ObjectRef:
    """Write the list of a version's objects."""
    rows = [{"kind": kind, **ref.as_dict()} for kind, ref in objects]
    table = pa.Table.from_pylist(rows, schema=OBJECTS)
    return put_object(store, "lists/{hash}.parquet", to_parquet(table), len(rows))


def list_objects(store: Store, manifest: Manifest) -> list[tuple[str, ObjectRef]]:
    """All objects of a version with their kinds: "shard", "index" or "rejects"."""
    table = from_parquet(get_object(store, manifest.objects))
    return [
        (
            row["kind"],
            ObjectRef(path=row["path"], rows=row["rows"], bytes=row["bytes"], sha256=row["sha256"]),
        )
        for row in table.to_pylist()
    ]


def get_objects(store: Store, manifest: Manifest, kind: str) -> list[ObjectRef]:
    """The version's objects of one kind."""
    return [ref for found, ref in list_objects(store, manifest) if found == kind]


def read_rows(store: Store, manifest: Manifest, kind: str, schema: pa.Schema) -> pa.Table:
    """All rows of the version's Parquet objects of one kind ("index" or "rejects")."""
    tables = [from_parquet(get_object(store, ref)) for ref in get_objects(store, manifest, kind)]
    return pa.concat_tables([schema.empty_table(), *tables])
