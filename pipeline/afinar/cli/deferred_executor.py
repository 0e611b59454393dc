"""Ray's executor, imported when the first unit is to run: a request that is wrong never pays for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from afinar.config.base import JobConfig
from afinar.config.ingest import IngestConfig
from afinar.config.label import LabelConfig
from afinar.storage.open import normalize_uri
from afinar.units.executor import RetryPolicy

if TYPE_CHECKING:
    from afinar.execution.executor import RayExecutor
    from afinar.execution.metrics import JobMetrics

Task = TypeVar("Task")
Result = TypeVar("Result")


class DeferredExecutor:
    """Executor on the cluster that a configuration names."""

    def __init__(self, config: JobConfig) -> None:
        self._config = config

    def run(self, work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Ray tasks."""
        return self._executor().run(work, tasks)

    def run_with_state(
        self,
        make_work: Callable[[], Callable[[Task], Result]],
        tasks: Iterable[Task],
        care: RetryPolicy[Task] | None = None,
    ) -> Iterator[Result]:
        """A pool of Ray actors."""
        return self._executor().run_with_state(make_work, tasks, care)

    def _executor(self) -> RayExecutor:
        from afinar.execution.executor import RayExecutor

        return RayExecutor(
            self._config.address, self._config.workers, metrics=_metrics(self._config)
        )


def _metrics(config: JobConfig) -> JobMetrics | None:
    from afinar.execution.metrics import JobMetrics

    if isinstance(config, LabelConfig):
        return JobMetrics("label", normalize_uri(config.source), normalize_uri(config.predictions))
    if isinstance(config, IngestConfig):
        return JobMetrics("ingest", normalize_uri(config.source), normalize_uri(config.dataset))
    return None
