"""Progress of a job: seconds by phase, a bar on a terminal, a line every ten seconds in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.progress import Progress

logger = logging.getLogger(__name__)


SHORT_S: Final = 10.0
"""Seconds of work below which no phase is called the limit of a job."""


class PhaseTimer:
    """Seconds that a unit spent in each phase of its work: fetch, decode, forward, write."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to a phase."""
        started = time.perf_counter()
        yield
        elapsed = time.perf_counter() - started
        self.seconds[name] = self.seconds.get(name, 0.0) + elapsed


class ProgressReporter:
    """Reports rate, time left, rejects and the limiting phase: as a bar, or as log lines.

    Until the first items are done the bar says that workers start.

    `name` is the work in progress, `total` the number of items, `item` what is counted.
    """

    EVERY_S = 10.0

    def __init__(self, name: str, total: int, item: str = "pictures") -> None:
        self._name, self._total, self._item = name, total, item
        self._done = self._rejects = 0
        self._phases: dict[str, float] = {}
        self._started = self._logged = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = _bar()
            self._task = self._bar.add_task(name, total=total, note="starting workers")

    def __enter__(self) -> ProgressReporter:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def add(self, done: int, rejects: int = 0, phases: Mapping[str, float] | None = None) -> None:
        """Count `done` items, `rejects` of them not usable; `phases` are seconds by phase."""
        self._done += done
        self._rejects += rejects

        # Old units count for less: the report is about what limits the work now.
        for phase, seconds in (phases or {}).items():
            self._phases[phase] = self._phases.get(phase, 0.0) / 2 + seconds

        if self._bar:
            self._bar.update(self._task, completed=self._done, note=self._note())
        elif time.monotonic() - self._logged > self.EVERY_S:
            self._logged = time.monotonic()
            left_s = (self._total - self._done) / max(self._rate(), 1e-9)
            logger.info(
                f"{self._name}: {self._done} of {self._total} {self._item}, {self._note()}, "
                f"{format_duration(left_s)} left"
            )

    def _rate(self) -> float:
        return self._done / max(time.monotonic() - self._started, 1e-9)

    def _note(self) -> str:
        notes = [f"{self._rate():.0f}/s"]
        if self._rejects:
            notes.append(f"{self._rejects} rejected")
        if limit := limiting_phase(self._phases):
            notes.append(f"limited by {limit}")
        return ", ".join(notes)


def limiting_phase(phases: Mapping[str, float]) -> str | None:
    """Return the phase with most of the time and its share, such as "decode (83%)".

    None for less than `SHORT_S` of work: then start-up takes longer than any phase.
    """
    total = sum(phases.values())
    if total < SHORT_S:
        return None
    phase = max(phases, key=lambda name: phases[name])
    return f"{phase} ({phases[phase] / total:.0%})"


def format_duration(seconds: float) -> str:
    """Return seconds in words: "42 s", "7 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        "{task.fields[note]}",
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))
