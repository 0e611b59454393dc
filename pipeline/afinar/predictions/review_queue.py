"""Review queue: the least certain predictions, as a table, a CSV form for labels, and a page.

People look at the page and edit the form; `afinar ingest --labels` reads the form. A queue lies in
`review/model=<partition>/<digest of the partition's rows>/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from afinar.errors import NotFoundError, RecordError
from afinar.predictions.manifest import Partition
from afinar.predictions.part_reader import iter_parts
from afinar.predictions.schema import PREDICTIONS
from afinar.storage.arrow import conform, from_parquet, to_parquet
from afinar.storage.csv_cells import escape_formulas
from afinar.storage.records import REMEDY
from afinar.storage.store import Store

QUEUE: Final = 100_000
"""Largest number of pictures in a queue: more than people look at, and 60 MB of memory in the
driver. All pictures below the threshold stay `abstained` in the parts."""

TABLE: Final = "queue.parquet"
FORM: Final = "corrections.csv"
PAGE: Final = "index.html"
_BELOW: Final = b"afinar.below"  # key of a table's Parquet metadata


class LeastCertain(NamedTuple):
    """Rows of a queue, PREDICTIONS, least certain first. `below` counts all that abstained."""

    table: pa.Table
    below: int


@dataclass(frozen=True, kw_only=True)
class ReviewQueue:
    """The contents of a page. `table` and `below` are those of LeastCertain."""

    model: str
    classes: list[str]
    threshold: float
    table: pa.Table
    below: int


PageRenderer: TypeAlias = Callable[[ReviewQueue], str]
"""Function that renders a queue as one HTML page. Callers pass it in: `report` may not be imported
here."""


class WrittenQueue(NamedTuple):
    """Folder of a queue, and how many pictures are below the threshold."""

    folder: str
    below: int


@dataclass(frozen=True, slots=True)
class Reviewer:
    """Writes the review queue of a partition with the column `abstained`."""

    store: Store
    partition: str
    classes: list[str]
    threshold: float
    render: PageRenderer | None = None

    def write(self, partition: Partition) -> WrittenQueue:
        """Write the queue of a partition, unless it is complete. The page is written last.

        A form that exists is left as it is: people may have begun to edit it.
        """
        folder = f"{review_folder(self.partition)}/{partition.list_digest}"
        existing = {info.name.rsplit("/", 1)[-1] for info in self.store.walk(folder)}
        if {TABLE, FORM, PAGE if self.render else FORM} <= existing:
            table_name = f"{folder}/{TABLE}"
            below = _read_below(self.store.get(table_name), self.store.uri(table_name))
            return WrittenQueue(folder, below)

        columns = [*PREDICTIONS.names, "abstained"]
        table, below = least_certain(iter_parts(self.store, partition, columns), QUEUE)
        data = to_parquet(table.replace_schema_metadata({_BELOW: str(below)}))
        self.store.put_if_absent(f"{folder}/{TABLE}", data)
        self.store.put_if_absent(f"{folder}/{FORM}", corrections_form(table))
        if self.render:
            queue = ReviewQueue(
                model=partition.model,
                classes=self.classes,
                threshold=self.threshold,
                table=table,
                below=below,
            )
            self.store.put_if_absent(f"{folder}/{PAGE}", self.render(queue).encode())
        return WrittenQueue(folder, below)


def review_folder(partition: str) -> str:
    """Return the folder of a partition's review queues."""
    return f"review/model={partition}"


def least_certain(tables: Iterable[pa.Table], limit: int) -> LeastCertain:
    """Return the `limit` abstained rows with the lowest scores, lowest first, ties by uri.

    `tables` have PREDICTIONS and `abstained`. At most `2 * limit` rows and one table are in memory.
    """
    parts, rows, below = [PREDICTIONS.empty_table()], 0, 0

    for table in tables:
        abstained = table.filter(table.column("abstained")).select(PREDICTIONS.names)
        parts.append(abstained)
        rows, below = rows + len(abstained), below + len(abstained)
        if rows >= 2 * limit:
            parts, rows = [_lowest(parts, limit)], limit
    return LeastCertain(_lowest(parts, limit), below)


def corrections_form(table: pa.Table) -> bytes:
    """Return a CSV with `uri`, an empty `label` to fill in, and the predicted label and score.

    A prediction must not become a label because nobody looked at its row.
    """
    form = {
        "uri": escape_formulas(table.column("uri")),
        "label": pa.nulls(len(table), pa.string()),
        "predicted": escape_formulas(table.column("label")),
        "score": pc.round(table.column("score"), 4),
    }
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(pa.table(form), sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def delete_old_queues(
    store: Store, name: str, partition: Partition | None, paths: list[str]
) -> list[str]:
    """Delete those of `paths` that belong to old queues, and return the forms that are kept.

    A form that was edited is kept; so are files that no queue has. `partition` must have been read
    after the paths were listed, None if there is none.
    """
    current = f"{review_folder(name)}/{partition.list_digest}" if partition else None
    edited = []
    for folder in sorted({path.rsplit("/", 1)[0] for path in paths} - {current}):
        if f"{folder}/{FORM}" in paths:
            if _is_edited(store, folder):
                edited.append(f"{folder}/{FORM}")
            else:
                store.delete(f"{folder}/{FORM}")
        # The table last: a run that comes after an interruption needs it to tell if the form was
        # edited.
        for file in (PAGE, TABLE):
            if f"{folder}/{file}" in paths:
                store.delete(f"{folder}/{file}")
    return edited


def _lowest(tables: list[pa.Table], limit: int) -> pa.Table:
    """Return the rows with the lowest scores; NaN counts as lower than any score."""
    table = pa.concat_tables(tables)
    scores = table.column("score")
    key = pc.if_else(pc.is_nan(scores), -1.0, scores)
    order = pa.table({"score": key, "uri": table.column("uri")})
    ascending = [("score", "ascending"), ("uri", "ascending")]
    return table.take(pc.sort_indices(order, ascending).slice(0, limit))


def _read_below(data: bytes, uri: str) -> int:
    """Return the number of pictures below the threshold, from a queue's table."""
    metadata = from_parquet(data, ["uri"], uri=uri).schema.metadata or {}
    below = metadata.get(_BELOW, b"")
    if not below.isdigit():
        raise RecordError(
            f"{uri} does not tell how many pictures are below the threshold; {REMEDY}"
        )
    return int(below)


def _is_edited(store: Store, folder: str) -> bool:
    """Return True if a form differs from the one of its table, or if the table is not readable."""
    try:
        table = from_parquet(store.get(f"{folder}/{TABLE}"), uri=store.uri(f"{folder}/{TABLE}"))
        table = conform(table, PREDICTIONS, store.uri(f"{folder}/{TABLE}"))
        return store.get(f"{folder}/{FORM}") != corrections_form(table)
    except (NotFoundError, RecordError):  # without its table the form is kept
        return True
