"""Cost of feeding a device: labelling with devices that compute nothing, or that only take time."""

from __future__ import annotations

import shutil
from pathlib import Path
from statistics import fmean, median
from typing import Final

from tests.bench.labelling_models import make_model
from tests.bench.labelling_outputs import read_ours, require_every
from tests.bench.pictures import SMALL, make_pictures
from tests.bench.table import PAIRS, Ratio, Table, spread
from tests.bench.training_data import make_dataset
from tests.bench.world import (
    CORES,
    Record,
    in_memory,
    require_cores,
    round_folder,
    run_side,
    scaled,
)

SIZE: Final = 224
ROWS: Final = 4096  # 600 MB of pixels, which no cache of a processor holds
MOST_US: Final = 50.0
"""Processor's time per picture from shards: 20,000 pictures a second on one core."""
SIMULATED_RATE: Final = 12_800.0
SIMULATED_SHARE: Final = 0.95
MOST_IDLE: Final = 0.05
FILES: Final = 8000
DISTINCT: Final = 1000
FILES_SHARE: Final = 0.9
LEAST: Final = 200  # files: some units of 64
LAYOUTS: Final = {"cpu": "two workers that decode", "gpu": "one worker, two that decode for it"}


def feeding() -> bool:
    """Require that a worker costs 50 us a picture from shards, and 0.1 of the decoding of files."""
    require_cores()
    with in_memory() as folder:
        model = make_model(folder / "models", "small_cnn", SIZE, "pad")
        are_met = [_from_shards(folder, model), _from_files(folder, model)]
    return all(are_met)


def _from_shards(folder: Path, model: str) -> bool:
    dataset = make_dataset(folder, SIZE, scaled(ROWS))
    shutil.rmtree(folder / "source")
    request = {"dataset": str(dataset), "model": model, "rounds": PAIRS}
    with round_folder(folder, "shards") as out:
        answer = run_side("feeding", request | {"out": str(out)}, timeout_s=900)
    rounds = answer["rounds"]
    shutil.rmtree(dataset)

    costs = [record["null"]["cpu_us"] for record in rounds]
    table = Table(("device", "measured", "one worker, one core", "limit", "met"))
    table.add("none", "copy of a mapped row, us", spread([r["copy_us"] for r in rounds], "{:.1f}"))
    table.add(
        "null", "processor's time, first pass, which verifies hashes, us a picture",
        f"{answer['first']['cpu_us']:.1f}",
    )  # fmt: skip
    table.limit(
        "null", "processor's time, us a picture", spread(costs, "{:.1f}"), f"≤ {MOST_US:g}",
        holds=median(costs) <= MOST_US,
    )  # fmt: skip
    table.add("null", "pictures/s", spread([record["null"]["rate"] for record in rounds]))
    shares = [record["simulated"]["rate"] / SIMULATED_RATE for record in rounds]
    table.limit(
        "5 ms per 64", "share of its rate", spread(shares, "{:.3f}"), f"≥ {SIMULATED_SHARE:g}",
        holds=median(shares) >= SIMULATED_SHARE,
    )  # fmt: skip
    idle = [record["simulated"]["idle"] for record in rounds]
    table.limit(
        "5 ms per 64", "idle", spread(idle, "{:.3f}"), f"≤ {MOST_IDLE:g}",
        holds=median(idle) <= MOST_IDLE,
    )  # fmt: skip
    return table.show(
        f"feeding: {answer['pictures']} rows of {SIZE} px from shards in memory, units of 512"
    )


def _from_files(folder: Path, model: str) -> bool:
    warm_up = make_pictures(folder / "warm", SMALL, 256, seed=10**6)
    source = make_pictures(folder / "files", SMALL, max(scaled(FILES), LEAST), DISTINCT)
    # Decoding is measured before and after each labelling: a shared machine is not steady.
    bare = [_bare_rate(source, model)]
    ours: dict[str, list[Record]] = {layout: [] for layout in LAYOUTS}
    around: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
    for number in range(PAIRS):
        with round_folder(folder, f"files-{number}") as out:
            for layout in LAYOUTS:
                labellings = [
                    {"source": str(path), "predictions": f"{out}/{layout}-{path.name}",
                     "model": model}
                    for path in (warm_up, source)
                ]  # fmt: skip
                request = {"cores": CORES, "labellings": {layout: labellings}}
                answer = run_side("label_null", request, timeout_s=900)
                require_every("afinar", read_ours(out / f"{layout}-{source.name}"), source)
                ours[layout].append(answer[layout])
                bare.append(_bare_rate(source, model))
                around[layout].append(fmean(bare[-2:]))

    table = Table(("processes", "afinar, /s", "bare decoding, /s", "share", f"≥ {FILES_SHARE}"))
    for layout, processes in LAYOUTS.items():
        rates = [run["summary"]["labelled"] / run["units_s"] for run in ours[layout]]
        share = Ratio.of(rates, around[layout])
        table.limit(
            processes, spread(rates), spread(around[layout]), share,
            holds=share.median >= FILES_SHARE,
        )  # fmt: skip
    return table.show(
        f"feeding: {SMALL[0]}×{SMALL[1]} at {SIZE} px, a network that costs nothing, two cores, "
        "files in memory, from the start of the first unit to the end of the last"
    )


def _bare_rate(source: Path, model: str) -> float:
    """Return the pictures per second of two processes that only decode."""
    answer = run_side(
        "label_bare",
        {"model": model, "source": str(source), "pictures": max(scaled(2000), 64),
         "candidates": [], "cores": CORES},
    )  # fmt: skip
    rate: float = sum(1 / seconds for seconds in answer["decode"])
    return rate
