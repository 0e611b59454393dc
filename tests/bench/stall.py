"""Training from shards against the same network on one batch in memory: what is lost by waiting for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.bench.table import PAIRS, Ratio, Table, spread
from tests.bench.training_data import make_dataset
from tests.bench.world import Record, WrongBenchError, in_memory, require_cores, run_side, scaled

SHARE: Final = 0.97
SIZE: Final = (
    64  # pixels and arithmetic both grow with the square, so a small picture loses the same share
)
BATCH: Final = 32
STEPS: Final = 32  # in an epoch; three epochs, of which the first is not timed
Case = tuple[str, int]
CASES: Final[tuple[Case, ...]] = tuple(
    (regime, threads) for regime in ("frozen", "full") for threads in (1, 2)
)


def stall() -> bool:
    """At least 0.97 of the steps per second, frozen through the network and full, one thread and two."""
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
                except WrongBenchError as error:  # of one regime, which says nothing of the other
                    wrong[case] = str(error)
    return _report(pairs, wrong)


def _pair(request: Record) -> tuple[Record, Record]:
    synthetic = run_side("train_steps", request | {"synthetic": True})
    ours = run_side("train_steps", request)
    require_alike([ours], [synthetic])
    return ours, synthetic


def _report(pairs: dict[Case, list[tuple[Record, Record]]], wrong: dict[Case, str]) -> bool:
    table = Table(
        ("regime", "threads", "afinar, steps/s", "in memory, steps/s", "not computing, by its ledger", "share",
         f"≥ {SHARE}")
    )  # fmt: skip
    for case, measured in pairs.items():
        if case in wrong:
            table.limit(*case, wrong[case].strip().splitlines()[-1], "", "", "", holds=False)
            continue
        ours, synthetic = zip(*measured, strict=True)
        share = Ratio.of([one["rate"] for one in ours], [one["rate"] for one in synthetic])
        table.limit(
            *case, spread([one["rate"] for one in ours], "{:.2f}"),
            spread([one["rate"] for one in synthetic], "{:.2f}"), waited(ours), precise(share),
            holds=share.median >= SHARE,
        )  # fmt: skip
    return table.show(
        f"stall: resnet18 at {SIZE} px, batch {BATCH}, one worker, float32, shards in memory"
    )


def steps_request(dataset: Path, models: Path, steps: int) -> Record:
    """What `sides/train_steps` is asked, unless a bench says otherwise: the job's own loop in float32 on the CPU."""
    return {
        "dataset": str(dataset), "models": str(models), "backbone": "resnet18", "regime": "full", "size": SIZE,
        "batch": BATCH, "steps": steps, "epochs": 3, "threads": 1, "device": "cpu", "precision": "float32",
        "synthetic": False,
    }  # fmt: skip


def require_alike(ours: Sequence[Record], others: Sequence[Record]) -> None:
    """Both sides took as many steps, in the same precision and layout, on the same device."""
    for one, other in zip(ours, others, strict=True):
        for what in ("steps", "dtypes", "layouts", "device"):
            if one[what] != other[what]:
                raise WrongBenchError(f"the sides differ in {what}: {one[what]} and {other[what]}")


def waited(runs: Sequence[Record]) -> str:
    """By the job's own ledger, the median and range in percent."""
    shares = [100 * run["waited"] for run in runs if run["waited"] is not None]
    return spread(shares, "{:.1f} %") if shares else "no ledger"


def precise(ratio: Ratio) -> str:
    """Three digits: what is looked for is in the third."""
    return spread(ratio.values, "{:.3f}")
