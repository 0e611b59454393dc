"""Running units of work on Ray, a bounded number at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.errors import AfinarError, StorageError
from pipeline.execution.session import cluster_cores, cluster_gpus, ray_session

Task = TypeVar("Task")
Result = TypeVar("Result")

_AHEAD = 2  # units queued per worker: one running, one waiting, so that no worker idles between units
_ATTEMPTS = 3  # a unit whose worker dies is run again this often; units are idempotent


class RayExecutor:
    """Executor on a Ray cluster; connects on first use, so a job with nothing to do starts nothing."""

    def __init__(self, address: str | None, workers: int = 0) -> None:
        """Use `workers` processes, 0 for one per core of the cluster (per GPU for work with state)."""
        self._address, self._workers = address, workers

    def run(self, work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Ray tasks, one core each."""
        with ray_session(self._address, self._workers):
            remote = ray.remote(num_cpus=1, max_retries=_ATTEMPTS)(work)
            limit = (self._workers or cluster_cores()) * (1 if self._workers else _AHEAD)
            yield from _bounded(remote.remote, tasks, limit)

    def run_with_state(
        self, make_work: Callable[[], Callable[[Task], Result]], tasks: Iterable[Task]
    ) -> Iterator[Result]:
        """A pool of Ray actors, each with one GPU where the cluster has any, else one core."""
        with ray_session(self._address, self._workers):
            gpus = cluster_gpus()
            waiting = list(tasks)
            count = min(self._workers or gpus or cluster_cores(), len(waiting))
            kind = ray.remote(
                num_cpus=1, num_gpus=1 if gpus else 0, max_restarts=_ATTEMPTS, max_task_retries=_ATTEMPTS
            )(_Worker)
            pool = [kind.remote(make_work) for _ in range(count)]
            yield from _over_actors(pool, waiting)


class _Worker:
    """One actor: makes its work once, then does it unit after unit."""

    def __init__(self, make_work: Callable[[], Callable[[Any], Any]]) -> None:
        self._work = make_work()

    def run(self, task: Any) -> Any:
        return self._work(task)


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


def _over_actors(pool: list[Any], tasks: list[Any]) -> Iterator[Any]:
    """Hand units out as actors become free."""
    waiting = deque(tasks)
    running = {}
    for actor in pool * _AHEAD:
        if waiting:
            running[actor.run.remote(waiting.popleft())] = actor
    while running:
        finished, _ = ray.wait(list(running), num_returns=1)
        actor = running.pop(finished[0])
        if waiting:
            running[actor.run.remote(waiting.popleft())] = actor
        yield _result(finished[0])


def _result(reference: Any) -> Any:
    """Result of a finished unit; an error of ours comes out as itself, not wrapped in Ray's."""
    try:
        return ray.get(reference)
    except RayError as error:
        raise unwrapped(error) from error


def unwrapped(error: BaseException) -> Exception:
    """The AfinarError at the bottom of a Ray error; else the task's own error, or that a worker was lost."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, AfinarError) and not isinstance(seen, RayTaskError):
            return seen
        cause = getattr(seen, "cause", None) or seen.__cause__
        if cause is seen:
            break
        seen = cause
    if isinstance(error, RayTaskError):
        return error
    return StorageError(f"a worker was lost and could not be replaced: {error}")
