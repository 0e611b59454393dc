"""Units of work and who runs them.

Jobs decide what is to be done in plain Python and hand units to an Executor. Ray's stands in
`pipeline.execution`; `InlineExecutor` runs them here and now, for tests and machines without Ray.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

Task = TypeVar("Task")
Result = TypeVar("Result")


class Executor(Protocol):
    """Runs units of work, a bounded number at a time. Results come in the order they finish."""

    def run(self, work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Apply a stateless function to every task."""
        ...

    def run_with_state(
        self, make_work: Callable[[], Callable[[Task], Result]], tasks: Iterable[Task]
    ) -> Iterator[Result]:
        """Apply work that is costly to make: `make_work` is called once per worker process."""
        ...


class InlineExecutor:
    """Runs every task in this process, one after the other."""

    def run(self, work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """See Executor."""
        return map(work, tasks)

    def run_with_state(
        self, make_work: Callable[[], Callable[[Task], Result]], tasks: Iterable[Task]
    ) -> Iterator[Result]:
        """See Executor."""
        return map(make_work(), tasks)


class Meter:
    """Progress on stderr: a bar on a terminal, a line every ten seconds in a log."""

    EVERY_S = 10.0

    def __init__(self, what: str, total: int, unit: str = "pictures") -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = self._rejects = 0
        self._started = self._spoke = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = _bar()
            self._task = self._bar.add_task(what, total=total, note="")

    def __enter__(self) -> Meter:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def add(self, done: int, rejects: int = 0) -> None:
        """Count `done` more, of which `rejects` could not be used."""
        self._done += done
        self._rejects += rejects
        note = f"{self._done / max(time.monotonic() - self._started, 1e-9):.0f}/s"
        if self._rejects:
            note += f", {self._rejects} rejected"
        if self._bar:
            self._bar.update(self._task, completed=self._done, note=note)
        elif time.monotonic() - self._spoke > self.EVERY_S:
            self._spoke = time.monotonic()
            say(f"{self._what}: {self._done} of {self._total} {self._unit}, {note}")


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[note]}", TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def say(sentence: str) -> None:
    """One line for the person or the log watching a job, on stderr."""
    print(sentence, file=sys.stderr, flush=True)  # noqa: T201
