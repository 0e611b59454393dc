"""Stateless units as Ray tasks, a bounded number at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

import ray
from ray.exceptions import RayError

from afinar.execution.failures import root_cause
from afinar.execution.worker import task_function
from afinar.logs import log_settings

Task = TypeVar("Task")
Result = TypeVar("Result")

_MAX_RETRIES: Final = 10  # of a unit whose worker died or message was lost; units are idempotent


def run_tasks(
    work: Callable[[Task], Result], tasks: Iterable[Task], limit: int
) -> Iterator[Result]:
    """Yield results in the order in which tasks finish; at most `limit` are submitted at a time.

    Each task takes one core. Raises the work's own error.
    """
    remote = ray.remote(num_cpus=1, max_retries=_MAX_RETRIES)(task_function(work, log_settings()))
    running: list[Any] = []
    for task in tasks:
        if len(running) >= limit:
            finished, running = ray.wait(running, num_returns=1)
            yield _result(finished[0])
        running.append(remote.remote(task))

    while running:
        finished, running = ray.wait(running, num_returns=1)
        yield _result(finished[0])


def _result(reference: Any) -> Any:
    """Return the result of a finished task. Raises the task's own error instead of Ray's."""
    try:
        return ray.get(reference)
    except RayError as error:
        raise root_cause(error) from error
