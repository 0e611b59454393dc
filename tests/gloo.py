"""Worker processes that communicate through gloo, without Ray."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.spawn import start_processes

from tests.servers import free_port


def run_in_group(workers: int, function: Callable[..., None], *args: Any) -> None:
    """Call `function(rank, *args)` in that many processes, which form a process group.

    Raises torch's ProcessRaisedException with the traceback if a call raises.
    """
    spawn: Callable[..., Any] = start_processes
    spawn(
        _member, args=(workers, free_port(), function, args), nprocs=workers, start_method="spawn"
    )


def _member(
    rank: int, workers: int, port: int, function: Callable[..., None], args: tuple[Any, ...]
) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers
    )
    function(rank, *args)
    dist.destroy_process_group()
    # A thread of gloo that needs the interpreter while it is finalized aborts the process
    # ("terminate called without an active exception"). That happened once, on a busy machine.
    # Workers of Ray end without finalization, too.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
