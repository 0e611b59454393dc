"""The processor of a worker that computes with torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from afinar.units.cores import set_worker_cores, worker_cores
from afinar.units.own_process import keep_freed_memory


def use_worker_cores() -> None:
    """Limit torch to a thread for each core of this worker, and keep memory between batches.

    A process that is no worker keeps its number of threads: whatever it computes next needs them.
    """
    if worker_cores():
        torch.set_num_threads(worker_cores())
    keep_freed_memory()


@contextmanager
def as_worker(cores: int) -> Iterator[None]:
    """Let this process be a worker of so many cores, and give its threads back afterwards."""
    before, threads = worker_cores(), torch.get_num_threads()
    set_worker_cores(cores)
    try:
        yield
    finally:
        set_worker_cores(before)
        torch.set_num_threads(threads)
