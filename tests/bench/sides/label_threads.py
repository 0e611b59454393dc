"""The side of afinar without Ray: one process with a GPU, which runs some units at a time."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, Final

from tests.bench.sides.label_afinar import WatchedExecutor, label

_UNITS: Final = 3  # as RayExecutor gives a worker with a GPU


class ThreadExecutor:
    """Runs units in threads of this process, a few at a time."""

    def run(
        self, make_work: Callable[[], Callable[[Any], Any]], tasks: Iterable[Any], *_: Any
    ) -> Iterator[Any]:
        work, waiting = make_work(), iter(tasks)
        with ThreadPoolExecutor(_UNITS) as pool:
            running: set[Future[Any]] = {
                pool.submit(work, task) for task in islice(waiting, _UNITS)
            }
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                running |= {pool.submit(work, task) for task in islice(waiting, len(done))}
                yield from (future.result() for future in done)


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Run `request["labellings"]`, each the fields of a LabelConfig, and return their records."""
    return {
        "labellings": [
            label(fields, WatchedExecutor(ThreadExecutor())) for fields in request["labellings"]
        ]
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
