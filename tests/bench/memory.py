"""Memory of ingest: of a small archive, of one twenty times as large, and of the driver."""

from __future__ import annotations

import subprocess
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.bench.pictures import SMALL, make_pictures
from tests.bench.table import Table
from tests.bench.world import (
    CORES,
    OURS,
    ROOT,
    WrongBenchError,
    in_memory,
    require_cores,
    round_folder,
    scaled,
)

# 40,000 pictures, as files and as pixels, are in memory.
SIZE = 256 if psutil.virtual_memory().available > 14e9 else 96
COUNTS = (2000, 40_000)
GROWTH = 0.10
DRIVER_BYTES = 500e6
EVERY_S = 0.2


@dataclass
class Peaks:
    """Highest readings of a run, by process."""

    driver_pss: int = 0
    driver_torch: bool = False
    workers_torch: bool = False
    worker_uss: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    worker_pss: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    worked: set[int] = field(default_factory=set)

    @property
    def uss(self) -> list[int]:
        """Peak private memory of each process that ran units, highest first."""
        return sorted((self.worker_uss[pid] for pid in self.worked), reverse=True)

    @property
    def pss(self) -> list[int]:
        """Peak proportional memory of each process that ran units, highest first."""
        return sorted((self.worker_pss[pid] for pid in self.worked), reverse=True)


def memory() -> bool:
    """Require peaks of a worker within 10 %, and a driver under 500 MB without torch."""
    require_cores()
    table = Table(
        (
            "pictures",
            "peak per worker (private), MB",
            "proportional, MB",
            "driver, MB",
            "torch in driver, workers",
        )
    )
    peaks = []
    for count in map(scaled, COUNTS):
        with in_memory() as folder:
            source = make_pictures(
                folder / "pictures", SMALL, count, distinct=min(count, scaled(1000))
            )
            _warm_disk(folder)
            with round_folder(folder, "out") as out:
                peaks.append(_measured(source, out))
        peak = peaks[-1]
        table.add(
            f"{count:,}",
            _mb(peak.uss),
            _mb(peak.pss),
            _mb([peak.driver_pss]),
            f"{peak.driver_torch}, {peak.workers_torch}",
        )
    table.show(
        f"memory: {SMALL[0]}×{SMALL[1]} to {SIZE}×{SIZE}, `afinar ingest` with {CORES} workers, "
        f"read every {EVERY_S} s"
    )
    return _limits(*peaks)


def _limits(few: Peaks, many: Peaks) -> bool:
    growth = many.uss[0] / few.uss[0] - 1
    driver = max(few.driver_pss, many.driver_pss)
    limits = Table(("what", "measured", "limit", "met"))
    limits.limit(
        "peak of a worker, large archive against small", f"{100 * growth:+.1f} %",
        f"within {100 * GROWTH:.0f} %", holds=abs(growth) < GROWTH,
    )  # fmt: skip
    limits.limit(
        "driver, MB", _mb([driver]), f"< {DRIVER_BYTES / 1e6:.0f}", holds=driver < DRIVER_BYTES
    )
    torch = few.driver_torch or many.driver_torch
    limits.limit("torch in the driver", torch, "no", holds=not torch)
    return limits.show("memory: limits")


def _measured(source: Path, out: Path) -> Peaks:
    command = [
        str(OURS), "-m", "afinar", "ingest", str(source), str(out / "dataset"),
        "--size", str(SIZE), "--workers", str(CORES),
    ]  # fmt: skip
    peaks = Peaks()
    with (out / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        while process.poll() is None:
            _read(psutil.Process(process.pid), peaks)
            time.sleep(EVERY_S)
    if process.returncode != 0 or len(peaks.worked) < CORES:
        log_end = (out / "log").read_text(errors="replace")[-2000:]
        raise WrongBenchError(
            f"ingest ended with {process.returncode}, {len(peaks.worked)} workers were seen: "
            f"{log_end}"
        )
    return peaks


def _read(driver: psutil.Process, peaks: Peaks) -> None:
    try:
        peaks.driver_pss = max(peaks.driver_pss, driver.memory_full_info().pss)
        peaks.driver_torch |= _has_torch(driver)
        children = driver.children(recursive=True)
    except psutil.Error:
        return  # it has just ended
    for child in children:
        try:
            title = (child.cmdline() or [""])[0]
            if title.startswith("ray::"):
                full = child.memory_full_info()
                peaks.worker_uss[child.pid] = max(peaks.worker_uss[child.pid], full.uss)
                peaks.worker_pss[child.pid] = max(peaks.worker_pss[child.pid], full.pss)
                if _runs_units(title):
                    peaks.worked.add(child.pid)
                    peaks.workers_torch |= _has_torch(child)
        except psutil.Error:
            continue


def _runs_units(title: str) -> bool:
    """Return False for idle workers and processes of Ray itself, by the title of a process."""
    return not title.startswith(("ray::IDLE", "ray::Dashboard", "ray::RuntimeEnv"))


def _has_torch(process: psutil.Process) -> bool:
    """Return True if libtorch is mapped, which no import hook can hide."""
    return b"libtorch" in Path(f"/proc/{process.pid}/maps").read_bytes()


def _warm_disk(folder: Path) -> None:
    """Import packages once, so that their pages are in memory and count as shared."""
    subprocess.run([str(OURS), "-c", "import ray, pyarrow, PIL"], cwd=folder, check=True)


def _mb(values: list[int]) -> str:
    return ", ".join(f"{value / 1e6:.0f}" for value in values)
