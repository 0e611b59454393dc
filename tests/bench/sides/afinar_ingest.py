"""The side of afinar: ingests one after the other, each in a Ray of its own like a command."""

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
from afinar.ingestion.driver import run_ingest


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Run `request["ingests"]`, each the fields of an IngestConfig, and return their records.

    `request["watched"]` are processes, such as a server, whose CPU time is measured too. The start
    of Ray is not timed. An ingest runs in the processes that Ray starts with: a second one in the
    same Ray would wait for new processes, which no job of a user does.
    """
    watched = request.get("watched", [])
    records = []
    for fields in (request["warm_up"], *request["ingests"]):
        with ray_session("local", request["cores"]):
            records.append(ingest(fields, watched))
    return {"ingests": records[1:]}


def ingest(fields: dict[str, Any], watched: list[int]) -> dict[str, Any]:
    """Return wall seconds, CPU seconds of this tree and the watched ones, and the summary."""
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
    """Return the CPU seconds of process trees so far.

    Ray's workers outlive a job, so that none ends between two readings.
    """
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
