"""`python -m tests.cluster.label_chaos VICTIM SEED SOURCE OUT MODEL AUDIT`: a labelling parts of which are SIGKILLed.

VICTIM is `actor` (two workers, one after the other, on a local Ray of two cores), `feeder` (two processes that decode
for a worker on the other core), `raylet` (of one of three nodes) or `none`. When is a matter of the seed. Each worker
appends to a file of its own in AUDIT the units that it begins.
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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import ray
from afinar.config.label import LabelConfig
from afinar.execution.executor import RayExecutor
from afinar.execution.session import ray_session
from afinar.labelling.driver import LabelSummary, run_labelling
from afinar.units.executor import RetryPolicy
from ray.cluster_utils import Cluster

from tests.cluster.raylets import HEALTH


class Audited(RayExecutor):
    """Ray, whose workers write down the units that they begin, and whose feeders show that they are at work."""

    def __init__(self, audit: Path, feeders: Path | None) -> None:
        super().__init__(None, workers=1 if feeders else 0, always_preprocess=feeders is not None)
        self._audit, self._feeders = audit, feeders

    def run_with_state(
        self,
        make_work: Callable[[], Any],
        tasks: Iterable[Any],
        care: RetryPolicy[Any] | None = None,
    ) -> Iterator[Any]:
        if self._feeders is not None:
            assert care is not None
            assert care.preprocessing is not None
            prepare = partial(_seen_at_work, care.preprocessing.prepare, self._feeders)
            care = replace(care, preprocessing=replace(care.preprocessing, prepare=prepare))
        return super().run_with_state(partial(_audited, make_work, self._audit), tasks, care)


def _seen_at_work(prepare: Callable[[Any], Any], feeders: Path, block: Any) -> Any:
    mine = feeders / str(os.getpid())
    mine.touch()
    try:
        return prepare(block)
    finally:
        mine.unlink()


def _audited(make_work: Callable[[], Any], audit: Path) -> Any:
    work = make_work()

    def run(task: Any, *blocks: Any) -> Any:
        with (audit / str(os.getpid())).open("a") as file:
            file.write(f"{task.unit}\n")
        return work(task, *blocks)

    return run


def begun(audit: Path) -> list[str]:
    """Every unit that a worker began, as often as one did."""
    return [unit for path in audit.iterdir() for unit in path.read_text().splitlines()]


def alive(folder: Path) -> list[psutil.Process]:
    """Processes that have left a file in a folder, and live."""
    found = []
    for path in folder.iterdir():
        try:
            found.append(psutil.Process(int(path.name)))
        except psutil.NoSuchProcess:
            continue
    return found


class Killer(threading.Thread):
    """Kills `times` victims, each some random moment after work goes on, until it is told to stop."""

    def __init__(
        self,
        audit: Path,
        victims: Path,
        rng: random.Random,
        times: int,
        kill: Callable[[psutil.Process], None],
    ) -> None:
        super().__init__()
        self._audit, self._victims, self._rng, self._times, self._kill = (
            audit,
            victims,
            rng,
            times,
            kill,
        )
        self.killed = 0
        self.enough = threading.Event()

    def run(self) -> None:
        while self.killed < self._times and not self.enough.is_set():
            seen = len(begun(self._audit))
            while len(begun(self._audit)) == seen and not self.enough.wait(0.01):
                pass
            if self.enough.wait(1.5 * self._rng.random()):
                return
            if found := alive(self._victims):
                self._kill(self._rng.choice(found))
                self.killed += 1


def label(source: str, out: str, model: str, audit: Path, feeders: Path | None) -> LabelSummary:
    return run_labelling(
        LabelConfig(source=source, predictions=out, model=model, precision="float32"),
        Audited(audit, feeders),
    ).summary


def main(victim: str, seed: str, source: str, out: str, model: str, audit: str) -> None:
    rng, folder = random.Random(int(seed)), Path(audit)
    feeders = folder.parent / "feeders" if victim == "feeder" else None
    if feeders is not None:
        feeders.mkdir()
    if victim == "raylet":
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": HEALTH}
        )
        nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
        raylets = {node.all_processes["raylet"][0].process.pid: node for node in nodes}
        ray.init(address=cluster.address, namespace="afinar", logging_level=logging.WARNING)

        def kill_raylet(worker: psutil.Process) -> None:
            (raylet,) = (parent.pid for parent in worker.parents() if parent.pid in raylets)
            raylets[raylet].kill_raylet(check_alive=False)

        killer = Killer(folder, folder, rng, 1, kill_raylet)
    else:
        times = 0 if victim == "none" else 2
        killer = Killer(
            folder, feeders or folder, rng, times, lambda one: one.send_signal(signal.SIGKILL)
        )
    with ray_session("local", 2):
        killer.start()
        try:
            summary = label(source, out, model, folder, feeders)
        finally:
            killer.enough.set()
            killer.join()
        print(json.dumps({"labelled": summary.labelled, "killed": killer.killed}), flush=True)
    if victim == "raylet":
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main(*sys.argv[1:])
