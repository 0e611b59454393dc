"""Labellings on Ray with a device that costs nothing: what is left is reading and decoding.

In the layout of CPUs each of two workers decodes its own pictures. In that of a GPU two other
processes decode blocks, for one worker that copies them into its batches.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from afinar.execution.executor import RayExecutor
from afinar.execution.session import ray_session
from tests.bench.devices import make_null_work
from tests.bench.sides.label_afinar import WatchedExecutor, label


class NullExecutor(WatchedExecutor):
    """Runs units on workers with the null device; as on a GPU if `has_gpu`."""

    def __init__(self, has_gpu: bool) -> None:
        super().__init__(RayExecutor(None, workers=1 if has_gpu else 0, always_preprocess=has_gpu))

    def run(
        self, make_work: Callable[[], Callable[[Any], Any]], tasks: Iterable[Any], *rest: Any
    ) -> Iterator[Any]:
        return super().run(partial(make_null_work, make_work), tasks, *rest)


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Run the warm-up and the labelling in each layout of `request["labellings"]`."""
    records = {}
    with ray_session("local", request["cores"]):
        for layout, (warm_up, fields) in request["labellings"].items():
            label(warm_up, NullExecutor(layout == "gpu"))
            records[layout] = label(fields, NullExecutor(layout == "gpu"))
    return records


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
