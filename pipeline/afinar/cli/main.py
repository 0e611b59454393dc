"""`afinar COMMAND …`, also `python -m afinar COMMAND …`."""

from __future__ import annotations

import atexit
import difflib
import importlib
import json
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, NoReturn, Protocol

from afinar.cli import interruption
from afinar.cli.formatting import escape_names
from afinar.config.base import JobConfig
from afinar.errors import AfinarError, RequestError, ShortfallError
from afinar.logs import configure_logging, escape_controls, escape_lines, log_settings, wrap
from afinar.storage.names import new_run
from afinar.units.own_process import claim_process
from afinar.units.pyarrow_setup import forgo_pandas

COMMANDS: Final = {
    "ingest": "convert a folder or an s3:// prefix of pictures to an Arrow dataset",
    "features": "compute and keep the features of a dataset's pictures, which heads are trained on",
    "train": "train a classifier on a dataset and publish it as the next model version",
    "compare": "compare backbones, cuts, heads and regimes on one dataset, and say which to take",
    "label": "label every picture of a folder, an s3:// prefix, a list or a dataset",
    "nightly": "ingest what changed, train a candidate, promote it if it is better, and label",
    "plan": "estimate time, bytes and requests of an ingest or a labelling from a sample",
    "status": "show a dataset, predictions or models; verify them; delete what nothing needs",
    "models": "list the versions of a model, show one, promote one, roll back, retire one",
    "similar": "find near-duplicates, leaks, wrong labels and outliers in a dataset",
    "explain": "show what a model sees: activations, ideal and adversarial pictures, saliency",
    "evaluate": "evaluate a model on a dataset, also on corrupted pictures",
    "forget": "erase pictures from a dataset or predictions, and from every earlier version",
    "demo": "run ingest, train and label on pictures of fabric and write a report (a few minutes)",
    "submit": "run one of the jobs on a Ray cluster and follow it",
}

EXIT_CODES: Final = (
    "Exit codes: 0 done, 1 the job ran and fell short, 2 the request is wrong, 3 submit lost the "
    "cluster or another night holds the lock, 130 interrupted (143 by SIGTERM, 129 by SIGHUP)."
)


class Command(Protocol):
    """Interface of the modules of this package that implement a command."""

    def configure(self, argv: list[str]) -> JobConfig:
        """Parse and check the arguments, importing neither torch nor ray."""
        ...

    def run(self, config: Any) -> dict[str, Any]:
        """Run the job and return its summary as JSON values; `exit_code` in it is optional."""
        ...

    def describe(self, summary: dict[str, Any]) -> str:
        """Return the summary as text."""
        ...


def main(argv: list[str] | None = None, *, owns_process: bool = False) -> int:
    """Run one command and return its exit code.

    `owns_process` says that this process runs nothing else.
    """
    argv = sys.argv[1:] if argv is None else argv
    configure_logging()
    # Pillow warns about odd files that it can read. See `configure_pillow`, which imports Pillow.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if argv[:1] == ["--version"]:
        from importlib.metadata import version  # takes longer than all other imports here

        print(f"afinar {version('afinar')}")  # noqa: T201
        return 0
    if argv[:1] == ["help"]:  # `help COMMAND` is `COMMAND --help`
        argv = [*argv[1:2], "--help"]
    if not argv or argv[0] in {"-h", "--help"}:
        print(_overview())  # noqa: T201
        return 0
    if argv[0] not in COMMANDS:
        print(_unknown(argv[0]), file=sys.stderr)  # noqa: T201
        return 2
    return _run(argv[0], argv[1:], owns_process)


def _unknown(name: str) -> str:
    """Return the message on a command that does not exist, with those of similar names."""
    similar = difflib.get_close_matches(name, COMMANDS)
    if similar:
        return f"afinar: unknown command {name!a}: do you mean {' or '.join(similar)}?"
    return f"afinar: unknown command {name!a}\n\n{_overview()}"


