"""Memory of labelling: the same for a small archive and one twenty times as large, and a driver that stays lean.

The network is the courses' small one at 64 pixels, so that 40,000 pictures take a minute; a larger one adds its weights
and activations to every worker, at any number of pictures.
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
    """Highest readings of a run. `driver` is the kernel's own high-water mark of its resident memory, `total` the
    proportional memory of the driver and everything it started, Ray's own processes included, read at one moment."""

    driver: int = 0
    driver_torch: bool = False
    total: int = 0
    seconds: float = 0.0

    def read(self, pid: int) -> None:
        """One reading of everything that `pid` started."""
        self.total = max(self.total, sum(pss(one) for one in tree(pid)))
        try:
            status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
            self.driver_torch |= (
                b"libtorch" in Path(f"/proc/{pid}/maps").read_bytes()
            )  # no import hook hides that
        except OSError:  # it has just ended
            return
        self.driver = max([self.driver, *high_water(status)])


def high_water(status: str) -> list[int]:
    """Bytes of VmHWM in /proc/PID/status; a process that has just ended has none."""
    return [
        int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")
    ]


def label_memory() -> bool:
    """The total differs by less than 10 %; the driver stays under 500 MB and loads no torch."""
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
    for count, one in zip(map(scaled, COUNTS), peaks, strict=True):
        table.add(
            f"{count:,}",
            f"{one.total / _MB:.0f}",
            f"{one.driver / _MB:.0f}",
            one.driver_torch,
            f"{one.seconds:.0f}",
        )
    table.show(
        f"label_memory: `afinar label` with {CORES} workers, small_cnn at {SIZE} px, read every {EVERY_S} s"
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
        said = (out / "log").read_text(errors="replace")[-2000:]
        raise WrongBenchError(f"labelling ended with {process.returncode}: {said}")
    require_every("afinar", read_ours(out / "predictions"), source)
    return peaks


def _limits(few: Peaks, many: Peaks) -> bool:
    growth = many.total / few.total - 1
    driver = max(few.driver, many.driver)
    limits = Table(("what", "measured", "limit", "met"))
    limits.limit(
        "all processes, large archive against small", f"{100 * growth:+.1f} %", f"within {100 * GROWTH:.0f} %",
        holds=abs(growth) < GROWTH,
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
