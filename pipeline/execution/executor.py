"""Running units of work on Ray, a bounded number at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray
from ray.exceptions import (
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from pipeline.errors import AfinarError, StorageError
from pipeline.execution.session import cluster_cores, cluster_gpus, ray_session

Task = TypeVar("Task")
Result = TypeVar("Result")

_AHEAD = 2  # units queued per worker: one running, one waiting, so that no worker idles between units
_START_S = 600.0  # an autoscaler's time to bring a first node
_ATTEMPTS = 10  # a unit whose worker dies, or whose message is lost, is run again this often; units are idempotent


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
    """One actor: makes its work when it starts, then does it unit after unit."""

    def __init__(self, make_work: Callable[[], Callable[[Any], Any]]) -> None:
        self._make_work = make_work
        self._work: Callable[[Any], Any] | None = None

    def start(self) -> None:
        """Make the work. Apart from __init__, whose errors Ray reports as the actor's death, without their cause."""
        self._work = self._work or self._make_work()

    def run(self, task: Any) -> Any:
        self.start()  # again, where Ray restarted the actor
        assert self._work is not None
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
    """Hand units out to actors that have started, as they become free.

    An actor that the cluster has no room for gets none, so a job never waits for it. Raises
    StorageError when no actor at all has started in time.
    """
    waiting = deque(tasks)
    starting = {actor.start.remote(): actor for actor in pool}
    running: dict[Any, Any] = {}

    def hand_out(actor: Any) -> None:
        if waiting:
            running[actor.run.remote(waiting.popleft())] = actor

    while waiting or running:
        finished, _ = ray.wait([*starting, *running], num_returns=1, timeout=_START_S)
        if not finished:
            if running:
                continue  # a long unit
            raise StorageError(f"no worker could be started in {_START_S:.0f} s: the cluster has no room for any")
        (reference,) = finished
        result = _result(reference)
        if reference in starting:
            actor = starting.pop(reference)
            for _ in range(_AHEAD):
                hand_out(actor)
        else:
            hand_out(running.pop(reference))
            yield result


def _result(reference: Any) -> Any:
    """Result of a finished unit; an error of ours comes out as itself, not wrapped in Ray's."""
    try:
        return ray.get(reference)
    except RayError as error:
        raise unwrapped(error) from error


def unwrapped(error: BaseException) -> Exception:
    """The AfinarError at the bottom of an error of Ray's; else the task's own error, or that a worker was lost."""
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None or (isinstance(seen, AfinarError) and not isinstance(seen, RayTaskError)):
            break
        seen = getattr(seen, "cause", None) or seen.__cause__
    if isinstance(seen, AfinarError):
        return seen
    if isinstance(error, RayActorError | WorkerCrashedError | NodeDiedError | OutOfMemoryError):
        return StorageError(f"a worker was lost and could not be replaced: {error}")
    return error if isinstance(error, Exception) else RuntimeError(str(error))
