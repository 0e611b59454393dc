"""What an ingest would take: a sample of its pictures is read and decoded here, and the rest is arithmetic."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any, Final

import pyarrow.compute as pc

from afinar.config.jobs import IngestConfig
from afinar.dataset.manifest import current_manifest
from afinar.dataset.schema import OUTCOMES
from afinar.ingest.plan import make_plan
from afinar.ingest.publishing import parent_outcomes
from afinar.ingest.source import list_source
from afinar.ingest.worker import BatchBuilder, make_images, process_picture
from afinar.pictures.fetching import PictureReader, PictureRef
from afinar.pictures.preprocessing import StoredView
from afinar.sources.entry import Entry
from afinar.storage.objects import sha256
from afinar.storage.open import normalize_uri, open_reader, open_store
from afinar.units.estimate import Forecast, Sample, list_requests, sample_pending, time_fractions
from afinar.units.plan import unit_names

_PUTS_PER_UNIT: Final = 3  # shard, facts, marker
_PUTS_PER_VERSION: Final = 5  # plan, index, rejects, list, manifest


@dataclass(kw_only=True)
class IngestForecast(Forecast):
    """What an ingest would do."""

    dataset: str


def forecast_ingest(config: IngestConfig) -> IngestForecast:
    """Look at the source, and at a sample of what would be read; writes nothing."""
    started = time.monotonic()
    source, store = normalize_uri(config.source), open_store(config.dataset)
    view = StoredView(size=config.size, fit=config.fit, store=config.store)
    listing, notes = list_source(config)
    parent = current_manifest(store) if store.exists() else None
    known = parent_outcomes(store, parent, view) if parent else OUTCOMES.empty_table()
    plan = make_plan(listing, known, view, parent.version + 1 if parent else 1)
    listing_s = time.monotonic() - started
    work = plan.filter(pc.is_valid(plan.column("unit")))
    sample = _Sample(source, view, sample_pending(work, source))
    workers = config.workers or os.cpu_count() or 1
    units, to_read = len(unit_names(plan)), len(work)
    seconds = sample.seconds_each * to_read / workers
    return IngestForecast(
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
        stages=time_fractions(sample.stages),
        bytes_read=pc.sum(work.column("size")).as_py() or 0,
        bytes_written=round(sample.bytes_each * to_read),
        requests={
            "LIST": list_requests(len(listing)),
            "GET": to_read,
            "PUT": units * _PUTS_PER_UNIT + (_PUTS_PER_VERSION if to_read else 0),
        },
        notes=notes,
    )


class _Sample(Sample):
    """A few pictures read and decoded as a unit would, and what that took."""

    def __init__(self, source: str, view: StoredView, entries: list[Entry]) -> None:
        super().__init__(len(entries))
        images = make_images(view)
        listed = (PictureRef(entry.name, entry.etag, entry.size) for entry in entries)
        with PictureReader(open_reader(source)).read_ahead(listed) as reads:
            for entry in entries:
                with self.stages.phase("fetch"):
                    data = next(reads)
                with self.stages.phase("decode"):
                    self._count(process_picture(entry, data, images, frozenset()))
                if images.is_full:
                    self._write(images)
        self._write(images)

    def _write(self, images: BatchBuilder) -> None:
        """What a shard's writer does, but for the store: that is not to be touched."""
        if not images.count:
            return
        with self.stages.phase("write"):
            data = images.take_batch().serialize()
            sha256(memoryview(data))
        self.bytes += data.size

    def _count(self, fact: dict[str, Any]) -> None:
        if "reason" in fact:
            self.rejects[fact["reason"]] += 1
