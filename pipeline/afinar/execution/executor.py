"""Executors that run units: on Ray, or on processes of this machine.

Ray is imported when the first unit runs on it: a wrong request, a job with nothing to do, or one of
few pictures does not pay for it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Any, Final, TypeVar

from afinar.config.base import ClusterJobConfig, cluster_address
from afinar.config.ingest import IngestConfig
from afinar.config.label import LabelConfig
from afinar.execution.choice import (
    COPIED,
    INGESTED,
    PREDICTED,
    Few,
    choose_for_units,
    this_machine,
)
from afinar.execution.metrics import JobMetrics
from afinar.execution.process_pool import ProcessPool, prepared_process
from afinar.execution.retry import PoolPolicy
from afinar.logs import log_settings
from afinar.storage.open import normalize_uri
from afinar.units.executor import Executor, InlineExecutor, RetryPolicy

logger = logging.getLogger(__name__)

Task = TypeVar("Task")
Result = TypeVar("Result")

_ACTORS_PER_ROOM: Final = 2  # one runs and one waits for a node that an autoscaler adds
_MESSAGE_RETRIES: Final = 3  # of a message to an actor that lives; the pool replaces a dead actor
# Units that a worker with a GPU has: one writes its parts, one fills batches, one maps its shards.
_GPU_UNITS: Final = 3
_BLOCKS_PER_CORE: Final = 2  # one is prepared, one waits: its core goes on at once


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
        """Use `workers` processes; 0: one per core of the cluster (work on GPUs: one per GPU).

        Preprocessing runs in other processes if workers have GPUs; else each worker preprocesses on
        its own core. With `always_preprocess` workers are used as if each had a GPU. `metrics`
        counts finished and retried units.
        """
        self._address, self._workers = address, workers
        self._always_preprocess, self._metrics = always_preprocess, metrics
        self._pool_policy = pool_policy or PoolPolicy()

    @classmethod
    def for_job(cls, config: ClusterJobConfig) -> RayExecutor:
        """Return the executor for a job's configuration. An ingest and a labelling have metrics."""
        metrics = None
        if isinstance(config, LabelConfig):
            source, predictions = normalize_uri(config.source), normalize_uri(config.predictions)
            metrics = JobMetrics("label", source, predictions)
        elif isinstance(config, IngestConfig):
            source, dataset = normalize_uri(config.source), normalize_uri(config.dataset)
            metrics = JobMetrics("ingest", source, dataset)
        return cls(config.address, config.workers, metrics=metrics)

    def run(
        self,
        make_work: Callable[[], Callable[[Task], Result]],
        tasks: Iterable[Task],
        policy: RetryPolicy[Task] | None = None,
    ) -> Iterator[Result]:
        """Yield results of a pool of Ray actors, in the order in which units finish.

        Each actor has one core, or one GPU if the policy uses GPUs and the cluster has some. A
        local Ray is started with all cores then, however few the workers, for preprocessing. An
        actor with a GPU reserves no core: all cores prepare blocks, and it needs little of one.
        """
        import ray

        from afinar.execution.actor_pool import ActorPool
        from afinar.execution.session import cluster_cores, cluster_gpus, ray_session
        from afinar.execution.worker import Worker

        policy = policy or RetryPolicy()
        with ray_session(self._address, 0 if policy.uses_gpus else self._workers):
            gpus = cluster_gpus() if policy.uses_gpus else 0
            feeds_device = gpus > 0 or self._always_preprocess

            # No more actors than units.
            tasks = iter(tasks)
            first_tasks = list(islice(tasks, self._workers or gpus or cluster_cores()))
            pool_policy = self._pool_policy
            if feeds_device:
                pool_policy = replace(pool_policy, units_per_actor=_GPU_UNITS, overlaps_units=True)
            else:
                policy = replace(policy, preprocessing=None)

            worker: Any = ray.remote(Worker)
            actor_class = worker.options(
                num_cpus=0 if feeds_device else 1,
                num_gpus=1 if gpus else 0,
                max_task_retries=_MESSAGE_RETRIES,
                max_concurrency=pool_policy.units_per_actor if feeds_device else 1,
            )
            pool = ActorPool(
                lambda: actor_class.remote(make_work, log_settings()),
                partial(self._pool_size, bool(gpus)),
                chain(first_tasks, tasks),
                policy,
                on_retry=self._metrics.count_retry if self._metrics else lambda: None,
                pool_policy=pool_policy,
                blocks_ahead=lambda: _BLOCKS_PER_CORE * cluster_cores(),
            )
            yield from self._count(pool.results())

    def _pool_size(self, uses_gpus: bool) -> int:
        """Return the number of actors that the cluster, as it is now, should be asked for.

        Actors that wait for room make an autoscaler add nodes, so a cluster is asked for twice as
        many as it has room for. A local Ray cannot grow.
        """
        from afinar.execution.session import cluster_cores, cluster_gpus

        room = cluster_gpus() if uses_gpus else cluster_cores()
        if cluster_address(self._address):
            room *= _ACTORS_PER_ROOM
        return self._workers or room

    def _count(self, results: Iterator[Result]) -> Iterator[Result]:
        return self._metrics.count_results(results) if self._metrics else results


