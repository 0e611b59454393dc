"""Building one shard: read, decode, resize and write, in one process, committed by its marker."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.dataset.schema import FACTS, Entry, shard_schema
from pipeline.dataset.tables import to_ipc, to_parquet
from pipeline.errors import PictureError, Reason
from pipeline.ingest.plan import ShardTask
from pipeline.pictures.contract import StoredView
from pipeline.pictures.decode import decode_into, decode_to_jpeg
from pipeline.pictures.reading import Listed, PictureReader
from pipeline.storage.commit import UnitMarker, commit_unit
from pipeline.storage.objects import ObjectRef, put_object, sha256
from pipeline.storage.store import Store, open_store


@dataclass(frozen=True, slots=True)
class UnitResult:
    """What a worker tells the driver: counts, and the seconds of each stage; everything else lies in the store."""

    unit: str
    pictures: int
    rejects: int
    stages: dict[str, float] = field(default_factory=dict)


def build_shard(task: ShardTask) -> UnitResult:
    """Carry out one unit of an ingest. Running it twice changes nothing that was published."""
    source, dataset = open_store(task.source), open_store(task.dataset)
    images = make_images(task.view, len(task.entries))
    stages, forgotten = Stages(), frozenset(task.forgotten)
    facts: list[dict[str, Any]] = []
    listed = (Listed(entry.name, entry.etag, entry.size) for entry in task.entries)
    with PictureReader(source).read_ahead(listed) as reads:
        for entry in task.entries:
            with stages.timed("fetch"):
                data = next(reads)
            with stages.timed("decode"):
                facts.append({"uri": entry.uri, "etag": entry.etag, **_fact(entry, data, images, forgotten)})
    with stages.timed("write"):
        _commit(dataset, task, images, facts)
    rejects = sum("reason" in fact for fact in facts)
    return UnitResult(task.unit, len(task.entries), rejects, stages.seconds)


class Stages:
    """Seconds that a unit spent waiting for bytes, decoding, and writing."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the block's time for `stage`."""
        started = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started


def _fact(entry: Entry, data: bytes | PictureError, images: Images, forgotten: frozenset[str]) -> dict[str, Any]:
    """Where the picture lies: where it was known to lie, if its content proves that, else where it is put now."""
    if not isinstance(data, PictureError) and (entry.sample_id or forgotten):
        sample_id = sha256(data)
        if sample_id in forgotten:
            data = PictureError(Reason.FORGOTTEN, "erased on request; it must not come back")
        elif sample_id == entry.sample_id:
            return {"sample_id": sample_id, "shard": entry.shard, "row": entry.row}
    outcome = put_picture(data, images)
    if isinstance(outcome, PictureError):
        return {"reason": str(outcome.reason), "detail": outcome.detail}
    return {"sample_id": outcome, "row": len(images.sample_ids) - 1}


def put_picture(data: bytes | PictureError, images: Images) -> str | PictureError:
    """Decode a picture that was read into the next place of a shard; its sample_id, or why it has none."""
    if isinstance(data, PictureError):
        return data
    sample_id = sha256(data)
    try:
        images.add(data, sample_id)
    except PictureError as error:
        return error
    return sample_id


class Images(ABC):
    """The pictures of one shard as they are decoded."""

    def __init__(self, view: StoredView) -> None:
        self.view = view
        self.sample_ids: list[str] = []
        self.sizes: list[tuple[int, int]] = []

    def add(self, data: bytes, sample_id: str) -> None:
        """Decode one picture and keep it. Raises PictureError, having kept nothing."""
        self.sizes.append(self._decode(data))
        self.sample_ids.append(sample_id)

    def shard(self) -> memoryview:
        """Bytes of the Arrow file that holds them, in the order of adding."""
        columns = [
            pa.array(self.sample_ids, pa.string()),
            pa.array([width for width, _ in self.sizes], pa.int32()),
            pa.array([height for _, height in self.sizes], pa.int32()),
            self._column(),
        ]
        return to_ipc(pa.Table.from_arrays(columns, schema=shard_schema(self.view.size, self.view.store)))

    @abstractmethod
    def _decode(self, data: bytes) -> tuple[int, int]:
        """Decode into the next place; the original's width and height."""

    @abstractmethod
    def _column(self) -> pa.Array:
        """The `image` column."""


class _Pixels(Images):
    """uint8 [n, size, size, 3], decoded into the place where they are written from."""

    def __init__(self, view: StoredView, capacity: int) -> None:
        super().__init__(view)
        self._images = np.empty((capacity, view.size, view.size, 3), dtype=np.uint8)

    def _decode(self, data: bytes) -> tuple[int, int]:
        return decode_into(data, self.view, self._images[len(self.sample_ids)])

    def _column(self) -> pa.Array:
        size, count = self.view.size, len(self.sample_ids)
        flat = pa.FixedSizeListArray.from_arrays(pa.array(self._images[:count].reshape(-1)), size * size * 3)
        return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint8(), (size, size, 3)), flat)


class _Jpegs(Images):
    """JPEG files at the stored size."""

    def __init__(self, view: StoredView) -> None:
        super().__init__(view)
        self._files: list[bytes] = []

    def _decode(self, data: bytes) -> tuple[int, int]:
        encoded = decode_to_jpeg(data, self.view)
        self._files.append(encoded.jpeg)
        return encoded.width, encoded.height

    def _column(self) -> pa.Array:
        return pa.array(self._files, pa.large_binary())


def make_images(view: StoredView, capacity: int) -> Images:
    """A shard to be filled with at most `capacity` pictures."""
    return _Pixels(view, capacity) if view.store == "pixels" else _Jpegs(view)


def _commit(dataset: Store, task: ShardTask, images: Images, facts: list[dict[str, Any]]) -> None:
    objects: dict[str, ObjectRef] = {}
    if images.sample_ids:
        name = f"shards/{task.unit}-{{hash}}.arrow"
        objects["shard"] = put_object(dataset, name, images.shard(), len(images.sample_ids))
        for fact in facts:
            if "row" in fact and "shard" not in fact:
                fact["shard"] = objects["shard"].path
    table = pa.Table.from_pylist(facts, schema=FACTS)
    objects["facts"] = put_object(dataset, f"facts/{task.unit}-{{hash}}.parquet", to_parquet(table), len(facts))
    commit_unit(dataset, UnitMarker(unit=task.unit, objects=objects))
