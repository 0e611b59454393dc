"""Executor that runs units on Ray.

Ray is imported when the first unit runs: a wrong request, or a job with nothing to do, does not pay
for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import Final, TypeVar

from afinar.config.base import JobConfig
from afinar.config.ingest import IngestConfig
from afinar.config.label import LabelConfig
from afinar.execution.metrics import JobMetrics
from afinar.execution.retry import PoolPolicy
from afinar.logs import log_settings
from afinar.storage.open import normalize_uri
from afinar.units.executor import RetryPolicy

Task = TypeVar("Task")
Result = TypeVar("Result")

_TASKS_PER_CORE: Final = 2  # one runs and one is queued, so that no core idles between tasks
_MESSAGE_RETRIES: Final = 3  # of a message to an actor that lives; the pool replaces a dead actor


class RayExecutor:
    """Executor on a Ray cluster. Connects, or starts a local Ray, when the first unit runs."""

    def __init__(
        self,
        address: str | None,
        workers: int = 0,
        always_preprocess: bool = False,
        metrics: JobMetrics | None = None,
        pool_policy: PoolPolicy | None = None,
    ) -> None:
        """Use `workers` processes; 0: one per core of the cluster (work with state: one per GPU).

        Preprocessing runs on separate cores if workers have GPUs, or with `always_preprocess`; else
        each worker preprocesses on its own core. `metrics` counts finished and retried units.
        """
        self._address, self._workers = address, workers
        self._always_preprocess, self._metrics = always_preprocess, metrics
        self._pool_policy = pool_policy or PoolPolicy()

    @classmethod
    def for_job(cls, config: JobConfig) -> RayExecutor:
        """Return the executor for a job's configuration. An ingest and a labelling have metrics."""
        metrics = None
        if isinstance(config, LabelConfig):
            source, predictions = normalize_uri(config.source), normalize_uri(config.predictions)
            metrics = JobMetrics("label", source, predictions)
        elif isinstance(config, IngestConfig):
            source, dataset = normalize_uri(config.source), normalize_uri(config.dataset)
            metrics = JobMetrics("ingest", source, dataset)
        return cls(config.address, config.workers, metrics=metrics)

    def run(self, work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield results of Ray tasks with one core each, in the order in which they finish."""
        from afinar.execution.session import cluster_cores, ray_session
        from afinar.execution.task_pool import run_tasks

        with ray_session(self._address, self._workers):
            limit = self._workers or cluster_cores() * _TASKS_PER_CORE
            yield from self._count(run_tasks(work, tasks, limit))

    def run_with_state(
        self,
        make_work: Callable[[], Callable[[Task], Result]],
        tasks: Iterable[Task],
        policy: RetryPolicy[Task] | None = None,
    ) -> Iterator[Result]:
        """Yield results of a pool of Ray actors, in the order in which units finish.

        Each actor has one core, and one GPU if the cluster has any. Preprocessing tasks run only if
        the actors leave cores for them. A local Ray is started with all cores for that, however few
        the workers.
        """
        import ray

        from afinar.execution.actor_pool import ActorPool
        from afinar.execution.session import cluster_cores, cluster_gpus, ray_session
        from afinar.execution.worker import Worker

        policy = policy or RetryPolicy()
        with ray_session(self._address, 0 if policy.preprocessing else self._workers):
            gpus = cluster_gpus()

            # No more actors than units.
            tasks = iter(tasks)
            first_tasks = list(islice(tasks, self._workers or gpus or cluster_cores()))
            size = len(first_tasks)

            if not (gpus or self._always_preprocess) or cluster_cores() <= size:
                policy = replace(policy, preprocessing=None)
            actor_class = ray.remote(
                num_cpus=1, num_gpus=1 if gpus else 0, max_task_retries=_MESSAGE_RETRIES
            )(Worker)
            pool = ActorPool(
                lambda: actor_class.remote(make_work, log_settings()),
                size,
                chain(first_tasks, tasks),
                policy,
                on_retry=self._metrics.count_retry if self._metrics else lambda: None,
                pool_policy=self._pool_policy,
            )
            yield from self._count(pool.results())

    def _count(self, results: Iterator[Result]) -> Iterator[Result]:
        return self._metrics.count_results(results) if self._metrics else results
