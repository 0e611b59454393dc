"""Output of Ray's processes on the driver's console: log lines of afinar only, unless verbose."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from ray._private import worker as ray_worker
from ray._private.ray_logging import global_worker_stdstream_dispatcher

from afinar.logs import parse_worker_line

_HANDLER: Final = "afinar"
_SAME_LINE_S: Final = 10.0  # a line of two processes within this time is printed once


class _Print(NamedTuple):
    """Process whose line was printed, and when (time.monotonic())."""

    process: str
    time_s: float


@contextlib.contextmanager
def worker_output(verbose: bool) -> Iterator[None]:
    """Print what workers log through afinar as if the driver had logged it, until the block ends.

    To be entered before `ray.init`, which adds a handler that prints everything that Ray's
    processes write to stdout and stderr, each line behind the name of its process: messages of
    Ray's core and of Ray Train's controller, tracebacks of its background threads, warnings of
    libraries. Ray cannot filter by logger. So our handler takes the lines of afinar out of every
    batch before Ray's handler gets it, and Ray's printing is on only if `verbose`.
    """
    last_prints: dict[str, _Print] = {}

    def print_afinar_lines(batch: dict[str, Any]) -> None:
        process, now = f"{batch.get('ip')} {batch.get('pid')}", time.monotonic()
        foreign_lines = []
        for line in batch["lines"]:
            message = parse_worker_line(line)
            if message is None:
                foreign_lines.append(line)
                continue
            # All workers log the same notes about a model as they start: print the first one's.
            last = last_prints.get(message)
            if last and last.process != process and now - last.time_s < _SAME_LINE_S:
                continue
            last_prints[message] = _Print(process, now)
            print(message, file=sys.stderr, flush=True)  # noqa: T201
        batch["lines"] = foreign_lines

    ray_worker._worker_logs_enabled = verbose
    global_worker_stdstream_dispatcher.add_handler(_HANDLER, print_afinar_lines)
    try:
        yield
    finally:
        global_worker_stdstream_dispatcher.remove_handler(_HANDLER)
        ray_worker._worker_logs_enabled = True
