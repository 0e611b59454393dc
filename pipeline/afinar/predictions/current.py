"""What a partition says already, and of which pictures: as columns, since an archive has millions of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from afinar.errors import NotFoundError, Reason
from afinar.predictions.manifest import FOLDER, Part, get_parts, read_part
from afinar.storage.arrow import from_parquet, to_parquet
from afinar.storage.commit import Record, latest, versions
from afinar.storage.objects import get_object, put_object
from afinar.storage.store import Store

_THREADS: Final = 8  # reading parts is mostly waiting for them
_TRANSIENT: Final = pa.array([str(reason) for reason in Reason if reason.transient], pa.string())

STANDING: Final = pa.schema(
    [
        ("uri", pa.large_string()),
        ("etag", pa.large_string()),
        ("reason", pa.string()),
        ("part", pa.int32()),
    ]
)
"""One picture that was looked at: why it was rejected, null where it is labelled, and the place of its part."""


@dataclass(frozen=True)
class PublishedRows:
    """What the manifest of that `number` says of one partition. `rows` is STANDING."""

    number: int
    record: Record | None
    parts: list[Part]
    rows: pa.Table

    def known(self, retry_rejects: bool) -> pa.Table:
        """uri and etag of pictures that need not be looked at again while they are unchanged."""
        reasons = self.rows.column("reason")
        labelled = pc.is_null(reasons)
        stands = (
            labelled
            if retry_rejects
            else pc.or_(labelled, pc.invert(pc.is_in(reasons, _TRANSIENT)))
        )
        return self.rows.filter(stands).select(["uri", "etag"])

    def rejects_among(self, uris: pa.ChunkedArray) -> dict[str, int]:
        """How many of these pictures were rejected, by reason."""
        rejects = self.rows.filter(pc.is_valid(self.rows.column("reason")))
        return counts(
            rejects.filter(pc.is_in(rejects.column("uri"), uris.combine_chunks())).column("reason")
        )

    def parts_without(
        self,
        store: Store,
        uris: pa.ChunkedArray,
        unit: str,
        superseded: Callable[[pa.Table], None] = lambda rows: None,
    ) -> list[Part]:
        """The partition's parts without the rows of these pictures; those that lose some are written anew.

        They are written as `unit`'s, one of a stored plan: until a manifest names them that plan keeps others from
        sweeping them away. `superseded` is given the predictions that go.
        """
        gone = pc.is_in(self.rows.column("uri"), uris.combine_chunks())
        touched = set(self.rows.filter(gone).column("part").unique().to_pylist())
        kept = [
            _without(store, part, uris, unit, superseded) if place in touched else part
            for place, part in enumerate(self.parts)
        ]
        return [part for part in kept if part is not None]


def read_published_rows(store: Store, partition: str) -> PublishedRows:
    """Read what the newest manifest says of a partition."""
    found = latest(store, FOLDER)
    number, record = found if found else (0, None)
    try:
        parts = parts_of(store, record, partition)
        with ThreadPoolExecutor(_THREADS) as pool:
            tables = list(pool.map(partial(_rows, store), parts, range(len(parts))))
    except NotFoundError:
        if versions(store, FOLDER)[-1:] == [number]:
            raise
        return read_published_rows(
            store, partition
        )  # another labelling published, and removed what it superseded
    return PublishedRows(number, record, parts, pa.concat_tables([STANDING.empty_table(), *tables]))


def parts_of(store: Store, record: Record | None, partition: str) -> list[Part]:
    """The objects of a partition that a manifest names."""
    entry = record["partitions"].get(partition) if record else None
    return get_parts(store, entry) if entry else []


def counts(column: pa.ChunkedArray) -> dict[str, int]:
    """Value → how often, in the values' order."""
    found = {one["values"]: one["counts"] for one in pc.value_counts(column).to_pylist()}
    return dict(sorted(found.items()))


def _rows(store: Store, part: Part, place: int) -> pa.Table:
    columns = ["uri", "etag", "reason"] if part.kind == "rejects" else ["uri", "etag"]
    table = from_parquet(get_object(store, part.ref), columns)
    if part.kind != "rejects":
        table = table.append_column("reason", pa.nulls(len(table), pa.string()))
    return table.append_column("part", pa.repeat(pa.scalar(place, pa.int32()), len(table))).cast(
        STANDING
    )


def _without(
    store: Store,
    part: Part,
    uris: pa.ChunkedArray,
    unit: str,
    superseded: Callable[[pa.Table], None],
) -> Part | None:
    table = read_part(store, part)
    gone = pc.is_in(pc.cast(table.column("uri"), pa.large_string()), uris.combine_chunks())
    left = table.filter(pc.invert(gone))
    if part.kind == "part":
        superseded(table.filter(gone))
    if not len(left):
        return None
    folder = part.ref.path.rsplit("/", 1)[0]
    name = f"{folder}/part-{unit}-{{hash}}.parquet"
    return Part(part.kind, unit, put_object(store, name, to_parquet(left), len(left)))
