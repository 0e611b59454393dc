"""Logging of a job: one logger tree below `afinar`, to stderr, as lines for people or as JSON for machines.

Modules log with `logging.getLogger(__name__)`. A process decides once, at its entry point, where the lines go.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Literal, TextIO

Format = Literal["text", "json"]

_ROOT = logging.getLogger("afinar")


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is when a line is logged, so that redirections are respected."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, _: TextIO) -> None:
        """Ignore: the stream is always `sys.stderr`."""


class _JsonFormatter(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, run, rank, message, and the traceback if there is one."""

    def __init__(self, run: str, rank: int | None) -> None:
        super().__init__()
        self._run, self._rank = run, rank

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        line: dict[str, object] = {
            "time": round(record.created, 3),
            "level": record.levelname,
            "logger": record.name,
            "run": self._run,
            "message": record.getMessage(),
        }
        if self._rank is not None:
            line["rank"] = self._rank
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logging(
    log_format: Format = "text", *, run: str = "", rank: int | None = None, verbose: bool = False
) -> None:
    """Send the log of afinar to stderr. Calling it again replaces what an earlier call set.

    `run` and `rank` name the job's run and the worker in every JSON line; a text line of a worker begins with its
    rank. `verbose` also shows debug messages.
    """
    handler = _StderrHandler()
    if log_format == "json":
        handler.setFormatter(_JsonFormatter(run, rank))
    else:
        handler.setFormatter(
            logging.Formatter("%(message)s" if rank is None else f"rank {rank}: %(message)s")
        )
    _ROOT.handlers[:] = [handler]
    _ROOT.setLevel(logging.DEBUG if verbose else logging.INFO)
    _ROOT.propagate = True
