"""Executors: run units of work. Ray's is in `afinar.execution`, `InlineExecutor` needs no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Preprocessing(Generic[Task]):
    """CPU-side preprocessing for workers that have a GPU.

    Each item of `blocks(task)` is passed to `prepare` in a Ray task of its own. The work function
    receives the results, in order, as its second argument.
    """

    blocks: Callable[[Task], list[Any]]
    prepare: Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class RetryPolicy(Generic[Task]):
    """Handling of a unit whose worker died or hangs.

    - `deadline_s(task)`: seconds after which a worker counts as hung.
    - `next_attempt(task)`: the task for the next attempt.
    - `uses_gpus`: workers have a GPU if there is one. Such a worker gets its next units before it
      has finished one: its work must be safe to call from several threads.
    - `preprocessing`: used only for workers that have a GPU.
    """

    deadline_s: Callable[[Task], float] = lambda task: 3600.0
    next_attempt: Callable[[Task], Task] = lambda task: task
    uses_gpus: bool = False
    preprocessing: Preprocessing[Task] | None = None


class Executor(Protocol):
    """Runs units of work, a bounded number at a time. Results come in the order they finish."""

    def run(
        self,
        make_work: Callable[[], Callable[[Task], Result]],
        tasks: Iterable[Task],
        policy: RetryPolicy[Task] | None = None,
    ) -> Iterator[Result]:
        """Apply the work to every task. `make_work` is called once per worker process."""
        ...


class InlineExecutor:
    """Runs every task in this process, one after the other.

    A task whose process dies cannot be retried here, so a RetryPolicy has no effect.
    """

    def run(
        self,
        make_work: Callable[[], Callable[[Task], Result]],
        tasks: Iterable[Task],
        policy: RetryPolicy[Task] | None = None,
    ) -> Iterator[Result]:
        del policy
        return map(make_work(), tasks)
