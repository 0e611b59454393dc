"""Our own side: labellings one after the other, inside one Ray that is started and warmed up before."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from afinar.config.label import LabelConfig
from afinar.execution.executor import RayExecutor
from afinar.execution.session import ray_session
from afinar.labelling.driver import run_labelling

BEGAN, ENDED, WHO = "bench began", "bench ended", "bench worker"


class Noting:
    """A worker's work, with the time that each unit began and ended noted among its stages.

    The clock is the machine's, so that readings of several processes compare.
    """

    def __init__(self, make_work: Callable[[], Callable[[Any], Any]]) -> None:
        self._work = make_work()

    def __call__(self, task: Any) -> Any:
        began = time.monotonic()
        result = self._work(task)
        result.stages.update({BEGAN: began, ENDED: time.monotonic(), WHO: os.getpid()})
        return result


class WatchedExecutor:
    """RayExecutor whose units are timed where they run."""

    def __init__(self) -> None:
        self._executor = RayExecutor(None)
        self.units: list[tuple[float, float, int]] = []

    def run(self, work: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        """See Executor."""
        return self._executor.run(work, tasks)

    def run_with_state(
        self, make_work: Callable[[], Callable[[Any], Any]], tasks: Iterable[Any], *rest: Any
    ) -> Iterator[Any]:
        """See Executor."""
        for result in self._executor.run_with_state(partial(Noting, make_work), tasks, *rest):
            self.units.append(
                (result.phases.pop(BEGAN), result.phases.pop(ENDED), int(result.phases.pop(WHO)))
            )
            yield result


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Run `request["labellings"]`, each the fields of a LabelConfig; one record for each."""
    with ray_session("local", request["cores"]):
        label(request["warm_up"])
        return {"labellings": [label(fields) for fields in request["labellings"]]}


def label(fields: dict[str, Any]) -> dict[str, Any]:
    """The job's own summary, and where its wall seconds went.

    `before_s`: until the first unit began; `units_s`: from then until the last one ended; `after_s`: until the job
    did. `busy_s` is the sum over all units, done by `workers` processes.
    """
    executor = WatchedExecutor()
    config = LabelConfig(**fields)
    started = time.monotonic()
    summary = run_labelling(config, executor).summary
    finished = time.monotonic()
    first, last = min(unit[0] for unit in executor.units), max(unit[1] for unit in executor.units)
    return {
        "seconds": finished - started,
        "before_s": first - started,
        "units_s": last - first,
        "after_s": finished - last,
        "busy_s": sum(ended - began for began, ended, _ in executor.units),
        "workers": len({who for _, _, who in executor.units}),
        "summary": vars(summary),
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
