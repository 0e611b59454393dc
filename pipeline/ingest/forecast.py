"""What an ingest would take: a sample of its pictures is read and decoded here, and the rest is arithmetic."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import IngestConfig
from pipeline.dataset.manifest import current_manifest
from pipeline.dataset.schema import FACTS, Entry
from pipeline.dataset.units import unit_names, units_of
from pipeline.ingest.plan import make_plan
from pipeline.ingest.publishing import known_facts
from pipeline.ingest.shard import Images, make_images, what_became_of
from pipeline.ingest.source import look_at_source
from pipeline.pictures.contract import StoredView
from pipeline.pictures.reading import Listed, PictureReader
from pipeline.storage.objects import sha256
from pipeline.storage.store import normalise, open_store
from pipeline.work import Stages

SAMPLE: Final = 200
_PUTS_PER_UNIT: Final = 3  # shard, facts, marker
_PUTS_PER_VERSION: Final = 5  # plan, index, rejects, list, manifest
_PER_LIST: Final = 1000  # objects to one answer of S3


@dataclass(kw_only=True)
class Forecast:
    """What an ingest would do. Times are of `workers` processes, each as fast as this one was, Ray's start apart."""

    source: str
    dataset: str
    listed: int
    to_read: int
    units: int
    workers: int
    sampled: int
    sample_rejects: dict[str, int]
    listing_seconds: float
    seconds: float
    images_per_second: float
    stages: dict[str, float]
    bytes_read: int
    bytes_written: int
    requests: dict[str, int]
    notes: list[str] = field(default_factory=list)


def forecast_ingest(config: IngestConfig) -> Forecast:
    """Look at the source, and at a sample of what would be read; writes nothing."""
    started = time.monotonic()
    source, store = normalise(config.source), open_store(config.dataset)
    view = StoredView(size=config.size, fit=config.fit, store=config.store)
    listing, notes = look_at_source(config)
    parent = current_manifest(store) if store.exists() else None
    known = known_facts(store, parent, view) if parent else FACTS.empty_table()
    plan = make_plan(listing, known, view, parent.version + 1 if parent else 1)
    listing_s = time.monotonic() - started
    work = plan.filter(pc.is_valid(plan.column("unit")))
    sample = _Sample(source, view, _draw(work, source))
    workers = config.workers or os.cpu_count() or 1
    units, to_read = len(unit_names(plan)), len(work)
    seconds = sample.seconds_each * to_read / workers
    return Forecast(
        source=source,
        dataset=store.root,
        listed=len(listing),
        to_read=to_read,
        units=units,
        workers=workers,
        sampled=sample.pictures,
        sample_rejects=dict(sample.rejects),
        listing_seconds=round(listing_s, 2),
        seconds=round(listing_s + seconds, 1),
        images_per_second=round(to_read / seconds, 1) if seconds else 0.0,
        stages=sample.shares(),
        bytes_read=pc.sum(work.column("size")).as_py() or 0,
        bytes_written=round(sample.bytes_each * to_read),
        requests={
            "LIST": -(-len(listing) // _PER_LIST),
            "GET": to_read,
            "PUT": units * _PUTS_PER_UNIT + (_PUTS_PER_VERSION if to_read else 0),
        },
        notes=notes,
    )


def _draw(work: pa.Table, source: str) -> list[Entry]:
    """A sample that depends on the pictures alone: those whose names hash lowest."""
    uris = work.column("uri").to_pylist()
    lowest = sorted(range(len(uris)), key=lambda row: hashlib.sha256(uris[row].encode()).digest())[:SAMPLE]
    chosen = work.take(pa.array(sorted(lowest), pa.int64()))
    return [entry for _, entries in units_of(chosen, source) for entry in entries]


class _Sample:
    """A few pictures read and decoded as a unit would, and what that took."""

    def __init__(self, source: str, view: StoredView, entries: list[Entry]) -> None:
        self.pictures = len(entries)
        self.rejects: Counter[str] = Counter()
        self._stages, self._bytes = Stages(), 0
        images = make_images(view)
        listed = (Listed(entry.name, entry.etag, entry.size) for entry in entries)
        with PictureReader(open_store(source)).read_ahead(listed) as reads:
            for entry in entries:
                with self._stages.timed("fetch"):
                    data = next(reads)
                with self._stages.timed("decode"):
                    self._count(what_became_of(entry, data, images, frozenset()))
                if images.is_full:
                    self._write(images)
        self._write(images)

    def _write(self, images: Images) -> None:
        """What a shard's writer does, but for the store: that is not to be touched."""
        if not images.count:
            return
        with self._stages.timed("write"):
            data = images.take_batch().serialize()
            sha256(memoryview(data))
        self._bytes += data.size

    def _count(self, fact: dict[str, Any]) -> None:
        if "reason" in fact:
            self.rejects[fact["reason"]] += 1

    @property
    def seconds_each(self) -> float:
        """Seconds of one process for one picture."""
        return sum(self._stages.seconds.values()) / max(self.pictures, 1)

    @property
    def bytes_each(self) -> float:
        """Bytes of shard for one picture."""
        return self._bytes / max(self.pictures, 1)

    def shares(self) -> dict[str, float]:
        """Share of each stage in the time."""
        total = sum(self._stages.seconds.values()) or 1.0
        return {name: round(seconds / total, 3) for name, seconds in self._stages.seconds.items()}
