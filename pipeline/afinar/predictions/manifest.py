"""Manifest: one immutable version of a prediction folder; it names each partition's objects.

A folder has one partition for each model version and set of options that change a row. The manifest
with the highest number is current.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

import pyarrow as pa

from afinar.dataset.schema import OBJECTS
from afinar.errors import RequestError
from afinar.storage.arrow import from_parquet, to_parquet
from afinar.storage.names import check_partition
from afinar.storage.objects import ObjectRef, get_object, put_object
from afinar.storage.store import Store
from afinar.storage.versions import Record, latest, publish, read_version, versions

FOLDER: Final = "manifests"
FORMAT: Final = "afinar-predictions/1"
FORGET_PLAN: Final = "plans/forget.parquet"
"""Lease of an erasure, beside which no labelling runs."""


@dataclass(frozen=True, kw_only=True)
class Partition:
    """One partition as a manifest describes it.

    `source` is the source of the last run, `sources` are all sources, sorted. `objects` is the list
    of the partition's objects (see `get_parts`), with `rows` predictions and `rejects` rejects in
    them. `last_run` counts that run's listed, labelled and rejected pictures, `left_out` what its
    listing left out. `accounts` holds statistics by source, as `afinar.labelling.run_report` writes
    them. `classes` is the order of the column `scores`, None without that column.
    """

    model: str
    source: str
    sources: list[str]
    objects: ObjectRef
    rows: int
    rejects: int
    last_run: dict[str, int]
    accounts: dict[str, Record] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    classes: list[str] | None = None

    @property
    def list_digest(self) -> str:
        """The 16 hex digits in the name of the object list. They identify the partition's rows."""
        return self.objects.path.rsplit("/", 1)[-1].removesuffix(".parquet")

    def as_dict(self) -> dict[str, Any]:
        record = {**self.__dict__, "objects": self.objects.as_dict()}
        if self.classes is None:
            del record["classes"]
        if not self.left_out:
            del record["left_out"]
        return record

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Partition:
        """Return the partition of a manifest's JSON entry.

        Early versions wrote neither `sources` nor `accounts` nor `left_out`.
        """
        fields = {name: record[name] for name in cls.__dataclass_fields__ if name in record}
        fields = {"sources": [record["source"]], **fields}
        return cls(**{**fields, "objects": ObjectRef(**record["objects"])})


@dataclass(frozen=True, kw_only=True)
class PredictionManifest:
    """One version. `current` is the name of the partition that was written last.

    `forgotten` are the content hashes of pictures that were erased on request. Version 0 has no
    partitions: nothing is published yet.
    """

    version: int = 0
    current: str | None = None
    partitions: dict[str, Partition] = field(default_factory=dict)
    forgotten: list[str] = field(default_factory=list)

    def successor(self, name: str, partition: Partition) -> PredictionManifest:
        """Return the next version, in which `partition` replaces the one of that name."""
        partitions = {**self.partitions, name: partition}
        return replace(self, version=self.version + 1, current=name, partitions=partitions)

    def as_dict(self) -> dict[str, Any]:
        partitions = {name: partition.as_dict() for name, partition in self.partitions.items()}
        return {
            "format": FORMAT,
            "version": self.version,
            "current": self.current,
            "partitions": partitions,
            "forgotten": self.forgotten,
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> PredictionManifest:
        """Return the manifest of a JSON record.

        Raises UnsafePathError for a name of a partition or of an object that could lead out of the
        folder: the record may be a stranger's.
        """
        partitions = {
            check_partition(name): Partition.from_dict(entry)
            for name, entry in record["partitions"].items()
        }
        return cls(
            version=record["version"],
            current=record["current"],
            partitions=partitions,
            forgotten=record.get("forgotten", []),  # early versions have none
        )


def read_manifest(store: Store) -> PredictionManifest:
    """Return the current manifest; version 0 if nothing is published.

    Raises RequestError for a folder that holds something other than predictions.
    """
    newest = latest(store, FOLDER)
    return _parse(store, *newest) if newest else PredictionManifest()


def kept_manifests(store: Store) -> list[PredictionManifest]:
    """Return all versions that are kept, in ascending order."""
    numbers = versions(store, FOLDER)
    return [_parse(store, number, read_version(store, FOLDER, number)) for number in numbers]


def _parse(store: Store, number: int, record: Record) -> PredictionManifest:
    if record.get("format") != FORMAT:
        raise RequestError(
            f"{store.root} holds {record.get('format', 'something else')}, not predictions"
        )
    # The number of a version is that of its file: the next one is published under the number after
    # it.
    return PredictionManifest.from_dict({**record, "version": number})


def publish_manifest(store: Store, manifest: PredictionManifest, owner: str) -> bool:
    """Publish a version. Return False if another job has published its number."""
    return publish(store, FOLDER, manifest.version, manifest.as_dict(), owner)


@dataclass(frozen=True, slots=True)
class Part:
    """One committed object of a partition: `kind` is "part" or "rejects"."""

    kind: str
    ref: ObjectRef


def put_parts(store: Store, parts: list[Part]) -> ObjectRef:
    """Write the list of a partition's objects as Parquet with the schema OBJECTS."""
    rows = [{"kind": part.kind, **part.ref.as_dict()} for part in parts]
    table = pa.Table.from_pylist(rows, schema=OBJECTS)
    return put_object(store, "lists/{hash}.parquet", to_parquet(table), len(rows))


def get_parts(store: Store, partition: Partition | None) -> list[Part]:
    """Return a partition's objects; none for a partition that is not published."""
    if partition is None:
        return []
    rows = from_parquet(get_object(store, partition.objects)).to_pylist()
    return [Part(row.pop("kind"), ObjectRef(**row)) for row in rows]
