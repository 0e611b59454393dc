"""Estimate a labelling from a sample that this process labels; compare it with the time taken."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from typing import Any, Final, TypedDict

from afinar.config.label import LabelConfig
from afinar.config.strict import Count
from afinar.errors import RequestError, StorageError
from afinar.labelling.driver import LabelJob
from afinar.labelling.tasks import LabelSpec
from afinar.predictions.current import PublishedRows
from afinar.sources.entry import Entry
from afinar.storage.arrow import to_parquet
from afinar.storage.open import read_uri
from afinar.storage.records import as_record, parse_object
from afinar.units.cut import count_pending, unit_names
from afinar.units.estimate import (
    ChooseLaunch,
    Forecast,
    Sample,
    extrapolate,
    launch_on_cluster,
    measure_command,
    measure_imports,
    measure_ray_start,
)
from afinar.units.executor import InlineExecutor
from afinar.units.plans import left_out_of

_PUTS_PER_UNIT: Final = 2  # part, marker; a unit with rejects puts one more
_PUTS_PER_VERSION: Final = 3  # plan, list, manifest
_COMMAND_MODULES: Final = "afinar.labelling.driver, afinar.report.labelling"
_WORKER_MODULES: Final = "afinar.labelling.worker, afinar.models.networks.vision"


@dataclass(kw_only=True)
class LabelForecast(Forecast):
    """Estimate of a labelling."""

    predictions: str
    model: str


def forecast_label(
    config: LabelConfig, choose_launch: ChooseLaunch = launch_on_cluster
) -> LabelForecast:
    """List the source, and label a sample of the pending pictures; writes nothing."""
    started = time.monotonic()
    job = LabelJob(config, InlineExecutor())
    current = job.open_current() if job.store.exists() else PublishedRows.empty(job.partition)
    planned = job.make_plan(current)
    listing_s = time.monotonic() - started

    pending = count_pending(planned.table, done=set())
    entries = tuple(job.source.sample(planned.table)) if pending else ()
    launch = choose_launch(pending, len(unit_names(planned.table)))
    sample = _measure(job.spec(pending), entries, launch.cores) if entries else Sample(0)
    if entries:
        # The model was loaded in this process, which had imported everything for it.
        sample.start_s += measure_imports(_WORKER_MODULES)
    if entries and launch.starts_ray:
        sample.start_s += measure_ray_start()
    workers = config.workers or launch.processes
    estimate = extrapolate(
        planned.table,
        sample,
        workers=workers or (_local_workers() if entries else os.cpu_count() or 1),
        listing_s=listing_s,
        command_s=measure_command(_COMMAND_MODULES) if pending else 0.0,
    )
    puts = _puts(estimate.units, estimate.to_read, sample.reject_rate)
    return LabelForecast(
        **vars(estimate),
        source=job.source.uri,
        predictions=job.out,
        model=job.model,
        requests=job.source.count_requests(planned.table) | {"PUT": puts},
        notes=planned.notes,
        left_out=left_out_of(planned.table),
    )


def _local_workers() -> int:
    import torch

    return torch.cuda.device_count() or os.cpu_count() or 1


def _measure(spec: LabelSpec, entries: tuple[Entry, ...], cores: int) -> Sample:
    """Label pictures as a unit does, on so many cores, without writing to a store."""
    # Before the clock starts: torch, which no driver needs, and torchvision.
    import afinar.models.networks.vision  # noqa: F401
    from afinar.inference.cpu import as_worker
    from afinar.labelling.worker import make_labeller

    sample = Sample(len(entries))
    with as_worker(cores):
        started = time.monotonic()
        labeller = make_labeller(spec)
        sample.start_s = time.monotonic() - started

        rows = labeller.label(entries, sample.timer)
        with sample.timer.phase("write"):
            sample.bytes = len(to_parquet(labeller.table(rows)))
    sample.rejects.update(reject["reason"] for reject in rows.rejects)
    return sample


def _puts(units: int, pictures: int, reject_rate: float) -> int:
    """Return the number of objects that are written. A unit without rejects writes no file of them.

    If one picture in a hundred is rejected, a unit of 512 pictures has a reject with probability
    1 - 0.99**512 = 0.994.
    """
    if not units:
        return 0
    with_rejects = units * (1 - math.pow(1 - reject_rate, pictures / units))
    return units * _PUTS_PER_UNIT + round(with_rejects) + _PUTS_PER_VERSION


_REMEDY: Final = "give what `afinar plan label … --json` printed"


class _StoredForecast(TypedDict):
    source: str
    model: str
    to_read: Count
    listing_seconds: float
    start_seconds: float
    seconds: float
    images_per_second: float


def read_forecast(path: str, job: LabelJob) -> dict[str, Any]:
    """Return the object that `afinar plan label --json` printed.

    Raises RequestError for any other file, and for the estimate of another job.
    """
    try:
        data = read_uri(path)
    except StorageError as error:
        raise RequestError(f"--forecast: cannot read {error}") from error
    forecast = parse_object(data, f"--forecast {path}", _REMEDY)
    as_record(forecast, _StoredForecast, f"--forecast {path}", _REMEDY)
    if (forecast["source"], forecast["model"]) != (job.source.uri, job.model):
        raise RequestError(
            f"--forecast {path} is of {forecast['source']} with {forecast['model']}, "
            f"and this is {job.source.uri} with {job.model}"
        )

    return forecast


def forecast_error(forecast: dict[str, Any], summary: dict[str, Any]) -> dict[str, float]:
    """Return the estimated `seconds` for the pictures that a run read, and its relative `error`.

    An error of 0.1 means that the run took 10 % longer. A resumed run has read fewer pictures than
    were estimated; only those are compared.
    """
    estimated = forecast["listing_seconds"]
    if summary["read"]:
        rate = max(forecast["images_per_second"], 1e-9)
        estimated += forecast["start_seconds"] + summary["read"] / rate
    error = summary["seconds"] / max(estimated, 1e-9) - 1

    return {"seconds": round(estimated, 1), "error": round(error, 3)}
