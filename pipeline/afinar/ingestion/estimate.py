"""Estimate an ingest: read and decode a sample of its pictures in this process and extrapolate."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Final

from afinar.config.ingest import IngestConfig
from afinar.ingestion.driver import IngestJob
from afinar.ingestion.parent import Parent
from afinar.ingestion.worker import BatchBuilder, make_batch_builder, process_picture
from afinar.pictures.decode import configure_pillow
from afinar.pictures.fetching import PictureReader, PictureRef
from afinar.pictures.preprocessing import StoredView
from afinar.sources.entry import Entry
from afinar.storage.multi_store import open_root
from afinar.storage.objects import sha256
from afinar.units.cut import count_pending, unit_names
from afinar.units.estimate import (
    ChooseLaunch,
    Forecast,
    Sample,
    extrapolate,
    launch_on_cluster,
    list_requests,
    measure_command,
    measure_imports,
    measure_ray_start,
    sample_pending,
)
from afinar.units.executor import InlineExecutor
from afinar.units.plans import left_out_of

_PUTS_PER_UNIT: Final = 3  # shard, facts, marker
_PUTS_PER_VERSION: Final = 5  # plan, index, rejects, list, manifest
_COMMAND_MODULES: Final = "afinar.ingestion.driver, afinar.report.dataset"
_WORKER_MODULES: Final = "afinar.ingestion.worker"


@dataclass(kw_only=True)
class IngestForecast(Forecast):
    """Estimate of an ingest."""

    dataset: str


def forecast_ingest(
    config: IngestConfig, choose_launch: ChooseLaunch = launch_on_cluster
) -> IngestForecast:
    """List the source, and read and decode a sample of the pictures to be read; writes nothing."""
    started = time.monotonic()
    job = IngestJob(config, InlineExecutor())
    current = job.open_current() if job.store.exists() else Parent(None, job.view)
    planned = job.make_plan(current)
    listing_s = time.monotonic() - started

    root = job.root_of(planned.table)
    sample = _measure(root, job.view, sample_pending(planned.table, root))
    pending = count_pending(planned.table, done=set())
    launch = choose_launch(pending, len(unit_names(planned.table)))
    if pending:
        sample.start_s = measure_imports(_WORKER_MODULES)
    if pending and launch.starts_ray:
        sample.start_s += measure_ray_start()
    estimate = extrapolate(
        planned.table,
        sample,
        workers=config.workers or launch.processes or os.cpu_count() or 1,
        listing_s=listing_s,
        command_s=measure_command(_COMMAND_MODULES) if pending else 0.0,
    )
    puts = estimate.units * _PUTS_PER_UNIT + (_PUTS_PER_VERSION if estimate.to_read else 0)
    return IngestForecast(
        **vars(estimate),
        source=job.source,
        dataset=job.store.root,
        requests={
            **_listing_requests(job, len(planned.table)),
            "GET": estimate.to_read,
            "PUT": puts,
        },
        notes=planned.notes,
        left_out=left_out_of(planned.table),
    )


def _listing_requests(job: IngestJob, listed: int) -> dict[str, int]:
    """Return an upper limit for a list: a folder with many of its pictures is listed instead."""
    return {"LIST": list_requests(listed)} if job.root else {"HEAD": listed}


def _measure(source: str, view: StoredView, entries: list[Entry]) -> Sample:
    """Read and decode pictures as a unit does, without writing to a store."""
    configure_pillow()
    sample = Sample(len(entries))
    batch = make_batch_builder(view)

    pictures = (PictureRef(entry.name, entry.etag, entry.size) for entry in entries)
    remote = any(entry.uri.startswith("s3://") for entry in entries)
    with PictureReader(open_root(source, remote=remote)).read_ahead(pictures) as reads:
        for entry in entries:
            with sample.timer.phase("fetch"):
                data = next(reads)
            with sample.timer.phase("decode"):
                outcome = process_picture(entry, data, batch, frozenset())
            if "reason" in outcome:
                sample.rejects[outcome["reason"]] += 1
            if batch.is_full:
                _serialize(batch, sample)
    _serialize(batch, sample)
    return sample


def _serialize(batch: BatchBuilder, sample: Sample) -> None:
    """Serialize and hash a batch as the shard writer does."""
    if not batch.count:
        return
    with sample.timer.phase("write"):
        data = batch.take_batch().serialize()
        sha256(memoryview(data))
    sample.bytes += data.size
