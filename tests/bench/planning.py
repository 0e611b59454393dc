"""Planning of large archives: list, cut into units, store the plan, each in a new process."""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.table import Table
from tests.bench.world import WrongBenchError, in_memory, run_side, scaled


@dataclass(frozen=True)
class Case:
    """Limits of time and memory for a number of pictures."""

    pictures: int
    seconds: float
    peak_bytes: float


CASES = (Case(1_000_000, 30, 1e9), Case(10_000_000, 300, 4e9))


def planning() -> bool:
    """Require one million pictures in 30 s and 1 GB, ten million in 5 minutes and 4 GB."""
    table = Table(
        (
            "pictures",
            "listed alone, s",
            "planned, s",
            "limit, s",
            "peak, MB",
            "limit, MB",
            "units",
            "met",
        )
    )
    for case in CASES:
        with in_memory() as folder:
            request = {
                "pictures": scaled(case.pictures),
                "out": str(folder / "dataset"),
                # Of address space, so that a process that needs far too much is stopped.
                "most_bytes": case.peak_bytes + 8e9,
            }
            try:
                run = run_side("planning", request, timeout_s=2 * case.seconds)
            except WrongBenchError as error:
                table.limit(
                    f"{case.pictures:,}", "", str(error)[-160:].replace("\n", " "), holds=False
                )
                continue
        holds = run["seconds"] <= case.seconds and run["peak_bytes"] <= case.peak_bytes
        table.limit(
            f"{request['pictures']:,}", f"{run['listing_s']:.1f}", f"{run['seconds']:.1f}",
            f"{case.seconds:g}", f"{run['peak_bytes'] / 1e6:.0f}", f"{case.peak_bytes / 1e6:.0f}",
            run["units"], holds=holds,
        )  # fmt: skip
    return table.show(
        "planning: synthetic listings in shuffled order, URIs of 60 to 80 bytes, etags of 32 digits"
    )
