"""The review queue: pictures whose answer is not sure enough, as a table, a form for their labels, and a page.

People look at the page, or edit the form, and `afinar ingest --labels` takes the form back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from afinar.errors import NotFoundError
from afinar.predictions.manifest import PREDICTIONS
from afinar.predictions.part_reader import list_digest, part_tables
from afinar.storage.arrow import from_parquet, to_parquet
from afinar.storage.store import Store
from afinar.storage.versions import Record

QUEUE: Final = 100_000
"""Pictures in a queue, the least certain: more than people look at, and 60 MB in the driver. All that are below stay
marked `abstained` in the parts."""

TABLE: Final = "queue.parquet"
FORM: Final = "corrections.csv"
PAGE: Final = "index.html"
_BELOW: Final = b"afinar.below"


@dataclass(frozen=True, kw_only=True)
class ReviewQueue:
    """What awaits review. `table` is PREDICTIONS, least certain first; `below` counts all, those left out too."""

    model: str
    classes: list[str]
    threshold: float
    table: pa.Table
    below: int


PageRenderer: TypeAlias = Callable[[ReviewQueue], str]
"""Renders a queue as one HTML page. It is handed in: reports stand above labelling."""


@dataclass(frozen=True, slots=True)
class Reviewer:
    """Writes the review queue of a partition whose rows say whether they `abstained`."""

    store: Store
    partition: str
    classes: list[str]
    threshold: float
    gallery: PageRenderer | None = None

    def write(self, entry: Record) -> tuple[str, int]:
        """Write the queue of a partition's entry in the manifest, unless that is done: its folder, and how many
        pictures are below the threshold. The page comes last; a form that people have begun to edit is left alone."""
        folder = f"{review_folder(self.partition)}/{list_digest(entry)}"
        there = {info.name.rsplit("/", 1)[-1] for info in self.store.walk(folder)}
        if {TABLE, FORM, PAGE if self.gallery else FORM} <= there:
            return folder, _count(self.store.get(f"{folder}/{TABLE}"))
        table, below = least_certain(
            part_tables(self.store, entry, [*PREDICTIONS.names, "abstained"]), QUEUE
        )
        data = to_parquet(table.replace_schema_metadata({_BELOW: str(below)}))
        self.store.put_if_absent(f"{folder}/{TABLE}", data)
        self.store.put_if_absent(f"{folder}/{FORM}", corrections_form(table))
        if self.gallery:
            queue = ReviewQueue(
                model=entry["model"],
                classes=self.classes,
                threshold=self.threshold,
                table=table,
                below=below,
            )
            self.store.put_if_absent(f"{folder}/{PAGE}", self.gallery(queue).encode())
        return folder, below


def review_folder(partition: str) -> str:
    """Where a partition's review queues lie."""
    return f"review/model={partition}"


def least_certain(tables: Iterable[pa.Table], most: int) -> tuple[pa.Table, int]:
    """The `most` abstained rows of the lowest score, lowest first, of tables with PREDICTIONS and `abstained`.

    Also how many abstained in all. Holds 2 `most` rows at a time, and at a tie goes by uri.
    """
    held, rows, below = [PREDICTIONS.empty_table()], 0, 0
    for table in tables:
        uncertain = table.filter(table.column("abstained")).select(PREDICTIONS.names)
        held.append(uncertain)
        rows, below = rows + len(uncertain), below + len(uncertain)
        if rows >= 2 * most:
            held, rows = [_lowest(held, most)], most
    return _lowest(held, most), below


def corrections_form(table: pa.Table) -> bytes:
    """CSV with `uri` and `label`, a row for each picture of a queue, filled in with the model's guess."""
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(table.select(["uri", "label"]), sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def sweep_reviews(
    store: Store, partition: str, entry: Record | None, found: list[str]
) -> list[str]:
    """Remove those `found` files of superseded queues that nobody has worked on; the edited forms that stay.

    `entry` was read after the files were listed. What we did not write is left alone.
    """
    current = list_digest(entry) if entry else None
    folders = {name.rsplit("/", 1)[0] for name in found}
    edited = []
    for folder in sorted(folders):
        if folder == f"{review_folder(partition)}/{current}":
            continue
        if f"{folder}/{FORM}" in found:
            if _is_edited(store, folder):
                edited.append(f"{folder}/{FORM}")
            else:
                store.delete(f"{folder}/{FORM}")
        for name in (PAGE, TABLE):  # the table last: it tells whether the form was edited
            if f"{folder}/{name}" in found:
                store.delete(f"{folder}/{name}")
    return edited


def _lowest(tables: list[pa.Table], most: int) -> pa.Table:
    return (
        pa.concat_tables(tables)
        .sort_by([("score", "ascending"), ("uri", "ascending")])
        .slice(0, most)
    )


def _count(data: bytes) -> int:
    return int(pq.read_schema(pa.BufferReader(data)).metadata[_BELOW])


def _is_edited(store: Store, folder: str) -> bool:
    """Whether a form differs from what we wrote; without its table there is no telling, and it counts as edited."""
    try:
        ours = corrections_form(from_parquet(store.get(f"{folder}/{TABLE}")))
        return store.get(f"{folder}/{FORM}") != ours
    except NotFoundError:
        return True