class LocalExecutor:
    """Executor on processes of this machine, without Ray."""

    def __init__(
        self,
        processes: int,
        pool_policy: PoolPolicy | None = None,
        cores: int = 1,
        prepares: str = "",
    ) -> None:
        """Use at most `processes` processes of `cores` cores each.

        `prepares` names a module that the next job needs. Within `share_workers` another process
        imports it while this job runs.
        """
        self._processes, self._pool_policy, self._cores = processes, pool_policy, cores
        self._prepares = prepares

    def run(
        self,
        make_work: Callable[[], Callable[[Task], Result]],
        tasks: Iterable[Task],
        policy: RetryPolicy[Task] | None = None,
    ) -> Iterator[Result]:
        """Yield results in the order in which units finish. All tasks are held in memory.

        A process that dies or hangs is replaced and its unit tried again, as on Ray. `make_work`,
        tasks and results have to be picklable.
        """
        policy = policy or RetryPolicy()
        pool = ProcessPool(
            make_work, self._processes, tasks, policy, self._pool_policy, self._cores
        )
        with prepared_process(self._prepares):
            yield from pool.results()


class JobExecutor:
    """Executor of a job: processes of this machine if it has few pictures, else Ray.

    Ray is also used if an address is given, by `--address` or RAY_ADDRESS, be it `local`.
    """

    def __init__(self, config: ClusterJobConfig, prepares: str = "") -> None:
        """Run the units of a job. `prepares` is that of `LocalExecutor`."""
        self._config, self._prepares = config, prepares

    def run(
        self,
        make_work: Callable[[], Callable[[Task], Result]],
        tasks: Iterable[Task],
        policy: RetryPolicy[Task] | None = None,
    ) -> Iterator[Result]:
        """Yield results in the order in which units finish."""
        config, tasks = self._config, iter(tasks)
        few = self._few(policy)
        first_tasks, pictures = _take(tasks, few.without_ray)
        choice = choose_for_units(
            pictures,
            len(first_tasks),
            few=few,
            workers=config.workers,
            asks_for_ray=asks_for_ray(config.address),
            uses_gpus=policy is not None and policy.uses_gpus,
            machine=this_machine(),
        )

        if not choice.without_ray:
            executor: Executor = RayExecutor.for_job(config)
        elif policy is None:  # nothing is decoded, so that nothing has to be tried again
            executor = InlineExecutor()
        else:
            logger.info(choice.reason)
            executor = LocalExecutor(choice.processes, cores=choice.cores, prepares=self._prepares)
        yield from executor.run(make_work, chain(first_tasks, tasks), policy)

    def _few(self, policy: RetryPolicy[Task] | None) -> Few:
        if policy is None:
            return COPIED
        return INGESTED if isinstance(self._config, IngestConfig) else PREDICTED


def asks_for_ray(address: str | None) -> bool:
    """Return True if an address of Ray is given, be it `local`."""
    return bool(address or os.environ.get("RAY_ADDRESS"))


def _take(tasks: Iterator[Any], limit: int) -> tuple[list[Any], int]:
    """Take tasks until they have more than `limit` pictures; return them and their pictures.

    A task without a number of pictures counts as one.
    """
    taken, pictures = [], 0
    for task in tasks:
        taken.append(task)
        pictures += getattr(task, "pictures", 1)
        if pictures > limit:
            break
    return taken, pictures
