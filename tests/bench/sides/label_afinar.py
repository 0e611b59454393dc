"""The side of afinar: labellings one after the other, in one Ray that was warmed up."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from afinar.config.label import LabelConfig
from afinar.labelling.driver import run_labelling
from afinar.units.executor import Executor

BEGAN, ENDED, PID = "bench began", "bench ended", "bench worker"


class TimedWork:
    """Work of a worker that adds start and end of each unit to the phases of its result.

    Times are those of the machine's monotonic clock, which all processes share.
    """

    def __init__(self, make_work: Callable[[], Callable[[Any], Any]]) -> None:
        self._work: Callable[..., Any] = make_work()

    def __call__(self, task: Any, *blocks: Any) -> Any:
        began = time.monotonic()
        result = self._work(task, *blocks)
        result.phases.update({BEGAN: began, ENDED: time.monotonic(), PID: os.getpid()})
        return result


class WatchedExecutor:
    """Executor, by default Ray's, that times units in the workers.

    `units` has start, end and process id of each.
    """

    def __init__(self, executor: Executor | None = None) -> None:
        self._executor = executor or _ray_executor()
        self.units: list[tuple[float, float, int]] = []
        self.pictures: list[int] = []

    def run(
        self, make_work: Callable[[], Callable[[Any], Any]], tasks: Iterable[Any], *rest: Any
    ) -> Iterator[Any]:
        for result in self._executor.run(partial(TimedWork, make_work), tasks, *rest):
            self.units.append(
                (result.phases.pop(BEGAN), result.phases.pop(ENDED), int(result.phases.pop(PID)))
            )
            self.pictures.append(result.pictures)
            yield result


def _ray_executor() -> Executor:
    from afinar.execution.executor import RayExecutor  # a machine with a GPU may have no Ray

    return RayExecutor(None)


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Run `request["labellings"]`, each the fields of a LabelConfig, and return their records."""
    from afinar.execution.session import ray_session

    with ray_session("local", request["cores"]):
        label(request["warm_up"])
        return {"labellings": [label(fields) for fields in request["labellings"]]}


def label(fields: dict[str, Any], executor: WatchedExecutor | None = None) -> dict[str, Any]:
    """Return the summary of a job and the parts of its wall time.

    - `before_s`: until the first unit begins.
    - `units_s`: from then until the last unit ends.
    - `after_s`: from then until the job ends.
    - `busy_s`: the sum over all units, which `workers` processes run.
    - `steady_rate`: pictures per second from the end of the first third of the units to that of the
      last unit.
    """
    executor = executor or WatchedExecutor()
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
        "steady_rate": _steady_rate(executor),
        "workers": len({pid for _, _, pid in executor.units}),
        "summary": vars(summary),
    }


def _steady_rate(executor: WatchedExecutor) -> float:
    done = sorted(zip((unit[1] for unit in executor.units), executor.pictures, strict=True))
    third = len(done) // 3
    seconds = done[-1][0] - done[third][0]
    return sum(pictures for _, pictures in done[third + 1 :]) / seconds if seconds else 0.0


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
