"""Building one shard: read, decode, resize and write, in one process, committed by its marker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

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
    images = _images(task.view, len(task.entries))
    stages, forgotten = Stages(), frozenset(task.forgotten)
    facts: list[dict[str, Any]] = []
    listed = (Listed(entry.name, entry.etag, entry.size) for entry in task.entries)
    reads = PictureReader(source).read_ahead(listed)
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
    return {"sample_id": sample_id, "row": len(images.sample_ids) - 1}


def _reject(error: PictureError) -> dict[str, Any]:
    return {"reason": str(error.reason), "detail": error.detail}


class Images(Protocol):
    """The pictures of one shard as they are decoded."""

    sample_ids: list[str]
    sizes: list[tuple[int, int]]

    def add(self, data: bytes, sample_id: str) -> None:
        """Decode one picture and keep it. Raises PictureError, having kept nothing."""
        ...

    def column(self) -> pa.Array:
        """The `image` column, in the order of adding."""
        ...


class _Pixels:
    """uint8 [n, size, size, 3], decoded into the place where they are written from."""

    def __init__(self, view: StoredView, capacity: int) -> None:
        self._view = view
        self._images = np.empty((capacity, view.size, view.size, 3), dtype=np.uint8)
        self.sample_ids: list[str] = []
        self.sizes: list[tuple[int, int]] = []

    def add(self, data: bytes, sample_id: str) -> None:
        self.sizes.append(decode_into(data, self._view, self._images[len(self.sample_ids)]))
        self.sample_ids.append(sample_id)

    def column(self) -> pa.Array:
        size, count = self._view.size, len(self.sample_ids)
        flat = pa.FixedSizeListArray.from_arrays(pa.array(self._images[:count].reshape(-1)), size * size * 3)
        return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint8(), (size, size, 3)), flat)


class _Jpegs:
    """JPEG files at the stored size."""

    def __init__(self, view: StoredView) -> None:
        self._view = view
        self._files: list[bytes] = []
        self.sample_ids: list[str] = []
        self.sizes: list[tuple[int, int]] = []

    def add(self, data: bytes, sample_id: str) -> None:
        encoded = decode_to_jpeg(data, self._view)
        self._files.append(encoded.jpeg)
        self.sizes.append((encoded.width, encoded.height))
        self.sample_ids.append(sample_id)

    def column(self) -> pa.Array:
        return pa.array(self._files, pa.large_binary())


def _images(view: StoredView, capacity: int) -> Images:
    return _Pixels(view, capacity) if view.store == "pixels" else _Jpegs(view)


def _commit(dataset: Store, task: ShardTask, images: Images, facts: list[dict[str, Any]]) -> None:
    objects: dict[str, ObjectRef] = {}
    if images.sample_ids:
        data = to_ipc(_shard_table(task.view, images))
        name = f"shards/{task.unit}-{{hash}}.arrow"
        objects["shard"] = put_object(dataset, name, data, len(images.sample_ids))
        for fact in facts:
            if "row" in fact and "shard" not in fact:
                fact["shard"] = objects["shard"].path
    table = pa.Table.from_pylist(facts, schema=FACTS)
    objects["facts"] = put_object(dataset, f"facts/{task.unit}-{{hash}}.parquet", to_parquet(table), len(facts))
    commit_unit(dataset, UnitMarker(unit=task.unit, objects=objects))


def _shard_table(view: StoredView, images: Images) -> pa.Table:
    columns = [
        pa.array(images.sample_ids, pa.string()),
        pa.array([width for width, _ in images.sizes], pa.int32()),
        pa.array([height for _, height in images.sizes], pa.int32()),
        images.column(),
    ]
    return pa.Table.from_arrays(columns, schema=shard_schema(view.size, view.store))
