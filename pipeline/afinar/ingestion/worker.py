"""The ingest worker: read, decode and resize the pictures of one unit and commit a shard."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from afinar.dataset.schema import OUTCOMES, shard_schema
from afinar.dataset.shards import ShardWriter, batch_rows
from afinar.ingestion.plan import ShardTask
from afinar.pictures.decode import configure_pillow, decode_into, decode_to_jpeg
from afinar.pictures.fetching import PictureReader, PictureRef
from afinar.pictures.preprocessing import StoredView
from afinar.pictures.rejects import ERASED, PictureError
from afinar.pictures.resize import Pixels
from afinar.sources.entry import Entry
from afinar.storage.arrow import to_parquet
from afinar.storage.markers import UnitMarker, commit_unit
from afinar.storage.multi_store import open_root
from afinar.storage.objects import ObjectRef, put_object, sha256
from afinar.storage.open import open_store
from afinar.storage.store import Store
from afinar.units.progress import PhaseTimer
from afinar.units.quarantine import QUARANTINED, track_bad_inputs
from afinar.units.results import UnitResult

Outcome: TypeAlias = dict[str, Any]
"""One row of OUTCOMES without its null columns."""


def make_shard_builder() -> Callable[[ShardTask], UnitResult]:
    """Return the unit function of a worker process."""
    return build_shard


def build_shard(task: ShardTask) -> UnitResult:
    """Run one unit of an ingest. Running it twice cannot change a published object."""
    configure_pillow()
    remote = any(entry.uri.startswith("s3://") for entry in task.entries)
    source, dataset = open_root(task.source, remote=remote), open_store(task.dataset)
    timer, forgotten = PhaseTimer(), frozenset(task.forgotten)
    tracker = track_bad_inputs(dataset, task.unit, task.attempt)
    outcomes: list[Outcome] = []
    refs = (
        PictureRef(entry.name, entry.etag, entry.size)
        for position, entry in enumerate(task.entries)
        if position not in tracker.quarantined
    )
    with (
        ShardWriter(dataset, task.view) as writer,
        PictureReader(source).read_ahead(refs) as reads,
    ):
        batch = make_batch_builder(task.view)
        for position, entry in enumerate(task.entries):
            outcome = _reject(QUARANTINED)
            if position not in tracker.quarantined:
                with tracker.working_on(position):
                    with timer.phase("fetch"):
                        data = next(reads)
                    with timer.phase("decode"):
                        outcome = process_picture(entry, data, batch, forgotten)
            outcomes.append({"uri": entry.uri, "etag": entry.etag, **outcome})
            if batch.is_full:
                with timer.phase("write"):
                    writer.write(batch.take_batch())

        with timer.phase("write"):
            if batch.count:
                writer.write(batch.take_batch())
            _commit(dataset, task.unit, writer, outcomes)
    tracker.clear()
    rejects = sum("reason" in outcome for outcome in outcomes)
    return UnitResult(task.unit, len(task.entries), rejects, timer.seconds)


def process_picture(
    entry: Entry, data: bytes | PictureError, batch: BatchBuilder, forgotten: frozenset[str]
) -> Outcome:
    """Decode a picture into the batch and return its outcome: the place of its sample, or a reason.

    A picture whose content hash is that of the known sample in `entry` is not decoded: its outcome
    is the place of that sample."""
    if isinstance(data, PictureError):
        return _reject(data)

    # The content decides: an erased one stays out, a known one keeps its place.
    sample_id = sha256(data)
    if sample_id in forgotten:
        return _reject(ERASED)
    if sample_id == entry.sample_id:
        return {"sample_id": sample_id, "shard": entry.shard, "row": entry.row}
    try:
        batch.add(data, sample_id)
    except PictureError as error:
        return _reject(error)
    return {"sample_id": sample_id, "row": batch.added - 1}


def _reject(error: PictureError) -> Outcome:
    return {"reason": str(error.reason), "detail": error.detail}


class BatchBuilder(ABC):
    """A batch of pictures as they are decoded. It is reused, so that memory does not grow."""

    def __init__(self, view: StoredView) -> None:
        self.view, self.added = view, 0
        self._capacity = batch_rows(view)
        self._sample_ids: list[str] = []
        self._sizes: list[tuple[int, int]] = []

    @property
    def count(self) -> int:
        """Number of pictures in the batch."""
        return len(self._sample_ids)

    @property
    def is_full(self) -> bool:
        """True if the batch must be taken before another picture is added."""
        return self.count == self._capacity

    def add(self, data: bytes, sample_id: str) -> None:
        """Decode one picture into the batch. If it raises PictureError the batch is unchanged."""
        self._sizes.append(self._decode(data))
        self._sample_ids.append(sample_id)
        self.added += 1

    def take_batch(self) -> pa.RecordBatch:
        """Return and empty the batch: shard_schema, valid until the next picture is added."""
        columns = [
            pa.array(self._sample_ids, pa.string()),
            pa.array([width for width, _ in self._sizes], pa.int32()),
            pa.array([height for _, height in self._sizes], pa.int32()),
            self._column(),
        ]

        self._sample_ids, self._sizes = [], []
        return pa.RecordBatch.from_arrays(
            columns, schema=shard_schema(self.view.size, self.view.store)
        )

    @abstractmethod
    def _decode(self, data: bytes) -> tuple[int, int]:
        """Decode into the next place; return the original's width and height in pixels."""

    @abstractmethod
    def _column(self) -> pa.Array:
        """Return the `image` column, in the order of adding."""


