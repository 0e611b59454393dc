"""Our own side: ingests one after the other, inside one Ray that is started and warmed up before."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from typing import Any

import psutil
from afinar.config.ingest import IngestConfig
from afinar.execution.executor import RayExecutor
from afinar.execution.session import ray_session
from afinar.ingest.driver import run_ingest


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Run `request["ingests"]`, each the fields of an IngestConfig; one record for each.

    `request["watched"]` are processes, such as a server's, whose CPU time during each ingest is wanted too.
    """
    watched = request.get("watched", [])
    with ray_session("local", request["cores"]):
        ingest(request["warm_up"], watched)
        return {"ingests": [ingest(fields, watched) for fields in request["ingests"]]}


def ingest(fields: dict[str, Any], watched: list[int]) -> dict[str, Any]:
    """Wall seconds of the job, CPU seconds of our tree and of the watched ones, and the job's own summary."""
    config, executor = IngestConfig(**fields), RayExecutor(None)
    ours, theirs, started = cpu_s([psutil.Process().pid]), cpu_s(watched), time.monotonic()
    summary = run_ingest(config, executor).summary
    return {
        "seconds": time.monotonic() - started,
        "cpu_s": cpu_s([psutil.Process().pid]) - ours,
        "watched_cpu_s": cpu_s(watched) - theirs,
        "summary": vars(summary),
    }


def cpu_s(roots: Iterable[int]) -> float:
    """CPU seconds of process trees so far; Ray's workers outlive a job, so none ends between two readings."""
    total = 0.0
    for root in roots:
        parent = psutil.Process(root)
        for process in (parent, *parent.children(recursive=True)):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
    return total


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
