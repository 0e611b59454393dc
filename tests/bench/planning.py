"""Planning an archive: listing, cutting into units, storing the plan, in a fresh process each."""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.table import Table
from tests.bench.world import WrongBenchError, in_memory, run_side, scaled


@dataclass(frozen=True)
class Case:
    """So many pictures are planned in so many seconds and bytes."""

    pictures: int
    seconds: float
    peak_bytes: float


CASES = (Case(1_000_000, 30, 1e9), Case(10_000_000, 300, 4e9))


def planning() -> bool:
    """One million in 30 s and 1 GB, ten million in 5 minutes and 4 GB."""
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
                "most_bytes": case.peak_bytes
                + 8e9,  # of addresses: what runs away is ended before the machine suffers
            }
            try:
                one = run_side("planning", request, timeout_s=2 * case.seconds)
            except WrongBenchError as error:
                table.limit(
                    f"{case.pictures:,}", "", str(error)[-160:].replace("\n", " "), holds=False
                )
                continue
        holds = one["seconds"] <= case.seconds and one["peak_bytes"] <= case.peak_bytes
        table.limit(
            f"{request['pictures']:,}", f"{one['listing_s']:.1f}", f"{one['seconds']:.1f}", f"{case.seconds:g}",
            f"{one['peak_bytes'] / 1e6:.0f}", f"{case.peak_bytes / 1e6:.0f}", one["units"], holds=holds,
        )  # fmt: skip
    return table.show(
        "planning: synthetic listings in shuffled order, addresses of 60 to 80 bytes, 32-digit change marks"
    )
