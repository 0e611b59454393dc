"""What a labelling leaves behind, and reading it back exactly once.

A prediction folder holds one partition per model (and per anything else that changes an answer). The
highest manifest names, for every partition, the objects that count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from afinar.dataset.schema import OBJECTS
from afinar.errors import NotFoundError, RequestError, StorageError
from afinar.storage.arrow import from_parquet, to_parquet
from afinar.storage.commit import Record, latest
from afinar.storage.objects import ObjectRef, get_object, put_object
from afinar.storage.open import open_store
from afinar.storage.store import Store

FOLDER: Final = "manifests"
FORMAT: Final = "afinar-predictions/1"

PREDICTIONS: Final = pa.schema(
    [
        ("uri", pa.string()),
        ("sample_id", pa.string()),
        ("etag", pa.string()),
        ("label", pa.string()),
        ("score", pa.float32()),
        ("top_labels", pa.list_(pa.string())),
        ("top_scores", pa.list_(pa.float32())),
        ("model_version", pa.string()),
    ]
)
"""One labelled picture; `score` is the probability of `label`, `top_*` the k best in falling order."""

REJECTS: Final = pa.schema(
    [("uri", pa.string()), ("etag", pa.string()), ("reason", pa.string()), ("detail", pa.string())]
)
"""One picture that could not be labelled."""

SCHEMAS: Final = {"part": PREDICTIONS, "rejects": REJECTS}


@dataclass(frozen=True, slots=True)
class Part:
    """One committed object of a partition: `kind` "part" or "rejects", and the unit that wrote it."""

    kind: str
    unit: str
    ref: ObjectRef


def put_parts(store: Store, parts: list[Part]) -> ObjectRef:
    """Write the list of a partition's objects. The unit is in an object's name."""
    rows = [{"kind": part.kind, **part.ref.as_dict()} for part in parts]
    return put_object(
        store,
        "lists/{hash}.parquet",
        to_parquet(pa.Table.from_pylist(rows, schema=OBJECTS)),
        len(rows),
    )


def get_parts(store: Store, partition: Record) -> list[Part]:
    """A partition's objects, from its entry in the manifest."""
    rows = from_parquet(get_object(store, ObjectRef(**partition["objects"]))).to_pylist()
    return [Part(row.pop("kind"), unit_in(row["path"]), ObjectRef(**row)) for row in rows]


def object_folder(kind: str, partition: str) -> str:
    """Folder of a partition's parts or rejects."""
    return f"{'parts' if kind == 'part' else 'rejects'}/model={partition}"


def unit_in(path: str) -> str:
    """The unit that wrote `…/part-<unit>-<hash>.parquet`."""
    return path.rsplit("/", 1)[-1].split("-")[1]


def read_part(store: Store, part: Part) -> pa.Table:
    """Rows of one object, verified."""
    return from_parquet(get_object(store, part.ref))


class Predictions:
    """One partition of a prediction folder: every picture of it exactly once."""

    def __init__(self, store: Store, name: str, partition: Record) -> None:
        self._store, self._name, self._partition = store, name, partition

    def _rows(self, kind: str) -> pa.Table:
        try:
            parts = [part for part in get_parts(self._store, self._partition) if part.kind == kind]
            tables = [read_part(self._store, part) for part in parts]
        except NotFoundError:
            newest = latest(self._store, FOLDER)
            entry = newest[1]["partitions"].get(self._name) if newest else None
            if entry is None or entry == self._partition:
                raise
            self._partition = entry  # a labelling published since, and removed what it superseded
            return self._rows(kind)
        return pa.concat_tables(
            [SCHEMAS[kind].empty_table(), *tables], promote_options="default"
        ).sort_by("uri")

    @property
    def table(self) -> pa.Table:
        """One row per labelled picture, sorted by uri: PREDICTIONS, and the columns that were asked for."""
        return self._rows("part")

    @property
    def rejects(self) -> pa.Table:
        """One row per picture that could not be labelled, sorted by uri: REJECTS."""
        return self._rows("rejects")


def open_predictions(uri: str, partition: str | None = None) -> Predictions:
    """Open a prediction folder; by default the partition that was written last.

    `partition` is what follows `model=` in the folder's names. Raises RequestError when there is none.
    """
    store = open_store(uri)
    try:
        found = latest(store, FOLDER)
    except StorageError as error:
        raise RequestError(f"cannot read {store.root}: {error}") from error
    if found is None:
        raise RequestError(
            f"{store.root} holds no predictions: make them with `afinar label SOURCE {uri}`"
        )
    partitions: dict[str, Any] = found[1]["partitions"]
    wanted = partition or found[1]["current"]
    if wanted not in partitions:
        raise RequestError(
            f"{store.root} has no predictions of {wanted!r}, but of {', '.join(partitions)}"
        )
    return Predictions(store, wanted, partitions[wanted])
