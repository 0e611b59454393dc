"""Bound of data-parallel training: independent processes with one thread that take steps."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from typing import Any

import torch

from tests.bench.sides.train_steps import make_step

WARM = 3


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Return the sum of the rates of all processes in samples per second: none waits."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(request["processes"])
    answers: Any = context.SimpleQueue()
    processes = [
        context.Process(target=_loop, args=(request, barrier, answers))
        for _ in range(request["processes"])
    ]
    for process in processes:
        process.start()
    rates = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    return {"rate": sum(rates), "rates": rates}


def _loop(request: dict[str, Any], barrier: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    step = make_step(request)
    for _ in range(WARM):
        step()
    barrier.wait()
    started = time.perf_counter()
    for _ in range(request["steps"]):
        step()
    answers.put(request["steps"] * request["batch"] / (time.perf_counter() - started))


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
