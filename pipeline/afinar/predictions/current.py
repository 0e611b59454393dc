"""Rows already published for a partition, as an Arrow table: an archive has millions of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from afinar.errors import NotFoundError
from afinar.pictures.rejects import TRANSIENT
from afinar.predictions.manifest import (
    Part,
    Partition,
    PredictionManifest,
    get_parts,
    read_manifest,
)
from afinar.predictions.part_reader import read_part
from afinar.predictions.schema import PUBLISHED, object_template
from afinar.storage.arrow import to_parquet
from afinar.storage.objects import put_object
from afinar.storage.store import Store

_THREADS: Final = 8  # reading parts is mostly waiting for them
_TRANSIENT: Final = pa.array(sorted(TRANSIENT), pa.string())


def _ignore(rows: pa.Table) -> None:
    del rows


@dataclass(frozen=True)
class PublishedRows:
    """The partition `name` in one version of the manifest. `rows` is PUBLISHED."""

    name: str
    manifest: PredictionManifest
    parts: list[Part]
    rows: pa.Table

    @classmethod
    def empty(cls, name: str) -> PublishedRows:
        """Return the rows of a partition in a folder that does not exist yet."""
        return cls(name, PredictionManifest(), [], PUBLISHED.empty_table())

    @property
    def partition(self) -> Partition | None:
        """The manifest's entry; None if nothing is published under the name."""
        return self.manifest.partitions.get(self.name)

    def known(self, retry_rejects: bool) -> pa.Table:
        """Return uri and etag of pictures that are skipped while they are unchanged.

        These are the labelled ones and, unless `retry_rejects`, those that were rejected for a
        permanent reason.
        """
        reasons = self.rows.column("reason")
        skipped = pc.is_null(reasons)
        if not retry_rejects:
            skipped = pc.or_(skipped, pc.invert(pc.is_in(reasons, _TRANSIENT)))
        return self.rows.filter(skipped).select(["uri", "etag"])

    def count_rejects(self, uris: pa.ChunkedArray) -> dict[str, int]:
        """Return how many of these pictures were rejected, by reason in alphabetical order."""
        rejects = self.rows.filter(pc.is_valid(self.rows.column("reason")))
        rejects = rejects.filter(pc.is_in(rejects.column("uri"), uris.combine_chunks()))
        counts = pc.value_counts(rejects.column("reason")).to_pylist()
        return dict(sorted((count["values"], count["counts"]) for count in counts))

    def parts_without(
        self,
        store: Store,
        uris: pa.ChunkedArray,
        unit: str,
        on_removed: Callable[[pa.Table], None] = _ignore,
    ) -> list[Part]:
        """Return the partition's objects without the rows of these pictures.

        An object that contains some of them is rewritten without them. The new object is named
        after `unit`, which must be a unit of a stored plan: garbage collection leaves its objects
        alone until a manifest names them. `on_removed` is called with the predictions that are left
        out.
        """
        removed = pc.is_in(self.rows.column("uri"), uris.combine_chunks())
        rewritten = set(self.rows.filter(removed).column("part").unique().to_pylist())
        kept = []
        for position, part in enumerate(self.parts):
            if position not in rewritten:
                kept.append(part)
                continue
            table = read_part(store, part)
            removed = pc.is_in(table.column("uri").cast(pa.large_string()), uris.combine_chunks())
            if part.kind == "part":
                on_removed(table.filter(removed))
            remaining = table.filter(pc.invert(removed))
            if len(remaining):
                name = object_template(part.kind, self.name, unit)
                ref = put_object(store, name, to_parquet(remaining), len(remaining))
                kept.append(Part(part.kind, ref))

        return kept


def read_published_rows(store: Store, name: str) -> PublishedRows:
    """Read a partition from the current manifest; no rows if the partition is not published."""
    manifest = read_manifest(store)
    try:
        parts = get_parts(store, manifest.partitions.get(name))
        with ThreadPoolExecutor(_THREADS) as pool:
            tables = list(pool.map(partial(_read_rows, store), parts, range(len(parts))))
    except NotFoundError:
        if read_manifest(store).version == manifest.version:
            raise
        # Another job has published since, and deleted the objects that it replaced.
        return read_published_rows(store, name)
    rows = pa.concat_tables([PUBLISHED.empty_table(), *tables])
    return PublishedRows(name, manifest, parts, rows)


def _read_rows(store: Store, part: Part, position: int) -> pa.Table:
    columns = ["uri", "etag", "reason"] if part.kind == "rejects" else ["uri", "etag"]
    table = read_part(store, part, columns)
    if part.kind != "rejects":
        table = table.append_column("reason", pa.nulls(len(table), pa.string()))
    positions = pa.repeat(pa.scalar(position, pa.int32()), len(table))
    return table.append_column("part", positions).cast(PUBLISHED)
