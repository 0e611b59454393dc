"""Ingest against the bare limit: one process per core, without Ray, that does what shards require.

It decodes the same pictures, hashes each file, and hashes and writes the pixels.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

from tests.bench.outputs import read_afinar, require_same
from tests.bench.pictures import MEDIUM, SMALL, Size, make_pictures
from tests.bench.table import PAIRS, Ratio, Table, spread
from tests.bench.world import (
    CORES,
    Record,
    in_memory,
    ingests_of,
    require_cores,
    round_folder,
    run_side,
    scaled,
)

SHARE = 0.85
SIZE = 256
APART = 1.0  # levels by which the pixels of a decoder may differ to count as the same
SETS = {SMALL: 28_000, MEDIUM: 5_000}
BARE = 3000  # pictures for each bare decoder: enough for a rate, and no longer than an ingest


def limit() -> bool:
    """Require 0.85 of the bare limit, for pictures of 500x375 and 1024x768."""
    require_cores()
    with in_memory() as folder:
        sources = {
            size: make_pictures(
                folder / f"{size[0]}x{size[1]}", size, scaled(count), distinct=scaled(1000)
            )
            for size, count in SETS.items()
        }
        warm_up = make_pictures(folder / "warm", SMALL, 200, seed=10**6)
        bare: dict[Size, list[Record]] = {size: [] for size in sources}
        ours: dict[Size, list[Record]] = {size: [] for size in sources}
        for number in range(PAIRS):
            for size, source in sources.items():
                bare[size].append(run_side("bare", _bare_request(source, folder)))
            with round_folder(folder, f"round-{number}") as out:
                for size, record in zip(sources, _ingest(sources, warm_up, out), strict=True):
                    ours[size].append(record)
                    require_same(
                        "afinar", read_afinar(out / str(size[0]), SIZE), sources[size], SIZE, "crop"
                    )
        return _report(ours, bare)


def _bare_request(source: Path, folder: Path) -> Record:
    return {
        "source": str(source),
        "size": SIZE,
        "cores": CORES,
        "pictures": BARE,
        "out": str(folder / "scratch"),
    }


def _ingest(sources: dict[Size, Path], warm_up: Path, out: Path) -> list[Record]:
    ingests = [
        {"source": str(source), "dataset": str(out / str(size[0])), "size": SIZE, "fit": "crop"}
        for size, source in sources.items()
    ]
    first = {"source": str(warm_up), "dataset": str(out / "warm"), "size": SIZE}
    return ingests_of(
        run_side("afinar_ingest", {"cores": CORES, "warm_up": first, "ingests": ingests})
    )


def _report(ours: dict[Size, list[Record]], bare: dict[Size, list[Record]]) -> bool:
    table = Table(
        ("pictures", "afinar, /s", "bare limit, /s", "decoding alone, /s", "share", f"≥ {SHARE}")
    )
    costs = Table(("pictures", "work", "share of ingest's core time, %"))
    for size, records in ours.items():
        rates = [record["summary"]["samples"] / record["seconds"] for record in records]
        best = fastest(bare[size])
        limits = [record["required"] for record in bare[size]]
        share = Ratio.of(rates, limits)
        name = f"{size[0]}×{size[1]}"
        alone = spread([record["rates"][best] for record in bare[size]])
        table.limit(
            name, spread(rates), spread(limits), f"{alone} (`{best}`)", share,
            holds=share.median >= SHARE,
        )  # fmt: skip
        for work in bare[size][0]["costs_s"]:
            cost = median(record["costs_s"][work] for record in bare[size])
            costs.add(name, work, f"{100 * cost * median(rates) / CORES:.1f}")
    costs.show("limit: other work of an ingest")
    return table.show(
        "limit: ingest against decoding, hashing and writing, two cores, 256×256, files in memory"
    )


def fastest(records: list[Record]) -> str:
    """Return the fastest decoder whose pixels are the same."""
    same = [name for name, levels in records[0]["apart"].items() if levels <= APART]
    return str(max(same, key=lambda name: median(record["rates"][name] for record in records)))
