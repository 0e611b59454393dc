"""`python -m tests.cluster.label_chaos VICTIM SEED SOURCE OUT MODEL AUDIT`: a labelling parts of which are SIGKILLed.

VICTIM is `actor` (two workers, one after the other, on a local Ray of two cores), `raylet` (of one of three nodes) or
`none`. When is a matter of the seed. Each worker appends to a file of its own in AUDIT the units that it begins.
Prints what was labelled, and how many were killed.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

from pipeline.config import LabelConfig
from pipeline.execution.executor import RayExecutor
from pipeline.execution.session import ray_session
from pipeline.labelling.job import Labelling, LabelSummary
from pipeline.work import Care
from tests.cluster.raylets import HEALTH


class Audited(RayExecutor):
    """Ray, whose workers write down the units that they begin."""

    def __init__(self, audit: Path) -> None:
        super().__init__(None)
        self._audit = audit

    def run_with_state(
        self, make_work: Callable[[], Any], tasks: Iterable[Any], care: Care[Any] | None = None
    ) -> Iterator[Any]:
        return super().run_with_state(partial(_audited, make_work, self._audit), tasks, care)


def _audited(make_work: Callable[[], Any], audit: Path) -> Any:
    work = make_work()

    def run(task: Any) -> Any:
        with (audit / str(os.getpid())).open("a") as file:
            file.write(f"{task.unit}\n")
        return work(task)

    return run


def begun(audit: Path) -> list[str]:
    """Every unit that a worker began, as often as one did."""
    return [unit for path in audit.iterdir() for unit in path.read_text().splitlines()]


def busy(audit: Path) -> list[psutil.Process]:
    """Workers that have begun a unit and live."""
    found = []
    for path in audit.iterdir():
        try:
            found.append(psutil.Process(int(path.name)))
        except psutil.NoSuchProcess:
            continue
    return found


class Killer(threading.Thread):
    """Kills `times` victims, each some random moment after work goes on, until it is told to stop."""

    def __init__(self, audit: Path, rng: random.Random, times: int, kill: Callable[[psutil.Process], None]) -> None:
        super().__init__()
        self._audit, self._rng, self._times, self._kill = audit, rng, times, kill
        self.killed = 0
        self.enough = threading.Event()

    def run(self) -> None:
        while self.killed < self._times and not self.enough.is_set():
            seen = len(begun(self._audit))
            while len(begun(self._audit)) == seen and not self.enough.wait(0.01):
                pass
            if self.enough.wait(1.5 * self._rng.random()):
                return
            if workers := busy(self._audit):
                self._kill(self._rng.choice(workers))
                self.killed += 1


def label(source: str, out: str, model: str, audit: Path) -> LabelSummary:
    return Labelling(LabelConfig(source=source, predictions=out, model=model), Audited(audit)).run()


def main(victim: str, seed: str, source: str, out: str, model: str, audit: str) -> None:
    rng, folder = random.Random(int(seed)), Path(audit)
    if victim == "raylet":
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": HEALTH})
        nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
        raylets = {node.all_processes["raylet"][0].process.pid: node for node in nodes}
        ray.init(address=cluster.address, namespace="afinar", logging_level=logging.WARNING)

        def kill_raylet(worker: psutil.Process) -> None:
            (raylet,) = (parent.pid for parent in worker.parents() if parent.pid in raylets)
            raylets[raylet].kill_raylet(check_alive=False)

        killer = Killer(folder, rng, 1, kill_raylet)
    else:
        killer = Killer(folder, rng, 2 if victim == "actor" else 0, lambda worker: worker.send_signal(signal.SIGKILL))
    with ray_session("local", 2):
        killer.start()
        try:
            summary = label(source, out, model, folder)
        finally:
            killer.enough.set()
            killer.join()
        print(json.dumps({"labelled": summary.labelled, "killed": killer.killed}), flush=True)
    if victim == "raylet":
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main(*sys.argv[1:])
