"""Run a command; its wall time, and the peak of its whole process tree's memory.

Memory is proportional set size (`/proc/PID/smaps_rollup`) summed over the tree once a second, plus what
Ray's object stores take of /dev/shm, which no process's own figure shows until it touches it.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Footprint:
    """What a command took. Bytes and seconds; `exit_code` is the command's own."""

    seconds: float
    peak_bytes: int
    peak_shared_bytes: int
    exit_code: int


def measure(command: list[str]) -> Footprint:
    """Run the command to its end; its output goes where ours goes."""
    before = shutil.disk_usage("/dev/shm").used
    started = time.monotonic()
    process = subprocess.Popen(command)
    peak = shared_peak = 0
    while process.poll() is None:
        shared = max(0, shutil.disk_usage("/dev/shm").used - before)
        peak = max(peak, sum(pss(pid) for pid in tree(process.pid)) + shared)
        shared_peak = max(shared_peak, shared)
        time.sleep(1)
    return Footprint(time.monotonic() - started, peak, shared_peak, process.returncode)


def tree(pid: int) -> Iterator[int]:
    """The process and its descendants; Ray's daemons stay children of the driver that started them."""
    try:
        parent = psutil.Process(pid)
        yield pid
        yield from (child.pid for child in parent.children(recursive=True))
    except psutil.NoSuchProcess:
        return


def pss(pid: int) -> int:
    """A process's proportional set size in bytes; 0 when it has ended."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:  # ended meanwhile
        return 0
    return sum(
        int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:")
    )
