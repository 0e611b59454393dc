"""The most and the least certain predictions of each class of a run, found part by part."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

PER_CLASS: Final = 12
"""Rows that are kept of each class: half of them the most certain, half the least certain."""

SCHEMA: Final = pa.schema(
    [
        ("uri", pa.string()),
        ("etag", pa.string()),
        ("label", pa.string()),
        ("score", pa.float32()),
    ]
)

_PENDING_ROWS: Final = 100_000  # collected before they are reduced: a part has 512 rows at most


class ContactSheet:
    """Rows of SCHEMA, bounded by the number of classes, however many predictions are added."""

    def __init__(self) -> None:
        self._tables: list[pa.Table] = [SCHEMA.empty_table()]
        self._pending = 0

    def add(self, predictions: pa.Table) -> None:
        """Add predictions: a table with the columns of SCHEMA."""
        self._tables.append(predictions.select(SCHEMA.names).cast(SCHEMA))
        self._pending += len(predictions)
        if self._pending > _PENDING_ROWS:
            self._tables, self._pending = [self.table()], 0

    def plus(self, other: ContactSheet) -> ContactSheet:
        """Return the sheet of both together."""
        both = ContactSheet()
        for sheet in (self, other):
            both.add(sheet.table())
        return both

    def table(self) -> pa.Table:
        """Return the rows by label, in each label the most certain first."""
        return _extremes(pa.concat_tables(self._tables))


def _extremes(rows: pa.Table) -> pa.Table:
    """Return the PER_CLASS / 2 rows with the highest and the lowest scores of each label."""
    if not len(rows):
        return rows
    scores = pc.if_else(pc.is_nan(rows.column("score")), 0.0, rows.column("score"))
    keys = pa.table({"label": rows.column("label"), "score": scores, "uri": rows.column("uri")})
    order = pc.sort_indices(
        keys, [("label", "ascending"), ("score", "descending"), ("uri", "ascending")]
    )
    ordered = rows.take(order)

    labels = ordered.column("label").combine_chunks().dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    sizes = np.diff([*starts, len(labels)])
    rank = np.arange(len(labels)) - np.repeat(starts, sizes)
    from_end = np.repeat(sizes, sizes) - 1 - rank
    half = PER_CLASS // 2
    return ordered.filter(pa.array((rank < half) | (from_end < half)))
