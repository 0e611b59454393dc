"""Manifest: one immutable version of a prediction folder; it names each partition's objects.

A folder has one partition for each model version and set of options that change a row. The manifest
with the highest number is current.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final, TypedDict

import pyarrow as pa

from afinar.config.strict import Count, conforms_to
from afinar.dataset.manifest import read_object_list
from afinar.dataset.schema import OBJECTS
from afinar.errors import RecordError, RequestError
from afinar.predictions.schema import SCHEMAS
from afinar.storage.arrow import to_parquet
from afinar.storage.names import check_partition, check_sha256
from afinar.storage.objects import ObjectRef, put_object
from afinar.storage.records import REMEDY, Record, as_record
from afinar.storage.store import Store
from afinar.storage.versions import (
    latest,
    publish,
    read_consistently,
    read_version,
    record_name,
)

FOLDER: Final = "manifests"
FORMAT: Final = "afinar-predictions/1"
FORGET_PLAN: Final = "plans/forget.parquet"
"""Lease of an erasure, beside which no labelling runs."""
HISTOGRAM_BINS: Final = 20
"""Number of bins of a histogram of scores, of equal width from 0 to 1."""


def _require_bins(histogram: list[int]) -> list[int]:
    if len(histogram) != HISTOGRAM_BINS:
        raise ValueError(f"expected {HISTOGRAM_BINS} counts, found {len(histogram)}")
    return histogram


class _LabelCounts(TypedDict):
    labels: dict[str, Count]
    histogram: Annotated[list[Count], _require_bins]
    score_sum: float


class _Account(TypedDict):
    version: Count
    run: _LabelCounts
    standing: _LabelCounts


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
    rows: Count
    rejects: Count
    last_run: dict[str, Count]
    accounts: dict[str, Annotated[Record, conforms_to(_Account)]] = field(default_factory=dict)
    left_out: dict[str, Count] = field(default_factory=dict)
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


def _check_names(partitions: dict[str, Partition]) -> dict[str, Partition]:
    for name in partitions:
        check_partition(name)
    return partitions


@dataclass(frozen=True, kw_only=True)
class PredictionManifest:
    """One version. `current` is the name of the partition that was written last.

    `forgotten` are the content hashes of pictures that were erased on request. Version 0 has no
    partitions: nothing is published yet.
    """

    version: Count = 0
    current: str | None = None
    partitions: Annotated[dict[str, Partition], _check_names] = field(default_factory=dict)
    forgotten: list[Annotated[str, check_sha256]] = field(default_factory=list)

    def successor(self, name: str, partition: Partition) -> PredictionManifest:
        """Return the next version, in which `partition` replaces the one of that name."""
        partitions = {**self.partitions, name: partition}
        return replace(self, version=self.version + 1, current=name, partitions=partitions)

    def as_dict(self) -> dict[str, Any]:
        partitions = {name: partition.as_dict() for name, partition in self.partitions.items()}
        record = {
            "format": FORMAT,
            "version": self.version,
            "current": self.current,
            "partitions": partitions,
        }
        return {**record, "forgotten": self.forgotten} if self.forgotten else record


def read_manifest(store: Store) -> PredictionManifest:
    """Return the current manifest; version 0 if nothing is published.

    Raises RequestError for a folder that holds something other than predictions.
    """
    newest = latest(store, FOLDER)
    return _parse(store, *newest) if newest else PredictionManifest()


def kept_manifests(store: Store) -> list[PredictionManifest]:
    """Return all versions that are kept, in ascending order."""

    def read(numbers: list[int]) -> list[PredictionManifest]:
        return [_parse(store, number, read_version(store, FOLDER, number)) for number in numbers]

    return read_consistently(store, FOLDER, read)


def _parse(store: Store, number: int, record: Record) -> PredictionManifest:
    if record.get("format") != FORMAT:
        content = str(record.get("format", "something else"))[:200]
        raise RequestError(f"{store.root} holds {content}, not predictions")

    # The number of a version is that of its file: the next one is published under the number after
    # it.
    uri = store.uri(record_name(FOLDER, number))
    record = {**_with_sources(record), "version": number}
    manifest = as_record(record, PredictionManifest, uri)
    if manifest.current not in manifest.partitions:
        raise RecordError(f"{uri}: current is none of its partitions; {REMEDY}")
    return manifest


def _with_sources(record: Record) -> Record:
    """Return a record with `sources` in each partition: early versions wrote only `source`."""
    partitions = record.get("partitions")
    if not isinstance(partitions, dict):
        return record
    return {
        **record,
        "partitions": {
            name: {"sources": [entry.get("source")], **entry} if isinstance(entry, dict) else entry
            for name, entry in partitions.items()
        },
    }


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
    return [Part(*entry) for entry in read_object_list(store, partition.objects, SCHEMAS)]
