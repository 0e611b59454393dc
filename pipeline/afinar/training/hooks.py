"""Functions through which a training reports to the system that runs its workers, and asks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

Metrics = Mapping[str, float]
"""Metrics of an epoch by name, such as `val_loss`."""


@dataclass(frozen=True, kw_only=True)
class TrainHooks:
    """Functions that a training calls. All workers call each of them equally often.

    `on_epoch_end` takes the metrics of an epoch; the training stops if it returns True on any
    worker. `is_preempted` returns True, on all workers alike, if a worker's machine is about to be
    taken away.
    """

    on_epoch_end: Callable[[Metrics], bool] = lambda _: False
    is_preempted: Callable[[], bool] = lambda: False


NO_HOOKS: Final = TrainHooks()
