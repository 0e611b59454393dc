"""Signals: the exit code of each, one sentence, no traceback, however many come."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# A command that waits until a signal comes, and then takes its time to end.
JOB = """
import sys, time
from afinar.cli import main, status

def run(config):
    try:
        print("running", file=sys.stderr, flush=True)
        sys.stdin.readline()
    finally:
        print("ending", file=sys.stderr, flush=True)
        sys.stdin.readline()
    return {}

status.run, status.describe = run, str
sys.argv = ["afinar", "status", "x", *sys.argv[1:]]
main.entry()
"""


@contextmanager
def running_job(*arguments: str, ignored: signal.Signals | None = None) -> Iterator[Job]:
    def ignore() -> None:
        # A background process of a shell, as these tests may be one, ignores SIGINT from its start.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        if ignored is not None:
            signal.signal(ignored, signal.SIG_IGN)

    process = subprocess.Popen(
        [sys.executable, "-c", JOB, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=ignore,  # noqa: PLW1509
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == "running\n"
        yield process
    finally:
        process.kill()
        process.wait()


Job = subprocess.Popen[str]


@pytest.mark.parametrize(
    ("number", "code", "cause"),
    [
        (signal.SIGINT, 130, "interrupted;"),
        (signal.SIGTERM, 143, "interrupted by SIGTERM;"),
        (signal.SIGHUP, 129, "interrupted by SIGHUP;"),
    ],
)
def test_first_signal_ends_the_job_in_order_and_later_ones_change_nothing(
    number: signal.Signals, code: int, cause: str
) -> None:
    with running_job("--json") as job:
        assert job.stderr is not None
        job.send_signal(number)
        assert job.stderr.readline() == "ending\n"
        for later in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            job.send_signal(later)
        out, err = job.communicate("\n", timeout=60)
    assert job.returncode == code
    assert err == f"afinar: {cause} run the same command again\n"
    assert json.loads(out) == {"error": err[8:-1], "exit_code": code}


def test_signal_that_is_ignored_from_the_beginning_stays_ignored() -> None:
    with running_job(ignored=signal.SIGHUP) as job:
        job.send_signal(signal.SIGHUP)
        out, _ = job.communicate("\n\n", timeout=60)
    assert (job.returncode, out) == (0, "{}\n")
