"""Wall time of a command and peak memory of its process tree.

Memory is the proportional set size (`/proc/PID/smaps_rollup`), summed over the tree once a second,
plus the space that Ray's object stores take in /dev/shm: it counts for no process before the
process touches it.
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
    """Time, memory and exit code of a command."""

    seconds: float
    peak_bytes: int
    peak_shared_bytes: int
    exit_code: int


def measure(command: list[str]) -> Footprint:
    """Run the command to its end, with the output streams of this process."""
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
    """Yield the ids of a process and its descendants, to which Ray's daemons belong."""
    try:
        parent = psutil.Process(pid)
        yield pid
        yield from (child.pid for child in parent.children(recursive=True))
    except psutil.NoSuchProcess:
        return


def pss(pid: int) -> int:
    """Return the proportional set size of a process in bytes, 0 if it has ended."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0
    return sum(
        int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:")
    )