class PixelBatch(BatchBuilder):
    """Pictures as uint8 [n, size, size, 3], decoded into the buffer that is written."""

    def __init__(self, view: StoredView) -> None:
        super().__init__(view)
        self._images = _pixel_buffer((self._capacity, view.size, view.size, 3))

    def _decode(self, data: bytes) -> tuple[int, int]:
        return decode_into(data, self.view, self._images[self.count])

    def _column(self) -> pa.Array:
        size, count = self.view.size, self.count
        flat = pa.FixedSizeListArray.from_arrays(
            pa.array(self._images[:count].reshape(-1)), size * size * 3
        )
        return pa.ExtensionArray.from_storage(
            pa.fixed_shape_tensor(pa.uint8(), (size, size, 3)), flat
        )


_thread = threading.local()


def _pixel_buffer(shape: tuple[int, ...]) -> Pixels:
    """Return this thread's buffer of pixels, the same for all units.

    New memory pages would cost as much time as hashing their content.
    """
    buffer: Pixels | None = getattr(_thread, "pixels", None)
    if buffer is None or buffer.shape != shape:
        buffer = _thread.pixels = np.empty(shape, dtype=np.uint8)
    return buffer


class JpegBatch(BatchBuilder):
    """Pictures as JPEG files at the stored size."""

    def __init__(self, view: StoredView) -> None:
        super().__init__(view)
        self._files: list[bytes] = []

    def _decode(self, data: bytes) -> tuple[int, int]:
        encoded = decode_to_jpeg(data, self.view)
        self._files.append(encoded.jpeg)
        return encoded.width, encoded.height

    def _column(self) -> pa.Array:
        files, self._files = self._files, []
        return pa.array(files, pa.large_binary())


def make_batch_builder(view: StoredView) -> BatchBuilder:
    """Return an empty batch for the view's kind of store."""
    return PixelBatch(view) if view.store == "pixels" else JpegBatch(view)


def _commit(dataset: Store, unit: str, writer: ShardWriter, outcomes: list[Outcome]) -> None:
    """Commit a unit: the shard, the outcomes that name it, last the marker with their hashes."""
    objects: dict[str, ObjectRef] = {}
    if writer.rows:
        objects["shard"] = writer.save(unit)
        for outcome in outcomes:
            if "row" in outcome and "shard" not in outcome:
                outcome["shard"] = objects["shard"].path

    table = to_parquet(pa.Table.from_pylist(outcomes, schema=OUTCOMES))
    name = f"facts/{unit}-{{hash}}.parquet"
    objects["facts"] = put_object(dataset, name, table, len(outcomes))
    commit_unit(dataset, UnitMarker(unit=unit, objects=objects))
