"""One worker that feeds devices which compute nothing from shards, on one core, without Ray."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from afinar.config.label import LabelConfig
from afinar.labelling.driver import LabelJob
from afinar.labelling.tasks import UNIT_PICTURES, LabelSpec
from afinar.labelling.worker import Labeller, make_labeller
from afinar.storage.open import open_store
from afinar.units.cut import is_up_to_date, iter_units, plan_units
from afinar.units.executor import InlineExecutor
from afinar.units.tasks import UnitTask
from tests.bench.devices import BATCH, NullDevice, SimulatedDevice, with_device

_UNITS: Final = 3  # at a time, as a worker with a GPU has
_PASSES: Final = 3  # over the dataset, each with units of other names


@dataclass(frozen=True)
class Units:
    """The units of a dataset, and what their workers need to know."""

    spec: LabelSpec
    tasks: list[UnitTask]

    @property
    def pictures(self) -> int:
        return sum(len(task.entries) for task in self.tasks)


def plan(dataset: str, out: str, model: str) -> Units:
    """Cut a dataset into units of 512, as most units of a large job are, a few times."""
    job = LabelJob(LabelConfig(source=dataset, predictions=out, model=model), InlineExecutor())
    listing = job.source.listing().listing
    nothing = is_up_to_date(listing, listing.slice(0, 0))
    tasks = []
    for number in range(_PASSES):
        table = plan_units(listing, nothing, f"pass {number}", _sizes)
        tasks += [UnitTask(unit, entries) for unit, entries in iter_units(table, job.source.root)]
    return Units(job.spec(len(listing)), tasks)


def _sizes(pictures: int) -> list[int]:
    whole, rest = divmod(pictures, UNIT_PICTURES)
    return [UNIT_PICTURES] * whole + [rest] * bool(rest)


def run(labeller: Labeller, units: Units) -> dict[str, float]:
    """Run all units, some at a time; return seconds and seconds of the processor per picture."""
    started, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(_UNITS) as pool:
        results = list(pool.map(labeller, units.tasks))
    cpu_s, wall_s = time.process_time() - cpu, time.perf_counter() - started
    assert sum(result.pictures - result.rejects for result in results) == units.pictures
    return {"cpu_us": 1e6 * cpu_s / units.pictures, "rate": units.pictures / wall_s}


def bare_copy_us(labeller: Labeller, units: Units) -> float:
    """Return the processor's time to copy a row of a mapped shard into memory, in microseconds."""
    size_px = labeller.predictor.version.stored_view.size
    buffer = np.zeros((BATCH, size_px, size_px, 3), np.uint8)
    entries = [entry for task in units.tasks for entry in task.entries]
    shard: Callable[[str], Any] = labeller.pictures._shard  # type: ignore[attr-defined]
    rows = [shard(entry.shard or "").picture(entry.row or 0) for entry in entries]
    for _ in range(2):  # the first pass maps the pages
        cpu = time.process_time()
        for number, row in enumerate(rows):
            buffer[number % BATCH] = row
        cpu_s = time.process_time() - cpu
    return 1e6 * cpu_s / len(rows)


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Measure `request["rounds"]` times: bare copies, the null device and the simulated one."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    out = Path(request["out"])
    tempfile.tempdir = str(out)  # of the cache, which then has no notes
    units = plan(request["dataset"], str(out / "plan"), request["model"])
    made = make_labeller(units.spec)
    answers: dict[str, Any] = {"pictures": units.pictures, "rounds": []}
    # The first pass verifies the shards' hashes, which this machine does once.
    time.sleep(2.5)
    answers["first"] = run(_into(made, out / "first", NullDevice), units)
    for number in range(request["rounds"]):
        null = run(_into(made, out / f"null-{number}", NullDevice), units)
        labeller = _into(made, out / f"simulated-{number}", SimulatedDevice)
        simulated = run(labeller, units)
        device = labeller.pipeline.device
        assert isinstance(device, SimulatedDevice)
        answers["rounds"].append(
            {
                "copy_us": bare_copy_us(labeller, units),
                "null": null,
                "simulated": {**simulated, "rate": device.rate, "idle": device.idle},
            }
        )
    return answers


def _into(labeller: Labeller, out: Path, device: Callable[[int], Any]) -> Labeller:
    """Return a labeller that writes to a new folder."""
    out.mkdir()
    return replace(with_device(labeller, device), store=open_store(str(out)))


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
