"""Lines that workers write: those of afinar's log are printed as if the driver had logged them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final, NamedTuple

from afinar.logs import parse_worker_line, print_worker_line

_SAME_LINE_S: Final = 10.0  # a line of two processes within this time is printed once


class _Print(NamedTuple):
    """Process whose line was printed, and when (time.monotonic())."""

    process: str
    time_s: float


class WorkerLines:
    """Printer of the log lines of one job's workers.

    All workers log the same notes about a model as they start: the first one's are printed.
    """

    def __init__(self) -> None:
        self._last_prints: dict[str, _Print] = {}

    def print_log(self, process: str, lines: Iterable[str]) -> list[str]:
        """Print the lines that afinar logged in a process, and return the others."""
        now = time.monotonic()
        foreign_lines = []
        for line in lines:
            message = parse_worker_line(line)
            if message is None:
                foreign_lines.append(line)
                continue
            last = self._last_prints.get(message)
            if last and last.process != process and now - last.time_s < _SAME_LINE_S:
                continue
            self._last_prints[message] = _Print(process, now)
            print_worker_line(message)
        return foreign_lines
