"""Time until labelling has its first result, and time in which its workers label nothing.

*Start*: from the command to the marker of the first committed unit, minus the time that starting
Ray alone takes just before. The archive is large. Its first units are small, but the first part is
there only when a worker has labelled a whole unit, so that a slow network needs most of this time.

*Overhead*: the share of the job's wall time in which its workers, taken together, label nothing: 1
- busy / (workers x wall). `busy` is measured in the workers, from the start of each unit to its
commit. `wall` is the time of the whole job inside a Ray that already runs: listing, planning,
starting the workers (they import torch, load the model and replay the golden samples), the time
between units, waiting for the last one, publishing.
"""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Final

from tests.bench.labelling_models import make_model
from tests.bench.labelling_outputs import read_ours, require_every
from tests.bench.pictures import SMALL, make_pictures
from tests.bench.table import PAIRS, Table, spread
from tests.bench.world import (
    CORES,
    OURS,
    Record,
    WrongBenchError,
    in_memory,
    require_cores,
    round_folder,
    run_side,
    scaled,
    start_command,
)

START_S: Final = 8.0
OVERHEAD: Final = 0.05
SIZE: Final = 224
COUNT: Final = 20_000
STARTS: Final = {"mobilenet_v3_small": PAIRS, "resnet18": 1}
_LONGEST_S: Final = 120.0
_EVERY_S: Final = 0.01


def label_start() -> bool:
    """Require a start of 8 s beyond that of Ray, and 5 % overhead on 20,000 pictures."""
    require_cores()
    with in_memory() as folder:
        source = make_pictures(folder / "pictures", SMALL, scaled(COUNT), distinct=scaled(1000))
        warm = make_pictures(folder / "warm", SMALL, 64, seed=10**6)
        models = {name: make_model(folder / name, name, SIZE) for name in STARTS}
        starts: dict[str, list[tuple[float, float]]] = {name: [] for name in STARTS}
        for name, rounds in STARTS.items():
            for number in range(rounds):
                with round_folder(folder, f"start-{name}-{number}") as out:
                    ray_s = float(run_side("label_ray_start", {"cores": CORES})["seconds"])
                    starts[name].append(
                        (ray_s, _first_part_s(source, out / "predictions", models[name]))
                    )
        records = {}
        for name, model in models.items():
            with round_folder(folder, f"overhead-{name}") as out:
                records[name] = _whole(source, warm, out, model)
    early = _report_starts(starts)
    return _report_overhead(records) and early


def _first_part_s(source: Path, predictions: Path, model: str) -> float:
    """Return the seconds from the command to the first marker, and stop the job as Ctrl-C does."""
    job = ["label", str(source), str(predictions), "--model", model, "--workers", str(CORES)]
    started = time.monotonic()
    process = start_command([str(OURS), "-m", "afinar", *job])
    try:
        while not any((predictions / "units").glob("*.json")):
            if process.poll() is not None or time.monotonic() - started > _LONGEST_S:
                raise WrongBenchError(
                    f"no part after {time.monotonic() - started:.0f} s, exit code {process.poll()}"
                )
            time.sleep(_EVERY_S)
        taken_s = time.monotonic() - started
    finally:
        _stop(process)
    if not any(predictions.glob("parts/*/part-*.parquet")):
        raise WrongBenchError("a unit was committed that wrote no part")
    return taken_s


def _stop(process: subprocess.Popen[str]) -> None:
    """Stop the job and the Ray that it started: the next measurement needs the cores."""
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    time.sleep(1)  # Ray's processes end after their driver


def _whole(source: Path, warm: Path, out: Path, model: str) -> Record:
    first, job = (
        {"source": str(folder), "predictions": str(out / folder.name), "model": model}
        for folder in (warm, source)
    )
    answer = run_side(
        "label_afinar", {"cores": CORES, "warm_up": first, "labellings": [job]}, timeout_s=900
    )
    require_every("afinar", read_ours(out / source.name), source)
    record: Record = answer["labellings"][0]
    if record["workers"] != CORES:
        raise WrongBenchError(f"{record['workers']} of {CORES} workers labelled")
    return record


def _report_starts(starts: dict[str, list[tuple[float, float]]]) -> bool:
    table = Table(
        (
            "network",
            "Ray alone, s",
            "command to first part, s",
            "beyond Ray's start, s",
            "limit",
            "met",
        )
    )
    for name, pairs in starts.items():
        beyond = [first - ray for ray, first in pairs]
        table.limit(
            name, spread([ray for ray, _ in pairs], "{:.1f}"),
            spread([first for _, first in pairs], "{:.1f}"), spread(beyond, "{:.1f}"),
            f"≤ {START_S:g}", holds=sorted(beyond)[len(beyond) // 2] <= START_S,
        )  # fmt: skip
    return table.show(
        f"label_start: `afinar label` with {CORES} workers, {scaled(COUNT):,} pictures at {SIZE} px"
    )


def overhead(record: Record) -> dict[str, float]:
    """Return the shares of the wall time in which the workers labelled nothing, by phase."""
    seconds, busy = record["seconds"], record["busy_s"] / record["workers"]
    return {
        "in all": 1 - busy / seconds,
        "before the first unit": record["before_s"] / seconds,
        "between the first unit's start and the last one's end": (record["units_s"] - busy)
        / seconds,
        "after the last unit": record["after_s"] / seconds,
    }


def _report_overhead(records: dict[str, Record]) -> bool:
    shares = {name: overhead(record) for name, record in records.items()}
    table = Table(
        (
            "network",
            "s",
            "pictures/s",
            *(f"{phase}, %" for phase in shares[next(iter(shares))]),
            "limit",
            "met",
        )
    )
    for name, record in records.items():
        in_all = shares[name]["in all"]
        table.limit(
            name, f"{record['seconds']:.0f}",
            f"{record['summary']['labelled'] / record['seconds']:.0f}",
            *(f"{100 * share:.1f}" for share in shares[name].values()),
            f"≤ {100 * OVERHEAD:g} in all", holds=in_all <= OVERHEAD,
        )  # fmt: skip
    return table.show(f"label_start: overhead on {scaled(COUNT):,} pictures at {SIZE} px")
