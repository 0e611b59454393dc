"""Read the rows of a partition: all of them as one table, or part by part.

A reader that holds an older manifest may find that a job has published since and deleted the parts
that it replaced. `Predictions` then reads the current manifest and starts again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from html import escape
from pathlib import Path
from typing import Final

import pyarrow as pa

from afinar.errors import NotFoundError, RequestError, StorageError
from afinar.predictions.manifest import Part, Partition, get_parts, read_manifest
from afinar.predictions.schema import ABSTAINED, PREDICTIONS, SCHEMAS
from afinar.storage.arrow import get_table
from afinar.storage.open import open_store
from afinar.storage.store import Store

logger = logging.getLogger(__name__)

_SHOWN: Final = 10  # rows in a notebook
_AHEAD: Final = 8  # parts in flight from a remote store; one with features takes 4 MB


class Predictions:
    """One partition of a prediction folder, which contains every picture exactly once.

    A partition holds the predictions of one model with one set of options (`--top-k`, `--scores`
    …). `partition` is its name, `partitions` are the names of all partitions of the folder.
    """

    def __init__(
        self, store: Store, name: str, partition: Partition, partitions: list[str]
    ) -> None:
        self._store, self._partition = store, partition
        self.partition, self.partitions = name, partitions

    def __len__(self) -> int:
        return self._partition.rows

    @property
    def model(self) -> str:
        """The id of the model that made the predictions, such as `3-0a1b2c3d`."""
        return self._partition.model

    @property
    def table(self) -> pa.Table:
        """One row per labelled picture, sorted by uri: PREDICTIONS and the optional columns."""
        return self._read("part")

    @property
    def rejects(self) -> pa.Table:
        """One row per picture that could not be labelled, sorted by uri: REJECTS."""
        return self._read("rejects")

    def __repr__(self) -> str:
        return (
            f"Predictions({self._store.root!r}, partition {self.partition!r}): {len(self)} "
            f"pictures labelled by model {self.model}, {self._partition.rejects} rejects"
        )

    def _repr_html_(self) -> str:
        rows = self.table.slice(0, _SHOWN).select(["uri", "label", "score"]).to_pylist()
        cells = [(escape(row["uri"]), escape(row["label"]), f"{row['score']:.3f}") for row in rows]
        body = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in cells)
        head = "<tr><th>uri</th><th>label</th><th>score</th></tr>"
        return f"<p>{escape(repr(self))}</p><table>{head}{body}</table>"

    def _read(self, kind: str) -> pa.Table:
        try:
            parts = [part for part in get_parts(self._store, self._partition) if part.kind == kind]
            tables = [read_part(self._store, part) for part in parts]
        except NotFoundError:
            partition = read_manifest(self._store).partitions.get(self.partition)
            if partition is None or partition == self._partition:
                raise
            self._partition = partition  # published since; the parts that it replaced are deleted
            return self._read(kind)

        tables = [SCHEMAS[kind].empty_table(), *tables]
        return pa.concat_tables(tables, promote_options="default").sort_by("uri")


def open_predictions(uri: str | Path, partition: str | None = None) -> Predictions:
    """Open a prediction folder; by default the partition that was written last.

    `partition` is what follows `model=` in the names of the folders. If the folder has several and
    none is named, a line of the log tells which was taken. Raises RequestError if there are no
    predictions, or none of that partition.
    """
    store = open_store(str(uri))
    try:
        manifest = read_manifest(store)
    except StorageError as error:
        raise RequestError(f"cannot read {store.root}: {error}") from error
    if not manifest.version:
        raise RequestError(
            f"{store.root} holds no predictions: make them with `afinar label SOURCE {uri}`"
        )

    name = partition or manifest.current
    if name is None or name not in manifest.partitions:
        raise RequestError(
            f"{store.root} has no predictions of {name!r}, but of {', '.join(manifest.partitions)}"
        )
    others = [other for other in manifest.partitions if other != name]
    if partition is None and others:
        logger.warning(
            f"{store.root} has {len(others) + 1} partitions: {name!r}, which was written last, is "
            f"opened; the others are {', '.join(map(repr, others))}"
        )
    return Predictions(store, name, manifest.partitions[name], list(manifest.partitions))


def read_part(store: Store, part: Part, columns: list[str] | None = None) -> pa.Table:
    """Return the rows of one object after its hash is verified; all columns by default."""
    required = ["uri", "reason"] if part.kind == "rejects" else PREDICTIONS.names
    schema = SCHEMAS[part.kind]
    if columns is not None and ABSTAINED.name in columns:
        schema = schema.append(ABSTAINED)
    return get_table(store, part.ref, schema, columns, required)


def iter_parts(
    store: Store, partition: Partition, columns: list[str] | None = None
) -> Iterator[pa.Table]:
    """Yield the partition's labelled rows, one table per part, verified.

    At most `_AHEAD` parts of a remote store are in memory at a time.
    """
    parts = [part for part in get_parts(store, partition) if part.kind == "part"]
    if store.parallel_reads == 1:
        for part in parts:
            yield read_part(store, part, columns)
        return

    with ThreadPoolExecutor(_AHEAD) as pool:
        reads: deque[Future[pa.Table]] = deque()
        for part in parts:
            reads.append(pool.submit(read_part, store, part, columns))
            if len(reads) >= _AHEAD:
                yield reads.popleft().result()
        while reads:
            yield reads.popleft().result()
