"""Training from shards against steps on one batch in memory: the cost of waiting for data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.bench.table import PAIRS, Ratio, Table, spread
from tests.bench.training_data import make_dataset
from tests.bench.world import Record, WrongBenchError, in_memory, require_cores, run_side, scaled

SHARE: Final = 0.97
# Pixels and arithmetic both grow with the square of the size: a small one loses the same share.
SIZE: Final = 64
BATCH: Final = 32
STEPS: Final = 32  # in each of three epochs, of which the first is not timed
Case = tuple[str, int]
CASES: Final[tuple[Case, ...]] = tuple(
    (regime, threads) for regime in ("frozen", "full") for threads in (1, 2)
)


def stall() -> bool:
    """Require 0.97 of the steps per second, for two regimes, with one thread and with two."""
    require_cores()
    pairs: dict[Case, list[tuple[Record, Record]]] = {case: [] for case in CASES}
    wrong: dict[Case, str] = {}
    steps = scaled(STEPS)
    with in_memory() as folder:
        dataset = make_dataset(folder, SIZE, steps * BATCH)
        for _ in range(PAIRS):
            for case in CASES:
                regime, threads = case
                request = steps_request(dataset, folder / "models", steps) | {
                    "regime": regime,
                    "threads": threads,
                }
                try:
                    pairs[case].append(_pair(request))
                except WrongBenchError as error:  # the other cases are still measured
                    wrong[case] = str(error)
    return _report(pairs, wrong)


def _pair(request: Record) -> tuple[Record, Record]:
    synthetic = run_side("train_steps", request | {"synthetic": True})
    ours = run_side("train_steps", request)
    require_alike([ours], [synthetic])
    return ours, synthetic


def _report(pairs: dict[Case, list[tuple[Record, Record]]], wrong: dict[Case, str]) -> bool:
    table = Table(
        ("regime", "threads", "afinar, steps/s", "in memory, steps/s",
         "not computing, by its timings", "share", f"≥ {SHARE}")
    )  # fmt: skip
    for case, measured in pairs.items():
        if case in wrong:
            table.limit(*case, wrong[case].strip().splitlines()[-1], "", "", "", holds=False)
            continue
        ours, synthetic = zip(*measured, strict=True)
        share = Ratio.of([run["rate"] for run in ours], [run["rate"] for run in synthetic])
        table.limit(
            *case, spread([run["rate"] for run in ours], "{:.2f}"),
            spread([run["rate"] for run in synthetic], "{:.2f}"), waited(ours), precise(share),
            holds=share.median >= SHARE,
        )  # fmt: skip
    return table.show(
        f"stall: resnet18 at {SIZE} px, batch {BATCH}, one worker, float32, shards in memory"
    )


def steps_request(dataset: Path, models: Path, steps: int) -> Record:
    """Return the default request to `sides/train_steps`: the job in float32 on the CPU."""
    return {
        "dataset": str(dataset), "models": str(models), "backbone": "resnet18", "regime": "full",
        "size": SIZE, "batch": BATCH, "steps": steps, "epochs": 3, "threads": 1, "device": "cpu",
        "precision": "float32", "synthetic": False,
    }  # fmt: skip


def require_alike(ours: Sequence[Record], others: Sequence[Record]) -> None:
    """Raise WrongBenchError if the sides differ in steps, precision, layout or device."""
    for one, other in zip(ours, others, strict=True):
        for what in ("steps", "dtypes", "layouts", "device"):
            if one[what] != other[what]:
                raise WrongBenchError(f"the sides differ in {what}: {one[what]} and {other[what]}")


def waited(runs: Sequence[Record]) -> str:
    """Return median and range of the waiting time in percent, by the timings of the job."""
    shares = [100 * run["waited"] for run in runs if run["waited"] is not None]
    return spread(shares, "{:.1f} %") if shares else "no timings"


def precise(ratio: Ratio) -> str:
    """Return median and range of a ratio with three digits: differences are in the third."""
    return spread(ratio.values, "{:.3f}")
