"""Ray's executor, imported when the first unit is to run: a request that is wrong never pays for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from pipeline.config import JobConfig
from pipeline.work import Care

Task = TypeVar("Task")
Result = TypeVar("Result")


class LazyRay:
    """Executor on the cluster that a configuration names."""

    def __init__(self, config: JobConfig) -> None:
        self._config = config

    def run(self, work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Ray tasks."""
        from pipeline.execution.executor import RayExecutor

        return RayExecutor(self._config.address, self._config.workers).run(work, tasks)

    def run_with_state(
        self, make_work: Callable[[], Callable[[Task], Result]], tasks: Iterable[Task], care: Care[Task] | None = None
    ) -> Iterator[Result]:
        """A pool of Ray actors."""
        from pipeline.execution.executor import RayExecutor

        return RayExecutor(self._config.address, self._config.workers).run_with_state(make_work, tasks, care)
