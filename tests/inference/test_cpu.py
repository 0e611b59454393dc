"""Threads of torch in workers, and in a process that runs the work of a worker in turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from afinar.comparison.heads import make_head_trainer
from afinar.inference.cpu import use_worker_cores
from afinar.units.cores import set_worker_cores, worker_cores


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    threads, cores = torch.get_num_threads(), worker_cores()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
    set_worker_cores(cores)


def test_a_worker_has_a_thread_for_each_of_its_cores() -> None:
    set_worker_cores(1)
    use_worker_cores()
    assert torch.get_num_threads() == 1
    set_worker_cores(2)
    use_worker_cores()
    assert torch.get_num_threads() == 2


def test_a_process_that_is_no_worker_keeps_its_threads() -> None:
    """After its heads `compare` trains in the same process, on all cores."""
    assert worker_cores() == 0
    make_head_trainer()
    use_worker_cores()
    assert torch.get_num_threads() == 2
