"""Standard streams that are closed, full or no longer read, as those of daemons and pipes are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Trained


def run_in_shell(command: str, dataset: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in which "$@" is `afinar status DATASET`."""
    status = [sys.executable, "-m", "afinar", "status", dataset]
    arguments = ["sh", "-c", command, "sh", *status]
    return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ('exec "$@" >&-', 0),
        ('exec "$@" <&- >&- 2>&-', 0),
        ('{ "$@"; echo "code $?" >&2; } | true', 0),
    ],
    ids=["no stdout", "no streams", "a reader that has left"],
)
def test_job_ends_well_without_a_reader_of_its_output(
    command: str, code: int, trained: Trained
) -> None:
    result = run_in_shell(command, trained.dataset)
    assert result.returncode == code
    assert result.stderr in {"", "code 0\n"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_summary_that_cannot_be_written_is_an_error_in_one_line(trained: Trained) -> None:
    result = run_in_shell('exec "$@" >/dev/full', trained.dataset)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "could not be written to the standard output: No space left" in line


ENDS = """
import atexit, sys, threading, time
from afinar.cli import main

def finish():
    time.sleep(0.3)
    print("thread", flush=True)

def run(**_):
    if sys.argv[1] == "thread":
        threading.Thread(target=finish).start()
    print("printed", end=" ")
    return 3

atexit.register(print, "atexit")
main.main = run
main.entry()
"""


@pytest.mark.parametrize(
    ("kind", "output"), [("no thread", "printed atexit\n"), ("thread", "printed thread\natexit\n")]
)
def test_command_ends_after_what_was_registered_and_its_threads(kind: str, output: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDS, kind], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, output, "")


@pytest.mark.parametrize("optimization", ["0", "2"])
def test_help_is_whole_without_docstrings_and_may_be_cut(optimization: str) -> None:
    """`python -OO`, which images of containers use, leaves out docstrings."""
    command = f"PYTHONOPTIMIZE={optimization} {sys.executable} -m afinar train --help"
    whole = subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout
    assert whole.splitlines()[2].startswith("Train a classifier on an ingested dataset")
    cut = subprocess.run(
        ["sh", "-c", f"{{ {command}; echo code $? >&2; }} | head -n 1"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert cut.stdout.startswith("usage: afinar train")
    assert cut.stderr == "code 0\n"
