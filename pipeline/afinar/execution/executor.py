"""Running units of work on Ray, a bounded number at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from afinar.execution.actor_pool import ActorPool
from afinar.execution.failures import root_cause
from afinar.execution.metrics import JobMetrics
from afinar.execution.session import cluster_cores, cluster_gpus, ray_session
from afinar.units.executor import RetryPolicy

Task = TypeVar("Task")
Result = TypeVar("Result")

_AHEAD = (
    2  # units queued per worker: one running, one waiting, so that no worker idles between units
)
_MESSAGES = 3  # attempts at a message to an actor that lives; one that died is replaced by the pool
_ATTEMPTS = 10  # a unit whose worker dies, or whose message is lost, is run again this often; units are idempotent


class RayExecutor:
    """Executor on a Ray cluster; connects on first use, so a job with nothing to do starts nothing."""

    def __init__(
        self,
        address: str | None,
        workers: int = 0,
        feeds: bool = False,
        metrics: JobMetrics | None = None,
    ) -> None:
        """Use `workers` processes, 0 for one per core of the cluster (per GPU for work with state).

        Work with a feed is fed where workers have GPUs, or where `feeds` says so; else each prepares for itself, on
        the core that it has anyway. `metrics` counts what is done.
        """
        self._address, self._workers, self._feeds, self._metrics = address, workers, feeds, metrics

    def run(self, work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Ray tasks, one core each."""
        with ray_session(self._address, self._workers):
            remote = ray.remote(num_cpus=1, max_retries=_ATTEMPTS)(work)
            limit = (self._workers or cluster_cores()) * (1 if self._workers else _AHEAD)
            yield from self._counted(_bounded(remote.remote, tasks, limit))

    def run_with_state(
        self,
        make_work: Callable[[], Callable[[Task], Result]],
        tasks: Iterable[Task],
        care: RetryPolicy[Task] | None = None,
    ) -> Iterator[Result]:
        """A pool of Ray actors, each with one GPU where the cluster has any, else one core.

        They are fed where that leaves a core for it; a Ray of our own has all cores for that, however few the workers.
        """
        care = care or RetryPolicy()
        with ray_session(self._address, 0 if care.preprocessing else self._workers):
            gpus = cluster_gpus()
            tasks = iter(tasks)
            first = list(
                islice(tasks, self._workers or gpus or cluster_cores())
            )  # no more actors than units
            kind = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_task_retries=_MESSAGES)(
                _Worker
            )
            if not (gpus or self._feeds) or cluster_cores() <= len(first):
                care = replace(care, preprocessing=None)
            lost = self._metrics.retried if self._metrics else lambda: None
            pool = ActorPool(
                lambda: kind.remote(make_work), len(first), chain(first, tasks), care, lost
            )
            yield from self._counted(pool.results())

    def _counted(self, results: Iterator[Result]) -> Iterator[Result]:
        return self._metrics.counted(results) if self._metrics else results


class _Worker:
    """One actor: makes its work when it starts, then does it unit after unit."""

    def __init__(self, make_work: Callable[[], Callable[..., Any]]) -> None:
        self._make_work = make_work
        self._work: Callable[..., Any] | None = None

    def start(self) -> None:
        """Make the work. Apart from __init__, whose errors Ray reports as the actor's death, without their cause."""
        self._work = self._work or self._make_work()

    def run(self, task: Any, blocks: list[Any]) -> Any:
        """Do a unit; its blocks, references to what is being prepared elsewhere, are taken as they are needed."""
        assert self._work is not None, "the pool waits for a start before it gives a unit"
        return self._work(task, map(ray.get, blocks)) if blocks else self._work(task)


def _bounded(submit: Callable[[Any], Any], tasks: Iterable[Any], limit: int) -> Iterator[Any]:
    running: list[Any] = []
    for task in tasks:
        if len(running) >= limit:
            finished, running = ray.wait(running, num_returns=1)
            yield _result(finished[0])
        running.append(submit(task))
    while running:
        finished, running = ray.wait(running, num_returns=1)
        yield _result(finished[0])


def _result(reference: Any) -> Any:
    """Result of a finished unit; an error of ours comes out as itself, not wrapped in Ray's."""
    try:
        return ray.get(reference)
    except RayError as error:
        raise root_cause(error) from error
