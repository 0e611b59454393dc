"""Where benches happen: a scratch folder in memory, and processes of either environment that do one thing."""

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
    """A side of a comparison did not do its work: no figure of it may be used."""


class NotMeasuredError(Exception):
    """This machine lacks what the bench is about: there is no figure, and nothing was met or missed."""


@contextmanager
def in_memory() -> Iterator[Path]:
    """A folder on tmpfs, so that no disk is measured; gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="afinar-bench-", dir="/dev/shm"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require_cores() -> None:
    """The limits are stated for two cores: hold this process and its children to two of them."""
    available = sorted(os.sched_getaffinity(0))
    if len(available) < CORES:
        raise WrongBenchError(
            f"the limits are stated for {CORES} cores, this machine has {len(available)}"
        )
    os.sched_setaffinity(0, available[:CORES])


def start_side(module: str, request: Record, python: Path = OURS) -> subprocess.Popen[str]:
    """Start `python -m tests.bench.sides.MODULE`, which does what `request` says in a process of its own."""
    if not python.exists():
        raise WrongBenchError("the peers' environment is missing: run `make peers`")
    return start_command([str(python), "-m", f"tests.bench.sides.{module}", json.dumps(request)])


def start_command(command: list[str], extra: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a command that answers in one line of JSON, with `extra` in its environment and no word of Ray's."""
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
    """The side's last line, which is its answer. WrongBenchError when it failed, with what it said."""
    try:
        out, said = side.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise WrongBenchError(f"{side.args!r} took more than {timeout_s:.0f} s") from None
    finally:
        if side.poll() is None:  # it, and what it started, would disturb whatever is measured next
            os.killpg(side.pid, signal.SIGKILL)
            side.wait()
    if side.returncode != 0 or not out.strip():
        raise WrongBenchError(f"{side.args!r} ended with {side.returncode}: {said[-3000:]}")
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
    """A folder below `folder` for one round, gone after it: memory holds one round's output at a time."""
    made = folder / name
    made.mkdir()
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def scaled(count: int) -> int:
    """`count`, or less with BENCH_SCALE below 1: to see that a bench runs, not to read figures from it."""
    return max(8, round(count * float(os.environ.get("BENCH_SCALE", "1"))))


def ingests_of(answer: Record) -> list[Record]:
    """What our own side says of each ingest; WrongBenchError when it rejected a picture, all of which are good."""
    records: list[Record] = answer["ingests"]
    for record in records:
        if record["summary"]["rejects"]:
            raise WrongBenchError(
                f"ingest rejected good pictures: {record['summary']['rejects_by_reason']}"
            )
    return records
