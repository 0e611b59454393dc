"""Two workers of `afinar train` against one, and Ray Train against torchrun."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from statistics import median
from typing import Final

from tests.bench.stall import precise
from tests.bench.table import PAIRS, Ratio, Table, spread
from tests.bench.training_data import make_dataset
from tests.bench.world import (
    OURS,
    Record,
    WrongBenchError,
    finish_side,
    in_memory,
    require_cores,
    run_side,
    scaled,
    start_command,
)

FASTER: Final = 1.8
OVERHEAD: Final = 1.03
APART: Final = 1e-4  # of the validation loss: both average equal gradients in the same order
SIZE: Final = 224  # the default of the network
BATCH: Final = 32  # per worker, so that two take half the steps, with twice the samples
TRAIN: Final = 256
EPOCHS: Final = 3
FLAGS: Final = {
    "backbone": "resnet18", "weights": "none", "regime": "full", "input-size": SIZE,
    "epochs": EPOCHS, "precision": "float32", "cores-per-worker": 1, "seed": 7,
}  # fmt: skip
_OURS: Final = ("one", "two")
_TORCHRUN: Final = ("torchrun one", "torchrun two")
ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def scaling() -> bool:
    """Require 1.8 times the rate with two workers, and Ray Train at most 3 % behind torchrun."""
    require_cores()
    train = max(scaled(TRAIN), 2 * BATCH)
    runs: dict[str, list[Record]] = {
        name: [] for name in (*_OURS, *_TORCHRUN, "bare one", "bare two")
    }
    with in_memory() as folder:
        dataset = make_dataset(folder, SIZE, train)
        for number in range(PAIRS):
            models = folder / f"models-{number}"
            for workers, (ours, theirs) in enumerate(zip(_OURS, _TORCHRUN, strict=True), start=1):
                runs[theirs].append(_torchrun(dataset, models / theirs.replace(" ", "-"), workers))
                runs[ours].append(_afinar(dataset, models / ours, workers))
            runs["bare one"].append(_bare(train, processes=1))
            runs["bare two"].append(_bare(train, processes=2))
    scales = _report_scaling(runs, train)
    _report_overhead(runs["one"], runs["torchrun one"], workers=1)
    return _report_overhead(runs["two"], runs["torchrun two"], workers=2) and scales


def _afinar(dataset: Path, models: Path, workers: int) -> Record:
    """Run the command and return the times of its run."""
    flags = FLAGS | {"batch-size": BATCH * workers}
    arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    command = [
        str(OURS),
        "-m",
        "afinar",
        "train",
        str(dataset),
        str(models),
        "--workers",
        str(workers),
        "--json",
        *arguments,
    ]
    started = time.monotonic()
    summary = finish_side(start_command(command, ONE_THREAD), timeout_s=600)
    return _history(summary["run"]) | {"whole_s": time.monotonic() - started}


def _torchrun(dataset: Path, models: Path, workers: int) -> Record:
    """Run the same job with torchrun and return the times of its run."""
    request = {
        "dataset": str(dataset), "models": str(models), "workers": workers, "run": "torchrun",
        "flags": FLAGS | {"batch-size": BATCH * workers},
    }  # fmt: skip
    command = [
        str(OURS), "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", str(workers),
        "-m", "tests.bench.sides.torchrun_train", json.dumps(request),
    ]  # fmt: skip
    started = time.monotonic()
    answer = finish_side(start_command(command, ONE_THREAD), timeout_s=600)
    if answer["threads"] != 1:
        raise WrongBenchError(f"torchrun's workers had {answer['threads']} threads each")
    return _history(answer["run"]) | {"whole_s": time.monotonic() - started}


def _history(run: str) -> Record:
    """Return the median seconds of an epoch and of its steps, and the last validation loss.

    The first epoch, which warms up, is left out.
    """
    rows = [
        json.loads(line)
        for line in Path(run, "history.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    if len(rows) != EPOCHS:
        raise WrongBenchError(f"{run} has {len(rows)} epochs of {EPOCHS}")
    return {
        "epoch_s": median(row["seconds"] for row in rows[1:]),
        "steps_s": median(row["ledger"]["seconds"] for row in rows[1:]),
        "loss": rows[-1]["val"]["loss"],
    }


def _bare(train: int, processes: int) -> Record:
    request = {
        "backbone": "resnet18", "regime": "full", "size": SIZE, "batch": BATCH,
        "steps": train // BATCH, "device": "cpu", "precision": "float32", "processes": processes,
    }  # fmt: skip
    return run_side("independent_steps", request)


def _report_scaling(runs: dict[str, list[Record]], train: int) -> bool:
    table = Table(("what", "one, pictures/s", "two, pictures/s", "ratio", "limit", "met"))
    one, two = ([train / run["steps_s"] for run in runs[name]] for name in ("one", "two"))
    bare_one, bare_two = ([run["rate"] for run in runs[name]] for name in ("bare one", "bare two"))
    ours, bound = Ratio.of(two, one), Ratio.of(bare_two, bare_one)
    table.limit(
        "`afinar train --workers`", spread(one, "{:.1f}"), spread(two, "{:.1f}"), ours,
        f"≥ {FASTER}", holds=ours.median >= FASTER,
    )  # fmt: skip
    first, second = ([train / run["steps_s"] for run in runs[name]] for name in _TORCHRUN)
    table.add(
        "torchrun", spread(first, "{:.1f}"), spread(second, "{:.1f}"), Ratio.of(second, first)
    )
    table.add(
        "bound: processes that share nothing",
        spread(bare_one, "{:.1f}"),
        spread(bare_two, "{:.1f}"),
        bound,
    )
    table.add("ratio of afinar : ratio of the bound", "", "", Ratio.of(ours.values, bound.values))
    table.add(f"the two processors are {siblings()}")
    return table.show(
        f"scaling: resnet18 at {SIZE} px, full, float32, batch {BATCH} and one thread per worker, "
        f"{train} pictures"
    )


def siblings(system: Path = Path("/sys/devices/system/cpu")) -> str:
    """Return in words whether the first two processors are threads of one core.

    Two threads of one core are not twice as fast as one.
    """
    first, second = sorted(os.sched_getaffinity(0))[:2]
    try:
        cores = [
            (system / f"cpu{processor}/topology/thread_siblings_list").read_text()
            for processor in (first, second)
        ]
    except OSError:
        return "threads or cores: unknown"
    return "two threads of one core" if cores[0] == cores[1] else "two cores, as the system reports"


def _report_overhead(ray: list[Record], torchrun: list[Record], workers: int) -> bool:
    """Compare Ray Train with torchrun; the limit is for two workers.

    With one worker the processes of Ray have the second core, as on a larger machine.
    """
    for one, other in zip(ray, torchrun, strict=True):
        if not abs(one["loss"] - other["loss"]) <= APART * abs(other["loss"]):
            raise WrongBenchError(
                f"validation losses differ: {one['loss']} under Ray Train, {other['loss']} under "
                "torchrun"
            )
    ratio = Ratio.of([run["epoch_s"] for run in ray], [run["epoch_s"] for run in torchrun])
    table = Table(("what", "Ray Train", "torchrun", "ratio", "limit", "met"))
    table.limit(
        "an epoch, s", spread([run["epoch_s"] for run in ray], "{:.2f}"),
        spread([run["epoch_s"] for run in torchrun], "{:.2f}"), precise(ratio), f"≤ {OVERHEAD}",
        holds=ratio.median <= OVERHEAD,
    )  # fmt: skip
    table.add(
        f"the whole command, {EPOCHS} epochs, s",
        spread([run["whole_s"] for run in ray], "{:.1f}"),
        spread([run["whole_s"] for run in torchrun], "{:.1f}"),
    )  # fmt: skip
    return table.show(
        f"scaling: workers {workers}, the same job, Ray Train against torchrun with gloo"
    )
