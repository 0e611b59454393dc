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
from afinar.labelling.driver import Labelling
from afinar.labelling.tasks import LabelSpec
from afinar.predictions.current import PublishedRows, read_published_rows
from afinar.predictions.manifest import PredictionManifest
from afinar.predictions.schema import PUBLISHED
from afinar.sources.entry import Entry
from afinar.storage.arrow import to_parquet
from afinar.storage.multi_store import MultiStore
from afinar.storage.open import normalize_uri
from afinar.units.cut import unit_names
from afinar.units.estimate import Forecast, Sample, time_fractions
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
    """Look at the source, and label a sample of what would be labelled; writes nothing."""
    started = time.monotonic()
    job = Labelling(config, InlineExecutor())
    there = job.store.exists()
    state = (
        read_published_rows(job.store, job.partition)
        if there
        else PublishedRows(job.partition, PredictionManifest(), [], PUBLISHED.empty_table())
    )
    plan = job.planned(state)
    work = plan.filter(pc.is_valid(plan.column("unit")))
    listing_s = time.monotonic() - started
    sample = _Sample(job.spec(len(work)), job.source.sample(work))
    workers = config.workers or sample.workers_here
    units, to_read = len(unit_names(plan)), len(work)
    seconds = sample.seconds_each * to_read / workers
    return LabelForecast(
        source=job.source.uri,
        predictions=job.out,
        model=job.model,
        listed=len(plan),
        to_read=to_read,
        units=units,
        workers=workers,
        sampled=sample.pictures,
        sample_rejects=dict(sample.rejects),
        listing_seconds=round(listing_s, 2),
        start_seconds=round(sample.start_s, 2),
        seconds=round(listing_s + sample.start_s + seconds, 1),
        images_per_second=round(to_read / seconds, 1) if seconds else 0.0,
        stages=time_fractions(sample.stages),
        bytes_read=pc.sum(work.column("size")).as_py() or 0,
        bytes_written=round(sample.bytes_each * to_read),
        requests=job.source.requests(len(plan), work)
        | {"PUT": _puts(units, to_read, sample.reject_rate)},
        notes=job.notes,
    )


def _puts(units: int, pictures: int, reject_rate: float) -> int:
    """Objects that are written; a unit writes its rejects where it has any."""
    if not units:
        return 0
    with_rejects = units * (1 - math.pow(1 - reject_rate, pictures / units))
    return units * _PUTS_PER_UNIT + round(with_rejects) + _PUTS_PER_VERSION


class _Sample(Sample):
    """A few pictures labelled as a unit would be, and what that took."""

    def __init__(self, spec: LabelSpec, entries: list[Entry]) -> None:
        super().__init__(len(entries))
        self.start_s, self.workers_here = 0.0, os.cpu_count() or 1
        if entries:
            self._label(spec, tuple(entries))

    def _label(self, spec: LabelSpec, entries: tuple[Entry, ...]) -> None:
        started = time.monotonic()
        import torch  # the driver of a labelling never does this; a plan is its own worker

        from afinar.labelling.worker import Labeller

        labeller = Labeller(spec)
        self.start_s = time.monotonic() - started
        self.workers_here = torch.cuda.device_count() or self.workers_here
        rows, rejects = labeller.answers(entries, self.stages)
        with self.stages.phase("write"):  # but for the store: that is not to be touched
            self.bytes = len(to_parquet(pa.Table.from_pylist(rows, schema=spec.extras.schema)))
        self.rejects.update(one["reason"] for one in rejects)


_NEEDED: Final = (
    "source",
    "model",
    "to_read",
    "listing_seconds",
    "start_seconds",
    "seconds",
    "images_per_second",
)


def read_forecast(path: str, job: Labelling) -> dict[str, Any]:
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
