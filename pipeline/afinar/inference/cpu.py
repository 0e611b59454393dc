"""The processor of a worker that computes with torch."""

from __future__ import annotations

import torch

from afinar.units.cores import worker_cores
from afinar.units.own_process import keep_freed_memory


def use_worker_cores() -> None:
    """Limit torch to a thread for each core of this worker, and keep memory between batches.

    A process that is no worker keeps its number of threads: whatever it computes next needs them.
    """
    if worker_cores():
        torch.set_num_threads(worker_cores())
    keep_freed_memory()
