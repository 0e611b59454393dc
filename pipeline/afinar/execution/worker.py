"""Entry points of the processes in which Ray runs units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from afinar.logs import LogSettings, configure_worker_logging
from afinar.units.cores import set_worker_cores
from afinar.units.own_process import claim_process


class Worker:
    """Actor that builds its work once and applies it to one unit after another."""

    def __init__(self, make_work: Callable[[], Callable[..., Any]], log: LogSettings) -> None:
        self._make_work, self._log = make_work, log
        self._work: Callable[..., Any] | None = None

    def start(self) -> None:
        """Build the work. Not in __init__: Ray would report an error there as the actor's death."""
        claim_process()
        set_worker_cores(1)
        configure_worker_logging(self._log)
        self._work = self._work or self._make_work()

    def run(self, task: Any, blocks: list[Any]) -> Any:
        """Return the result for a unit. `blocks` are references; each is read when needed."""
        assert self._work is not None, "the pool calls start before run"
        return self._work(task, map(ray.get, blocks)) if blocks else self._work(task)
