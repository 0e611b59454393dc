"""Building one shard: read, decode, resize and write, in one process, committed by its marker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.dataset.schema import FACTS, Entry, shard_schema
from pipeline.dataset.tables import to_ipc, to_parquet
from pipeline.errors import PictureError
from pipeline.ingest.plan import ShardTask
from pipeline.pictures.decode import Decoded, decode
from pipeline.pictures.reading import PictureReader
from pipeline.storage.commit import UnitMarker, commit_unit
from pipeline.storage.objects import ObjectRef, put_object, sha256
from pipeline.storage.store import Store, open_store


@dataclass(frozen=True, slots=True)
class UnitResult:
    """What a worker tells the driver: counts only; everything else lies in the store."""

    unit: str
    pictures: int
    rejects: int


def build_shard(task: ShardTask) -> UnitResult:
    """Carry out one unit of an ingest. Running it twice changes nothing that was published."""
    source, dataset = open_store(task.source), open_store(task.dataset)
    reader = PictureReader(source)
    samples: list[tuple[str, Decoded]] = []
    facts: list[dict[str, Any]] = []
    for entry in task.entries:
        fact: dict[str, Any] = {"uri": entry.uri, "etag": entry.etag}
        try:
            sample = _read_sample(reader, entry, task)
        except PictureError as error:
            fact |= {"reason": str(error.reason), "detail": error.detail}
        else:
            fact |= {"sample_id": sample[0], "row": len(samples)}
            samples.append(sample)
        facts.append(fact)
    _commit(dataset, task, samples, facts)
    return UnitResult(task.unit, len(task.entries), len(task.entries) - len(samples))


def _read_sample(reader: PictureReader, entry: Entry, task: ShardTask) -> tuple[str, Decoded]:
    data = reader.read(entry.name, entry.etag, entry.size)
    return sha256(data), decode(data, task.view)


def _commit(dataset: Store, task: ShardTask, samples: list[tuple[str, Decoded]], facts: list[dict[str, Any]]) -> None:
    objects: dict[str, ObjectRef] = {}
    if samples:
        data = to_ipc(_shard_table(samples, task.view.size))
        objects["shard"] = put_object(dataset, f"shards/{task.unit}-{{hash}}.arrow", data, len(samples))
        for fact in facts:
            if "sample_id" in fact:
                fact["shard"] = objects["shard"].path
    table = pa.Table.from_pylist(facts, schema=FACTS)
    objects["facts"] = put_object(dataset, f"facts/{task.unit}-{{hash}}.parquet", to_parquet(table), len(facts))
    commit_unit(dataset, UnitMarker(unit=task.unit, objects=objects))


def _shard_table(samples: list[tuple[str, Decoded]], size: int) -> pa.Table:
    schema = shard_schema(size)
    pixels = np.concatenate([decoded.image.reshape(-1) for _, decoded in samples])
    flat = pa.FixedSizeListArray.from_arrays(pa.array(pixels), size * size * 3)
    images = pa.ExtensionArray.from_storage(schema.field("image").type, flat)
    columns = [
        pa.array([sample_id for sample_id, _ in samples], pa.string()),
        pa.array([decoded.width for _, decoded in samples], pa.int32()),
        pa.array([decoded.height for _, decoded in samples], pa.int32()),
        images,
    ]
    return pa.Table.from_arrays(columns, schema=schema)
