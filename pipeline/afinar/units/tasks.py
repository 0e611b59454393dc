"""Units of pictures as drivers send them to workers, and what happens after a worker's death."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Self, TypeVar

from afinar.sources.entry import Entry
from afinar.units.executor import Preprocessing, RetryPolicy

_TIMEOUT_PICTURES: Final = 512
_MIN_DEADLINE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class UnitTask:
    """One unit: its pictures. `attempt` counts the earlier attempts that failed."""

    unit: str
    entries: tuple[Entry, ...]
    attempt: int = 0

    @property
    def pictures(self) -> int:
        """Number of pictures."""
        return len(self.entries)

    def next_attempt(self) -> Self:
        """Return the task to run after a worker has died or hung."""
        return replace(self, attempt=self.attempt + 1)


Task = TypeVar("Task", bound=UnitTask)


def retry_policy(
    timeout_s: float,
    preprocessing: Preprocessing[Task] | None = None,
    *,
    uses_gpus: bool = False,
) -> RetryPolicy[Task]:
    """Return the policy of a job over pictures, with its `--unit-timeout-s`."""
    return RetryPolicy(
        uses_gpus=uses_gpus,
        deadline_s=partial(deadline_s, timeout_s),
        next_attempt=lambda task: task.next_attempt(),
        preprocessing=preprocessing,
    )


def deadline_s(timeout_s: float, task: UnitTask) -> float:
    """Return the seconds after which a worker counts as hung.

    `timeout_s` is for a unit of 512 pictures. Other units get time in proportion, at least 60 s (or
    `timeout_s` if that is less), since a single picture may be large.
    """
    share = timeout_s * len(task.entries) / _TIMEOUT_PICTURES
    return max(share, min(timeout_s, _MIN_DEADLINE_S))
