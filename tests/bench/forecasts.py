"""`plan` against the jobs that it estimates, from a few pictures to some thousand."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.bench.labelling_models import make_model
from tests.bench.pictures import SMALL, make_pictures
from tests.bench.table import Table
from tests.bench.world import OURS, WrongBenchError, in_memory, require_cores, scaled

COUNTS = (40, 200, 450, 2500)  # the last with Ray, the others without
OFF = 0.30
_BACKBONES = {"mobilenet_v3_small": 224, "resnet18": 224}
_TIMEOUT_S = 900.0


def forecasts() -> bool:
    """Require the estimate of a job to be within 30 % of its time."""
    require_cores()
    table = Table(("job", "pictures", "estimate, s", "taken, s", "difference", "met"))
    with in_memory() as folder:
        models = {
            backbone: make_model(folder / backbone, backbone, size)
            for backbone, size in _BACKBONES.items()
        }
        for count in map(scaled, COUNTS):
            source = make_pictures(folder / f"source-{count}", SMALL, count, distinct=400)
            _compare(table, "ingest", count, [str(source), str(folder / f"dataset-{count}")])
            for backbone, model in models.items():
                out = str(folder / f"out-{backbone}-{count}")
                _compare(table, "label", count, [str(source), out, "--model", model], backbone)
    return table.show(f"forecasts: JPEGs of {SMALL[0]}×{SMALL[1]} in memory, estimate and job")


def _compare(table: Table, job: str, count: int, arguments: list[str], network: str = "") -> None:
    estimate = _run("plan", job, *arguments)[1]["seconds"]
    taken, summary = _run(job, *arguments)
    if summary["listed"] != count:
        raise WrongBenchError(f"{job} listed {summary['listed']} of {count} pictures")
    off = estimate / taken - 1
    name = f"{job}, {network}" if network else job
    table.limit(
        name, f"{count:,}", f"{estimate:.1f}", f"{taken:.1f}", f"{off:+.0%}", holds=abs(off) <= OFF
    )


def _run(*arguments: str) -> tuple[float, dict[str, Any]]:
    """Run a command; return its seconds and its summary."""
    started = time.monotonic()
    command = [str(Path(OURS).parent / "afinar"), *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode:
        raise WrongBenchError(f"{arguments[:2]}: {done.stderr[-500:]}")
    return time.monotonic() - started, json.loads(done.stdout)
