"""Progress of a job: seconds by phase of the work, a bar on a terminal, a line every ten seconds in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

logger = logging.getLogger(__name__)


class PhaseTimer:
    """Seconds that a unit spent in each of its stages: waiting for bytes, decoding, …"""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, stage: str) -> Iterator[None]:
        """Count the block's time for `stage`."""
        started = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started


class ProgressReporter:
    """Progress on stderr: a bar on a terminal, a line every ten seconds in a log.

    Says the rate, the time left, the rejects so far, and what limits the work now.
    """

    EVERY_S = 10.0

    def __init__(self, what: str, total: int, unit: str = "pictures") -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = self._rejects = 0
        self._stages: dict[str, float] = {}
        self._started = self._spoke = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = _bar()
            self._task = self._bar.add_task(what, total=total, note="")

    def __enter__(self) -> ProgressReporter:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def add(self, done: int, rejects: int = 0, stages: Mapping[str, float] | None = None) -> None:
        """Count `done` more, of which `rejects` could not be used; `stages` are the seconds that each stage took."""
        self._done += done
        self._rejects += rejects
        # Older stages count for less and less: what limits the work is said of now.
        for name, seconds in (stages or {}).items():
            self._stages[name] = self._stages.get(name, 0.0) / 2 + seconds
        if self._bar:
            self._bar.update(self._task, completed=self._done, note=self._note())
        elif time.monotonic() - self._spoke > self.EVERY_S:
            self._spoke = time.monotonic()
            left_s = (self._total - self._done) / max(self._rate(), 1e-9)
            logger.info(
                f"{self._what}: {self._done} of {self._total} {self._unit}, {self._note()}, {format_duration(left_s)} left"
            )

    def _rate(self) -> float:
        return self._done / max(time.monotonic() - self._started, 1e-9)

    def _note(self) -> str:
        notes = [f"{self._rate():.0f}/s"]
        if self._rejects:
            notes.append(f"{self._rejects} rejected")
        if limit := limiting_stage(self._stages):
            notes.append(f"limited by {limit}")
        return ", ".join(notes)


def limiting_stage(stages: Mapping[str, float]) -> str | None:
    """The stage that took most of the time, and its share: "decode (83 %)". None where nothing took any."""
    total = sum(stages.values())
    if total <= 0:
        return None
    name = max(stages, key=lambda stage: stages[stage])
    return f"{name} ({stages[name] / total:.0%})"


def format_duration(seconds: float) -> str:
    """Seconds as people say them: "42 s", "7 min", "3 h 20 min"."""
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
