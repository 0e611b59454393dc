"""What a labelling would take: a sample is labelled here as a worker would, and the rest is arithmetic.

Afterwards the forecast is held against what the labelling took.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from afinar.config.label import LabelConfig
from afinar.errors import RequestError, StorageError
from afinar.labelling.driver import LabelJob
from afinar.labelling.tasks import LabelSpec
from afinar.predictions.current import PublishedRows
from afinar.sources.entry import Entry
from afinar.storage.arrow import to_parquet
from afinar.storage.multi_store import MultiStore
from afinar.storage.open import normalize_uri
from afinar.units.estimate import Forecast, Sample, extrapolate
from afinar.units.executor import InlineExecutor

_PUTS_PER_UNIT: Final = 2  # part, marker; and rejects, where it has any
_PUTS_PER_VERSION: Final = 3  # plan, list, manifest


@dataclass(kw_only=True)
class LabelForecast(Forecast):
    """What a labelling would do. `start_seconds` is what a worker takes to load the model and prove it."""

    predictions: str
    model: str
    start_seconds: float


def forecast_label(config: LabelConfig) -> LabelForecast:
    """List the source, and label a sample of the pending pictures; writes nothing."""
    started = time.monotonic()
    job = LabelJob(config, InlineExecutor())
    current = job.open_current() if job.store.exists() else PublishedRows.empty(job.partition)
    planned = job.make_plan(current)
    listing_s = time.monotonic() - started

    pending = planned.table.filter(pc.is_valid(planned.table.column("unit")))
    entries = tuple(job.source.sample(pending))
    sample = _measure(job.spec(len(pending)), entries) if entries else Sample(0)
    workers = config.workers or (_local_workers() if entries else os.cpu_count() or 1)
    estimate = extrapolate(planned.table, sample, workers=workers, listing_s=listing_s)
    puts = _puts(estimate.units, estimate.to_read, sample.reject_rate)
    return LabelForecast(
        **vars(estimate),
        source=job.source.uri,
        predictions=job.out,
        model=job.model,
        start_seconds=round(sample.start_s, 2),
        requests=job.source.requests(estimate.listed, pending) | {"PUT": puts},
        notes=planned.notes,
    )


def _local_workers() -> int:
    import torch

    return torch.cuda.device_count() or os.cpu_count() or 1


def _measure(spec: LabelSpec, entries: tuple[Entry, ...]) -> Sample:
    """Label pictures as a unit does, without writing to a store."""
    from afinar.labelling.worker import Labeller  # imports torch, which a driver never needs

    sample = Sample(len(entries))
    started = time.monotonic()
    labeller = Labeller(spec)
    sample.start_s = time.monotonic() - started

    rows, rejects = labeller.answers(entries, sample.timer)
    with sample.timer.phase("write"):
        table = pa.Table.from_pylist(rows, schema=spec.extras.schema)
        sample.bytes = len(to_parquet(table))
    sample.rejects.update(reject["reason"] for reject in rejects)
    return sample


def _puts(units: int, pictures: int, reject_rate: float) -> int:
    """Objects that are written; a unit writes its rejects where it has any."""
    if not units:
        return 0
    with_rejects = units * (1 - math.pow(1 - reject_rate, pictures / units))
    return units * _PUTS_PER_UNIT + round(with_rejects) + _PUTS_PER_VERSION


_NEEDED: Final = (
    "source",
    "model",
    "to_read",
    "listing_seconds",
    "start_seconds",
    "seconds",
    "images_per_second",
)


def read_forecast(path: str, job: LabelJob) -> dict[str, Any]:
    """What `afinar plan label --json` printed. Raises RequestError for another file, or the forecast of another job."""
    try:
        forecast = json.loads(MultiStore(remote=False).get(normalize_uri(path)))
    except StorageError as error:
        raise RequestError(f"--forecast: cannot read {error}") from error
    except ValueError as error:
        raise RequestError(f"--forecast {path} is not JSON: {error}") from error
    if not isinstance(forecast, dict) or any(name not in forecast for name in _NEEDED):
        raise RequestError(f"--forecast {path}: give what `afinar plan label … --json` printed")
    if (forecast["source"], forecast["model"]) != (job.source.uri, job.model):
        raise RequestError(
            f"--forecast {path} is of {forecast['source']} with {forecast['model']}, "
            f"and this is {job.source.uri} with {job.model}"
        )
    return forecast


def forecast_error(forecast: dict[str, Any], summary: dict[str, Any]) -> dict[str, float]:
    """What was foreseen for the pictures that a run has read, `seconds`, and its `error`.

    An error of 0.1 says that the run took a tenth longer; Ray's start is in the run and not in the forecast. A run that
    went on from an interrupted one has read fewer pictures than were foreseen, and is held against these.
    """
    foreseen = forecast["listing_seconds"]
    if summary["read"]:
        foreseen += forecast["start_seconds"] + summary["read"] / max(
            forecast["images_per_second"], 1e-9
        )
    return {
        "seconds": round(foreseen, 1),
        "error": round(summary["seconds"] / max(foreseen, 1e-9) - 1, 3),
    }
