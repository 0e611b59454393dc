"""Environment of the benches: folders in memory, and processes that run the sides."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
OURS = Path(sys.executable)
PEERS = ROOT / ".venv-bench" / "bin" / "python"
CORES = 2
Record = dict[str, Any]


class WrongBenchError(Exception):
    """A side of a comparison did not do its work: its figures must not be used."""


class NotMeasuredError(Exception):
    """This machine has no hardware for the bench: limits are neither met nor missed."""


@contextmanager
def in_memory() -> Iterator[Path]:
    """Make a folder in tmpfs, so that no disk is measured, and delete it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="afinar-bench-", dir="/dev/shm"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require_cores() -> None:
    """Restrict this process and its children to two cores, for which the limits are stated."""
    available = sorted(os.sched_getaffinity(0))
    if len(available) < CORES:
        raise WrongBenchError(
            f"the limits are stated for {CORES} cores, this machine has {len(available)}"
        )
    os.sched_setaffinity(0, available[:CORES])


def start_side(module: str, request: Record, python: Path = OURS) -> subprocess.Popen[str]:
    """Start `python -m tests.bench.sides.MODULE REQUEST` in a new process."""
    if not python.exists():
        raise WrongBenchError("the peers' environment is missing: run `make peers`")
    return start_command([str(python), "-m", f"tests.bench.sides.{module}", json.dumps(request)])


def start_command(command: list[str], extra: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a command that prints one line of JSON.

    Its environment has `extra` and no variable of Ray.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        "NO_ALBUMENTATIONS_UPDATE": "1",
    }
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment | (extra or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish_side(side: subprocess.Popen[str], timeout_s: float = 300) -> Record:
    """Wait for a side and return its last line, which is its answer.

    Raises WrongBenchError with the end of its output if it failed.
    """
    try:
        out, errors = side.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise WrongBenchError(f"{side.args!r} took more than {timeout_s:.0f} s") from None
    finally:
        if side.poll() is None:  # the process and its children would disturb the next measurement
            os.killpg(side.pid, signal.SIGKILL)
            side.wait()
    if side.returncode != 0 or not out.strip():
        raise WrongBenchError(f"{side.args!r} ended with {side.returncode}: {errors[-3000:]}")
    answer: Record = json.loads(out.strip().splitlines()[-1])
    return answer


def run_side(module: str, request: Record, python: Path = OURS, timeout_s: float = 300) -> Record:
    """Start a side and wait for its answer."""
    started = time.monotonic()
    answer = finish_side(start_side(module, request, python), timeout_s)
    print(f"{time.monotonic() - started:6.1f} s  {module}", file=sys.stderr, flush=True)
    return answer


@contextmanager
def round_folder(folder: Path, name: str) -> Iterator[Path]:
    """Make a folder for one round and delete it at its end, so that memory holds one output."""
    round_path = folder / name
    round_path.mkdir()
    try:
        yield round_path
    finally:
        shutil.rmtree(round_path, ignore_errors=True)


def scaled(count: int) -> int:
    """Return `count` times BENCH_SCALE; below 1 it tests that a bench runs, without figures."""
    return max(8, round(count * float(os.environ.get("BENCH_SCALE", "1"))))


def ingests_of(answer: Record) -> list[Record]:
    """Return the records of afinar's ingests. Raises WrongBenchError if it rejected a picture."""
    records: list[Record] = answer["ingests"]
    for record in records:
        if record["summary"]["rejects"]:
            raise WrongBenchError(
                f"ingest rejected good pictures: {record['summary']['rejects_by_reason']}"
            )
    return records
