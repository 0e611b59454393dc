"""Executors that run units in this process and record, interrupt or delay the job."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any


class InterruptedExecutor:
    """Raises KeyboardInterrupt after a number of units, as if the driver were killed."""

    def __init__(self, units: int = 1) -> None:
        self.units = units

    def run(
        self, make_work: Callable[[], Any], tasks: Iterable[Any], policy: Any = None
    ) -> Iterator[Any]:
        del policy
        work = make_work()
        for number, task in enumerate(tasks):
            if number == self.units:
                raise KeyboardInterrupt
            yield work(task)


class RecordingExecutor:
    """Records the uris of the pictures in the units that it runs."""

    def __init__(self) -> None:
        self.uris: list[str] = []

    @property
    def names(self) -> list[str]:
        """Names of the pictures' files, sorted."""
        return sorted(Path(uri).name for uri in self.uris)

    def run(
        self, make_work: Callable[[], Any], tasks: Iterable[Any], policy: Any = None
    ) -> Iterator[Any]:
        del policy
        work = make_work()
        for task in tasks:
            # A unit of a compaction has no entries.
            self.uris += [entry.uri for entry in getattr(task, "entries", ())]
            yield work(task)


class OvertakenExecutor:
    """Calls a function after its units have run: another job can publish first."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        self.meanwhile = meanwhile

    def run(
        self, make_work: Callable[[], Any], tasks: Iterable[Any], policy: Any = None
    ) -> Iterator[Any]:
        del policy
        work = make_work()
        yield from map(work, tasks)
        self.meanwhile()
