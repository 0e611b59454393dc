"""Estimates of jobs that work in units: measure a sample in this process and extrapolate."""

from __future__ import annotations

import hashlib
import heapq
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from afinar.sources.entry import Entry
from afinar.units.cut import iter_units, unit_names
from afinar.units.progress import PhaseTimer

SAMPLE: Final = 200  # pictures
# Start and end of a local Ray take as long as so many starts of a process that imports ray: it took
# 4.4 and 1.2 s where that took 0.55 s.
_RAY_PROCESSES: Final = 10.0
# A command's arguments, plan, manifest and page take half as long again as its imports.
_COMMAND_IMPORTS: Final = 1.5
_PER_LIST: Final = 1000  # objects in one answer of S3
_CHUNK: Final = 65_536  # uris that are Python objects at a time


@dataclass(kw_only=True)
class Estimate:
    """Extrapolation from a sample to all pending pictures, with `workers` processes like this one.

    Times are in seconds. `command_seconds` is the time in which the command loads its modules and
    writes its manifest and page, `start_seconds` that until workers are ready: the start of Ray, of
    processes, and of what they load. `seconds` is the sum of all. `stages` are fractions of a
    unit's time by phase."""

    listed: int
    to_read: int
    units: int
    workers: int
    sampled: int
    sample_rejects: dict[str, int]
    listing_seconds: float
    command_seconds: float
    start_seconds: float
    seconds: float
    images_per_second: float
    stages: dict[str, float]
    bytes_read: int
    bytes_written: int


@dataclass(kw_only=True)
class Forecast(Estimate):
    """Estimate of one job: what `afinar plan` prints."""

    source: str
    requests: dict[str, int]
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Sample:
    """Cost of `pictures` pictures that this process handled as a worker would.

    `bytes` is what would be written, `start_s` the time until a worker is ready.
    """

    pictures: int
    bytes: int = 0
    start_s: float = 0.0
    timer: PhaseTimer = field(default_factory=PhaseTimer)
    rejects: Counter[str] = field(default_factory=Counter)

    @property
    def seconds_each(self) -> float:
        """Seconds of one process for one picture."""
        return sum(self.timer.seconds.values()) / max(self.pictures, 1)

    @property
    def bytes_each(self) -> float:
        """Bytes that would be written for one picture."""
        return self.bytes / max(self.pictures, 1)

    @property
    def reject_rate(self) -> float:
        """Fraction of pictures that could not be used."""
        return self.rejects.total() / max(self.pictures, 1)


@dataclass(frozen=True)
class Launch:
    """Number of processes of a job, 0 for one per core or GPU; whether it starts a local Ray.

    `cores` are those of each process.
    """

    starts_ray: bool = False
    processes: int = 0
    cores: int = 1


ChooseLaunch = Callable[[int, int], Launch]
"""Function that returns how a job of so many pictures in so many units would run."""


def launch_on_cluster(pictures: int, units: int) -> Launch:
    """Return the launch of a job on a cluster that runs already."""
    del pictures, units
    return Launch()


def measure_imports(modules: str) -> float:
    """Return the seconds from the start of a process of afinar until it has imported `modules`.

    `modules` are separated by commas. One such process is started here, so the result is that of
    this machine as busy as it is now.
    """
    code = f"from afinar.units.pyarrow_setup import forgo_pandas; forgo_pandas(); import {modules}"
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.monotonic() - started


def measure_ray_start() -> float:
    """Return an estimate of the seconds in which a local Ray starts and ends."""
    return _RAY_PROCESSES * measure_imports("ray")


def measure_command(modules: str) -> float:
    """Return an estimate of the seconds of a command without its listing and its units."""
    return _COMMAND_IMPORTS * measure_imports(modules)


def extrapolate(
    plan: pa.Table, sample: Sample, *, workers: int, listing_s: float, command_s: float = 0.0
) -> Estimate:
    """Extrapolate the cost of a sample to all pictures of a plan (PLAN) that have a unit.

    Example: 200 pictures took 0.5 s; of 10,000 pending pictures two workers take 10,000 x 0.0025 /
    2 = 12.5 s, besides listing and start. No more workers than units have work."""
    pending = plan.filter(pc.is_valid(plan.column("unit")))
    units = len(unit_names(plan))
    seconds = sample.seconds_each * len(pending) / max(1, min(workers, units))

    return Estimate(
        listed=len(plan),
        to_read=len(pending),
        units=units,
        workers=workers,
        sampled=sample.pictures,
        sample_rejects=dict(sample.rejects),
        listing_seconds=round(listing_s, 2),
        command_seconds=round(command_s, 2),
        start_seconds=round(sample.start_s, 2),
        seconds=round(command_s + listing_s + sample.start_s + seconds, 1),
        images_per_second=round(len(pending) / seconds, 1) if seconds else 0.0,
        stages=_time_fractions(sample.timer),
        bytes_read=pc.sum(pending.column("size")).as_py() or 0,
        bytes_written=round(sample.bytes_each * len(pending)),
    )


def sample_pending(plan: pa.Table, source: str) -> list[Entry]:
    """Return the pending pictures of a plan with the lowest hashes of their uris.

    The sample is a function of the pictures alone, so that a repeated estimate measures the same.
    """
    pending = plan.filter(pc.is_valid(plan.column("unit")))
    lowest = heapq.nsmallest(SAMPLE, _hashed(pending.column("uri")))
    rows = sorted(row for _, row in lowest)
    chosen = pending.take(pa.array(rows, pa.int64()))
    return [entry for _, entries in iter_units(chosen, source) for entry in entries]


def _hashed(uris: pa.ChunkedArray) -> Iterator[tuple[bytes, int]]:
    for start in range(0, len(uris), _CHUNK):
        for row, uri in enumerate(uris.slice(start, _CHUNK).to_pylist(), start):
            yield hashlib.sha256(uri.encode()).digest(), row


def list_requests(pictures: int) -> int:
    """Return the number of requests that list so many pictures."""
    return -(-pictures // _PER_LIST)


def _time_fractions(timer: PhaseTimer) -> dict[str, float]:
    total = sum(timer.seconds.values()) or 1.0
    return {phase: round(seconds / total, 3) for phase, seconds in timer.seconds.items()}
