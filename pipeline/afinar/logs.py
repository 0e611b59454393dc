"""Logging of a job: one logger tree below `afinar`, written to stderr as text or as JSON lines.

Modules log with `logging.getLogger(__name__)`. A process decides once, at its entry point, where
the lines go: `configure_logging` in the command line, `configure_worker_logging` in Ray's workers.
The driver keeps the user's choice in the environment, where `log_settings` reads it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import textwrap
import time
from dataclasses import dataclass
from typing import Final, Literal, TextIO, get_args

Format = Literal["text", "timed", "json"]

FORMAT_VARIABLE: Final = "AFINAR_LOG_FORMAT"
VERBOSE_VARIABLE: Final = "AFINAR_VERBOSE"
RUN_VARIABLE: Final = "AFINAR_RUN"
TERMINAL_VARIABLE: Final = "AFINAR_TERMINAL"
COLUMNS: Final = 100
"""Length of the longest line of a log or a summary that has blanks to break it at."""

_TIME: Final = "%Y-%m-%d %H:%M:%S  "

_ROOT = logging.getLogger("afinar")
_WORKER_PREFIX: Final = "[afinar] "
_JSON_START: Final = '{"logger": "afinar'


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """The user's choice of log format, whether debug messages are shown, and the run's name.

    `terminal` is true if the driver's log is shown on a terminal.
    """

    log_format: Format = "text"
    verbose: bool = False
    run: str = ""
    terminal: bool = False


# Control characters of terminals (C0, DEL, C1), line separators, and characters that change the
# direction of the text after them; lone surrogates cannot be printed.
_CONTROLS: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def escape_controls(text: str) -> str:
    """Return text with control characters as escapes, such as `\\x1b` and `\\n`.

    Names of files, classes and models may come from strangers. Whatever is shown on a terminal or
    written to a log as text passes here, so that no name moves the cursor, fakes a line or hides
    one.
    """
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


def escape_lines(text: str) -> str:
    """Return text of several lines, such as a traceback, with each line escaped."""
    return "\n".join(map(escape_controls, text.split("\n")))


_COMMAND: Final = re.compile("`[^`]*`")


def wrap(text: str, indent: int = 2, columns: int = COLUMNS) -> str:
    """Break a line at its blanks so that it fits `columns`; further lines are indented.

    Paths, names and commands between backticks are not broken: they are to be copied.
    """
    if len(text) <= columns:
        return text.rstrip()
    whole = _COMMAND.sub(lambda command: command[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(
        whole,
        columns,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines).replace("\0", " ")


class _TextFormatter(logging.Formatter):
    """The message, escaped and broken at its blanks, and the traceback."""

    columns = COLUMNS

    def format(self, record: logging.LogRecord) -> str:
        lines = [wrap(escape_controls(record.getMessage()), columns=self.columns)]
        if record.exc_info:
            lines.append(escape_lines(self.formatException(record.exc_info)))
        return "\n".join(lines)


class _TimedFormatter(_TextFormatter):
    """The same after the local time, for logs of jobs that run at night."""

    columns = COLUMNS - len(time.strftime(_TIME))

    def format(self, record: logging.LogRecord) -> str:
        return time.strftime(_TIME, time.localtime(record.created)) + super().format(record)


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
    """One JSON object per line: logger, time (UTC), level, run, rank, message, traceback."""

    def __init__(self, run: str, rank: int | None) -> None:
        super().__init__()
        self._run, self._rank = run, rank

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "logger": record.name,
            "time": round(record.created, 3),
            "level": record.levelname,
            "run": self._run,
            "message": record.getMessage(),
        }
        if self._rank is not None:
            line["rank"] = self._rank
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)

        return json.dumps(line)


class _WorkerFormatter(_TextFormatter):
    """The message and the traceback, each of their lines marked as written by this logger."""

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).splitlines()
        return "\n".join(_WORKER_PREFIX + line for line in lines)


def configure_logging(log_format: Format = "text", *, run: str = "", verbose: bool = False) -> None:
    """Send the driver's log of afinar to stderr. A later call replaces what an earlier one set.

    `run` names the job's run in every JSON line. `verbose` also shows debug messages, and the
    output of Ray's own processes.
    """
    os.environ[FORMAT_VARIABLE] = log_format
    os.environ[VERBOSE_VARIABLE] = str(int(verbose))
    os.environ[RUN_VARIABLE] = run
    os.environ[TERMINAL_VARIABLE] = str(int(sys.stderr.isatty()))
    formatters = {"text": _TextFormatter(), "timed": _TimedFormatter()}
    _set_handler(formatters.get(log_format) or _JsonFormatter(run, None), verbose)
    _ROOT.propagate = True


def log_settings() -> LogSettings:
    """Return the arguments of `configure_logging` in this process or the one that started it."""
    formats = {name: name for name in get_args(Format)}
    log_format: Format = formats.get(os.environ.get(FORMAT_VARIABLE, ""), "text")
    verbose = os.environ.get(VERBOSE_VARIABLE) == "1"
    run = os.environ.get(RUN_VARIABLE, "")
    terminal = os.environ.get(TERMINAL_VARIABLE) == "1"
    return LogSettings(log_format=log_format, verbose=verbose, run=run, terminal=terminal)


def configure_worker_logging(
    settings: LogSettings | None = None, *, run: str = "", rank: int | None = None
) -> None:
    """Send a worker's log of afinar to stderr, in lines that `parse_worker_line` recognises.

    `settings` come from the driver; a worker on its machine inherits them and may leave them out.
    `run` (by default the driver's) and `rank` are in every JSON line.
    """
    settings = settings or log_settings()
    is_json = settings.log_format == "json"
    formatter = _JsonFormatter(run or settings.run, rank) if is_json else _WorkerFormatter()
    _set_handler(formatter, settings.verbose)
    _ROOT.propagate = False  # Ray Train's handler at the root would write each line again


def parse_worker_line(line: str) -> str | None:
    """Return the log line in a line of a worker's output; None if afinar did not log it."""
    if line.startswith(_WORKER_PREFIX):
        return line.removeprefix(_WORKER_PREFIX)
    return line if line.startswith(_JSON_START) else None


def print_worker_line(line: str) -> None:
    """Print a log line that `parse_worker_line` has returned, as if this process had logged it.

    A worker does not write the time: lines of several workers that say the same are printed once.
    """
    is_timed = log_settings().log_format == "timed"
    print((time.strftime(_TIME) if is_timed else "") + line, file=sys.stderr, flush=True)  # noqa: T201


def _set_handler(formatter: logging.Formatter, verbose: bool) -> None:
    handler = _StderrHandler()
    handler.setFormatter(formatter)
    _ROOT.handlers[:] = [handler]
    _ROOT.setLevel(logging.DEBUG if verbose else logging.INFO)
