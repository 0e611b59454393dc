"""Units of work and the executors that run them.

A driver decides in plain Python what is to be done and hands units to an Executor. Ray's is in `afinar.execution`;
`InlineExecutor` runs them in this process, for tests and machines without Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Preprocessing(Generic[Task]):
    """How a unit's blocks are prepared elsewhere for the worker that needs them: `prepare` is applied to each of
    `blocks(task)`, which come to the work, in order, as its second argument."""

    blocks: Callable[[Task], list[Any]]
    prepare: Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class RetryPolicy(Generic[Task]):
    """What to do about a unit whose worker is lost, or works at it for longer than its `deadline_s`.

    `next_attempt` makes of its task the one for the next attempt. `preprocessing` is used where the work has silicon of its own, a GPU,
    which is not to wait while cores prepare.
    """

    deadline_s: Callable[[Task], float] = lambda task: 3600.0
    next_attempt: Callable[[Task], Task] = lambda task: task
    preprocessing: Preprocessing[Task] | None = None


class Executor(Protocol):
    """Runs units of work, a bounded number at a time. Results come in the order they finish."""

    def run(self, work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Apply a stateless function to every task."""
        ...

    def run_with_state(
        self,
        make_work: Callable[[], Callable[[Task], Result]],
        tasks: Iterable[Task],
        care: RetryPolicy[Task] | None = None,
    ) -> Iterator[Result]:
        """Apply work that is costly to make: `make_work` is called once per worker process."""
        ...


class InlineExecutor:
    """Runs every task in this process, one after the other."""

    def run(self, work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """See Executor."""
        return map(work, tasks)

    def run_with_state(
        self,
        make_work: Callable[[], Callable[[Task], Result]],
        tasks: Iterable[Task],
        care: RetryPolicy[Task] | None = None,
    ) -> Iterator[Result]:
        """See Executor."""
        return map(make_work(), tasks)
