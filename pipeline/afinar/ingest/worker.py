"""Building one shard: read, decode, resize and write, in one process, committed by its marker."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from afinar.dataset.schema import OUTCOMES, shard_schema
from afinar.dataset.shards import ShardWriter, batch_rows
from afinar.ingest.plan import ShardTask
from afinar.pictures.decode import Pixels, decode_into, decode_to_jpeg
from afinar.pictures.fetching import PictureReader, PictureRef
from afinar.pictures.preprocessing import StoredView
from afinar.pictures.rejects import PictureError, Reason
from afinar.sources.entry import Entry
from afinar.storage.arrow import to_parquet
from afinar.storage.markers import UnitMarker, commit_unit
from afinar.storage.objects import ObjectRef, put_object, sha256
from afinar.storage.open import open_reader, open_store
from afinar.storage.store import Store
from afinar.units.progress import PhaseTimer

Fact: TypeAlias = dict[str, Any]  # of FACTS, without what is null


@dataclass(frozen=True, slots=True)
class UnitResult:
    """What a worker tells the driver: counts, and the seconds of each stage; everything else lies in the store."""

    unit: str
    pictures: int
    rejects: int
    stages: dict[str, float] = field(default_factory=dict)


def build_shard(task: ShardTask) -> UnitResult:
    """Carry out one unit of an ingest. Running it twice changes nothing that was published."""
    source, dataset = open_reader(task.source), open_store(task.dataset)
    stages, forgotten = PhaseTimer(), frozenset(task.forgotten)
    facts: list[Fact] = []
    listed = (PictureRef(entry.name, entry.etag, entry.size) for entry in task.entries)
    with (
        ShardWriter(dataset, task.view) as writer,
        PictureReader(source).read_ahead(listed) as reads,
    ):
        images = make_images(task.view)
        for entry in task.entries:
            with stages.phase("fetch"):
                data = next(reads)
            with stages.phase("decode"):
                facts.append(
                    {
                        "uri": entry.uri,
                        "etag": entry.etag,
                        **process_picture(entry, data, images, forgotten),
                    }
                )
            if images.is_full:
                with stages.phase("write"):
                    writer.write(images.take_batch())
        with stages.phase("write"):
            if images.count:
                writer.write(images.take_batch())
            _commit(dataset, task.unit, writer, facts)
    rejects = sum("reason" in fact for fact in facts)
    return UnitResult(task.unit, len(task.entries), rejects, stages.seconds)


def process_picture(
    entry: Entry, data: bytes | PictureError, images: BatchBuilder, forgotten: frozenset[str]
) -> Fact:
    """Where the picture lies: where it was known to lie, if its content proves that, else where it is put now."""
    if isinstance(data, PictureError):
        return _reject(data)
    sample_id = sha256(data)
    if sample_id in forgotten:
        return _reject(PictureError(Reason.FORGOTTEN, "erased on request; it must not come back"))
    if sample_id == entry.sample_id:
        return {"sample_id": sample_id, "shard": entry.shard, "row": entry.row}
    try:
        images.add(data, sample_id)
    except PictureError as error:
        return _reject(error)
    return {"sample_id": sample_id, "row": images.added - 1}


def _reject(error: PictureError) -> Fact:
    return {"reason": str(error.reason), "detail": error.detail}


class BatchBuilder(ABC):
    """A batch of pictures as they are decoded; emptied again and again, so that memory stays as it is."""

    def __init__(self, view: StoredView) -> None:
        self.view, self.added = view, 0
        self._capacity = batch_rows(view)
        self._sample_ids: list[str] = []
        self._sizes: list[tuple[int, int]] = []

    @property
    def count(self) -> int:
        """Pictures in the batch."""
        return len(self._sample_ids)

    @property
    def is_full(self) -> bool:
        """Whether the batch must be taken before another picture is added."""
        return self.count == self._capacity

    def add(self, data: bytes, sample_id: str) -> None:
        """Decode one picture and keep it. Raises PictureError, having kept nothing."""
        self._sizes.append(self._decode(data))
        self._sample_ids.append(sample_id)
        self.added += 1

    def take_batch(self) -> pa.RecordBatch:
        """The batch, of the shard's schema; good until the next picture is added."""
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
        """Decode into the next place; the original's width and height."""

    @abstractmethod
    def _column(self) -> pa.Array:
        """The `image` column, in the order of adding."""


class PixelBatch(BatchBuilder):
    """uint8 [n, size, size, 3], decoded into the place where they are written from."""

    def __init__(self, view: StoredView) -> None:
        super().__init__(view)
        self._images = _memory((self._capacity, view.size, view.size, 3))

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


def _memory(shape: tuple[int, ...]) -> Pixels:
    """A thread's one batch of pixels, the same for unit after unit: pages that are new cost as much as hashing them."""
    held: Pixels | None = getattr(_thread, "pixels", None)
    if held is None or held.shape != shape:
        held = _thread.pixels = np.empty(shape, dtype=np.uint8)
    return held


class JpegBatch(BatchBuilder):
    """JPEG files at the stored size."""

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


def make_images(view: StoredView) -> BatchBuilder:
    """An empty batch."""
    return PixelBatch(view) if view.store == "pixels" else JpegBatch(view)


def _commit(dataset: Store, unit: str, writer: ShardWriter, facts: list[Fact]) -> None:
    objects: dict[str, ObjectRef] = {}
    if writer.rows:
        objects["shard"] = writer.commit(unit)
        for fact in facts:
            if "row" in fact and "shard" not in fact:
                fact["shard"] = objects["shard"].path
    table = pa.Table.from_pylist(facts, schema=OUTCOMES)
    objects["facts"] = put_object(
        dataset, f"facts/{unit}-{{hash}}.parquet", to_parquet(table), len(facts)
    )
    commit_unit(dataset, UnitMarker(unit=unit, objects=objects))