def _run(name: str, argv: list[str], owns_process: bool) -> int:
    command: Command = importlib.import_module(f"afinar.cli.{name}")
    as_json = "--json" in argv
    try:
        _require_current_folder()
        config = _configure(command, argv)
        as_json = config.json  # a recipe may set it
        configure_logging(config.log_format, run=new_run(), verbose=config.verbose)
        if owns_process:
            claim_process()
            forgo_pandas()

        with redirect_stdout() as print_summary:
            summary = command.run(config)
            print_summary(
                json.dumps(summary) if as_json else command.describe(escape_names(summary))
            )
        return int(summary.get("exit_code", 0))
    except AfinarError as error:
        _report_error(str(error), error.exit_code, as_json)
        return error.exit_code
    except SystemExit as usage:
        # The parser has printed its message to stderr, or the help to stdout.
        if as_json and usage.code:
            _report_error("the arguments of the command are wrong", 2, as_json)
        raise
    except KeyboardInterrupt as interrupt:
        interruption.release(interrupt)
        # A job that knows more raises KeyboardInterrupt with what follows.
        hint = str(interrupt) or getattr(command, "INTERRUPTED", "run the same command again")
        code = interruption.exit_code()
        _report_error(f"{interruption.cause()}; {hint}", code, as_json)
        return code
    except Exception as error:  # noqa: BLE001  (a bug: print the traceback)
        print(escape_lines(traceback.format_exc()), file=sys.stderr, end="")  # noqa: T201
        _report_error(f"{type(error).__name__}: {error}", 1, as_json)
        return 1
    finally:
        # The run has ended: what this process logs afterwards is not part of it.
        settings = log_settings()
        configure_logging(settings.log_format, verbose=settings.verbose)


def _configure(command: Command, argv: list[str]) -> JobConfig:
    """Parse the arguments. Exits with 0 if the reader of the help, such as `head`, has left."""
    try:
        return command.configure(argv)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered goes there
        raise SystemExit(0) from None


def _require_current_folder() -> None:
    """Raise RequestError if the current folder was deleted: Ray could not start in it either."""
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError as error:
        raise RequestError(
            "the current folder does not exist any more: change to one that does, and run again"
        ) from error


def _report_error(message: str, exit_code: int, as_json: bool) -> None:
    text = f"afinar: {escape_controls(message)}"
    print(wrap(text) if sys.stderr.isatty() else text, file=sys.stderr)  # noqa: T201
    if as_json:
        print(json.dumps({"error": message, "exit_code": exit_code}))  # noqa: T201


@contextmanager
def redirect_stdout() -> Iterator[Callable[[str], None]]:
    """Redirect file descriptor 1 to stderr and yield a function that prints to the real stdout.

    It covers what Ray and its workers print, which does not pass through `sys.stdout`.
    """
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)

    try:
        yield partial(_print_summary, saved)
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


def _print_summary(descriptor: int, summary: str) -> None:
    """Print the summary of a job that has ended. Raises ShortfallError if that is impossible."""
    data = f"{summary}\n".encode(sys.stdout.encoding or "utf-8", errors="backslashreplace")
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        pass
    except OSError as error:
        raise ShortfallError(
            "the job has ended, and its summary could not be written to the standard output: "
            f"{error.strerror}"
        ) from error


def _open_standard_streams() -> None:
    """Open the null device in place of standard streams that are closed, as those of daemons are.

    The next file that is opened would get the number of a closed one, and output would end up in
    that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    commands = [f"  {name:<{width}}  {purpose}" for name, purpose in COMMANDS.items()]

    return "\n".join(
        [
            "afinar: distributed transfer learning for image archives, on Ray",
            "",
            "usage: afinar COMMAND …, afinar help COMMAND, afinar --version",
            "",
            *commands,
            "",
            EXIT_CODES,
        ]
    )


def entry() -> None:
    """Run the console script."""
    _open_standard_streams()
    interruption.handle_signals()
    _exit(main(owns_process=True))


def _exit(code: int) -> NoReturn:
    """End this process, without Python's finalization if nothing needs it.

    With torch loaded that takes 0.9 s, and a native thread that still wants the interpreter then
    aborts the process. Functions of `atexit` run, and what was printed is flushed.
    """
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if any(not thread.daemon for thread in others):
        sys.exit(code)
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # the reader has gone: Python reports it as usual
        sys.exit(code)
    os._exit(code)
