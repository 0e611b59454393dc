"""What a job over many pictures would take: what is common to the forecasts of ingest and of labelling."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa

from afinar.sources.entry import Entry
from afinar.units.plan import iter_units
from afinar.units.progress import PhaseTimer

SAMPLE: Final = 200
_PER_LIST: Final = 1000  # objects to one answer of S3
_CHUNK: Final = 65_536


@dataclass(kw_only=True)
class Forecast:
    """What a job would do. Times are of `workers` processes, each as fast as this one was, Ray's start apart."""

    source: str
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


def sample_pending(work: pa.Table, source: str) -> list[Entry]:
    """A sample of a plan's open pictures that depends on them alone: those whose names hash lowest."""
    rows = sorted(row for _, row in heapq.nsmallest(SAMPLE, _hashed(work.column("uri"))))
    chosen = work.take(pa.array(rows, pa.int64()))
    return [entry for _, entries in iter_units(chosen, source) for entry in entries]


def _hashed(uris: pa.ChunkedArray) -> Iterator[tuple[bytes, int]]:
    for start in range(0, len(uris), _CHUNK):
        for row, uri in enumerate(uris.slice(start, _CHUNK).to_pylist(), start):
            yield hashlib.sha256(uri.encode()).digest(), row


def list_requests(pictures: int) -> int:
    """Requests that listing so many pictures takes."""
    return -(-pictures // _PER_LIST)


def time_fractions(stages: PhaseTimer) -> dict[str, float]:
    """Share of each stage in the time."""
    total = sum(stages.seconds.values()) or 1.0
    return {name: round(seconds / total, 3) for name, seconds in stages.seconds.items()}


class Sample:
    """A few pictures that were worked at as a unit would be, and what that took."""

    def __init__(self, pictures: int) -> None:
        self.pictures, self.bytes = pictures, 0
        self.stages = PhaseTimer()
        self.rejects: Counter[str] = Counter()

    @property
    def seconds_each(self) -> float:
        """Seconds of one process for one picture."""
        return sum(self.stages.seconds.values()) / max(self.pictures, 1)

    @property
    def bytes_each(self) -> float:
        """Bytes that would be written for one picture."""
        return self.bytes / max(self.pictures, 1)

    @property
    def reject_rate(self) -> float:
        """Share of pictures that could not be used."""
        return self.rejects.total() / max(self.pictures, 1)
