"""`afinar COMMAND …`, also `python -m afinar COMMAND …`."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from afinar.config.base import JobConfig
from afinar.errors import AfinarError
from afinar.logs import configure_logging

COMMANDS = {
    "ingest": "turn a folder or an s3:// prefix of pictures into an Arrow dataset",
    "train": "train a classifier on a dataset and publish it as the next model version",
    "label": "label every picture of a folder, an s3:// prefix, a list or a dataset with a model",
    "plan": "what an ingest or a labelling would take: time, bytes and requests, from a sample",
    "status": "what a dataset or a prediction folder holds; --verify re-hashes it, --gc removes what nothing needs",
    "forget": "erase pictures from a dataset and from every version that held them",
    "demo": "all three on real pictures, ending in a report (a few minutes)",
    "submit": "run one of the jobs on a Ray cluster and follow it",
}

EXIT_CODES = (
    "Exit codes: 0 done, 1 the job ran and fell short, 2 the request is wrong, 130 interrupted."
)


class Command(Protocol):
    """What a module of this package offers as a command."""

    def configure(self, words: list[str]) -> JobConfig:
        """Parse and check the words, importing neither torch nor ray."""
        ...

    def run(self, config: Any) -> dict[str, Any]:
        """Do it; the summary, JSON-able."""
        ...

    def describe(self, summary: dict[str, Any]) -> str:
        """The summary for a person."""
        ...


def main(words: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = sys.argv[1:] if words is None else words
    configure_logging()
    if not words or words[0] in {"-h", "--help"}:
        print(_overview())  # noqa: T201
        return 0
    if words[0] not in COMMANDS:
        print(f"afinar: unknown command {words[0]!r}\n\n{_overview()}", file=sys.stderr)  # noqa: T201
        return 2
    return _run(words[0], words[1:])


def _run(name: str, words: list[str]) -> int:
    command: Command = importlib.import_module(f"afinar.cli.{name}")
    as_json = "--json" in words
    try:
        config = command.configure(words)
        as_json = bool(getattr(config, "json", False))  # a recipe may ask for it
        with redirect_stdout() as stdout:
            summary = command.run(config)
            print(json.dumps(summary) if as_json else command.describe(summary), file=stdout)
        return int(summary.get("exit_code", 0))
    except AfinarError as error:
        _complain(str(error), error.exit_code, as_json)
        return error.exit_code
    except (
        SystemExit
    ) as usage:  # the parser has said on stderr what is wrong, or shown the help on stdout
        if as_json and usage.code:
            _complain("the words of the command are wrong", 2, as_json)
        raise
    except KeyboardInterrupt:
        _complain("interrupted; run the same command again", 130, as_json)
        return 130
    except Exception as error:  # noqa: BLE001  (a bug: shown whole)
        traceback.print_exc()
        _complain(f"{type(error).__name__}: {error}", 1, as_json)
        return 1


def _complain(sentence: str, exit_code: int, as_json: bool) -> None:
    print(f"afinar: {sentence}", file=sys.stderr)  # noqa: T201
    if as_json:
        print(json.dumps({"error": sentence, "exit_code": exit_code}))  # noqa: T201


@contextmanager
def redirect_stdout() -> Iterator[TextIO]:
    """Keep stdout for the summary: whatever else is printed, by Ray's workers too, goes to stderr."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(saved), "w") as stdout:
            yield stdout
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "afinar: distributed transfer learning for image archives, on Ray",
            "",
            "usage: afinar COMMAND …, and afinar COMMAND --help",
            "",
            *lines,
            "",
            EXIT_CODES,
        ]
    )


def entry() -> None:
    """Console script."""
    sys.exit(main())
