"""Memory of labelling: of a small archive, of one twenty times as large, and of the driver.

The network is small_cnn at 64 pixels, so that 40,000 pictures take a minute. A larger network adds
its weights and activations to every worker, whatever the number of pictures.
"""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.footprint import pss, tree
from tests.bench.labelling_models import make_model
from tests.bench.labelling_outputs import read_ours, require_every
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

SIZE: Final = 64
COUNTS: Final = (2000, 40_000)
GROWTH: Final = 0.10
DRIVER_BYTES: Final = 500e6
EVERY_S: Final = 0.5
_MB: Final = 1e6


@dataclass
class Peaks:
    """Highest readings of a run.

    `driver` is the kernel's peak of the driver's resident memory (VmHWM), `total` the proportional
    memory of the driver and all processes below it, those of Ray too, at one moment.
    """

    driver: int = 0
    driver_torch: bool = False
    total: int = 0
    seconds: float = 0.0

    def read(self, pid: int) -> None:
        """Read the memory of `pid` and of all processes below it."""
        self.total = max(self.total, sum(pss(process) for process in tree(pid)))
        try:
            status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
            # Mapped libraries, which no import hook can hide.
            self.driver_torch |= b"libtorch" in Path(f"/proc/{pid}/maps").read_bytes()
        except OSError:  # it has just ended
            return
        self.driver = max([self.driver, *high_water(status)])


def high_water(status: str) -> list[int]:
    """Return the bytes of VmHWM in /proc/PID/status; none for a process that has just ended."""
    return [
        int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")
    ]


def label_memory() -> bool:
    """Require totals that differ by less than 10 %, and a driver under 500 MB without torch."""
    require_cores()
    with in_memory() as folder:
        model = make_model(folder / "models", "small_cnn", SIZE)
        peaks = []
        for count in map(scaled, COUNTS):
            with round_folder(folder, str(count)) as out:
                source = make_pictures(
                    out / "pictures", SMALL, count, distinct=min(count, scaled(1000))
                )
                peaks.append(_measured(source, out, model))
    table = Table(
        (
            "pictures",
            "all processes (proportional), MB",
            "driver (VmHWM), MB",
            "torch in the driver",
            "s",
        )
    )
    for count, peak in zip(map(scaled, COUNTS), peaks, strict=True):
        table.add(
            f"{count:,}",
            f"{peak.total / _MB:.0f}",
            f"{peak.driver / _MB:.0f}",
            peak.driver_torch,
            f"{peak.seconds:.0f}",
        )
    table.show(
        f"label_memory: `afinar label` with {CORES} workers, small_cnn at {SIZE} px, "
        f"read every {EVERY_S} s"
    )
    return _limits(*peaks)


def _measured(source: Path, out: Path, model: str) -> Peaks:
    command = [
        str(OURS),
        "-m",
        "afinar",
        "label",
        str(source),
        str(out / "predictions"),
        "--model",
        model,
    ]
    peaks = Peaks()
    with (out / "log").open("wb") as log:
        started = time.monotonic()
        process = subprocess.Popen(
            [*command, "--workers", str(CORES)], cwd=ROOT, stdout=log, stderr=log
        )
        while process.poll() is None:
            peaks.read(process.pid)
            time.sleep(EVERY_S)
        peaks.seconds = time.monotonic() - started
    if process.returncode != 0:
        log_end = (out / "log").read_text(errors="replace")[-2000:]
        raise WrongBenchError(f"labelling ended with {process.returncode}: {log_end}")
    require_every("afinar", read_ours(out / "predictions"), source)
    return peaks


def _limits(few: Peaks, many: Peaks) -> bool:
    growth = many.total / few.total - 1
    driver = max(few.driver, many.driver)
    limits = Table(("what", "measured", "limit", "met"))
    limits.limit(
        "all processes, large archive against small", f"{100 * growth:+.1f} %",
        f"within {100 * GROWTH:.0f} %", holds=abs(growth) < GROWTH,
    )  # fmt: skip
    limits.limit(
        "driver, MB",
        f"{driver / _MB:.0f}",
        f"< {DRIVER_BYTES / _MB:.0f}",
        holds=driver < DRIVER_BYTES,
    )
    torch = few.driver_torch or many.driver_torch
    limits.limit("torch in the driver", torch, "no", holds=not torch)
    return limits.show("label_memory: limits")
