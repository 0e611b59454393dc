"""Output of Ray's processes on the driver's console: log lines of afinar only, unless verbose."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final

from ray._private import worker as ray_worker
from ray._private.ray_logging import global_worker_stdstream_dispatcher

from afinar.execution import ray_log
from afinar.execution.worker_lines import WorkerLines

_HANDLER: Final = "afinar"


@contextlib.contextmanager
def worker_output(verbose: bool) -> Iterator[None]:
    """Print what workers log through afinar as if the driver had logged it, until the block ends.

    To be entered before `ray.init`, which adds a handler that prints everything that Ray's
    processes write to stdout and stderr, each line behind the name of its process: messages of
    Ray's core and of Ray Train's controller, tracebacks of its background threads, warnings of
    libraries. Ray cannot filter by logger. So our handler takes the lines of afinar out of every
    batch before Ray's handler gets it, and Ray's printing is on only if `verbose`.
    """
    printer = WorkerLines()

    def print_afinar_lines(batch: dict[str, Any]) -> None:
        process = f"{batch.get('ip')} {batch.get('pid')}"
        batch["lines"] = printer.print_log(process, batch["lines"])
        ray_log.keep(process, batch["lines"])

    ray_worker._worker_logs_enabled = verbose
    global_worker_stdstream_dispatcher.add_handler(_HANDLER, print_afinar_lines)
    try:
        yield
    finally:
        global_worker_stdstream_dispatcher.remove_handler(_HANDLER)
        ray_worker._worker_logs_enabled = True
